"""THE registry: one row an activation.

What an activation computes is written in ``csrc/math/activations.h``, which also says its
parameters with their defaults and what backward reads; its ATen composition stands in
``csrc/ops/unary/compositions.h``. (Families with kernels of their own: their folders in
``csrc/ops/``.) A row here ties the operator to its PyTorch twin. Functions, modules,
``activation=`` arguments, tests, benchmarks and documents loop over the rows, and ask a row for
what sets it apart, never for its name.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from fastact import truths
from fastact.arguments import as_dimension, as_number

# What the kernels compute (is_kernel_dtype() in csrc/core/activation.h).
KERNEL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# At most this derivative, in size, and a unit is saturated: almost no gradient passes.
SATURATED = 1e-3


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
        family: "unary", or the name of the family with its own kernel: "prelu", "softmax", "gated".
        function: the function of fastact.functional, where it is not called as the row: the row is
            a form of it.
        form: the keyword argument, with its value, by which the function chooses this form.
        requires_parameters: whether the twin has no defaults.
        results: "probabilities" or "log-probabilities", where the results are such.
        parameters: names and defaults, read from the operator's schema.
        tensors: names of the learnable tensors after the input, read from the schema.
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
    function: str = ""
    form: Mapping[str, str] = field(default_factory=dict)
    requires_parameters: bool = False
    results: str = ""
    parameters: Mapping[str, float] = field(init=False)
    tensors: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        _, *others = self.operator.default._schema.arguments
        tensors = tuple(a.name for a in others if isinstance(a.type, torch.TensorType))
        scalars = {a.name: a.default_value for a in others if a.name not in tensors}
        object.__setattr__(self, "function", self.function or self.name)
        object.__setattr__(self, "parameters", scalars)
        object.__setattr__(self, "tensors", tensors)

    @property
    def operator(self) -> torch._ops.OpOverloadPacket:
        """``torch.ops.fastact.<name>``."""
        return getattr(torch.ops.fastact, self.name)

    @property
    def takes_slope(self) -> bool:
        """Whether fused operators need ``slope=`` with it: the learnable tensor."""
        return bool(self.tensors)

    @property
    def along_dimension(self) -> bool:
        """Whether it computes along one dimension, ``dim``."""
        return "dim" in self.parameters

    @property
    def elementwise(self) -> bool:
        """Whether an element of the output depends on one element of the input."""
        return not self.along_dimension

    @property
    def halves_dimension(self) -> bool:
        """Whether the output is half as large as the input along ``dim``."""
        return self.family == "gated"

    @property
    def fusible(self) -> bool:
        """Whether the fused operators take it as ``activation=``: the shape must stay."""
        return not self.halves_dimension

    @property
    def is_plain(self) -> bool:
        """Whether function and module take what the operator takes. PReLU takes a tensor more, and
        PyTorch's softmax has other arguments: theirs are written by hand."""
        return self.family in ("unary", "gated")

    @property
    def settings(self) -> tuple[str, ...]:
        """What shapes the curve of an elementwise activation, by PyTorch's names."""
        return (*self.tensors, *self.parameters) if self.elementwise else ()

    def values(self, parameters: Sequence[float]) -> tuple[Any, ...]:
        """All parameters as the operator takes them, from what fused operators are given: floats,
        none of them meaning the defaults."""
        defaults = self.parameters.values()
        return tuple(
            [
                int(value) if isinstance(default, int) else value
                for value, default in zip(parameters or defaults, defaults, strict=True)
            ]
        )

    def arguments(self, parameters: Sequence[float], slope: Any) -> tuple[Any, ...]:
        """What the operator takes after its input, likewise."""
        values = self.values(parameters)
        return (slope, *values) if self.takes_slope else values

    def exact(self, input: torch.Tensor, **parameters: Any) -> torch.Tensor:
        """The activation in float64: what errors are measured against."""
        return (self.truth or self.reference)(input.double(), **parameters)


