"""What the bindings (``fastact._C``) hand on: calls with anything but plain tensors and numbers.

Arguments of a type that PyTorch's functions refuse are refused with their exception, and numbers
taken as they take them. Operands whose class overrides ``__torch_function__`` are handed to
PyTorch's functions, which such a class knows; every other subclass (fake tensors, DTensor, those
that follow ``__torch_dispatch__``), and modes, see fastact's operator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function

from fastact import _C
from fastact.activations import REGISTRY, Activation
from fastact.arguments import as_dimension, as_number

_DEFAULT = Tensor.__torch_function__.__func__  # type: ignore[attr-defined]
_DISABLED = torch._C._disabled_torch_function_impl


def call(name: str, *args: Any) -> Any:
    """The operator ``fastact::<name>``, or what PyTorch's functions make of these operands."""
    packet, arguments = _operator(name)
    if not _ORDINARY.issuperset(map(type, args)):
        overriding = torch._C._is_torch_function_enabled() and any(map(overrides_functions, args))
        if overriding and name in TWINS:  # recurrent layers have none
            return TWINS[name](*args)
        if any(isinstance(value, torch.fx.Proxy) for value in args):
            return packet(*args)
    # Under a mode, such as torch.set_default_device, every call comes here, mostly with what needs
    # no check: they would take 3 us of linear's 11. The last arguments may be left out.
    op = name.removesuffix("_")
    return packet(
        *[
            value if type(value) is kind else check(op, argument, value)
            for (argument, check, kind), value in zip(arguments, args, strict=False)
        ]
    )


def traced(name: str, *args: Any) -> Any:
    """The same where Dynamo traces the call, with plain tensors and numbers too. It knows of a
    class only that it has a ``__torch_function__``, be it torch.Tensor's own."""
    if has_torch_function(args):
        return TWINS[name](*args)
    return getattr(torch.ops.fastact, name)(*args)


def overrides_functions(value: Any) -> bool:
    """Whether value's class has a ``__torch_function__`` of its own."""
    kind = type(value)
    function = getattr(kind, "__torch_function__", None)
    if function is None or function is _DISABLED or getattr(function, "__func__", None) is _DEFAULT:
        return False
    # A Proxy records what it is handed: fastact's operator. PyTorch's jagged tensors override
    # functions for other reasons, and run an operator on their values.
    return not (
        isinstance(value, torch.fx.Proxy)
        or kind.__module__ == "torch.nested._internal.nested_tensor"
    )


# ---- fastact's operators -----------------------------------------------------------------------


def _tensor(op: str, name: str, value: Any) -> Any:
    if isinstance(value, Tensor) or hasattr(type(value), "__torch_function__"):
        return value
    raise TypeError(f"fastact.{op}(): {name}: expected a Tensor, got {type(value).__name__}")


def _optional_tensor(op: str, name: str, value: Any) -> Any:
    if value is None:
        return None
    try:
        return _tensor(op, name, value)
    except TypeError as error:
        raise TypeError(str(error).replace("a Tensor,", "a Tensor or None,")) from None


def _bool(op: str, name: str, value: Any) -> Any:
    if isinstance(value, (bool, torch.SymBool)):
        return value
    raise TypeError(f"fastact.{op}(): {name}: expected a bool, got {type(value).__name__}")


def _numbers(op: str, name: str, values: Any) -> list[Any]:
    return [as_number(op, name, value) for value in values]


def _integers(op: str, name: str, values: Any) -> Any:
    """An integer for every dimension, or a sequence with one for each."""
    each = values if isinstance(values, (tuple, list)) else [values]
    return [as_dimension(op, name, value) for value in each]


def _as_it_is(op: str, name: str, value: Any) -> Any:
    return value


# By the type that the schema states (a dimension is the only int): the check, and the class whose
# instances need none.
_Check = Callable[[str, str, Any], Any]
_CHECKS: dict[str, tuple[_Check, type | None]] = {
    "Tensor": (_tensor, Tensor),
    "Optional[Tensor]": (_optional_tensor, Tensor),
    "float": (as_number, float),
    "int": (as_dimension, None),
    "bool": (_bool, bool),
    "List[float]": (_numbers, None),
    "List[int]": (_integers, None),
    "Optional[str]": (_as_it_is, str),
    "str": (_as_it_is, str),
    "List[Tensor]": (_as_it_is, list),
}
# Classes without a __torch_function__ of their own, or any.
_ORDINARY = {Tensor, torch.nn.Parameter, type(None), bool, int, float, str, tuple}


@functools.cache
def _operator(name: str) -> tuple[Any, list[tuple[str, _Check, type | None]]]:
    """The operator, and of each of its arguments the name and what ``_CHECKS`` says."""
    packet = getattr(torch.ops.fastact, name)
    arguments = packet.default._schema.arguments
    return packet, [
        ("input" if argument.name == "self" else argument.name, *_CHECKS[str(argument.type)])
        for argument in arguments
    ]


# ---- PyTorch's functions, with the operators' arguments -----------------------------------------


def _in_place(row: Activation, twin: Callable[..., Any], input: Any, *parameters: Any) -> Any:
    if row.inplace:
        return twin(input, *parameters, inplace=True)
    return input.copy_(twin(input, *parameters))


def _softmax(input: Any, dim: Any, scale: float = 1.0) -> Any:
    if scale == -1:
        return F.softmin(input, dim)
    return F.softmax(input if scale == 1 else scale * input, dim)


def _masked_softmax(input: Any, mask: Any, dim: Any, scale: float, is_causal: bool) -> Any:
    scores = input if scale == 1 else scale * input
    if is_causal:
        mask = torch.ones(input.shape[-2:], dtype=torch.bool, device=input.device).tril()
    if mask is None:
        return F.softmax(scores, dim)
    if mask.dtype is torch.bool:
        return F.softmax(scores.masked_fill(~mask, -torch.inf), dim)
    return F.softmax(scores + mask, dim)


def _followed(
    output: Any,
    activation: str | None,
    parameters: Any,
    slope: Any,
    residual: Any,
    *how: Any,  # it is saved for backward
) -> Any:
    if residual is not None:
        output = output + residual
    if activation is None:
        return output
    # A class may return a plain tensor.
    then = (
        functools.partial(traced, activation) if is_dynamo_compiling() else getattr(_C, activation)
    )
    return then(output, *REGISTRY[activation].arguments(parameters, slope))


def _linear(input: Any, weight: Any, bias: Any, *after: Any) -> Any:
    return _followed(F.linear(input, weight, bias), *after)


def _linear_packed(input: Any, packed: Any, *rest: Any) -> Any:
    return _linear(input, *rest)


def _conv(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    *after: Any,
) -> Any:
    function = getattr(F, f"conv{weight.dim() - 2}d")
    return _followed(function(input, weight, bias, stride, padding, dilation, groups), *after)


def _conv_packed(input: Any, packed: Any, *rest: Any) -> Any:
    return _conv(input, *rest)


def _twins(row: Activation) -> dict[str, Callable[..., Any]]:
    twin = getattr(F, row.name, row.reference)
    in_place = {row.name + "_": functools.partial(_in_place, row, twin)}
    return {row.name: twin} | (in_place if row.family == "unary" else {})


TWINS: dict[str, Callable[..., Any]] = {}
for _row in REGISTRY.values():
    TWINS |= _twins(_row)
TWINS |= {
    "softmax": _softmax,
    "masked_softmax": _masked_softmax,
    "conv": _conv,
    "conv_packed": _conv_packed,
    "linear": _linear,
    "linear_packed": _linear_packed,
}
