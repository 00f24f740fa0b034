"""What only Python can register of an operator: its rules under torch.func.vmap.

Without a rule functorch would call the operator once for every element of the batch, and warn.
(The C++ headers for batching rules include a JSON header that no PyTorch wheel ships.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastact.activations import GATED_UNITS, REGISTRY, Activation

ops = torch.ops.fastact


def _to_front(tensor: Tensor | None, dim: int | None, batch_size: int) -> Tensor | None:
    """The batch dimension first; one is expanded where there is none."""
    if tensor is None:
        return None
    if dim is None:
        return tensor.expand(batch_size, *tensor.shape)
    return tensor.movedim(dim, 0)


def _shifted(dim: int, ndim: int) -> int:
    """A sample's dimension, counted from the end, so that a batch dimension in front is skipped."""
    if not -max(ndim, 1) <= dim < max(ndim, 1):
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-max(ndim, 1)}, "
            f"{max(ndim, 1) - 1}], but got {dim})"
        )
    return dim - ndim if dim >= 0 and ndim else dim


def _register_unary(row: Activation) -> None:
    forward = getattr(ops, row.name)
    inplace = getattr(ops, row.name + "_")
    backward = getattr(ops, row.name + "_backward")

    @torch.library.register_vmap(f"fastact::{row.name}")
    def _(info: Any, in_dims: Any, self: Tensor, *parameters: float) -> Any:
        return forward(self, *parameters), in_dims[0]

    @torch.library.register_vmap(f"fastact::{row.name}_")
    def _(info: Any, in_dims: Any, self: Tensor, *parameters: float) -> Any:
        return inplace(self, *parameters), in_dims[0]

    @torch.library.register_vmap(f"fastact::{row.name}_backward")
    def _(info: Any, in_dims: Any, grad: Tensor, saved: Tensor, *parameters: float) -> Any:
        grad = _to_front(grad, in_dims[0], info.batch_size)
        saved = _to_front(saved, in_dims[1], info.batch_size)
        return backward(grad, saved, *parameters), 0


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


def _register_gated(name: str) -> None:
    forward = getattr(ops, name)
    backward = getattr(ops, name + "_backward")

    @torch.library.register_vmap(f"fastact::{name}")
    def _(info: Any, in_dims: Any, self: Tensor, dim: int = -1) -> Any:
        x = self.movedim(in_dims[0], 0)
        if x.dim() == 1:  # samples without a dimension, which the operator refuses
            return forward(x.new_empty(()), dim), 0
        return forward(x, _shifted(dim, x.dim() - 1)), 0

    @torch.library.register_vmap(f"fastact::{name}_backward")
    def _(info: Any, in_dims: Any, grad: Tensor, self: Tensor, dim: int) -> Any:
        g = _to_front(grad, in_dims[0], info.batch_size)
        x = _to_front(self, in_dims[1], info.batch_size)
        return backward(g, x, _shifted(dim, x.dim() - 1)), 0


def _register_softmax(name: str) -> None:
    forward = getattr(ops, name)
    backward = getattr(ops, name + "_backward")

    @torch.library.register_vmap(f"fastact::{name}")
    def _(info: Any, in_dims: Any, self: Tensor, dim: int = -1, *scale: float) -> Any:
        x = self.movedim(in_dims[0], 0)
        if x.dim() == 1:  # samples of one element each
            x = x.unsqueeze(1)
            return forward(x, 1, *scale).squeeze(1), 0
        return forward(x, _shifted(dim, x.dim() - 1), *scale), 0

    @torch.library.register_vmap(f"fastact::{name}_backward")
    def _(info: Any, in_dims: Any, grad: Tensor, output: Tensor, dim: int, *scale: float) -> Any:
        g = _to_front(grad, in_dims[0], info.batch_size)
        y = _to_front(output, in_dims[1], info.batch_size)
        if y.dim() == 1:
            return backward(g.unsqueeze(1), y.unsqueeze(1), 1, *scale).squeeze(1), 0
        return backward(g, y, _shifted(dim, y.dim() - 1), *scale), 0


