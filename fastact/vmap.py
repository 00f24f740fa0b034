"""What only Python can register of an operator: its rules under torch.func.vmap.

Without a rule functorch would call the operator once for every element of the batch, and warn.
(The C++ headers for batching rules include a JSON header that no PyTorch wheel ships.)

Most operators compute the same with a batch in front of their tensors, so that one rule serves
them. Where the batch has weights of its own, a composition of PyTorch's functions computes. What
has no rule here is called for one element of the batch after the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from fastact.activations import REGISTRY
from fastact.layers import LAYERS, RECURRENT_LAYERS, Layer
from fastact.overrides import TWINS

ops = torch.ops.fastact

# Of functorch's facts, the batch dimension of each argument, and the arguments as they were given:
# the results, and their batch dimensions.
_Rule = Callable[..., tuple[Any, Any]]


def _named(operator: Any, given: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments by name; functorch leaves out those at their defaults."""
    arguments = operator.default._schema.arguments
    defaults = [argument.default_value for argument in arguments[len(given) :]]
    return dict(zip([a.name for a in arguments], [*given, *defaults], strict=True))


@overload
def _to_front(tensor: Tensor, dim: int | None, batch_size: int) -> Tensor: ...
@overload
def _to_front(tensor: None, dim: int | None, batch_size: int) -> None: ...
def _to_front(tensor: Tensor | None, dim: int | None, batch_size: int) -> Tensor | None:
    """The batch dimension first; one is expanded where there is none."""
    if tensor is None:
        return None
    if dim is None:
        return tensor.expand(batch_size, *tensor.shape)
    return tensor.movedim(dim, 0)


def _with_dims(x: Tensor, dims: int) -> Tensor:
    """x with at least as many dimensions, new ones between the batch and its own."""
    return x.reshape(x.shape[0], *[1] * (dims - x.dim()), *x.shape[1:])


def _shifted(dim: int, ndim: int) -> int:
    """A sample's dimension, counted from the end, so that a batch dimension in front is skipped."""
    if not -max(ndim, 1) <= dim < max(ndim, 1):
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-max(ndim, 1)}, "
            f"{max(ndim, 1) - 1}], but got {dim})"
        )
    return dim - ndim if dim >= 0 and ndim else dim


# ---- operators that take a batch -----------------------------------------------------------------


def _batched(operator: Any, takes_scalars: bool = True) -> _Rule:
    """The rule of an operator that computes elementwise, or along ``dim``."""

    def rule(info: Any, in_dims: Any, *given: Any) -> Any:
        named = _named(operator, given)
        tensors = {
            name: _to_front(value, dim, info.batch_size)
            for (name, value), dim in zip(named.items(), in_dims, strict=False)
            if isinstance(value, Tensor)
        }

        def call(**changed: Any) -> Tensor:
            return operator(*(named | changed).values())

        if "dim" not in named:
            return call(**tensors), 0
        samples = tensors[next(iter(named))].dim() - 1  # how many dimensions they have
        if "mask" in tensors:
            tensors["mask"] = _mask_like(tensors["self"], tensors["mask"])
        if samples > 0:
            return call(**tensors, dim=_shifted(named["dim"], samples)), 0
        if not takes_scalars:  # the operator says so
            return call(**{name: tensor.new_empty(()) for name, tensor in tensors.items()}), 0
        columns = {name: tensor.unsqueeze(1) for name, tensor in tensors.items()}
        return call(**columns, dim=1).squeeze(1), 0

    return rule


def _mask_like(x: Tensor, mask: Tensor) -> Tensor:
    """A batch of masks as a view that broadcasts against x."""
    if mask.dim() > x.dim():
        raise RuntimeError(
            "fastact.masked_softmax(): mask: expected a shape that broadcasts to input's, "
            f"{list(x.shape[1:])}, got {list(mask.shape[1:])}"
        )
    return _with_dims(mask, x.dim())


# ---- PReLU -------------------------------------------------------------------------------------


def _weight_like(x: Tensor, weight: Tensor) -> Tensor:
    """A batch of PReLU weights, [B] or [B, C], as a view that broadcasts against [B, N, C, ...]."""
    shape = [1] * x.dim()
    shape[0] = weight.shape[0]
    if weight.dim() == 2 and x.dim() > 2:
        shape[2] = weight.shape[1]
    elif weight.dim() == 2 and x.dim() == 2:
        shape[1] = weight.shape[1]
    return weight.reshape(shape)


