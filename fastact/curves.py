"""What the curve of an activation is like: values, derivative, range, saturation, measured error.

Plots, the guide's figures and ``python -m fastact plot --json`` read this.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastact.activations import FORMS, REGISTRY, SATURATED, Activation, form_name
from fastact.testing import accuracy
from fastact.testing.cases import DEFAULT_CASES, Case
from fastact.testing.ulp import ulp_error

DOMAIN = (
    -10.0,
    10.0,
)  # from where sigmoid, tanh, SiLU and softplus are saturated to where they are
LOGITS = (3.0, 2.0, 0.5, 0.0, -1.5)

_POINTS = 2001
_BINS, _IN_A_BIN = 200, 256  # the error is the largest of so many inputs in each bin
# Of one value, or of one for each class.
PLOTTED: Mapping[str, Activation] = {
    name: row for name, row in REGISTRY.items() if not row.halves_dimension
}


@dataclass(frozen=True)
class Curve:
    """An activation over a range of inputs.

    Attributes:
        name: the registry's, with the parameters that are not at their defaults.
        formula: in words of Python.
        x, y, derivative: float64, of the same shape.
        at_zero: the value at 0.
        infimum, supremum: of the values over all inputs.
        saturated: intervals of x where the derivative is at most 0.001 in size.
        error_x, error, twins_error: float64: centres of bins, and the largest error in each, in
            ULP of float32, of fastact and of PyTorch.
    """

    name: str
    formula: str
    x: Tensor
    y: Tensor
    derivative: Tensor
    at_zero: float
    infimum: float
    supremum: float
    saturated: list[tuple[float, float]]
    error_x: Tensor
    error: Tensor
    twins_error: Tensor

    def as_dict(self) -> dict[str, Any]:
        """The facts in plain values, for JSON."""
        return {
            "name": self.name,
            "formula": self.formula,
            "at_zero": self.at_zero,
            "range": [_finite(self.infimum), _finite(self.supremum)],
            "saturated": [list(interval) for interval in self.saturated],
            "largest_derivative": self.derivative.abs().max().item(),
            "ulp": self.error.max().item(),
            "ulp_of_pytorch": self.twins_error.max().item(),
        }


@dataclass(frozen=True)
class Bars:
    """What an activation along a dimension makes of a few logits."""

    name: str
    formula: str
    logits: tuple[float, ...]
    results: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same in plain values, for JSON."""
        return {
            "name": self.name,
            "formula": self.formula,
            "logits": list(self.logits),
            "results": list(self.results),
        }


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def cases_of(op: str, names: str | Iterable[str], parameters: Mapping[str, float]) -> list[Case]:
    """Each name with those of the parameters that it has.

    Args:
        op: whose errors these are.
        names: names of the registry, or "all".
        parameters: by PyTorch's names; PReLU's is ``weight``.

    Raises:
        ValueError: an unknown name, with the nearest ones; none at all; a parameter that none of
            them has.
    """
    names = [names] if isinstance(names, str) else list(names)
    if names == ["all"]:
        names = list(PLOTTED)
    if not names:
        raise ValueError(f"fastact.{op}(): names: expected an activation or more, got none")
    parameters = dict(parameters)
    for function, (argument, _) in FORMS.items():
        if argument in parameters:
            form = form_name(op, function, parameters.pop(argument))
            names = [form if name == function else name for name in names]
    defaults = {case.row.name: case for case in DEFAULT_CASES}
    for name in names:
        if name in REGISTRY and name not in PLOTTED:
            raise ValueError(
                f"fastact.{op}(): names: expected activations of one value, got {name!r}, "
                "a product of two"
            )
        if name not in PLOTTED:
            nearest = difflib.get_close_matches(str(name).lower(), PLOTTED, cutoff=0.4)
            hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
            raise ValueError(
                f"fastact.{op}(): names: expected 'all' or names of {', '.join(PLOTTED)}, "
                f"got {name!r}{hint}"
            )
    known = {name: PLOTTED[name].settings for name in names}
    for parameter in parameters:
        if not any(parameter in own for own in known.values()):
            takes = "; ".join(f"{n} takes {', '.join(own) or 'none'}" for n, own in known.items())
            raise ValueError(
                f"fastact.{op}(): {parameter}: expected a parameter of an activation named: {takes}"
            )
    return [
        _case(defaults[name], {p: v for p, v in parameters.items() if p in own})
        for name, own in known.items()
    ]


