"""Convolutions with an activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastact.convolution import check_dimension, convolve
from fastact.nn.epilogue import FusedActivation, epilogue_of

_DOC = """activation(convolution + bias), fused.

    Args:
        in_channels ... padding_mode, device, dtype: as ``torch.nn.Conv{dims}d``.
        activation: a registry name, a ``torch.nn`` or ``fastact.nn`` activation class or instance
            (or one derived from it), or None. "softmax" and "log_softmax" need ``dim=``.
        params: the activation's parameters by PyTorch's names. "prelu" takes ``num_parameters`` and
            ``init``.

    A class, an instance and "prelu" become the submodule ``activation``, as in
    :class:`fastact.nn.Linear`.

    Shape: as ``torch.nn.Conv{dims}d``.

    Raises:
        ValueError: an unknown activation, one that cannot be fused, or what torch.nn refuses.
        TypeError: a parameter that the activation does not take, or not of its type.

    Example:
        >>> import torch, fastact
        >>> layer = fastact.nn.Conv{dims}d(3, 16, 3, padding="same", activation="silu")
        >>> layer(torch.randn(2, 3, {image})).shape
        torch.Size([2, 16, {image}])
    """


class _FusedConv(torch.nn.modules.conv._ConvNd):
    """What the three have in common, in front of torch.nn's class: it builds the layer and checks
    its options."""

    _dims: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | type[torch.nn.Module] | torch.nn.Module | None = None,
        **params: Any,
    ) -> None:
        build: Callable[..., None] = super().__init__
        build(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        op = f"nn.Conv{self._dims}d"
        check_dimension(op, activation, params)
        self.fused = FusedActivation(op, activation, params, device=device, dtype=dtype)
        if self.fused.module is not None:
            self.activation = self.fused.module
            self.fused.module = None

    # torch.nn's forward calls it with the layer's parameters.
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        fused = self.fused
        name, parameters = fused.name, fused.parameters
        slope = rest = None
        if fused.is_module:
            name, parameters, slope, rest = epilogue_of(self._modules.get("activation"))
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,)
        output = convolve(
            f"nn.Conv{self._dims}d",
            self._dims,
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            name,
            parameters,
            slope,
            None,
        )
        return output if rest is None else rest(output)

    def extra_repr(self) -> str:
        of_torch: Callable[[], str] = super().extra_repr
        return ", ".join(filter(None, [of_torch(), repr(self.fused)]))


class Conv1d(_FusedConv, torch.nn.Conv1d):
    __doc__ = _DOC.format(dims=1, image="9")
    _dims = 1


class Conv2d(_FusedConv, torch.nn.Conv2d):
    __doc__ = _DOC.format(dims=2, image="9, 9")
    _dims = 2


class Conv3d(_FusedConv, torch.nn.Conv3d):
    __doc__ = _DOC.format(dims=3, image="9, 9, 9")
    _dims = 3