def _gated(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """function(a) * b, a and b the halves of the input along dim."""

    def unit(input: torch.Tensor, dim: int = -1) -> torch.Tensor:
        a, b = input.chunk(2, dim)
        return function(a) * b

    return unit


_GELU = "Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv:1606.08415"
_RELU = "Nair and Hinton, Rectified Linear Units Improve Restricted Boltzmann Machines, ICML 2010"
_LEAKY = "Maas, Hannun and Ng, Rectifier Nonlinearities Improve ... Acoustic Models, ICML 2013"
_GATED = "Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202"
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
        truth=truths.gelu,
        form={"approximate": "none"},
    ),
    Activation(
        "gelu_tanh",
        module="GELU",
        reference=functools.partial(F.gelu, approximate="tanh"),
        formula="x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3)))",
        source=_GELU,
        ulp=2.0,
        truth=truths.gelu_tanh,
        function="gelu",
        form={"approximate": "tanh"},
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
        truth=truths.mish,
    ),
    Activation(
        "sigmoid",
        module="Sigmoid",
        reference=torch.sigmoid,
        formula="1 / (1 + exp(-x))",
        twin_saves_output=True,
        results="probabilities",
    ),
    Activation(
        "logsigmoid",
        module="LogSigmoid",
        reference=F.logsigmoid,
        formula="-log1p(exp(-x))",
        results="log-probabilities",
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
        results="probabilities",
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
        truth=truths.tanhshrink,
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
        requires_parameters=True,
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
        results="probabilities",
    ),
    Activation(
        "log_softmax",
        module="LogSoftmax",
        reference=torch.log_softmax,
        formula="x - log(sum(exp(x))) over dim",
        family="softmax",
        twin_saves_output=True,
        results="log-probabilities",
    ),
    # a and b are the halves of the input along dim.
    Activation(
        "glu",
        module="GLU",
        reference=F.glu,
        formula="a * sigmoid(b)",
        source="Dauphin et al., Language Modeling with Gated Convolutional Networks, "
        "arXiv:1612.08083",
        family="gated",
        ulp=2.0,
    ),
    Activation(
        "swiglu",
        module=None,
        reference=_gated(F.silu),
        formula="silu(a) * b",
        source=_GATED,
        family="gated",
        ulp=2.0,
    ),
    Activation(
        "geglu",
        module=None,
        reference=_gated(F.gelu),
        formula="gelu(a) * b",
        source=_GATED,
        family="gated",
        ulp=2.0,
    ),
    Activation(
        "reglu",
        module=None,
        reference=_gated(F.relu),
        formula="relu(a) * b",
        source=_GATED,
        family="gated",
        ulp=2.0,
    ),
]

REGISTRY: Mapping[str, Activation] = {row.name: row for row in _ROWS}
# What `activation=` of the fused operators takes.
FUSIBLE: Mapping[str, Activation] = {row.name: row for row in _ROWS if row.fusible}


class Refused(NamedTuple):
    """What `activation=` refuses: the name of its ``torch.nn`` class, if any, and the reason."""

    module: str | None
    reason: str


REFUSED: Mapping[str, Refused] = {
    row.name: Refused(row.module, "it changes the shape") for row in _ROWS if not row.fusible
} | {"rrelu": Refused("RReLU", "it draws random numbers in training")}


class Forms(NamedTuple):
    """How a function chooses among the rows that are forms of it: by the value of an argument."""

    argument: str
    names: Mapping[str, str]


def _forms() -> dict[str, Forms]:
    found: dict[str, Forms] = {}
    for row in _ROWS:
        for argument, value in row.form.items():
            forms = found.get(row.function, Forms(argument, {}))
            found[row.function] = Forms(argument, {**forms.names, value: row.name})
    return found


# By the function's name, which is also that of the form at its defaults.
FORMS: Mapping[str, Forms] = _forms()


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
    if activation in FORMS and FORMS[activation].argument in params:
        params = dict(params)
        activation = form_name(op, activation, params.pop(FORMS[activation].argument))
    if activation in REFUSED:
        raise ValueError(
            f"fastact.{op}(): activation: {activation!r} cannot be fused: "
            f"{REFUSED[activation].reason}; call fastact.functional.{activation} on the result"
        )
    if activation not in FUSIBLE:
        raise unknown_activation(op, activation)
    row = FUSIBLE[activation]
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


def form_name(op: str, function: str, value: Any) -> str:
    """The row that is the form of a function with this value of the argument that chooses it.

    Raises:
        TypeError, RuntimeError: there is no such form.
    """
    argument, names = FORMS[function]
    if isinstance(value, str) and value in names:
        return names[value]
    kind = RuntimeError if isinstance(value, str) else TypeError
    raise kind(
        f"fastact.{op}(): {argument}: expected {' or '.join(map(repr, names))}, got {value!r}"
    )


def unknown_activation(op: str, activation: object) -> ValueError:
    """The error for an ``activation=`` that names nothing, with the nearest names."""
    nearest = difflib.get_close_matches(str(activation).lower(), [*FUSIBLE, *REFUSED], cutoff=0.4)
    hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
    return ValueError(
        f"fastact.{op}(): activation: expected one of {', '.join(FUSIBLE)}, "
        f"got {activation!r}{hint}"
    )
