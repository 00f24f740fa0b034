"""The fused layers, and the recurrent ones: a row each. Conversion, explanation, vmap, counts of
operations and tests loop over the rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastact import nn


@dataclass(frozen=True)
class Layer:
    """A layer that one operator computes together with what follows it.

    Attributes:
        name: of the operator, ``torch.ops.fastact.<name>``.
        module: torch.nn's class.
        twin: fastact.nn's subclass of it.
        function: what module's forward calls of torch.nn.functional, by name.
        norm: the batch norm that, in evaluation, can be folded into weight and bias.
        batched: the composition where input, weight and bias (or None) have a batch in front, for
            torch.func.vmap. What the operator takes between bias and activation comes after those.
        gradients: the gradients of input, weight and bias likewise, each from (gradient of what
            composition returns, input, weight), and the same arguments after those.
        geometry: the attributes of module that the operator takes between bias and activation.
        helper: the method of module, besides forward, that forward calls.
        dims: of a convolution's images.
    """

    name: str
    module: type[torch.nn.Module]
    twin: type[torch.nn.Module]
    function: str
    norm: type[torch.nn.Module]
    batched: Callable[..., Tensor]
    gradients: tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]
    geometry: tuple[str, ...] = ()
    helper: str | None = None
    dims: int = 0

    @property
    def operator(self) -> torch._ops.OpOverloadPacket:
        """activation(layer(input) + residual)."""
        return getattr(torch.ops.fastact, self.name)

    @property
    def packed_operator(self) -> torch._ops.OpOverloadPacket:
        """The same with what :attr:`pack` made of the weight after the input."""
        return getattr(torch.ops.fastact, f"{self.name}_packed")

    @property
    def pack(self) -> torch._ops.OpOverloadPacket:
        """The weight as the kernel reads it."""
        return getattr(torch.ops.fastact, f"pack_{self.name}")

    @property
    def composition(self) -> Callable[..., Any]:
        """PyTorch's function of input, weight and bias."""
        return getattr(F, self.function)


def _rows(t: Tensor) -> Tensor:
    """[batch, ..., features] as matrices."""
    return t.reshape(t.shape[0], -1, t.shape[-1])


def _batched_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    columns = weight.unsqueeze(1) if weight.dim() == 2 else weight
    z = torch.bmm(_rows(input), columns.transpose(1, 2))
    if bias is not None:
        z = z + bias.reshape(len(bias), 1, -1)
    return z.reshape(*input.shape[:-1], *weight.shape[1:-1])


# ---- convolution -------------------------------------------------------------------------------

# By the number of dimensions of images.
CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _into_channels(tensor: Tensor, channel: int) -> Tensor:
    """The batch dimension, which is the first, into that of the channels."""
    return tensor.movedim(0, channel - 1).flatten(channel - 1, channel)


def _from_channels(tensor: Tensor, channel: int, batch_size: int) -> Tensor:
    return tensor.unflatten(channel - 1, (batch_size, -1)).movedim(channel - 1, 0)


def _batched_conv(input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """A batch of weights is one of groups."""
    *moves, groups = geometry
    batch = len(weight)
    channel = input.dim() - weight.dim() + 2  # 1, or 2 where examples have a batch of their own
    z = CONVOLUTIONS[weight.dim() - 3](
        _into_channels(input, channel),
        weight.flatten(0, 1),
        None if bias is None else bias.flatten(),
        *moves,
        batch * groups,
    )
    return _from_channels(z, channel, batch)


def _conv_gradients(
    which: int, dz: Tensor, input: Tensor, weight: Tensor, *geometry: Any
) -> Tensor:
    """Of input, weight or bias."""
    *moves, groups = geometry
    batch, dims = len(weight), weight.dim() - 3
    channel = input.dim() - weight.dim() + 2
    x, z = _into_channels(input, channel), _into_channels(dz, channel)
    found = torch.ops.aten.convolution_backward(
        z if channel == 2 else z[None],
        x if channel == 2 else x[None],
        weight.flatten(0, 1),
        [batch * weight.shape[1]],
        *([*move] * (dims if len(move) == 1 else 1) for move in moves),
        False,
        [0] * dims,
        batch * groups,
        [i == which for i in range(3)],
    )[which]
    if which == 0:
        return _from_channels(found if channel == 2 else found[0], channel, batch)
    return found.unflatten(0, (batch, -1))


def _conv(dims: int) -> Layer:
    return Layer(
        "conv",
        module=getattr(torch.nn, f"Conv{dims}d"),
        twin=getattr(nn, f"Conv{dims}d"),
        function=f"conv{dims}d",
        norm=getattr(torch.nn, f"BatchNorm{dims}d"),
        batched=_batched_conv,
        gradients=(
            functools.partial(_conv_gradients, 0),
            functools.partial(_conv_gradients, 1),
            functools.partial(_conv_gradients, 2),
        ),
        geometry=("stride", "padding", "dilation", "groups"),
        helper="_conv_forward",
        dims=dims,
    )


# ---- the rows ----------------------------------------------------------------------------------

_ROWS = [
    Layer(
        "linear",
        module=torch.nn.Linear,
        twin=nn.Linear,
        function="linear",
        norm=torch.nn.BatchNorm1d,
        batched=_batched_linear,
        gradients=(
            lambda dz, input, weight: torch.bmm(_rows(dz), weight).reshape(*dz.shape[:-1], -1),
            lambda dz, input, weight: torch.bmm(_rows(dz).transpose(1, 2), _rows(input)),
            lambda dz, input, weight: _rows(dz).sum(1),
        ),
    ),
    *(_conv(dims) for dims in CONVOLUTIONS),
]

LAYERS = {row.function: row for row in _ROWS}


@dataclass(frozen=True)
class RecurrentLayer:
    """A layer whose whole sequence is one operator.

    Attributes:
        name: of the operator, ``torch.ops.fastact.<name>``; its step is ``<name>_cell``.
        module: the name of its class in torch.nn and in fastact.nn; its step is ``<module>Cell``.
        formula: of one step, without what is added to each product.
        gates: rows of the weights for each hidden unit.
        states: h, or h and c.
    """

    name: str
    module: str
    formula: str
    gates: int
    states: int

    def operator(self, kind: str = "") -> torch._ops.OpOverloadPacket:
        """``torch.ops.fastact.<name><kind>``, kind "", "_training", "_backward" or "_cell"."""
        return getattr(torch.ops.fastact, self.name + kind)


RECURRENT_LAYERS = (
    RecurrentLayer("rnn", "RNN", "tanh(W_ih x + W_hh h), or relu of it", gates=1, states=1),
    RecurrentLayer(
        "gru", "GRU", "n + z * (h - n), n = tanh(W_in x + r * W_hn h)", gates=3, states=1
    ),
    RecurrentLayer("lstm", "LSTM", "o * tanh(c), c = f * c + i * g", gates=4, states=2),
)
