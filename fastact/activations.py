"""THE registry: one row an activation.

What an activation computes is written in ``csrc/math/activations.h``, which also says its
parameters with their defaults and what backward reads; its ATen composition stands in
``csrc/ops/unary/compositions.h``. A row here ties the operator to its PyTorch twin. Functions,
modules, ``activation=`` arguments, tests, benchmarks and documents loop over the rows.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from fastact.arguments import as_dimension, as_number

# What the kernels compute (is_kernel_dtype() in csrc/core/activation.h).
KERNEL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# At most this derivative, in size, and a unit is saturated: almost no gradient passes.
SATURATED = 1e-3

# They halve a dimension, so they are no rows (gated_ops in csrc/ops/gated/gated.h).
GATED_UNITS = ("glu", "swiglu", "geglu", "reglu")


@dataclass(frozen=True)
class Activation:
    """One activation.

    Attributes:
        name: the registry's name; the operator is ``torch.ops.fastact.<name>``.
        module: the name of its ``torch.nn`` class, or None where there is none.
        reference: PyTorch's function, or a composition of such, ``(input, **parameters)``, without
            ``inplace``.
        formula: what it computes, in words of Python.
        source: where it comes from.
        inplace: whether the twin takes ``inplace=``.
        inductor_fuses: under torch.compile ATen is handed to Dynamo, because Inductor fuses the
            activation into its neighbours at no cost, where an operator of ours would be a barrier.
        domain: the inputs that plots and benchmarks draw.
        ulp: the largest error of the float32 forward, in units in the last place, over all inputs;
            0: equal to PyTorch bit for bit.
        truth: the reference in float64 where PyTorch's own float64 loses digits.
        twin_saves_output: whether what PyTorch's backward reads is the output, which must then not
            be written to.
        family: "unary", or the name of the family with its own kernel: "prelu", "softmax".
        parameters: names and defaults, read from the operator's schema.
    """

    name: str
    module: str | None
    reference: Callable[..., torch.Tensor]
    formula: str
    source: str = ""
    inplace: bool = False
    inductor_fuses: bool = False
    domain: tuple[float, float] = (-6.0, 6.0)
    ulp: float = 1.0
    truth: Callable[..., torch.Tensor] | None = None
    twin_saves_output: bool = False
    family: str = "unary"
    parameters: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        arguments = self.operator.default._schema.arguments
        scalars = {a.name: a.default_value for a in arguments if a.has_default_value()}
        object.__setattr__(self, "parameters", scalars)

    @property
    def operator(self) -> torch._ops.OpOverloadPacket:
        """``torch.ops.fastact.<name>``."""
        return getattr(torch.ops.fastact, self.name)

    def exact(self, input: torch.Tensor, **parameters: Any) -> torch.Tensor:
        """The activation in float64: what errors are measured against."""
        return (self.truth or self.reference)(input.double(), **parameters)


# Well-conditioned float64 forms, where PyTorch's own lose digits to cancellation or overflow.


def _gelu_truth(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * torch.special.erfc(x * -(0.5**0.5))


def _gelu_tanh_truth(x: torch.Tensor) -> torch.Tensor:
    # (1 + tanh u) / 2 = sigmoid(2u)
    u = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    return x * torch.sigmoid(2 * u)


def _mish_truth(x: torch.Tensor) -> torch.Tensor:
    # tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2), e = exp(x)
    e = torch.exp(x.clamp(max=40))
    n = e * (e + 2)
    return torch.where(x > 40, x, x * (n / (n + 2)))


# x - tanh(x) = x^3/3 - 2x^5/15 + ...: 11 terms hold to 2^-53 for |x| < 0.2.
_TANHSHRINK_SERIES = (
    1 / 3,
    -2 / 15,
    17 / 315,
    -62 / 2835,
    1382 / 155925,
    -21844 / 6081075,
    929569 / 638512875,
    -6404582 / 10854718875,
    443861162 / 1856156927625,
    -18888466084 / 194896477400625,
    113927491862 / 2900518163668125,
)


def _tanhshrink_truth(x: torch.Tensor) -> torch.Tensor:
    square = x * x
    series = torch.zeros_like(x)
    for coefficient in reversed(_TANHSHRINK_SERIES):
        series = series * square + coefficient
    return torch.where(x.abs() < 0.2, x * square * series, x - torch.tanh(x))


_GELU = "Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv:1606.08415"
_RELU = "Nair and Hinton, Rectified Linear Units Improve Restricted Boltzmann Machines, ICML 2010"
_LEAKY = "Maas, Hannun and Ng, Rectifier Nonlinearities Improve ... Acoustic Models, ICML 2013"
_MOBILE = "Howard et al., Searching for MobileNetV3, arXiv:1905.02244"

_ROWS = [
    Activation(
        "relu",
        module="ReLU",
        reference=F.relu,
        formula="max(x, 0)",
        source=_RELU,
        inplace=True,
        inductor_fuses=True,
        ulp=0,
        twin_saves_output=True,
    ),
    Activation(
        "relu6",
        module="ReLU6",
        reference=F.relu6,
        formula="min(max(x, 0), 6)",
        source="Howard et al., MobileNets, arXiv:1704.04861",
        inplace=True,
        inductor_fuses=True,
        ulp=0,
    ),
    Activation(
        "leaky_relu",
        module="LeakyReLU",
        reference=F.leaky_relu,
        formula="x if x > 0 else negative_slope * x",
        source=_LEAKY,
        inplace=True,
        inductor_fuses=True,
        ulp=0,
    ),
    Activation(
        "prelu",
        module="PReLU",
        reference=F.prelu,
        formula="x if x > 0 else weight * x",
        source="He et al., Delving Deep into Rectifiers, arXiv:1502.01852",
        ulp=0,
        family="prelu",
    ),
    Activation(
        "elu",
        module="ELU",
        reference=F.elu,
        formula="x if x > 0 else alpha * expm1(x)",
        source="Clevert, Unterthiner and Hochreiter, arXiv:1511.07289",
        inplace=True,
        truth=lambda x, alpha=1.0: torch.where(x > 0, x, alpha * torch.expm1(x)),
    ),
    Activation(
        "selu",
        module="SELU",
        reference=F.selu,
        formula="scale * (x if x > 0 else alpha * expm1(x)), scale=1.0507..., alpha=1.6732...",
        source="Klambauer et al., Self-Normalizing Neural Networks, arXiv:1706.02515",
        inplace=True,
    ),
    Activation(
        "celu",
        module="CELU",
        reference=F.celu,
        formula="x if x > 0 else alpha * expm1(x / alpha)",
        source="Barron, arXiv:1704.07483",
        inplace=True,
    ),
    Activation(
        "gelu",
        module="GELU",
        reference=F.gelu,
        formula="x * Phi(x), Phi the normal distribution's cumulative function",
        source=_GELU,
        ulp=2.0,
        truth=_gelu_truth,
    ),
    Activation(
        "gelu_tanh",
        module="GELU",
        reference=functools.partial(F.gelu, approximate="tanh"),
        formula="x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3)))",
        source=_GELU,
        ulp=2.0,
        truth=_gelu_tanh_truth,
    ),
    Activation(
        "silu",
        module="SiLU",
        reference=F.silu,
        formula="x / (1 + exp(-x))",
        source="Elfwing, Uchibe and Doya, arXiv:1702.03118",
        inplace=True,
        truth=lambda x: x * torch.sigmoid(x),
    ),
    Activation(
        "mish",
        module="Mish",
        reference=F.mish,
        formula="x * tanh(log1p(exp(x)))",
        source="Misra, arXiv:1908.08681",
        inplace=True,
        ulp=2.0,
        truth=_mish_truth,
    ),
    Activation(
        "sigmoid",
        module="Sigmoid",
        reference=torch.sigmoid,
        formula="1 / (1 + exp(-x))",
        twin_saves_output=True,
    ),
    Activation(
        "logsigmoid",
        module="LogSigmoid",
        reference=F.logsigmoid,
        formula="-log1p(exp(-x))",
    ),
    Activation(
        "tanh", module="Tanh", reference=torch.tanh, formula="tanh(x)", twin_saves_output=True
    ),
    Activation(
        "hardtanh",
        module="Hardtanh",
        reference=F.hardtanh,
        formula="min(max(x, min_val), max_val)",
        inplace=True,
        inductor_fuses=True,
        ulp=0,
    ),
    Activation(
        "hardsigmoid",
        module="Hardsigmoid",
        reference=F.hardsigmoid,
        formula="min(max(x + 3, 0), 6) / 6",
        source=_MOBILE,
        inplace=True,
        inductor_fuses=True,
    ),
    Activation(
        "hardswish",
        module="Hardswish",
        reference=F.hardswish,
        formula="x * min(max(x + 3, 0), 6) / 6",
        source=_MOBILE,
        inplace=True,
        inductor_fuses=True,
        ulp=2.0,
    ),
    Activation(
        "softplus",
        module="Softplus",
        reference=F.softplus,
        formula="log1p(exp(beta * x)) / beta, or x where beta * x > threshold",
        source="Dugas et al., Incorporating Second-Order Functional Knowledge, NIPS 2000",
        ulp=2.0,
    ),
    Activation(
        "softsign",
        module="Softsign",
        reference=F.softsign,
        formula="x / (1 + |x|)",
        inductor_fuses=True,
    ),
    Activation(
        "tanhshrink",
        module="Tanhshrink",
        reference=F.tanhshrink,
        formula="x - tanh(x)",
        ulp=2.0,
        truth=_tanhshrink_truth,
    ),
    Activation(
        "softshrink",
        module="Softshrink",
        reference=F.softshrink,
        formula="x - lambd if x > lambd else x + lambd if x < -lambd else 0",
        inductor_fuses=True,
        ulp=0,
    ),
    Activation(
        "hardshrink",
        module="Hardshrink",
        reference=F.hardshrink,
        formula="x if |x| > lambd else 0",
        inductor_fuses=True,
        ulp=0,
    ),
    Activation(
        "threshold",
        module="Threshold",
        reference=F.threshold,
        formula="x if x > threshold else value",
        inplace=True,
        inductor_fuses=True,
        ulp=0,
    ),
    Activation(
        "softmax",
        module="Softmax",
        reference=torch.softmax,
        formula="exp(x) / sum(exp(x)) over dim",
        source="Bridle, Probabilistic Interpretation of Feedforward Network Outputs, 1990",
        family="softmax",
        twin_saves_output=True,
    ),
    Activation(
        "log_softmax",
        module="LogSoftmax",
        reference=torch.log_softmax,
        formula="x - log(sum(exp(x))) over dim",
        family="softmax",
        twin_saves_output=True,
    ),
]

REGISTRY: Mapping[str, Activation] = {row.name: row for row in _ROWS}

# What `activation=` of the fused operators refuses, with the reason.
_NOT_FUSIBLE = {
    **dict.fromkeys(GATED_UNITS, "it changes the shape"),
    "rrelu": "it draws random numbers in training",
}


def resolve(op: str, activation: str, params: Mapping[str, Any]) -> tuple[str, tuple[float, ...]]:
    """The registry name and the parameters, in the schema's order, of ``activation=`` and its
    keyword arguments.

    Raises:
        ValueError: no such activation, or one that cannot be fused.
        TypeError: a parameter that the activation does not have, or not of its type; for other
            errors see :mod:`fastact.arguments`.
    """
    if not isinstance(activation, str):
        raise unknown_activation(op, activation)
    if activation == "gelu" and "approximate" in params:
        params = dict(params)
        activation = gelu_name(op, params.pop("approximate"))
    if activation in REGISTRY:
        row = REGISTRY[activation]
    elif activation in _NOT_FUSIBLE:
        raise ValueError(
            f"fastact.{op}(): activation: {activation!r} cannot be fused: "
            f"{_NOT_FUSIBLE[activation]}; call fastact.functional.{activation} on the result"
        )
    else:
        raise unknown_activation(op, activation)
    known = row.parameters
    unexpected = [name for name in params if name not in known]
    if unexpected:
        takes = ", ".join(known) or "no parameters"
        raise TypeError(
            f"fastact.{op}(): {unexpected[0]}: unexpected parameter of activation "
            f"{activation!r}, which takes {takes}; got {params[unexpected[0]]!r}"
        )
    return row.name, tuple(
        [
            _checked(op, name, params[name], default) if name in params else default
            for name, default in known.items()
        ]
    )


def _checked(op: str, name: str, value: Any, default: float) -> Any:
    # A schema's ints are dimensions.
    return (as_dimension if isinstance(default, int) else as_number)(op, name, value)


def gelu_name(op: str, approximate: str) -> str:
    """The registry name of GELU with PyTorch's ``approximate=`` argument."""
    names = {"none": "gelu", "tanh": "gelu_tanh"}
    if not isinstance(approximate, str):
        raise TypeError(
            f"fastact.{op}(): approximate: expected 'none' or 'tanh', got {approximate!r}"
        )
    if approximate not in names:
        raise RuntimeError(
            f"fastact.{op}(): approximate: expected 'none' or 'tanh', got {approximate!r}"
        )
    return names[approximate]


def unknown_activation(op: str, activation: object) -> ValueError:
    """The error for an ``activation=`` that names nothing, with the nearest names."""
    nearest = difflib.get_close_matches(
        str(activation).lower(), [*REGISTRY, *_NOT_FUSIBLE], cutoff=0.4
    )
    hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
    return ValueError(
        f"fastact.{op}(): activation: expected one of {', '.join(REGISTRY)}, "
        f"got {activation!r}{hint}"
    )
