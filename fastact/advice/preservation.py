"""Leaves a model, its inputs and the random state as they were before a run.

What cannot be undone is what a model does outside itself: files, prints, globals of its own. And
what is written to a parameter without a call of PyTorch (through NumPy) stays written.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_CONTAINERS = (dict, list, set, deque)


class Preservation:
    """Remembers modules and tensors; ``restore`` brings them back.

    Buffers are copied at once: batch norm writes them in every training step. Parameters and inputs
    are copied when something is about to write to them, so that a large model needs no second copy.
    """

    def __init__(self, modules: Iterable[torch.nn.Module], inputs: Iterable[Tensor]) -> None:
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._contents: dict[int, tuple[Any, Any]] = {}
        self._saved: list[tuple[Tensor, Tensor]] = []
        self._unsaved: dict[int, list[Tensor]] = {}  # by storage
        self._leaves: list[tuple[Tensor, bool, Tensor | None]] = []
        self._data: dict[int, tuple[Tensor, Tensor]] = {}  # whose .data was set, and what it was
        self._random = _random_state()
        parameters: dict[int, Tensor] = {}
        buffers: dict[int, Tensor] = {}
        for module in modules:
            attributes = vars(module)
            self._attributes.append((attributes, dict(attributes)))
            for value in attributes.values():
                if isinstance(value, _CONTAINERS):
                    self._contents[id(value)] = value, value.copy()
            parameters |= {id(p): p for p in module._parameters.values() if p is not None}
            buffers |= {id(b): b for b in module._buffers.values() if b is not None}
        for tensor in buffers.values():
            self._save(tensor)
        for tensor in (*parameters.values(), *inputs):
            if id(tensor) not in buffers:
                self._unsaved.setdefault(storage_of(tensor), []).append(tensor)
        self._leaves = [
            (tensor, tensor.requires_grad, tensor.grad)
            for tensor in {**parameters, **buffers, **{id(t): t for t in inputs}}.values()
            if tensor.is_leaf
        ]
        for tensor, _, _ in self._leaves:
            tensor.grad = None  # what a backward pass adds to is not the caller's

    def before_writing(self, tensors: Iterable[Tensor]) -> None:
        """Copies what shares memory with these tensors, unless that was done."""
        for tensor in tensors if self._unsaved else ():
            for original in self._unsaved.pop(storage_of(tensor), ()):
                self._save(original)

    def before_setting_data(self, tensor: Tensor) -> None:
        """Keeps what ``tensor.data = ...`` replaces."""
        self._data.setdefault(id(tensor), (tensor, tensor.data))

    def _save(self, tensor: Tensor) -> None:
        if tensor.is_meta or tensor.layout is not torch.strided:
            return
        self._saved.append((tensor, tensor.detach().clone()))

    def restore(self) -> None:
        """Undoes what changed."""
        for attributes, before in self._attributes:
            _refill(attributes, before)
        for container, before in self._contents.values():
            _refill(container, before)
        for tensor, data in self._data.values():
            tensor.data = data
        for tensor, copy in self._saved:
            # Through .data, so that a graph of the caller's that saved the tensor stays usable.
            with torch.inference_mode(tensor.is_inference()):
                (tensor if tensor.is_inference() else tensor.data).copy_(copy)
        for tensor, requires_grad, gradient in self._leaves:
            tensor.requires_grad = requires_grad
            tensor.grad = gradient
        _set_random_state(self._random)


def _refill(container: Any, before: Any) -> None:
    # Not compared: == would ask tensors.
    container.clear()
    if isinstance(container, (list, deque)):
        container.extend(before)
    else:
        container.update(before)


def storage_of(tensor: Tensor) -> int:
    """The same for tensors that share memory."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse, or another class's
        return id(tensor)


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        state["numpy"] = sys.modules["numpy"].random.get_state()
    return state


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    random.setstate(state["python"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state:
        sys.modules["numpy"].random.set_state(state["numpy"])


@contextmanager
def eager() -> Iterator[None]:
    """What torch.compile compiled runs as it was written."""
    if "torch._dynamo" not in sys.modules:  # then nothing was compiled
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings(
            "ignore", message="Using `torch.compile\\(module\\)` when there are"
        )
        yield
