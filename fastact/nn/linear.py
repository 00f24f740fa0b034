"""Linear with an activation."""

from __future__ import annotations

from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from fastact import _C
from fastact.activations import REGISTRY, resolve, unknown_activation
from fastact.nn import activations as modules

_ROW_OF_MODULE = {
    getattr(torch.nn, row.module): row.name for row in REGISTRY.values() if row.module
}


class FusedActivation:
    """What ``activation=`` of a fused layer means: a registry name with its parameters, and the
    module that holds the learnable ones, if any."""

    def __init__(self, op: str, activation: Any, params: dict[str, Any], **factory: Any) -> None:
        self.module: torch.nn.Module | None = None
        self.name: str | None = None
        self.parameters: tuple[float, ...] = ()
        if activation is None:
            if params:
                raise TypeError(
                    f"fastact.{op}(): {next(iter(params))}: unexpected argument: activation is None"
                )
            return
        if isinstance(activation, type) and issubclass(activation, torch.nn.Module):
            activation, params = activation(**params), {}
        if activation == "prelu":
            activation, params = modules.PReLU(**params, **factory), {}
        if isinstance(activation, torch.nn.Module):
            if params:
                raise TypeError(
                    f"fastact.{op}(): {next(iter(params))}: unexpected argument: "
                    "an activation module has its own"
                )
            self.name, self.parameters = _from_module(op, activation)
            self.module = activation if self.name == "prelu" else None
        elif isinstance(activation, str):
            self.name, self.parameters = resolve(op, activation, params)
        else:
            raise unknown_activation(op, activation)

    def __repr__(self) -> str:
        """The keyword arguments that a layer's repr shows."""
        if self.name is None:
            return ""
        known = REGISTRY[self.name].parameters
        shown = [f"activation={self.name!r}"]
        shown += [f"{k}={v}" for k, v in zip(known, self.parameters, strict=True)]
        return ", ".join(shown)


def slope_of(prelu: torch.nn.Module) -> torch.Tensor:
    """The weight of a PReLU module, without nn.Module.__getattr__ where it can be."""
    own = prelu._parameters
    return own["weight"] if "weight" in own else prelu.weight  # noqa: SIM401


def _from_module(op: str, module: torch.nn.Module) -> tuple[str, tuple[float, ...]]:
    for kind in type(module).__mro__:
        name = _ROW_OF_MODULE.get(kind)
        if name is not None:
            break
    else:
        raise unknown_activation(op, type(module).__name__)
    if isinstance(module, torch.nn.GELU):
        return resolve(op, "gelu", {"approximate": module.approximate})
    if name in ("softmax", "log_softmax"):
        return resolve(op, name, {} if module.dim is None else {"dim": module.dim})
    return resolve(op, name, {p: getattr(module, p) for p in REGISTRY[name].parameters})


class Linear(torch.nn.Linear):
    """activation(x @ weight.T + bias), fused.

    Args:
        in_features, out_features, bias, device, dtype: as ``torch.nn.Linear``.
        activation: a registry name, a ``torch.nn`` activation class or instance, or None.
        params: the activation's parameters by PyTorch's names. "prelu" takes ``num_parameters`` and
            ``init``, and its weight is the submodule ``activation``.

    Shape: [..., in_features] to [..., out_features].

    Raises:
        ValueError: an unknown activation, or one that cannot be fused.
        TypeError: a parameter that the activation does not take.

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
        activation: Any = None,
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
        slope = slope_of(self._modules["activation"]) if fused.name == "prelu" else None
        if is_dynamo_compiling():
            return torch.ops.fastact.linear(
                input, weight, bias, fused.name, fused.parameters, slope
            )
        return _C.linear(input, weight, bias, fused.name, fused.parameters, slope, None)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [super().extra_repr(), repr(self.fused)]))