def _masked_softmax(
    info: Any,
    in_dims: Any,
    self: Tensor,
    mask: Tensor | None = None,
    dim: int = -1,
    scale: float = 1.0,
    is_causal: bool = False,
) -> Any:
    x = _to_front(self, in_dims[0], info.batch_size)
    if len(in_dims) > 1 and in_dims[1] is not None:
        mask = mask.movedim(in_dims[1], 0)
        if mask.dim() > x.dim():
            raise RuntimeError(
                "fastact.masked_softmax(): mask: expected a shape that broadcasts to input's, "
                f"{list(x.shape[1:])}, got {list(mask.shape[1:])}"
            )
        mask = _with_dims(mask, x.dim())
    if x.dim() == 1:  # samples of one element each
        x = x.unsqueeze(1)
        mask = None if mask is None else mask.unsqueeze(-1)
        return ops.masked_softmax(x, mask, 1, scale, is_causal).squeeze(1), 0
    return ops.masked_softmax(x, mask, _shifted(dim, x.dim() - 1), scale, is_causal), 0


def _masked_softmax_backward(
    info: Any,
    in_dims: Any,
    grad: Tensor,
    output: Tensor,
    mask: Tensor | None,
    dim: int,
    scale: float,
    is_causal: bool,
) -> Any:
    g = _to_front(grad, in_dims[0], info.batch_size)
    y = _to_front(output, in_dims[1], info.batch_size)
    if mask is not None and in_dims[2] is not None:
        mask = _with_dims(mask.movedim(in_dims[2], 0), y.dim())
    if y.dim() == 1:  # samples of one element each
        mask = None if mask is None else mask.unsqueeze(-1)
        dx = ops.masked_softmax_backward(g.unsqueeze(1), y.unsqueeze(1), mask, 1, scale, is_causal)
        return dx.squeeze(1), 0
    dim = _shifted(dim, y.dim() - 1)
    return ops.masked_softmax_backward(g, y, mask, dim, scale, is_causal), 0


def _linear(
    info: Any,
    in_dims: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    params: Any = (),
    slope: Tensor | None = None,
    residual: Tensor | None = None,
    save_output: bool = True,
) -> Any:
    dims = [*in_dims, *[None] * (8 - len(in_dims))]
    batch = info.batch_size
    x = _to_front(input, dims[0], batch)
    if dims[1] is None and dims[2] is None:
        z = ops.linear(x, weight, bias)
    else:
        # [B, rows, K] @ [B, K, N]
        w = _to_front(weight, dims[1], batch)
        b = _to_front(bias, dims[2], batch)
        columns = w.unsqueeze(1) if w.dim() == 2 else w
        rows = x.reshape(batch, -1, x.shape[-1])
        z = torch.bmm(rows, columns.transpose(1, 2))
        if b is not None:
            z = z + b.reshape(batch, 1, -1)
        z = z.reshape(*x.shape[:-1], *w.shape[1:-1])
    if residual is not None:
        r = _to_front(residual, dims[6], batch)
        z = _with_dims(z, r.dim()) + _with_dims(r, z.dim())
    return _activate(info, z, activation, params, slope, dims[5], save_output), 0


def _with_dims(x: Tensor, dims: int) -> Tensor:
    """x with at least as many dimensions, new ones between the batch and its own."""
    return x.reshape(x.shape[0], *[1] * (dims - x.dim()), *x.shape[1:])


def _activate(
    info: Any,
    z: Tensor,
    activation: str | None,
    params: Any,
    slope: Any,
    slope_dim: Any,
    save_output: bool = True,
) -> Tensor:
    """The activation of a fused operator, z's batch dimension in front."""
    if activation is None:
        return z
    if activation == "prelu":
        return _prelu(info, (0, slope_dim), z, slope)[0]
    if activation in ("softmax", "log_softmax"):
        dim, *scale = (*params,) or (-1,)
        return getattr(ops, activation)(z, _shifted(int(dim), z.dim() - 1), *scale)
    if not save_output:
        row = REGISTRY[activation]
        return row.reference(z, **dict(zip(row.parameters, params, strict=False)))
    return getattr(ops, activation)(z, *params)


def _linear_training(info: Any, in_dims: Any, *args: Any) -> Any:
    input, weight, bias, activation, params, slope = args
    z, _ = _linear(info, in_dims[:3], input, weight, bias)
    return (_activate(info, z, activation, params, slope, in_dims[5]), z), (0, 0)


