"""Linear with an activation."""

from __future__ import annotations

from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from fastact import _C
from fastact.nn.epilogue import FusedActivation, epilogue_of
from fastact.overrides import traced


class Linear(torch.nn.Linear):
    """activation(x @ weight.T + bias), fused.

    Args:
        in_features, out_features, bias, device, dtype: as ``torch.nn.Linear``.
        activation: a registry name, a ``torch.nn`` or ``fastact.nn`` activation class or instance
            (or one derived from it), or None.
        params: the activation's parameters by PyTorch's names. "prelu" takes ``num_parameters`` and
            ``init``.

    A class, an instance and "prelu" become the submodule ``activation``. The layer computes what
    calling that computes now: settings changed later are followed, as is another module put in its
    place; one with hooks or a forward of its own is called, on the unfused product. A name is
    settled at construction.

    Shape: [..., in_features] to [..., out_features].

    Raises:
        ValueError: an unknown activation, or one that cannot be fused.
        TypeError: a parameter that the activation does not take, or not of its type.

    Example:
        >>> import torch, fastact
        >>> layer = fastact.nn.Linear(20, 30, activation="leaky_relu", negative_slope=0.1)
        >>> layer(torch.randn(5, 20)).shape
        torch.Size([5, 30])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | type[torch.nn.Module] | torch.nn.Module | None = None,
        **params: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.fused = FusedActivation("nn.Linear", activation, params, device=device, dtype=dtype)
        if self.fused.module is not None:
            self.activation = self.fused.module
            self.fused.module = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        fused = self.fused
        own = self._parameters
        # nn.Module.__getattr__ costs 0.2 us; a parametrized weight is not among the parameters.
        weight = own["weight"] if "weight" in own else self.weight  # noqa: SIM401  (it is slow)
        bias = own["bias"] if "bias" in own else self.bias  # noqa: SIM401
        name, parameters = fused.name, fused.parameters
        slope = rest = None
        if fused.is_module:
            name, parameters, slope, rest = epilogue_of(self._modules.get("activation"))
        if is_dynamo_compiling():
            output = traced("linear", input, weight, bias, name, parameters, slope, None)
        else:
            output = _C.linear(input, weight, bias, name, parameters, slope, None)
        return output if rest is None else rest(output)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [super().extra_repr(), repr(self.fused)]))