def _prelu(info: Any, in_dims: Any, self: Tensor, weight: Tensor) -> Any:
    x = _to_front(self, in_dims[0], info.batch_size)
    if in_dims[1] is None and weight.numel() == 1:
        return ops.prelu(x, weight), 0
    if in_dims[1] is None and x.dim() > 2:
        return ops.prelu(x.flatten(0, 1), weight).unflatten(0, x.shape[:2]), 0
    w = _weight_like(x, _to_front(weight, in_dims[1], info.batch_size))
    return torch.where(x > 0, x, w * x), 0


def _prelu_backward(info: Any, in_dims: Any, grad: Tensor, self: Tensor, weight: Tensor) -> Any:
    g, x, weights = (
        _to_front(t, dim, info.batch_size)
        for t, dim in zip((grad, self, weight), in_dims, strict=True)
    )
    w = _weight_like(x, weights)
    dweight = torch.where(x > 0, 0.0, g * x).sum_to_size(w.shape).reshape(weights.shape)
    return (torch.where(x > 0, g, w * g), dweight), (0, 0)


# ---- fused layers ------------------------------------------------------------------------------


def _geometry(named: Mapping[str, Any]) -> list[Any]:
    """The arguments that say what a layer computes with its weight and bias: those after them."""
    names = list(named)
    between = names[names.index("bias") + 1 : names.index("activation")]
    return [named[name] for name in between if name != "slope"]


def _product(row: Layer, info: Any, named: dict[str, Any], dims: dict[str, Any]) -> Tensor:
    """The layer without what follows it, the batch dimension in front."""
    x = _to_front(named["input"], dims["input"], info.batch_size)
    geometry = _geometry(named)
    if dims["weight"] is None and dims["bias"] is None:
        weight, bias = named["weight"], named["bias"]
        leading = x.dim() - max(weight.dim() - 1, 1)  # dimensions before those of one example
        if leading > 1:
            z = row.operator(x.flatten(0, leading - 1), weight, bias, *geometry)
            return z.unflatten(0, x.shape[:leading])
        return row.operator(x, weight, bias, *geometry)
    weight, bias = (
        _to_front(named[name], dims[name], info.batch_size) for name in ("weight", "bias")
    )
    return row.batched(x, weight, bias, *geometry)


def _activated(info: Any, z: Tensor, named: dict[str, Any], slope_dim: int | None) -> Tensor:
    """z after the activation, batch dimensions in front."""
    if named["activation"] is None:
        return z
    row = REGISTRY[named["activation"]]
    if not named.get("save_output", True) and row.family == "unary":
        # What PyTorch's keeps is no output that may not be written to.
        return row.reference(z, *row.values(named["params"]))
    arguments = row.arguments(named["params"], named["slope"])
    return _RULES[row.name](info, (0, slope_dim), z, *arguments)[0]


def _forward(row: Layer, operator: Any) -> _Rule:
    def rule(info: Any, in_dims: Any, *given: Any) -> Any:
        named = _named(operator, given)
        dims = dict(zip(named, [*in_dims, *[None] * (len(named) - len(in_dims))], strict=True))
        z = _product(row, info, named, dims)
        if named.get("residual") is not None:
            residual = _to_front(named["residual"], dims["residual"], info.batch_size)
            z = _with_dims(z, residual.dim()) + _with_dims(residual, z.dim())
        output = _activated(info, z, named, dims["slope"])
        return ((output, z), (0, 0)) if len(operator.default._schema.returns) > 1 else (output, 0)

    return rule


def _backward(row: Layer, operator: Any) -> _Rule:
    def rule(info: Any, in_dims: Any, *given: Any) -> Any:
        named = _named(operator, given)
        dims = dict(zip(named, in_dims, strict=False))
        dz, dslope = _before_activation(info, named, dims)
        input, weight = (
            _to_front(named[name], dims[name], info.batch_size) for name in ("input", "weight")
        )
        geometry = _geometry(named)
        makers: list[Callable[[], Any]] = [
            functools.partial(make, dz, input, weight, *geometry) for make in row.gradients
        ]
        makers += [lambda: dslope, lambda: dz]
        none = dz.new_empty(info.batch_size, 0)
        found = [
            make() if wanted else none for make, wanted in zip(makers, named["mask"], strict=True)
        ]
        return tuple(found), (0,) * len(found)

    return rule


