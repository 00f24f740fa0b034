"""The fused layers, and the recurrent ones: a row each. Conversion, explanation, vmap, counts of
operations and tests loop over the rows."""

from __future__ import annotations

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
            torch.func.vmap.
        gradients: the gradients of input, weight and bias likewise, each from (gradient of what
            composition returns, input, weight).
    """

    name: str
    module: type[torch.nn.Module]
    twin: type[torch.nn.Module]
    function: str
    norm: type[torch.nn.Module]
    batched: Callable[..., Tensor]
    gradients: tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]

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
]

LAYERS = {row.name: row for row in _ROWS}


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
