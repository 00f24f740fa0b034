"""What conversion recognises in a graph: activations, as calls."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from fastact import functional, nn
from fastact.activations import REGISTRY, resolve

# torch.nn's activation modules and fastact's.
TWINS = {getattr(torch.nn, name): getattr(nn, name) for name in nn.activations.__all__}

# ---- activations as calls in a graph -----------------------------------------------------------


@functools.cache
def _calls() -> dict[Any, tuple[str, tuple[str, ...]]]:
    """What a node may call (a function, or the name of a method of Tensor): the activation's name
    and the names of the arguments after the input."""
    found: dict[Any, tuple[str, tuple[str, ...]]] = {}
    for name, row in REGISTRY.items():
        found[row.operator] = found[row.operator.default] = (
            name,
            ("weight",) if row.family == "prelu" else tuple(row.parameters),
        )
        twin = getattr(functional, name, None)
        if twin is None:
            continue
        arguments = tuple(inspect.signature(twin).parameters)[1:]
        # torch.softmax and Tensor.softmax have no _stacklevel between dim and dtype.
        shorter = tuple(argument for argument in arguments if argument != "_stacklevel")
        for spelling in (name, name + "_"):
            if hasattr(F, spelling):
                found[getattr(F, spelling)] = (name, arguments)
            if hasattr(torch, spelling):
                found[getattr(torch, spelling)] = (name, shorter)
            if hasattr(Tensor, spelling):
                found[spelling] = (name, shorter)
    return found


def epilogue_of(node: torch.fx.Node) -> tuple[str, tuple[float, ...], torch.fx.Node | None] | None:
    """The activation, its parameters and its slope, if the node calls an activation with literal
    parameters."""
    if node.op not in ("call_function", "call_method") or node.target not in _calls():
        return None
    name, known = _calls()[node.target]
    positional = node.args[1:] if node.args else ()
    given = dict(zip(known, positional, strict=False))
    given |= {key: value for key, value in node.kwargs.items() if key != "input"}
    if len(positional) > len(known) or not given.keys() <= set(known):
        return None
    given.pop("inplace", None)  # of a value that nobody else reads
    given.pop("_stacklevel", None)
    if given.pop("dtype", None) is not None:
        return None
    if name == "prelu":
        slope = given.get("weight")
        # Read where the pair is called, so it must be an attribute rather than a result.
        attribute = isinstance(slope, torch.fx.Node) and slope.op == "get_attr"
        return (name, (), slope) if attribute else None
    if name in ("softmax", "log_softmax") and given.get("dim") is None:
        return None
    if given.get("approximate") not in (None, "none", "tanh"):
        return None
    numbers = {key: value for key, value in given.items() if key != "approximate"}
    if not all(isinstance(value, (int, float)) for value in numbers.values()):
        return None
    return *resolve("convert", name, given), None
