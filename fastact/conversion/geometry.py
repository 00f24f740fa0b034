"""What the operator of a convolution is told besides weight and bias, as its module has it.

csrc/bindings/site/geometry.cpp says the same of the common cases.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from fastact.convolution import same_padding
from fastact.layers import Layer


def geometry_of(row: Layer, layer: torch.nn.Module) -> tuple[Any, ...] | None:
    """What row's operator takes between bias and activation; None where the module does more than
    that operator: another padding than by zeros, or than the same on both sides."""
    if not row.geometry:
        return ()
    own, dims = layer.__dict__, row.dims
    values: list[Any] = [own.get(name) for name in row.geometry]
    stride, padding, dilation, groups = values
    if type(groups) is not int or own.get("padding_mode") != "zeros":
        return None
    if not _are_numbers(stride, dims) or not _are_numbers(dilation, dims):
        return None
    if padding == "valid":
        padding = (0,) * dims
    elif padding == "same":
        weight = layer._parameters.get("weight")
        if stride != (1,) * dims or weight is None or weight.dim() != dims + 2:
            return None
        sides, more = same_padding(weight.shape[2:], dilation)
        if any(more):
            return None
        padding = tuple(sides)
    return (stride, padding, dilation, groups) if _are_numbers(padding, dims) else None


def _are_numbers(values: Any, dims: int) -> bool:
    return (
        type(values) is tuple
        and len(values) == dims
        and all([type(value) is int for value in values])  # noqa: C419
    )


def lies_as_pytorchs(value: Tensor, weight: Tensor) -> bool:
    """Whether the operator's result lies as PyTorch's convolution of this value lies."""
    if weight.dim() == 4:
        return True
    return weight.is_contiguous() and (weight.dim() == 3 or value.is_contiguous())


def is_channels_last(value: Tensor, weight: Tensor) -> bool:
    """Whether the convolution of images, or their batches, lies so."""
    return weight.dim() == 4 and torch.channels_last in map(suggest_memory_format, (value, weight))


def fits_result(other: Tensor, value: Tensor, weight: Tensor, geometry: tuple[Any, ...]) -> bool:
    """Whether ``other`` has that result's shape and lies as it does, so that neither shape nor
    strides of a sum depend on which is added to which."""
    stride, padding, dilation, _ = geometry
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            value.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True
        )
    ]
    if other.shape != (value.shape[0], weight.shape[0], *sizes):
        return False
    if weight.dim() == 3:
        return other.is_contiguous()
    last = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d
    is_last = is_channels_last(value, weight)
    return (
        other.is_contiguous() is not is_last and other.is_contiguous(memory_format=last) is is_last
    )
