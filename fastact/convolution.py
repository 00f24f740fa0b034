"""What functions and modules of convolution share: paddings by name, the call of the operator, and
which algorithms may compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from fastact import _C
from fastact.activations import FUSIBLE
from fastact.overrides import traced

WINOGRAD_SETTINGS = ("off", "safe", "fast")


def set_winograd(setting: str) -> None:
    """Says by which of Winograd's algorithms 3x3 convolutions of stride 1 may be computed.

    Args:
        setting: "off": by none. "safe": by F(2x2, 3x3) and F(4x4, 3x3), whichever is faster for the
            shape, where the error stays within twice that of PyTorch's own convolution + 1e-6 of
            the result (root mean square); the default. "fast": by whichever is faster: F(4x4, 3x3)
            in float64, too.

    It is one setting of the process, for functions, modules and models converted without one of
    their own (``convert(model, winograd=...)``). docs/conv.md has the errors.

    Raises:
        ValueError: another setting.

    Example:
        >>> import fastact
        >>> fastact.set_winograd("safe")
    """
    from fastact.conversion import packing  # which needs the layers, and they this module

    torch.ops.fastact.set_winograd(setting)
    packing.forget_all()


def check_dimension(op: str, activation: Any, params: Mapping[str, Any]) -> None:
    """Raises where an activation runs along a dimension and nobody says which: the last one of
    images is none of channels."""
    row = FUSIBLE.get(activation) if isinstance(activation, str) else None
    if row is not None and row.along_dimension and "dim" not in params:
        raise TypeError(
            f"fastact.{op}(): dim: expected the dimension that {activation!r} runs along, got none"
        )


def same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[list[int], list[int]]:
    """What padding="same" means, by dimension: the zeros on both sides, and the one more at the end
    that an even kernel may need."""
    totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    return [total // 2 for total in totals], [total % 2 for total in totals]


def _each(value: Any, dims: int) -> tuple[Any, ...]:
    """Of a stride or dilation, one number for each dimension."""
    each = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return each * dims if len(each) == 1 else each


def _named_padding(
    op: str, name: str, input: Tensor, weight: Tensor, stride: Any, dilation: Any
) -> tuple[Tensor, Any]:
    """The input and the numbers that a padding by its name means. As PyTorch's, what is uneven is
    padded ahead at the end."""
    if name == "valid":
        return input, 0
    if name != "same":
        raise RuntimeError(f"fastact.{op}(): padding: expected 'valid' or 'same', got {name!r}")
    dims = weight.dim() - 2
    if any(step != 1 for step in _each(stride, dims)):
        raise RuntimeError(
            f"fastact.{op}(): padding: expected numbers where stride is not 1, got 'same'"
        )
    padding, more = same_padding(weight.shape[2:], _each(dilation, dims))
    if any(more):
        input = F.pad(input, [side for one in reversed(more) for side in (0, one)])
    return input, tuple(padding)


def convolve(
    op: str,
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: str | None,
    parameters: tuple[Any, ...],
    slope: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """activation(convolution + residual), for the public function ``op`` of images of ``dims``
    dimensions."""
    if isinstance(weight, Tensor) and weight.dim() != dims + 2:
        raise RuntimeError(
            f"fastact.{op}(): weight: expected {dims + 2} dimensions, got shape "
            f"{list(weight.shape)}"
        )
    if isinstance(padding, str):
        input, padding = _named_padding(op, padding, input, weight, stride, dilation)
    operands = input, weight, bias, stride, padding, dilation, groups
    if is_dynamo_compiling():
        return traced("conv", *operands, activation, parameters, slope, residual)
    return _C.conv(*operands, activation, parameters, slope, residual)