def _linear_backward(info: Any, in_dims: Any, *args: Any) -> Any:
    tensors = [
        _to_front(t, dim, info.batch_size) for t, dim in zip(args[:6], in_dims, strict=False)
    ]
    grad, saved, input, weight, _, slope = tensors
    activation, params, mask, *save_output = args[6:]
    if save_output == [False] and activation and ops.saves_output(activation, params):
        saved = _activate(info, saved, activation, params, None, None)
    dslope = None
    if activation is None:
        dz = grad
    elif activation == "prelu":
        (dz, dslope), _ = _prelu_backward(info, (0, 0, 0), grad, saved, slope)
    elif activation in ("softmax", "log_softmax"):
        dim, *scale = (*params,) or (-1,)
        scale = (scale or [1.0]) if activation == "softmax" else []
        backward = getattr(ops, activation + "_backward")
        dz = backward(grad, saved, _shifted(int(dim), saved.dim() - 1), *scale)
    else:
        dz = getattr(ops, activation + "_backward")(grad, saved, *params)
    rows = dz.reshape(info.batch_size, -1, dz.shape[-1])
    none = grad.new_empty(info.batch_size, 0)
    return (
        torch.bmm(rows, weight).reshape(*dz.shape[:-1], -1) if mask[0] else none,
        torch.bmm(rows.transpose(1, 2), input.reshape(info.batch_size, -1, input.shape[-1]))
        if mask[1]
        else none,
        rows.sum(1) if mask[2] else none,
        dslope if mask[3] else none,
        dz if mask[4] else none,
    ), (0,) * 5


def _linear_packed(info: Any, in_dims: Any, input: Tensor, packed: Tensor, *args: Any) -> Any:
    return _linear(info, (in_dims[0], *in_dims[2:]), input, *args)


# ---- recurrent layers --------------------------------------------------------------------------

# Of each operator: how many states follow the input.
_STATES = {"rnn": 1, "gru": 1, "lstm": 2}


def _in_turn(info: Any, in_dims: Any, operator: Any, args: Any) -> Any:
    """The operator called once for each element of the batch, its results stacked. What has weights
    of its own is a layer of its own, and no product holds two of them."""

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


def _register_recurrent(name: str) -> None:
    forward = getattr(ops, name)
    states = _STATES[name]

    @torch.library.register_vmap(f"fastact::{name}")
    def _(info: Any, in_dims: Any, *args: Any) -> Any:
        """More sequences for the same layer, where its weights are the same."""
        weights = 1 + states
        dims = [*in_dims, *[None] * (len(args) - len(in_dims))]
        if any(dim is not None for dim in dims[weights] or ()):
            return _in_turn(info, in_dims, forward, args)
        count = info.batch_size

        def folded(arg: Tensor | None, dim: int | None, batch_dim: int) -> Tensor | None:
            front = _to_front(arg, dim, count)
            return (
                front
                if front is None
                else front.movedim(0, batch_dim).flatten(batch_dim, batch_dim + 1)
            )

        given = [folded(arg, dim, 1) for arg, dim in zip(args[:weights], dims, strict=False)]
        rest = list(args[weights:])
        # lengths [B] and dropout_noise [layers - 1, T, B, width], where they are given
        for at, batch_dim in ((1, 0), (2, 2)):
            if len(rest) > at:
                rest[at] = folded(rest[at], dims[weights + at], batch_dim)
        results = forward(*given, *rest)
        return tuple(t.unflatten(1, (count, -1)) for t in results), (1,) * len(results)

    # In training the reserve, which only the kernel can read, must be one for each element: their
    # gradients of the weights are.
    for derived in ("training", "backward"):
        operator = getattr(ops, f"{name}_{derived}")
        torch.library.register_vmap(
            f"fastact::{name}_{derived}",
            lambda info, in_dims, *args, operator=operator: _in_turn(info, in_dims, operator, args),
        )


torch.library.register_vmap("fastact::prelu", _prelu)
torch.library.register_vmap("fastact::prelu_backward", _prelu_backward)
torch.library.register_vmap("fastact::linear", _linear)
torch.library.register_vmap("fastact::linear_training", _linear_training)
torch.library.register_vmap("fastact::linear_backward", _linear_backward)
torch.library.register_vmap("fastact::linear_packed", _linear_packed)
torch.library.register_vmap("fastact::masked_softmax", _masked_softmax)
torch.library.register_vmap("fastact::masked_softmax_backward", _masked_softmax_backward)
_register_softmax("softmax")
_register_softmax("log_softmax")
for _name in GATED_UNITS:
    _register_gated(_name)
for _name in _STATES:
    _register_recurrent(_name)
for _row in REGISTRY.values():
    if _row.family == "unary":
        _register_unary(_row)
