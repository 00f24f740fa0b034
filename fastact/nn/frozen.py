"""What ``fastact.convert(model, mode="inference")`` makes of a Linear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling

from fastact import _C
from fastact.nn.epilogue import FusedActivation, epilogue_of
from fastact.nn.linear import Linear
from fastact.overrides import traced


class FrozenLinear(Linear):
    """A Linear whose weight is also held packed, as the kernel reads it.

    Made by :meth:`freeze`. The packed weight is not in the state_dict, is not pickled, and is made
    anew where the weight itself is replaced (``.to()``, deepcopy, unpickling). A weight written to
    in place leaves it behind, so parameters do not require gradients and a state_dict is refused.
    """

    packed: Tensor

    @classmethod
    def freeze(cls, linear: torch.nn.Linear) -> FrozenLinear:
        """Turns the module itself, a torch.nn.Linear or a fastact.nn.Linear, into a frozen one."""
        if not isinstance(linear, Linear):
            linear.fused = FusedActivation("nn.Linear", None, {})
        linear.__class__ = cls
        linear.requires_grad_(False)
        linear._pack()
        return linear

    def _pack(self) -> None:
        weight = self._parameters["weight"]
        # Not through __setattr__: neither a parameter nor a buffer.
        self.__dict__["packed"] = torch.ops.fastact.pack_linear(weight.detach())

    def forward(self, input: Tensor) -> Tensor:
        fused = self.fused
        if not fused.is_module:
            return self.with_epilogue(input, fused.name, fused.parameters)
        *epilogue, rest = epilogue_of(self._modules.get("activation"))
        output = self.with_epilogue(input, *epilogue)
        return output if rest is None else rest(output)

    def with_epilogue(
        self,
        input: Tensor,
        activation: str | None,
        parameters: Sequence[float],
        slope: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """activation(x @ weight.T + bias + residual), neither of which is the layer's own."""
        own = self._parameters
        weight, bias = own["weight"], own["bias"]
        if is_dynamo_compiling():
            return traced("linear", input, weight, bias, activation, parameters, slope, residual)
        if is_compiling():  # exported: a packed weight is for this process alone
            return _C.linear(input, weight, bias, activation, parameters, slope, residual)
        return _C.linear_packed(
            input, self.packed, weight, bias, activation, parameters, slope, residual
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenLinear:
        super()._apply(fn, recurse)
        self._pack()
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        *_, error_messages = rest
        error_messages.append(
            f"fastact.convert(): {prefix}weight: this layer is frozen; load into the original "
            "model and convert it again"
        )

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["packed"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pack()
