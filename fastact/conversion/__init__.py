"""Conversion of whole models: call sites in the source, where a layer and what follows it are one
operator; and recurrent layers, which are one within.

``links`` is the table of what a site knows; ``source`` writes sites into functions; ``site`` is
what one does when it is called; ``packing`` keeps what inference makes of weights; ``recurrent`` is
the forward of recurrent layers; ``shadow`` makes the classes; ``convert`` is for users.
"""

from fastact.conversion.convert import convert, is_compiled, revert

__all__ = ["convert", "is_compiled", "revert"]
