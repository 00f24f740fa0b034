"""What TorchDynamo must be told: that it may trace fastact.nn's RNN, GRU and LSTM.

It refuses torch.nn's and whatever is derived from them, since tracing those would unroll every
step, unless ``torch._dynamo.config.allow_rnn`` says otherwise, for all alike. fastact's are one
operator in the graph.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

_BUILDER = "torch._dynamo.variables.builder"


def allow(*kinds: type) -> None:
    """Lets Dynamo trace modules of exactly these classes, now or once somebody imports it: it takes
    longer than the rest of torch, so fastact does not."""
    if _BUILDER in sys.modules:
        _teach(sys.modules[_BUILDER], kinds)
    else:
        sys.meta_path.insert(0, _WhenImported(kinds))


def _teach(builder: ModuleType, kinds: tuple[type, ...]) -> None:
    """PyTorch 2.13 and 2.14 have both names; one that has not refuses ours as it does its own."""
    wrap = getattr(getattr(builder, "VariableBuilder", None), "wrap_module", None)
    if wrap is None or not hasattr(getattr(builder, "config", None), "allow_rnn"):
        return

    @functools.wraps(wrap)
    def wrap_module(self: Any, value: Any) -> Any:
        if type(value) not in kinds:
            return wrap(self, value)
        with builder.config.patch(allow_rnn=True):
            return wrap(self, value)

    builder.VariableBuilder.wrap_module = wrap_module


class _WhenImported(importlib.abc.MetaPathFinder):
    """Teaches the module as soon as it is there, and leaves."""

    def __init__(self, kinds: tuple[type, ...]) -> None:
        self.kinds = kinds

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != _BUILDER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _teach(module, self.kinds)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