def _before_activation(info: Any, named: dict[str, Any], dims: dict[str, Any]) -> tuple[Any, Any]:
    """The gradients of the value before the activation, and of the slope."""
    grad, saved = (_to_front(named[n], dims[n], info.batch_size) for n in ("grad", "saved"))
    if named["activation"] is None:
        return grad, None
    row = REGISTRY[named["activation"]]
    saved_is_output = named["save_output"] or row.family != "unary"
    if not saved_is_output and ops.saves_output(row.name, named["params"]):
        saved = _activated(info, saved, named, None)
    arguments = row.arguments(named["params"], named["slope"])
    rule = _RULES[row.name + "_backward"]
    found, _ = rule(info, (0, 0, dims["slope"]), grad, saved, *arguments)
    return found if row.takes_slope else (found, None)


# ---- recurrent layers --------------------------------------------------------------------------


def _recurrent(operator: Any) -> _Rule:
    """More sequences for the same layer, where its weights are the same."""
    names = [argument.name for argument in operator.default._schema.arguments]
    states = names.index("weights")  # input and states come before them

    def rule(info: Any, in_dims: Any, *given: Any) -> Any:
        dims = [*in_dims, *[None] * (len(given) - len(in_dims))]
        if any(dim is not None for dim in dims[states] or ()):
            return _in_turn(operator, info, in_dims, *given)
        count = info.batch_size

        def folded(arg: Tensor | None, dim: int | None, batch_dim: int) -> Tensor | None:
            front = _to_front(arg, dim, count)
            if front is None:
                return None
            return front.movedim(0, batch_dim).flatten(batch_dim, batch_dim + 1)

        args = [folded(arg, dim, 1) for arg, dim in zip(given[:states], dims, strict=False)]
        rest = list(given[states:])
        # lengths [B] and dropout_noise [layers - 1, T, B, width], where they are given
        for at, batch_dim in ((1, 0), (2, 2)):
            if len(rest) > at:
                rest[at] = folded(rest[at], dims[states + at], batch_dim)
        results = operator(*args, *rest)
        return tuple(t.unflatten(1, (count, -1)) for t in results), (1,) * len(results)

    return rule


# ---- any operator ------------------------------------------------------------------------------


def _in_turn(operator: Any, info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    """The operator called once for each element of the batch, its results stacked."""

    def one(arg: Any, dim: Any, index: int) -> Any:
        if isinstance(arg, (list, tuple)):
            dims = dim if isinstance(dim, (list, tuple)) else [None] * len(arg)
            return [one(a, d, index) for a, d in zip(arg, dims, strict=True)]
        return arg if dim is None else arg.select(dim, index)

    def stacked(results: Any) -> Any:
        if isinstance(results[0], Tensor):
            return torch.stack(results)
        return type(results[0])(stacked(list(each)) for each in zip(*results, strict=True))

    dims = [*in_dims, *[None] * (len(args) - len(in_dims))]
    results = [
        operator(*[one(arg, dim, index) for arg, dim in zip(args, dims, strict=True)])
        for index in range(info.batch_size)
    ]
    made = stacked(results)
    return made, tuple([0] * len(each) if isinstance(each, list) else 0 for each in made)


# ---- registration ------------------------------------------------------------------------------


def _rules() -> dict[str, _Rule]:
    """By the names of the operators."""
    found: dict[str, _Rule] = {"prelu": _prelu, "prelu_backward": _prelu_backward}
    names = ["masked_softmax", "masked_softmax_backward"]
    for row in REGISTRY.values():
        in_place = [row.name + "_"] if row.family == "unary" else []
        names += [row.name, row.name + "_backward", *in_place]
    for name in names:
        known = REGISTRY.get(name.removesuffix("_backward"))
        takes_scalars = known is None or not known.halves_dimension
        found.setdefault(name, _batched(getattr(ops, name), takes_scalars))
    for layer in {layer.name: layer for layer in LAYERS.values()}.values():
        for kind in ("", "_training", "_packed"):
            found[layer.name + kind] = _forward(layer, getattr(ops, layer.name + kind))
        found[layer.name + "_backward"] = _backward(layer, getattr(ops, layer.name + "_backward"))
    for recurrent in RECURRENT_LAYERS:
        found[recurrent.name] = _recurrent(recurrent.operator())
        # In training the reserve, which only the kernel can read, must be one for each element:
        # their gradients of the weights are.
        for kind in ("_training", "_backward"):
            found[recurrent.name + kind] = functools.partial(_in_turn, recurrent.operator(kind))
    for name in TWINS:
        found.setdefault(name, functools.partial(_in_turn, getattr(ops, name)))
    return found


_RULES = _rules()
for _name, _rule in _RULES.items():
    torch.library.register_vmap(f"fastact::{_name}", _rule)
