"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the operators that hold products.

As for PyTorch's own: two for each multiplication and addition of the product, none for what follows
it. (Importing that module takes 2 ms.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from fastact.layers import RECURRENT_LAYERS

ops = torch.ops.fastact
# The counter hands shapes in the place of tensors.
_Shape = Sequence[int]


def _linear(input: _Shape, weight: _Shape, *rest: Any, **keywords: Any) -> int:
    return 2 * math.prod(input[:-1]) * math.prod(weight)


def _linear_packed(
    input: _Shape, packed: _Shape, weight: _Shape, *rest: Any, **keywords: Any
) -> int:
    return _linear(input, weight)


def _linear_backward(
    grad: _Shape,
    saved: _Shape | None,
    input: _Shape | None,
    weight: _Shape | None,
    bias: _Shape | None,
    slope: _Shape | None,
    activation: str | None,
    params: Sequence[float],
    mask: Sequence[bool],
    *rest: Any,
    **keywords: Any,
) -> int:
    # The gradient of input is a product with the weight, that of the weight one with the input.
    columns = weight[-1] if weight is not None else input[-1] if input is not None else 0
    return 2 * math.prod(grad) * columns * (mask[0] + mask[1])


# ---- convolution -------------------------------------------------------------------------------


def _conv(input: _Shape, weight: _Shape, *rest: Any, out_shape: Any, **keywords: Any) -> int:
    output = out_shape if isinstance(out_shape[0], int) else out_shape[0]
    return 2 * math.prod(output) * math.prod(weight[1:])


def _conv_packed(input: _Shape, packed: _Shape, weight: _Shape, *rest: Any, **keywords: Any) -> int:
    return _conv(input, weight, **keywords)


def _conv_backward(
    grad: _Shape,
    saved: _Shape | None,
    input: _Shape,
    weight: _Shape,
    bias: _Shape | None,
    slope: _Shape | None,
    stride: _Shape,
    padding: _Shape,
    dilation: _Shape,
    groups: int,
    activation: str | None,
    params: Sequence[float],
    mask: Sequence[bool],
    *rest: Any,
    **keywords: Any,
) -> int:
    return 2 * math.prod(grad) * math.prod(weight[1:]) * (mask[0] + mask[1])


# ---- recurrent layers --------------------------------------------------------------------------


def _matrices(weights: Sequence[_Shape]) -> list[int]:
    """The sizes of w_ih, w_hh and w_hr of each layer and direction: each multiplies every step of
    every sequence once, be there lengths or not."""
    return [math.prod(weight) for weight in weights if len(weight) == 2]


def _recurrent(input: _Shape, *rest: Any, **keywords: Any) -> int:
    weights = next(arg for arg in rest if isinstance(arg, (list, tuple)) and _is_list(arg))
    return 2 * input[0] * input[1] * sum(_matrices(weights))


def _is_list(arg: Sequence[Any]) -> bool:
    """Whether these are the shapes of the weights, and not one shape."""
    return len(arg) > 0 and not isinstance(arg[0], int)


def _recurrent_backward(states: int) -> Any:
    """Of an operator with so many states: h, or h and c."""

    def formula(*args: Any, **keywords: Any) -> int:
        input, hx = args[1 + states], args[2 + states]
        weights, mask = args[2 + 2 * states], args[-1]
        count, each = hx[0], len(_matrices(weights)) // hx[0]
        directions = 2 if args[7 + 2 * states] else 1
        wanted = [w for w, m in zip(weights, mask[1 + states :], strict=True) if m]
        total = input[0] * sum(_matrices(wanted))
        for at, matrix in enumerate(_matrices(weights)):
            layer_direction, kind = divmod(at, each)
            steps = input[0]
            if kind == 0 and layer_direction < directions and not mask[0]:
                steps = 0  # nobody asks for the gradient of input
            if kind == 1 and not any(mask[1 : 1 + states]):
                steps -= 1  # nor, at the first step, for that of the states before it
            total += steps * matrix
        return 2 * input[1] * total if count else 0

    return formula


_FORMULAS: dict[Any, Callable[..., int]] = {
    ops.conv: _conv,
    ops.conv_training: _conv,
    ops.conv_packed: _conv_packed,
    ops.conv_backward: _conv_backward,
    ops.linear: _linear,
    ops.linear_training: _linear,
    ops.linear_packed: _linear_packed,
    ops.linear_backward: _linear_backward,
}
for _layer in RECURRENT_LAYERS:
    _FORMULAS[_layer.operator()] = _FORMULAS[_layer.operator("_training")] = _recurrent
    _FORMULAS[_layer.operator("_backward")] = _recurrent_backward(_layer.states)
for _operator, _formula in _FORMULAS.items():
    if _operator not in flop_registry:  # it is where the module is imported anew
        register_flop_formula(_operator)(_formula)
