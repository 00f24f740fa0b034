"""Functions that are made from text when they are needed."""

from __future__ import annotations

import linecache
from typing import Any


def exec_source(text: str, file: str, scope: dict[str, Any]) -> None:
    """Runs the text of a file that exists in linecache alone, so that tracebacks,
    inspect.getsource() and fastact.convert see what its functions were made of."""
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    exec(compile(text, file, "exec", dont_inherit=True), scope)
