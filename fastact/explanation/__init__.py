"""Which engine runs each operation of a model, and why: explain.

``watching`` notes what a run calls, ``reasons`` says why it ran where it did, ``report`` is what
comes of it.
"""

from fastact.explanation.report import Report, Row, SiteCall
from fastact.explanation.watching import explain

__all__ = ["Report", "Row", "SiteCall", "explain"]
