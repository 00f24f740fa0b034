"""The case table: what tests and benchmarks run over, made from the registry.

A case is a row with one setting of its parameters. Beside the cases: the sizes, layouts and values
that kernels get wrong first, and PyTorch's own generators of samples bound to fastact's functions.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastact import functional, nn
from fastact.activations import KERNEL_DTYPES, REGISTRY, Activation

if TYPE_CHECKING:
    from torch.testing._internal.common_modules import ModuleInfo
    from torch.testing._internal.opinfo.core import OpInfo

DTYPES = KERNEL_DTYPES

# ---- cases -------------------------------------------------------------------------------------

# Settings beside the defaults, an ordinary one first: the signs, zeros and orders on which a
# formula, or what its backward reads, depends.
_SETTINGS: Mapping[str, list[dict[str, float]]] = {
    "leaky_relu": [{"negative_slope": slope} for slope in (0.3, 0.0, -0.5, 2.0)],
    "elu": [{"alpha": alpha} for alpha in (0.4, 0.0, 2.5, -0.7)],
    "celu": [{"alpha": alpha} for alpha in (0.4, 2.5)],
    "hardtanh": [
        {"min_val": -0.5, "max_val": 2.0},
        {"min_val": 0.0, "max_val": 6.0},
        {"min_val": 1.0, "max_val": 1.0},
    ],
    "softplus": [{"beta": 2.5}, {"beta": 0.5, "threshold": 1.0}, {"beta": -1.5}],
    "softshrink": [{"lambd": 1.25}, {"lambd": 0.0}],
    "hardshrink": [{"lambd": 1.25}, {"lambd": 0.0}, {"lambd": -0.5}],
    "threshold": [
        {"threshold": 0.5, "value": -1.0},
        {"threshold": 0.0, "value": 2.0},
        {"threshold": -1.0, "value": -1.0},
    ],
}

# What PyTorch's formulas turn into NaN (0 * inf, inf / inf) has a limit; either is right.
_LIMITS: Mapping[str, dict[float, float]] = {
    name: {-math.inf: 0.0, math.inf: math.inf}
    for name in ("gelu", "gelu_tanh", "silu", "mish", "hardswish")
} | {
    "softsign": {-math.inf: -1.0, math.inf: 1.0},
}


def _no_tensors(input: Tensor) -> tuple[Tensor, ...]:
    return ()


def _one_weight(input: Tensor) -> tuple[Tensor, ...]:
    return (torch.full((1,), 0.25, dtype=input.dtype, device=input.device),)


def _channel_weights(input: Tensor) -> tuple[Tensor, ...]:
    channels = input.shape[1] if input.dim() > 1 else 1
    return (torch.linspace(-0.75, 1.5, channels, dtype=input.dtype, device=input.device),)


@dataclass(frozen=True, eq=False)
class Case:
    """A row of the registry with one setting of its parameters.

    Attributes:
        row: the row.
        parameters: what is not at its default.
        tensors: the learnable tensors that follow the input (PReLU's weight), for an input.
        label: tells apart cases with the same parameters.
        keywords: the parameters by name, as the public function takes them.
        function: fastact.functional's function of (input, *tensors).
        twin: PyTorch's function of (input, *tensors).
    """

    row: Activation
    parameters: Mapping[str, float] = field(default_factory=dict)
    tensors: Callable[[Tensor], tuple[Tensor, ...]] = _no_tensors
    label: str = ""

    keywords: dict[str, Any] = field(init=False)
    function: Callable[..., Tensor] = field(init=False)
    twin: Callable[..., Tensor] = field(init=False)

    def __post_init__(self) -> None:
        # torch.nn.functional.threshold has no defaults.
        required = self.row.parameters if self.row.name == "threshold" else {}
        keywords = {**required, **self.parameters}
        function = functools.partial(public_function(self.row), **keywords)
        twin = functools.partial(self.row.reference, **keywords)
        for name, value in (("keywords", keywords), ("function", function), ("twin", twin)):
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        settings = ",".join(f"{name}={value}" for name, value in self.parameters.items())
        return "-".join(filter(None, [self.row.name, self.label, settings]))

    @property
    def values(self) -> tuple[float, ...]:
        """All parameters in the order of the operators' schemas."""
        return tuple({**self.row.parameters, **self.parameters}.values())

    def accepts(self, input: Tensor) -> bool:
        """Whether the twin takes an input of this shape."""
        if self.row.family == "gated":
            return input.dim() > 0 and input.shape[self.parameters["dim"]] % 2 == 0
        return input.dim() > 0 or self.label != "channels"

    def module(self, **factory: Any) -> torch.nn.Module:
        """fastact.nn's module."""
        return self._module(nn, factory)

    def twin_module(self, **factory: Any) -> torch.nn.Module:
        """PyTorch's module."""
        return self._module(torch.nn, factory)

    def _module(self, namespace: Any, factory: dict[str, Any]) -> torch.nn.Module:
        keywords = dict(self.keywords)
        if isinstance(self.row.reference, functools.partial):
            keywords |= self.row.reference.keywords
        return getattr(namespace, self.row.module)(**keywords, **factory)

    def exact(self, input: Tensor) -> Tensor:
        """The result in float64, differentiable."""
        wide = input.double()
        function = self.row.truth or self.row.reference
        return function(wide, *self.tensors(wide), **self.keywords)

    def smooth(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Random inputs at least 0.05 away from every point where the derivative jumps."""
        x = torch.randn(shape, dtype=torch.float64) * 2
        for kink in self.kinks():
            x = torch.where((x - kink).abs() < 0.05, kink + 0.1 * torch.sign(x - kink + 1e-9), x)
        return x.to(dtype)

    def kinks(self) -> list[float]:
        """Every point where the derivative of an activation with these parameters may jump."""
        if self.row.family != "unary":
            return [0.0]
        points = {0.0, 3.0, -3.0, 6.0}
        points |= {sign * value for value in self.values for sign in (1, -1)}
        if self.row.name == "softplus":
            beta, threshold = self.values
            points.add(threshold / beta)
        return sorted(points)

    def assert_like_twin(self, input: Tensor, context: object = "") -> None:
        """Raises AssertionError unless the function computes what its twin computes."""
        assert_like_twin(
            self.row, input, *self.tensors(input), context=f"{self} {context}", **self.keywords
        )


def public_function(row: Activation) -> Callable[..., Tensor]:
    """The function of fastact.functional; "gelu_tanh" is a form of "gelu"."""
    if isinstance(row.reference, functools.partial):
        return functools.partial(
            getattr(functional, row.reference.func.__name__), **row.reference.keywords
        )
    return getattr(functional, row.name)


def assert_like_twin(
    row: Activation, input: Tensor, *args: Any, context: object = "", **kwargs: Any
) -> None:
    """Raises AssertionError unless fastact's function gives what PyTorch's gives: dtype, shape,
    strides, and values. They must agree bit for bit where the row says so, else within the
    tolerances of torch.testing; where they do not, PyTorch must be wrong and fastact right."""
    actual = public_function(row)(input, *args, **kwargs)
    expected = row.reference(input, *args, **kwargs)
    assert significant_strides(actual) == significant_strides(expected), (
        f"{context}: strides {actual.stride()}, expected {expected.stride()}"
    )
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), context
    if row.ulp == 0 and input.dtype in (torch.float32, torch.float64):
        if not _same_bits(actual, expected).all() and row.family == "unary":
            # In PyTorch's softshrink the sign of a zero depends on its position: as in whole
            # vectors.
            whole = torch.nn.functional.pad(input.reshape(-1), (0, -input.numel() % 64))
            expected = row.reference(whole, *args, **kwargs)[: input.numel()].view_as(input)
        assert_same_bits(actual, expected, context)
        return
    close = _close(actual, expected)
    if not close.all():
        exact = (row.truth or row.reference)(input.double(), *args, **kwargs).to(input.dtype)
        for point, limit in _LIMITS.get(row.name, {}).items():
            exact = torch.where(input == point, limit, exact)
        torch.testing.assert_close(
            actual,
            torch.where(close, expected, exact),
            equal_nan=True,
            msg=lambda text: f"{context}: {text}",
        )


def enabled() -> bool:
    """Whether fastact's kernels run: False under FASTACT_DISABLE=1."""
    return torch.ops.fastact.enabled()


def significant_strides(tensor: Tensor) -> list[tuple[int, int]]:
    """(dimension, stride) where the stride matters: not in empty tensors, nor along one element."""
    sizes = tensor.shape if tensor.numel() else ()
    return [(i, tensor.stride(i)) for i, size in enumerate(sizes) if size > 1]


def _close(actual: Tensor, expected: Tensor) -> Tensor:
    tolerances = torch.testing._comparison.default_tolerances(actual, expected)
    return torch.isclose(actual, expected, *tolerances, equal_nan=True)


def _same_bits(actual: Tensor, expected: Tensor) -> Tensor:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    same = actual.contiguous().view(integer) == expected.contiguous().view(integer)
    return same | (actual.isnan() & expected.isnan())


def assert_same_bits(actual: Tensor, expected: Tensor, context: object = "") -> None:
    """Raises AssertionError unless the tensors agree in every bit; all NaN are alike."""
    same = _same_bits(actual, expected)
    if not same.all():
        different = ~same
        where = tuple(different.nonzero()[0].tolist())
        raise AssertionError(
            f"{context}: {int(different.sum())} elements differ in bits; at {where} "
            f"got {actual[where].item()!r}, expected {expected[where].item()!r}"
        )


def _gated(name: str, reference: Callable[..., Tensor], module: str = "") -> Activation:
    return Activation(name, module, reference, formula="", family="gated", ulp=2.0)


def _halves(product: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def gate(x: Tensor, dim: int = -1) -> Tensor:
        return product(*x.chunk(2, dim))

    return gate


# Gated units halve a dimension, so they are no rows of the registry; PyTorch has only glu.
GATED: list[Activation] = [
    _gated("glu", _halves(lambda a, b: a * torch.sigmoid(b)), module="GLU"),
    _gated("swiglu", _halves(lambda a, b: torch.nn.functional.silu(a) * b)),
    _gated("geglu", _halves(lambda a, b: torch.nn.functional.gelu(a) * b)),
    _gated("reglu", _halves(lambda a, b: torch.relu(a) * b)),
]


def _cases_of(row: Activation) -> list[Case]:
    if row.family == "unary":
        return [Case(row), *(Case(row, setting) for setting in _SETTINGS.get(row.name, []))]
    if row.family == "prelu":
        return [Case(row, {}, _one_weight, "one"), Case(row, {}, _channel_weights, "channels")]
    if row.family in ("softmax", "gated"):
        return [Case(row, {"dim": -1}), Case(row, {"dim": 0})]
    return []  # test_registry tells


def _not_at_its_defaults(cases: list[Case]) -> Case:
    return [case for case in cases[:2] if case.parameters.get("dim") != 0][-1]


_CASES = [cases for row in [*REGISTRY.values(), *GATED] if (cases := _cases_of(row))]
CASES: list[Case] = list(itertools.chain.from_iterable(_CASES))
# One of each row: at its defaults; not at them, where it has parameters.
DEFAULT_CASES: list[Case] = [cases[0] for cases in _CASES]
VARIED_CASES: list[Case] = [_not_at_its_defaults(cases) for cases in _CASES]
# What is costly to test, on one activation for each path: handed to Inductor or an operator, read
# from the output or from the input by backward, each family.
_KINDS = ("leaky_relu", "elu", "silu", "prelu", "softmax", "glu")
OF_EACH_KIND: list[Case] = [case for case in VARIED_CASES if case.row.name in _KINDS]
UNARY_CASES: list[Case] = [case for case in CASES if case.row.family == "unary"]


@dataclass(frozen=True, eq=False)
class FusedCase:
    """An ``activation=`` of a fused operator with its parameters, and the same unfused.

    Attributes:
        name: what ``activation=`` takes, or None.
        parameters: its keyword arguments.
        twin: PyTorch's activation of (input, slope).
        learnable: whether it takes ``slope=``, a tensor.
    """

    name: str | None
    parameters: Mapping[str, Any]
    twin: Callable[..., Tensor]
    learnable: bool = False

    def __str__(self) -> str:
        settings = ",".join(f"{name}={value}" for name, value in self.parameters.items())
        return "-".join(filter(None, [self.name or "none", settings]))

    @property
    def values(self) -> tuple[float, ...]:
        """All parameters in the order of the operators' schemas."""
        defaults = REGISTRY[self.name].parameters if self.name else {}
        return tuple({**defaults, **self.parameters}.values())


def _fused_case(case: Case) -> FusedCase:
    # The channels are linear's last dimension and prelu's second: the same for a matrix.
    learnable = case.row.family == "prelu"
    return FusedCase(case.row.name, case.parameters, case.twin, learnable)


_UNFUSED = FusedCase(None, {}, lambda z: z)
FUSED_CASES: list[FusedCase] = [
    _UNFUSED,
    *(_fused_case(case) for case in CASES if case.row.name in REGISTRY and case.label != "one"),
]
VARIED_FUSED_CASES: list[FusedCase] = [
    _UNFUSED,
    *(_fused_case(case) for case in VARIED_CASES if case.row.name in REGISTRY),
]
FUSED_OF_EACH_KIND: list[FusedCase] = [
    _UNFUSED,
    *(_fused_case(case) for case in OF_EACH_KIND if case.row.name in REGISTRY),
]

# ---- sizes, layouts, values --------------------------------------------------------------------

# Every tail of vectors of up to 64 elements, unrolled twice; primes; one above a block.
SIZES: tuple[int, ...] = (*range(2 * 64 + 2), 251, 257, 1021, 4099, 16411)

# Makes a tensor in a layout from a function that makes one of a shape.
Layout = Callable[[Callable[..., Tensor]], Tensor]
LAYOUTS: Mapping[str, Layout] = {
    "0-dim": lambda new: new(()),
    "one element": lambda new: new((1, 1, 1)),
    "contiguous": lambda new: new((5, 7, 6)),
    "offset": lambda new: new((83,))[3:],
    "transposed": lambda new: new((9, 67)).t(),
    "permuted": lambda new: new((4, 5, 2, 6)).permute(3, 0, 2, 1),
    "channels last": lambda new: new((2, 5, 3, 7)).to(memory_format=torch.channels_last),
    "channels last 3-D": lambda new: new((2, 3, 2, 3, 5)).to(memory_format=torch.channels_last_3d),
    "channels last slice": lambda new: new((2, 9, 3, 7)).to(memory_format=torch.channels_last)[
        :, 2:6
    ],
    "row slice": lambda new: new((8, 41))[2:6],
    "column slice": lambda new: new((8, 41))[:, 3:20],
    "step": lambda new: new((150,))[1::2],
    "steps": lambda new: new((9, 40, 5))[::2, 1::3, ::4],
    "transposed step": lambda new: new((40, 12))[::3, ::2].t(),
    "unit dimensions": lambda new: new((1, 5, 1, 13)).transpose(0, 1).transpose(1, 3),
    "expanded": lambda new: new((5, 1, 3)).expand(5, 6, 3),
    "expanded scalar": lambda new: new(()).expand(4, 33),
    "overlapping": lambda new: new((40,)).as_strided((7, 9), (3, 1), 1),
    "diagonal": lambda new: new((19, 19)).diagonal(),
    "empty": lambda new: new((0,)),
    "empty 3-D": lambda new: new((3, 0, 2)),
    "empty transposed": lambda new: new((0, 7)).t(),
    "6-D": lambda new: new((2, 3, 1, 2, 3, 2)),
    "more elements than a block": lambda new: new((129, 131)).t(),
}


def random_tensor(
    shape: Iterable[int], dtype: torch.dtype = torch.float32, device: Any = "cpu"
) -> Tensor:
    """Normally distributed with deviation 3: on both sides of every kink."""
    return (torch.randn(tuple(shape), device=device) * 3).to(dtype)


def special_values(dtype: torch.dtype) -> Tensor:
    """Both signs of: NaN, infinity, zero, subnormal, the smallest and largest normal numbers, where
    exponentials overflow or vanish, where activations bend; each also one step further and less."""
    info = torch.finfo(dtype)
    # No type is wider than float64 to tell the truth next to its overflow.
    largest = info.max / 8 if dtype == torch.float64 else info.max
    magnitudes = [0.0, info.smallest_normal, info.eps, largest, math.inf, math.nan]
    magnitudes += [0.5, 1.0, 1.25, 2.0, 3.0, 6.0, 8.0, 9.02, 10.0, 17.0, 20.0, 36.8, 60.0, 87.4]
    magnitudes += [88.73, 104.0, 700.0, 745.2, 1e4]
    x = torch.tensor(magnitudes, dtype=torch.float64).to(dtype)
    infinity = torch.tensor(math.inf, dtype=dtype)
    x = torch.cat([x, torch.nextafter(x, infinity), torch.nextafter(x, -infinity)])
    x = x[~(x.isfinite() & (x > largest))]
    return torch.cat([x, -x])


# ---- PyTorch's own generators ------------------------------------------------------------------

# torch.testing._internal may change without notice. These numbers tell when samples vanish:
# per function (samples, reference inputs, error inputs), for a floating-point dtype.
EXPECTED_SAMPLES: Mapping[str, tuple[int, int, int]] = {
    "relu": (4, 41, 0),
    "relu6": (3, 39, 0),
    "leaky_relu": (9, 9, 0),
    "prelu": (25, 108, 3),
    "elu": (3, 39, 0),
    "selu": (3, 39, 0),
    "celu": (3, 39, 0),
    "gelu": (8, 8, 1),
    "silu": (3, 39, 0),
    "mish": (3, 39, 0),
    "sigmoid": (3, 39, 0),
    "logsigmoid": (3, 39, 0),
    "tanh": (1, 35, 0),
    "hardtanh": (5, 43, 1),
    "hardsigmoid": (3, 39, 0),
    "hardswish": (4, 4, 0),
    "softplus": (3, 39, 0),
    "softsign": (3, 39, 0),
    "tanhshrink": (3, 39, 0),
    "softshrink": (5, 43, 1),
    "hardshrink": (6, 45, 0),
    "threshold": (4, 41, 0),
    "rrelu": (5, 43, 1),
    "glu": (46, 46, 0),
    "softmax": (14, 14, 0),
    "softmin": (14, 14, 0),
    "log_softmax": (14, 14, 0),
    "linear": (18, 18, 0),
}
# Per module: samples in training mode, and as many in evaluation.
EXPECTED_MODULE_SAMPLES: Mapping[str, int] = {
    "ReLU": 4,
    "ReLU6": 4,
    "LeakyReLU": 5,
    "PReLU": 8,
    "ELU": 4,
    "SELU": 3,
    "CELU": 3,
    "GELU": 3,
    "SiLU": 3,
    "Mish": 3,
    "Sigmoid": 4,
    "LogSigmoid": 3,
    "Tanh": 3,
    "Hardtanh": 3,
    "Hardswish": 2,
    "Softplus": 5,
    "Softsign": 3,
    "Tanhshrink": 3,
    "Softshrink": 4,
    "Hardshrink": 3,
    "Threshold": 4,
    "GLU": 3,
    "Softmax": 3,
    "Softmax2d": 2,
    "Softmin": 4,
    "LogSoftmax": 4,
    "Linear": 3,
}
# Per recurrent module: samples in either mode, error inputs.
EXPECTED_RECURRENT_SAMPLES: Mapping[str, tuple[int, int]] = {
    "RNN": (32, 14),
    "GRU": (16, 14),
    "LSTM": (32, 14),
    "RNNCell": (3, 6),
    "GRUCell": (2, 6),
    "LSTMCell": (2, 4),
}


@functools.cache
def op_infos(name: str) -> list[OpInfo]:
    """PyTorch's OpInfos of a function, with all their samples, that compute fastact's. Takes
    seconds to import."""
    from torch.testing._internal.common_methods_invocations import op_db

    return [
        _bound(info, op=getattr(functional, name))
        for info in op_db
        if info.name in (name, f"nn.functional.{name}")
        and info.supports_dtype(torch.float32, "cpu")
    ]


@functools.cache
def module_info(name: str) -> ModuleInfo:
    """PyTorch's ModuleInfo of a module, that builds fastact's."""
    from torch.testing._internal.common_modules import module_db

    (info,) = (info for info in module_db if info.module_cls is getattr(torch.nn, name))
    return _bound(info, module_cls=getattr(nn, name))


def _bound(info: Any, **attributes: Any) -> Any:
    mine = copy.copy(info)
    for name, value in attributes.items():
        setattr(mine, name, value)
    return mine


def pairs(*axes: Iterable[Any]) -> list[Any]:
    """The product of axes of parametrisation, each combination with a readable id."""
    import pytest

    def text(value: Any) -> str:
        return str(value).removeprefix("torch.")

    return [
        pytest.param(*values, id="-".join(text(value) for value in values))
        for values in itertools.product(*axes)
    ]
