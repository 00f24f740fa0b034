"""Numbers as PyTorch's own functions take them, and refuse them."""

from __future__ import annotations

import sys
from typing import Any

import torch

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def as_number(op: str, name: str, value: Any) -> Any:
    """A parameter of an activation: a float or an int (or a symbolic one, as it is).

    Taken are bool, int of 64 bits, float, NumPy's scalars, tensors without dimensions that need no
    gradient, and a complex number that is real.

    Raises:
        TypeError: something else.
        OverflowError: 64 bits do not hold the int.
        RuntimeError: a complex number.
    """
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise OverflowError(f"fastact.{op}(): {name}: expected an int of 64 bits, got {value}")
        return int(value)
    if isinstance(value, _SYMBOLIC):
        return value
    if isinstance(value, complex):
        if value.imag != 0:
            raise RuntimeError(f"fastact.{op}(): {name}: expected a real number, got {value}")
        return value.real
    if _is_scalar(value):
        return as_number(op, name, value.item())
    raise TypeError(f"fastact.{op}(): {name}: expected a number, got {_described(value)}")


def as_dimension(op: str, name: str, value: Any) -> Any:
    """A dimension: an int (or a symbolic one, as it is).

    Taken are int, NumPy's integers, and integer tensors without dimensions; no bool.

    Raises:
        TypeError: something else.
        ValueError: 64 bits do not hold it.
    """
    if isinstance(value, torch.SymInt):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"fastact.{op}(): {name}: expected an int of 64 bits, got {value}")
        return int(value)
    if _is_scalar(value):
        number = value.item()
        if isinstance(number, int) and not isinstance(number, bool):
            return as_dimension(op, name, number)
    raise TypeError(f"fastact.{op}(): {name}: expected an int, got {_described(value)}")


def _is_scalar(value: Any) -> bool:
    """A number of NumPy's, or a tensor that is one."""
    if isinstance(value, torch.Tensor):
        return value.dim() == 0 and not value.requires_grad
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.number, numpy.bool_))


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"{type(value).__name__} {value!r:.100}"
