"""The case table: what tests and benchmarks run over, made from the registry.

A case is a row with one setting of its parameters. Beside this table: the inputs that kernels get
wrong first (``inputs.py``), and PyTorch's own samples (``samples.py``).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastact import functional, nn
from fastact.activations import KERNEL_DTYPES, REGISTRY, Activation

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

# Points where the derivative jumps that follow from more than one parameter.
_KINKS: Mapping[str, Callable[..., float]] = {
    "softplus": lambda beta, threshold: threshold / beta,
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
        required = self.row.parameters if self.row.requires_parameters else {}
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
        if self.row.halves_dimension:
            return input.dim() > 0 and input.shape[int(self.parameters["dim"])] % 2 == 0
        return input.dim() > 0 or self.label != "channels"

    def module(self, **factory: Any) -> torch.nn.Module:
        """fastact.nn's module."""
        return self._module(nn, factory)

    def twin_module(self, **factory: Any) -> torch.nn.Module:
        """PyTorch's module."""
        return self._module(torch.nn, factory)

    def _module(self, namespace: Any, factory: dict[str, Any]) -> torch.nn.Module:
        keywords = {**self.keywords, **self.row.form, **factory}
        return getattr(namespace, self.row.module or "")(**keywords)

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
        if self.row.name in _KINKS:
            points.add(_KINKS[self.row.name](*self.values))
        return sorted(points)

    def assert_like_twin(self, input: Tensor, context: object = "") -> None:
        """Raises AssertionError unless the function computes what its twin computes."""
        assert_like_twin(
            self.row, input, *self.tensors(input), context=f"{self} {context}", **self.keywords
        )


def public_function(row: Activation) -> Callable[..., Tensor]:
    """The function of fastact.functional, in the row's form."""
    function = getattr(functional, row.function)
    return functools.partial(function, **row.form) if row.form else function


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


def _cases_of(row: Activation) -> list[Case]:
    if row.takes_slope:
        return [Case(row, {}, _one_weight, "one"), Case(row, {}, _channel_weights, "channels")]
    if row.along_dimension:
        return [Case(row, {"dim": -1}), Case(row, {"dim": 0})]
    return [Case(row), *(Case(row, setting) for setting in _SETTINGS.get(row.name, []))]


def _not_at_its_defaults(cases: list[Case]) -> Case:
    return [case for case in cases[:2] if case.parameters.get("dim") != 0][-1]


_CASES = [_cases_of(row) for row in REGISTRY.values()]
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
    return FusedCase(case.row.name, case.parameters, case.twin, case.row.takes_slope)


_UNFUSED = FusedCase(None, {}, lambda z: z)
FUSED_CASES: list[FusedCase] = [
    _UNFUSED,
    *(_fused_case(case) for case in CASES if case.row.fusible and case.label != "one"),
]
VARIED_FUSED_CASES: list[FusedCase] = [
    _UNFUSED,
    *(_fused_case(case) for case in VARIED_CASES if case.row.fusible),
]
FUSED_OF_EACH_KIND: list[FusedCase] = [
    _UNFUSED,
    *(_fused_case(case) for case in OF_EACH_KIND if case.row.fusible),
]


def pairs(*axes: Iterable[Any]) -> list[Any]:
    """The product of axes of parametrisation, each combination with a readable id."""
    import pytest

    def text(value: Any) -> str:
        return str(value).removeprefix("torch.")

    return [
        pytest.param(*values, id="-".join(text(value) for value in values))
        for values in itertools.product(*axes)
    ]
