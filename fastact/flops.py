"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the operators that hold products.

As for PyTorch's own: two for each multiplication and addition of the product, none for what follows
it. (Importing that module takes 2 ms.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

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


_FORMULAS = {
    ops.linear: _linear,
    ops.linear_training: _linear,
    ops.linear_packed: _linear_packed,
    ops.linear_backward: _linear_backward,
}
for _operator, _formula in _FORMULAS.items():
    if _operator not in flop_registry:  # it is where the module is imported anew
        register_flop_formula(_operator)(_formula)