def _case(default: Case, parameters: dict[str, float]) -> Case:
    if not parameters:
        return default
    if default.row.takes_slope:
        [(name, value)] = parameters.items()
        tensors = lambda x: (torch.full((1,), value, dtype=x.dtype),)  # noqa: E731
        return Case(default.row, {}, tensors, f"{name}={value}")
    return Case(default.row, {name: float(value) for name, value in parameters.items()})


def curve_or_bars(
    case: Case, domain: tuple[float, float] = DOMAIN, logits: Sequence[float] = LOGITS
) -> Curve | Bars:
    """The curve; for softmax and log_softmax the bars."""
    if case.row.along_dimension:
        result = case.row.operator(torch.tensor(logits), -1)
        return Bars(str(case.row.name), case.row.formula, tuple(logits), tuple(result.tolist()))
    return curve(case, domain)


def curve(case: Case, domain: tuple[float, float] = DOMAIN) -> Curve:
    """Evaluates an elementwise activation in float64, and measures float32's error against it."""
    x = torch.linspace(*domain, _POINTS, dtype=torch.float64)
    y, derivative = _exact(case, x)
    # Beyond the domain: where exponentials and the arguments of thresholds have settled.
    size = torch.logspace(-4, 12, 8001, dtype=torch.float64)
    far = torch.cat([-size, size])
    values = torch.cat([y, _exact(case, far)[0]])
    error_x, error, twins_error = _errors(case, domain)
    zero = _exact(case, torch.zeros(1, dtype=torch.float64))[0].item()
    own = [f"{name}={value:g}" for name, value in case.parameters.items()]
    settings = ", ".join([case.label] if "=" in case.label else own)
    return Curve(
        name=f"{case.row.name}({settings})" if settings else case.row.name,
        formula=case.row.formula,
        x=x,
        y=y,
        derivative=derivative,
        at_zero=zero + 0.0,
        infimum=_bound(values.min().item()),
        supremum=_bound(values.max().item()),
        saturated=_intervals(x, derivative.abs() <= SATURATED),
        error_x=error_x,
        error=error,
        twins_error=twins_error,
    )


def _exact(case: Case, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        y = case.exact(leaf)
        (derivative,) = torch.autograd.grad(y.sum(), leaf)
    return y.detach(), derivative


def _bound(value: float) -> float:
    """At 1e12 an unbounded activation is a multiple of it, and a bounded one at its limit."""
    if abs(value) >= 50:
        return math.copysign(math.inf, value)
    return round(value, 4) + 0.0


def _intervals(x: Tensor, where: Tensor) -> list[tuple[float, float]]:
    """The maximal intervals of x, longer than a step, in which ``where`` holds."""
    edges = torch.diff(where.int(), prepend=torch.zeros(1).int(), append=torch.zeros(1).int())
    starts, ends = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten() - 1
    return [
        (x[start].item(), x[end].item())
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        if end > start + 1
    ]


def _errors(case: Case, domain: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    edges = torch.linspace(*domain, _BINS + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(_BINS, _IN_A_BIN, dtype=torch.float64, generator=generator)
    x = (edges[:-1, None] + place * edges.diff()[:, None]).float().flatten()
    truth = accuracy.truth_of(case, x)
    errors = [
        ulp_error(function(case, x), truth).view(_BINS, _IN_A_BIN).amax(1)
        for function in (accuracy.forward, accuracy.twin)
    ]
    return (edges[:-1] + edges[1:]) / 2, errors[0], errors[1]
