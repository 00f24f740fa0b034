"""What is measured, as data: each suite is a list of grids, each grid a product of cases.

A case is one timed expression; its class (`label`) is what geometric means are taken over.
"""

import itertools
import math
from dataclasses import asdict, dataclass
from functools import cache

from . import registry
from .registry import Activation


@dataclass(frozen=True)
class Case:
    suite: str
    label: str
    operation: str  # a row of operations.OPERATIONS
    activation: Activation
    shape: tuple[int, ...]  # of the input; (M, K, N) for linear
    dtype: str
    form: str = "functional"  # or "module"
    quick: bool = False

    @property
    def kernel(self):
        name = self.activation.name
        return name if self.operation == "activation" else f"{self.operation}+{name}"

    @property
    def name(self):
        form = [self.form] if self.form == "module" else []
        return "/".join([self.suite, self.kernel, *form, size_name(self), self.dtype])

    def to_json(self):
        return asdict(self)

    @classmethod
    def from_json(cls, fields):
        activation = Activation(**fields["activation"])
        return cls(**{**fields, "activation": activation, "shape": tuple(fields["shape"])})


def size_name(case):
    if case.operation == "linear":
        return "x".join(map(str, case.shape))
    count = math.prod(case.shape)
    for unit, power in (("M", 20), ("K", 10)):
        if count >> power and count % (1 << power) == 0:
            return f"{count >> power}{unit}"
    return str(count)


@dataclass(frozen=True)
class Grid:
    """A product of shapes, dtypes, forms and activations (None: all of the registry)."""

    label: str
    operation: str
    shapes: tuple[tuple[int, ...], ...]
    activations: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] = ("fp32",)
    forms: tuple[str, ...] = ("functional",)
    quick_shapes: tuple[tuple[int, ...], ...] = ()
    quick_activations: tuple[str, ...] = ()

    def cases(self, suite):
        for shape, dtype, form, activation in itertools.product(
            self.shapes, self.dtypes, self.forms, activations(self.activations)
        ):
            if form == "module" and activation.module is None:
                continue
            quick = (
                dtype == "fp32"
                and shape in self.quick_shapes
                and activation.name in self.quick_activations
            )
            label = self.label.format(dtype=dtype, form=form)
            yield Case(suite, label, self.operation, activation, shape, dtype, form, quick)


QUICK_ACTIVATIONS = ("relu", "leaky_relu", "prelu", "tanh", "gelu")
LINEAR_ACTIVATIONS = ("relu", "leaky_relu", "prelu", "sigmoid", "tanh", "gelu", "softmax")
BOTH = ("fp32", "bf16")
TINY, CACHED_64K, CACHED_1M, MEMORY_16M = (64,), (64, 1024), (1024, 1024), (16384, 1024)


def activation_grid(size, shape, dtypes):
    return Grid(
        f"activations {size} {{dtype}}",
        "activation",
        (shape,),
        dtypes=dtypes,
        quick_shapes=(shape,),
        quick_activations=QUICK_ACTIVATIONS,
    )


def linear_grid(size, shapes, quick_shapes):
    return Grid(
        f"linear {size} {{dtype}}",
        "linear",
        shapes,
        LINEAR_ACTIVATIONS,
        BOTH,
        quick_shapes=quick_shapes,
        quick_activations=("relu",),
    )


SUITES = {
    "overhead": (
        Grid(
            "64 elements, {form} call",
            "activation",
            (TINY,),
            forms=("functional", "module"),
            quick_shapes=(TINY,),
            quick_activations=QUICK_ACTIVATIONS,
        ),
        Grid(
            "linear 1x10x50, {form} call",
            "linear",
            ((1, 10, 50),),
            LINEAR_ACTIVATIONS,
            forms=("functional", "module"),
            quick_shapes=((1, 10, 50),),
            quick_activations=("relu",),
        ),
    ),
    "activations": (
        activation_grid("64", TINY, ("fp32",)),
        activation_grid("64K", CACHED_64K, ("fp32",)),
        activation_grid("1M", CACHED_1M, BOTH),
        activation_grid("16M", MEMORY_16M, BOTH),
    ),
    "linear": (
        linear_grid("tiny", ((1, 10, 50), (32, 64, 10)), ()),
        linear_grid(
            "M <= 8",
            ((1, 1024, 1024), (1, 4096, 4096), (8, 1024, 1024)),
            ((8, 1024, 1024),),
        ),
        linear_grid(
            "M >= 32",
            (
                (32, 784, 256),
                (128, 1024, 4096),
                (512, 4096, 1024),
                (1024, 1024, 1024),
                (1000, 333, 517),
            ),
            ((32, 784, 256), (1024, 1024, 1024)),
        ),
    ),
}
# The machine's own limits are not a grid of cases: limits.py measures them.
SUITE_NAMES = ("limits", *SUITES)


@cache
def registered():
    """fastact's registry; without it, the activations that the tables above name."""
    found = registry.load()
    named = dict.fromkeys((*QUICK_ACTIVATIONS, *LINEAR_ACTIVATIONS))
    return found or {name: Activation.from_torch(name) for name in named}


def activations(names):
    if names is None:
        return list(registered().values())
    return [registered().get(name) or Activation.from_torch(name) for name in names]


def cases(suites):
    """All cases of the named suites, in the order of the tables."""
    for suite in suites:
        for grid in SUITES.get(suite, ()):
            yield from grid.cases(suite)
