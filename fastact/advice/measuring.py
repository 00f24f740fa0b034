"""What share of an activation's units does nothing, measured on its result as it runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastact.activations import SATURATED

_DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
}
RECTIFIERS = frozenset({"relu", "relu6"})


def measure(
    name: str, before: Tensor | None, after: Tensor, features: int | None
) -> dict[str, float]:
    """Shares of what the activation made of its input.

    Args:
        before: its input, unless a fused operator had that alone.
        after: its result; the activation may have run in place, so of ReLU it is not asked for.
        features: the dimension along which the units lie; None: the last one, or, of more than
            three dimensions, the second.

    Returns:
        Of ReLU and ReLU6 ``units`` and ``examples`` (how many values each unit took), ``dead`` (how
        many units were 0 throughout, unless nothing but 0 arrived) and ``always_on`` (never 0); of
        sigmoid and tanh ``units``, ``examples``, ``saturated`` (a share of all values) and
        ``stuck`` (how many units were saturated throughout). Empty for others, and for tensors
        without values.
    """
    rectifier = name in RECTIFIERS
    tensor = before if rectifier and before is not None else after
    if not (rectifier or name in _DERIVATIVES) or not _has_values(tensor) or tensor.dim() == 0:
        return {}
    values = tensor.detach()
    if features is None:
        features = values.dim() - 1 if values.dim() <= 3 else 1
    units = values.shape[features]
    values = values[None]  # a dimension of examples, also where there is one example
    others = tuple(dim for dim in range(values.dim()) if dim != features + 1)
    found: dict[str, float] = {"units": units, "examples": values.numel() // units}
    if rectifier:
        # Exact zeros come from a layer that was initialised with zeros, or from dead units before.
        silent = (values <= 0).all(others)
        if before is not None:
            silent &= (values < 0).any(others)
        found["dead"] = int(silent.sum())
        found["always_on"] = int((values > 0).all(others).sum())
        return found
    saturated = _DERIVATIVES[name](values.float()) <= SATURATED
    found["saturated"] = saturated.float().mean().item()
    found["stuck"] = int(saturated.all(others).sum())
    return found


def measure_target(target: object) -> dict[str, float]:
    """Whether a target of probabilities has one 1 in each row of at least three classes."""
    if not isinstance(target, Tensor) or not _has_values(target) or target.dim() != 2:
        return {}
    if target.shape[0] < 4 or target.shape[1] < 3:
        return {}
    binary = ((target == 0) | (target == 1)).all()
    one = bool(binary and (target.sum(1) == 1).all())
    return {"one_of_each_row": one, "classes": target.shape[1], "rows": target.shape[0]}


def _has_values(tensor: Tensor) -> bool:
    return (
        type(tensor) is Tensor
        and tensor.is_floating_point()
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and tensor.numel() > 0
    )
