"""Which module is being called, for those who watch operators: explain and advise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

Hook = Callable[..., None]


class ModuleStack:
    """The modules whose calls have not ended, the innermost last, in the thread that made it.

    By hooks of every module rather than of a model's, which stays as it is. ``found`` is told of
    each module that is called.
    """

    def __init__(self, found: Callable[[torch.nn.Module], None]) -> None:
        self._found = found
        self._modules: list[torch.nn.Module] = []

    @property
    def innermost(self) -> torch.nn.Module | None:
        return self._modules[-1] if self._modules else None

    @contextmanager
    def following(self, marked: Callable[[Hook], Hook] = lambda hook: hook) -> Iterator[None]:
        """Inside, calls are followed. ``marked`` is applied to the hooks."""
        thread = threading.get_ident()

        def enter(module: torch.nn.Module, args: Any) -> None:
            if thread == threading.get_ident():
                self._found(module)
                self._modules.append(module)

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            if thread == threading.get_ident() and self._modules:
                self._modules.pop()

        hooks = [
            register_module_forward_pre_hook(marked(enter)),
            register_module_forward_hook(marked(leave), always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
