"""torch.nn.functional's activations, ``linear`` and convolutions, faster.

Every function has its twin's name, signature, defaults and errors. Shapes: any; dtypes: float32,
float64, bfloat16 and float16 on fastact's kernels, every other one as PyTorch computes it.

>>> import torch
>>> from fastact import functional as FF
>>> x = torch.tensor([-1.0, 0.0, 2.0])
>>> FF.relu(x)
tensor([0., 0., 2.])
>>> FF.linear(torch.ones(1, 3), torch.eye(3), torch.tensor([0.0, -2.0, 1.0]), activation="relu")
tensor([[1., 0., 2.]])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.compiler import is_dynamo_compiling

from fastact import _C
from fastact.activations import FORMS, FUSIBLE, REGISTRY, Activation, form_name, resolve
from fastact.arguments import as_number
from fastact.convolution import check_dimension, convolve
from fastact.exec_source import exec_source
from fastact.overrides import overrides_functions, traced

# Under Dynamo a call of the bindings (C functions) cannot be traced, so each function calls the
# operator, or ATen where Inductor fuses better; is_dynamo_compiling() costs 0.04 us in eager mode.


def _source(row: Activation) -> str:
    """The text of the function of one activation."""
    names = list(row.parameters)
    declared = [f"{name}: {type(value).__name__}" for name, value in row.parameters.items()]
    if not row.requires_parameters:
        defaults = row.parameters.values()
        declared = [f"{text} = {value!r}" for text, value in zip(declared, defaults, strict=True)]
    signature = ["input: torch.Tensor", *declared, *(["inplace: bool = False"] * row.inplace)]
    arguments = ", ".join(["input", *names])
    compiled = f"_reference_{row.name}(" if row.inductor_fuses else f"traced({row.name!r}, "
    lines = [f"def {row.name}({', '.join(signature)}) -> torch.Tensor:"]
    if row.inplace:
        # A node may save the input, so it is given a copy; compiled, that costs nothing.
        written = ", ".join(["input.clone()", *names])
        lines += [
            "    if inplace:",
            "        if is_dynamo_compiling():",
            f"            return input.copy_({compiled}{written}))",
            f"        return _bound_{row.name}_({arguments})",
        ]
    lines += [
        "    if is_dynamo_compiling():",
        f"        return {compiled}{arguments})",
        f"    return _bound_{row.name}({arguments})",
    ]
    return "\n".join(lines) + "\n"


def _doc(row: Activation) -> str:
    error = "equal to PyTorch bit for bit" if row.ulp == 0 else f"at most {row.ulp} ULP in float32"
    if row.halves_dimension:
        computes = f"{row.formula}, a and b the halves of input along dim."
        takes = (
            "    input: a tensor of an even size in dim.\n    dim: the dimension to halve.\n\n"
            f"Returns:\n    A contiguous tensor, half as large in dim; error: {error}.\n\n"
            "Raises:\n    RuntimeError: an odd size, or a 0-dimensional tensor.\n\n"
        )
        call = "torch.tensor([3.0, 2.0])"
    else:
        computes = f"{row.name}(x) = {row.formula}, elementwise."
        arguments = "".join(
            f"    {name}: default {default}.\n" for name, default in row.parameters.items()
        )
        if row.inplace:
            arguments += "    inplace: writes the result into input. Default False.\n"
        takes = (
            f"    input: a tensor of any shape.\n{arguments}\n"
            f"Returns:\n    A tensor of input's shape, dtype and strides; error: {error}.\n\n"
        )
        call = ", ".join(["torch.tensor([-1.0, 0.5])", *map(str, row.parameters.values())])
    return (
        f"{computes}\n\nArgs:\n{takes}"
        + (f"Source: {row.source}.\n\n" if row.source else "")
        + f"Example:\n    >>> y = FF.{row.name}({call})\n"
    )


def _define(row: Activation) -> Callable[..., torch.Tensor]:
    """The function of one activation: plain Python with its twin's signature, since ``*args`` would
    cost as much as the kernel. What it calls are names of this module, where Dynamo looks for them.
    """
    scope = globals()
    scope[f"_reference_{row.name}"] = row.reference
    scope[f"_bound_{row.name}"] = getattr(_C, row.name)
    if row.inplace:
        scope[f"_bound_{row.name}_"] = getattr(_C, row.name + "_")
    exec_source(_source(row), f"<fastact.functional.{row.name}>", scope)
    function = scope[row.name]
    function.__doc__ = _doc(row)
    return function


_made = {row.name: _define(row) for row in REGISTRY.values() if row.is_plain}
# PyTorch has the function alone, not its forms.
_forms = {name: globals().pop(name) for forms in FORMS.values() for name in forms.names.values()}


def gelu(input: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """x * Phi(x), Phi the normal distribution's cumulative function; with ``approximate="tanh"``
    x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3))).

    Args:
        input: a tensor of any shape.
        approximate: "none" or "tanh".

    Returns:
        A tensor of input's shape, dtype and strides; error: at most 2 ULP in float32, the negative
        tail included, where ``torch.nn.functional.gelu`` loses all digits below -5.

    Raises:
        RuntimeError: another ``approximate``.

    Source: Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv:1606.08415.

    Example:
        >>> FF.gelu(torch.tensor([1.0]))
        tensor([0.8413])
    """
    return _forms[form_name("gelu", "gelu", approximate)](input)


def rrelu(
    input: torch.Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> torch.Tensor:
    """x where x > 0, else slope * x; slope is (lower + upper) / 2, and in training drawn from
    [lower, upper] for each element, by PyTorch's own generator and kernel.

    Args:
        input: a tensor of any shape.
        lower, upper: the bounds of the slope.
        training: draws.
        inplace: writes the result into input.

    Source: Xu et al., Empirical Evaluation of Rectified Activations, arXiv:1505.00853.

    Example:
        >>> FF.rrelu(torch.tensor([-1.0, 2.0]), 0.1, 0.3)
        tensor([-0.2000,  2.0000])
    """
    lower, upper = as_number("rrelu", "lower", lower), as_number("rrelu", "upper", upper)
    if not -math.inf < lower <= upper < math.inf:
        raise RuntimeError(
            "fastact.rrelu(): lower: expected a finite bound, of at most upper, "
            f"got lower={lower}, upper={upper}"
        )
    # What is no bool is PyTorch's to take or to refuse.
    if training is not False or (not is_dynamo_compiling() and overrides_functions(input)):
        return F.rrelu(input, lower, upper, training, inplace)
    return _made["leaky_relu"](input, (lower + upper) / 2, inplace)


def prelu(input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x where x > 0, else weight * x, with a learnable weight.

    Args:
        input: [N, C, ...], or any shape for a weight of one element.
        weight: [C] or one element, of input's dtype.

    Returns:
        A tensor of input's shape, dtype and strides; equal to PyTorch bit for bit.

    Raises:
        RuntimeError: weight's dtype, device or number of elements does not fit.

    Source: He et al., Delving Deep into Rectifiers, arXiv:1502.01852.

    Example:
        >>> FF.prelu(torch.tensor([-2.0, 3.0]), torch.tensor(0.5))
        tensor([-1.,  3.])
    """
    if is_dynamo_compiling():
        return traced("prelu", input, weight)
    return _C.prelu(input, weight)


