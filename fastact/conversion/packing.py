"""What inference makes of weights: packed as the kernel reads them, with a batch norm folded in.

It lies beside the modules, which keep their own weights, and is used only while the tensors that it
was made of are what they were: the same objects at the same version, address, shape and strides. (A
version alone is not enough: ``module.double()`` keeps it.) Writes through ``.data`` or a NumPy view
leave no trace, and are not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fastact import _C
from fastact.layers import Layer


class _Kept(NamedTuple):
    facts: tuple[Any, ...]
    made: Any
    # So that the memory is not given to other tensors, at the same address.
    aliases: tuple[Tensor | None, ...]


# By the ids of the tensors it was made of; dropped with the first of them.
_kept: dict[Any, _Kept] = {}


def _facts(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return id(tensor), tensor._version, tensor.data_ptr(), tensor.shape, tensor.stride()


def _remembered(key: Any, make: Callable[[], Any], *tensors: Tensor | None) -> Any:
    """make(), once for these tensors as they are."""
    if any(t is not None and t.is_inference() for t in tensors):
        return make()  # they have no version
    facts = tuple([_facts(t) for t in tensors])
    entry = _kept.get(key)
    if entry is None or entry.facts != facts:
        if entry is None:
            weakref.finalize(tensors[0], _forget, key, id(tensors[0])).atexit = False
        with torch._C._DisableTorchDispatch():  # it is no operation of the model
            made = make()
        aliases = tuple(t if t is None else t.detach() for t in tensors)
        entry = _kept[key] = _Kept(facts, made, aliases)
    return entry.made


def _forget(key: Any, address: int) -> None:
    _kept.pop(key, None)
    _C.forget_packed(address)  # what csrc/bindings/site/ keeps of it


def forget_all() -> None:
    """They are made anew: what decides how is another by now."""
    _kept.clear()
    _C.forget_packed()


def packed(row: Layer, weight: Tensor, geometry: tuple[Any, ...] = ()) -> Tensor:
    """The weight as row's kernel reads it."""
    key = (id(weight), geometry) if geometry else id(weight)
    return _remembered(key, lambda: row.pack(weight.detach(), *geometry), weight)


def folded(
    row: Layer,
    weight: Tensor,
    bias: Tensor | None,
    norm: Any,
    geometry: tuple[Any, ...] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """The weight and the bias of a layer with the norm after it, in evaluation; and that weight
    packed."""
    parameters, buffers = norm._parameters, norm._buffers
    tensors: tuple[Any, ...] = (
        weight,
        bias,
        buffers["running_mean"],
        buffers["running_var"],
        parameters["weight"],
        parameters["bias"],
    )

    def make() -> tuple[Tensor, Tensor, Tensor]:
        own: list[Any] = [None if t is None else t.detach() for t in tensors]
        w, b, mean, var, gamma, beta = own
        b = torch.zeros_like(mean) if b is None else b
        gamma = torch.ones_like(mean) if gamma is None else gamma
        beta = torch.zeros_like(mean) if beta is None else beta
        with torch.no_grad():
            # Of matrices it is what fuse_linear_bn_weights makes.
            w, b = fuse_conv_bn_weights(w, b, mean, var, norm.eps, gamma, beta)
        w, b = w.detach(), b.detach()
        return w, b, row.pack(w, *geometry)

    return _remembered((id(weight), id(norm), norm.eps, *geometry), make, *tensors)
