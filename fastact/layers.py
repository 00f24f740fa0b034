"""The fused layers: a row each. Conversion, explanation and tests loop over the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

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
    """

    name: str
    module: type[torch.nn.Module]
    twin: type[torch.nn.Module]
    function: str
    norm: type[torch.nn.Module]

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


_ROWS = [
    Layer(
        "linear",
        module=torch.nn.Linear,
        twin=nn.Linear,
        function="linear",
        norm=torch.nn.BatchNorm1d,
    ),
]

LAYERS = {row.name: row for row in _ROWS}