def _settled(
    name: str, input: torch.Tensor, dim: int | None, stacklevel: int, dtype: torch.dtype | None
) -> tuple[torch.Tensor, int]:
    """What softmax and its kin take, called without a dimension or with a dtype. (The result has
    that dtype in any case: under CUDA's autocast their operators return float32.)"""
    if dim is None:  # PyTorch's choice, with its warning
        dim = F._get_softmax_dim(name, input.dim(), stacklevel + 1)
    if dtype is None:
        return input, dim
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"fastact.{name}(): dtype: expected a torch.dtype, got {dtype!r}")
    return input.to(dtype), dim


def softmax(
    input: torch.Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """exp(x) / sum(exp(x)) over one dimension.

    Args:
        input: a tensor of any shape.
        dim: the dimension to sum over.
        dtype: input is converted to it first.

    Returns:
        A contiguous tensor of input's shape. A row of -inf alone gives NaN, as in PyTorch.

    Raises:
        IndexError: dim is out of range.

    Example:
        >>> FF.softmax(torch.zeros(1, 4), dim=-1)
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    if dim is None or dtype is not None:
        input, dim = _settled("softmax", input, dim, _stacklevel, dtype)
    result = traced("softmax", input, dim) if is_dynamo_compiling() else _C.softmax(input, dim, 1.0)
    return result if dtype is None else result.to(dtype)


def softmin(
    input: torch.Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """softmax(-x) over one dimension; arguments, result and errors as :func:`softmax`.

    Example:
        >>> FF.softmin(torch.zeros(1, 2), dim=-1)
        tensor([[0.5000, 0.5000]])
    """
    if dim is None or dtype is not None:
        input, dim = _settled("softmin", input, dim, _stacklevel, dtype)
    if is_dynamo_compiling():
        result = traced("softmax", input, dim, -1.0)
    else:
        result = _C.softmax(input, dim, -1.0)
    return result if dtype is None else result.to(dtype)


def log_softmax(
    input: torch.Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """x - log(sum(exp(x))) over one dimension; arguments, result and errors as :func:`softmax`.

    Example:
        >>> FF.log_softmax(torch.zeros(1, 2), dim=-1)
        tensor([[-0.6931, -0.6931]])
    """
    if dim is None or dtype is not None:
        input, dim = _settled("log_softmax", input, dim, _stacklevel, dtype)
    if is_dynamo_compiling():
        result = traced("log_softmax", input, dim)
    else:
        result = _C.log_softmax(input, dim)
    return result if dtype is None else result.to(dtype)


def masked_softmax(
    input: torch.Tensor,
    mask: torch.Tensor | None = None,
    dim: int = -1,
    scale: float = 1.0,
    is_causal: bool = False,
) -> torch.Tensor:
    """softmax(scale * input + mask) over one dimension, as attention takes it.

    Args:
        input: a tensor of any shape.
        mask: a tensor that broadcasts to input's shape: of input's dtype, added to the scores, or
            bool, where false elements take no part.
        dim: the dimension whose elements add up to 1.
        scale: a factor of input.
        is_causal: in the last two dimensions, row i takes its first i + 1 elements; the others are
            not even read. Without a mask, and along the last dimension.

    Returns:
        A contiguous tensor of input's shape and dtype; NaN in a row that takes no element.

    Raises:
        RuntimeError: a mask of another dtype, device or shape, or one beside is_causal.
        IndexError: there is no such dimension.

    Source: Vaswani et al., Attention Is All You Need, arXiv:1706.03762.

    Example:
        >>> FF.masked_softmax(torch.zeros(2, 2), is_causal=True)
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    if is_dynamo_compiling():
        return traced("masked_softmax", input, mask, dim, scale, is_causal)
    return _C.masked_softmax(input, mask, dim, scale, is_causal)


_defaults = {name: resolve("linear", name, {}) for name in FUSIBLE}


def _epilogue(
    op: str, activation: str | None, params: dict[str, Any]
) -> tuple[str | None, tuple[Any, ...]]:
    """What ``activation=`` of a fused function and its parameters mean."""
    if activation is None:
        if params:
            raise TypeError(
                f"fastact.{op}(): {next(iter(params))}: unexpected parameter: activation is None"
            )
        return None, ()
    if params or not isinstance(activation, str) or activation not in _defaults:
        return resolve(op, activation, params)
    return _defaults[activation]


def _convolution(dims: int) -> Callable[..., torch.Tensor]:
    op = f"conv{dims}d"

    def convolution(
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        activation: str | None = None,
        *,
        slope: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        **params: Any,
    ) -> torch.Tensor:
        check_dimension(op, activation, params)
        name, values = _epilogue(op, activation, params)
        return convolve(
            op, dims, input, weight, bias, stride, padding, dilation, groups, name, values, slope,
            residual,
        )  # fmt: skip

    convolution.__name__ = convolution.__qualname__ = op
    sizes = "DHW"[3 - dims :]
    image, kernel = ", ".join(sizes), ", ".join("k" + size for size in sizes)
    ones = ", ".join(["1"] * dims)
    convolution.__doc__ = f"""activation(convolution of input by weight + bias + residual).

    Args:
        input: [N, C, {image}], or [C, {image}].
        weight: [K, C / groups, {kernel}].
        bias: [K] or None.
        stride, padding, dilation, groups: as ``torch.nn.functional.{op}``; padding also "same" or
            "valid".
        activation: a registry name ("relu", "leaky_relu", "gelu", "silu", "prelu", ...), or None.
            "softmax" and "log_softmax" need ``dim=`` and are not fused.
        slope: the learnable weight of "prelu", [K] or one element.
        residual: added before the activation, on the result's tiles where it has the output's
            shape and dtype; others are broadcast and promoted as by ``+``.
        params: the activation's parameters by PyTorch's names, such as ``negative_slope=0.1``.

    Returns:
        [N, K, ...] in the memory format of PyTorch's. docs/conv.md says what computes it.

    Raises:
        ValueError: an unknown activation (the nearest names are listed), or one that cannot be
            fused (glu and its kin, rrelu).
        TypeError: a parameter that the activation does not take, or a missing ``dim``.
        RuntimeError: shapes, dtypes or devices that do not fit.

    Example:
        >>> x, w = torch.ones(1, 2, {", ".join(["5"] * dims)}), torch.ones(4, 2, {ones})
        >>> FF.{op}(x, w, activation="leaky_relu", negative_slope=0.1).shape
        torch.Size([1, 4, {", ".join(["5"] * dims)}])
    """
    return convolution


conv1d, conv2d, conv3d = map(_convolution, (1, 2, 3))


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    *,
    slope: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    **params: Any,
) -> torch.Tensor:
    """activation(input @ weight.T + bias + residual).

    Args:
        input: [..., in_features].
        weight: [out_features, in_features] or [in_features].
        bias: [out_features] or None.
        activation: a registry name ("relu", "leaky_relu", "gelu", "gelu_tanh", "prelu", "softmax",
            ...), or None.
        slope: the learnable weight of "prelu", [out_features] or one element.
        residual: added before the activation, while the product is in cache where it has the
            output's shape and dtype; others are broadcast and promoted as by ``+``.
        params: the activation's parameters by PyTorch's names, such as ``negative_slope=0.1``,
            ``approximate="tanh"`` with "gelu", ``dim=-1`` with "softmax".

    Returns:
        [..., out_features].

    Raises:
        ValueError: an unknown activation (the nearest names are listed), or one that cannot be
            fused (glu and its kin, rrelu).
        TypeError: a parameter that the activation does not take.
        RuntimeError: shapes, dtypes or devices that do not fit.

    Example:
        >>> x, w = torch.ones(2, 3), torch.ones(4, 3)
        >>> FF.linear(x, w, activation="leaky_relu", negative_slope=0.1).shape
        torch.Size([2, 4])
    """
    if not params and type(activation) is str and activation in _defaults:
        activation, values = _defaults[activation]  # without the call, 0.15 of 2 us (Zen 3)
    else:
        activation, values = _epilogue("linear", activation, params)
    if is_dynamo_compiling():
        return traced("linear", input, weight, bias, activation, values, slope, residual)
    return _C.linear(input, weight, bias, activation, values, slope, residual)


__all__ = [
    *(name for name in _made if name not in _forms),
    "conv1d",
    "conv2d",
    "conv3d",
    "gelu",
    "linear",
    "log_softmax",
    "masked_softmax",
    "prelu",
    "rrelu",
    "softmax",
    "softmin",
]
