"""What is measured, as data: each suite is a list of grids, each grid a product of cases.

A case is one timed expression; its class (`label`) is what geometric means are taken over. A colon
in a class divides it: "linear M >= 32 fp32: M <= 128" counts for "linear M >= 32 fp32" too.
"""

import itertools
import math
from dataclasses import asdict, dataclass
from functools import cache

from . import registry
from .conv import LAYOUTS
from .models import LAYOUTS as MODELS
from .recurrent import GATES
from .registry import Activation


@dataclass(frozen=True)
class Case:
    suite: str
    label: str
    operation: str  # a row of operations.OPERATIONS
    activation: Activation
    # Of the input; (M, K, N) for linear; else as conv.py, recurrent.py and models.py say.
    shape: tuple[int, ...]
    dtype: str
    form: str = "functional"  # or "module"
    quick: bool = False
    dim: int = -1  # for activations that have one

    @property
    def kernel(self):
        if self.operation in ("activation", "softmax"):
            return self.activation.name
        if self.operation.startswith(("linear", "network", "conv")):
            return f"{self.operation}+{self.activation.name}"
        return self.operation

    @property
    def name(self):
        form = [self.form] if self.form == "module" else []
        dim = [f"dim{self.dim}"] if self.dim != -1 else []
        return "/".join([self.suite, self.kernel, *form, size_name(self), *dim, self.dtype])

    @property
    def classes(self):
        """The label and every class that it is a part of, the widest first."""
        return tuple(itertools.accumulate(self.label.split(": "), "{}: {}".format))

    def to_json(self):
        return asdict(self)

    @classmethod
    def from_json(cls, fields):
        activation = Activation(**fields["activation"])
        return cls(**{**fields, "activation": activation, "shape": tuple(fields["shape"])})


def size_name(case):
    if case.operation != "activation":
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
    dim: int = -1
    quick_shapes: tuple[tuple[int, ...], ...] = ()
    quick_activations: tuple[str, ...] = ()
    quick_dtypes: tuple[str, ...] = ("fp32",)

    def cases(self, suite):
        for shape, dtype, form, activation in itertools.product(
            self.shapes, self.dtypes, self.forms, activations(self.activations)
        ):
            if form == "module" and activation.module is None:
                continue
            quick = (
                dtype in self.quick_dtypes
                and shape in self.quick_shapes
                and activation.name in self.quick_activations
            )
            label = self.label.format(dtype=dtype, form=form)
            yield Case(
                suite, label, self.operation, activation, shape, dtype, form, quick, self.dim
            )


QUICK_ACTIVATIONS = ("relu", "leaky_relu", "prelu", "tanh", "gelu")
LINEAR_ACTIVATIONS = ("relu", "leaky_relu", "prelu", "sigmoid", "tanh", "gelu", "softmax")
SOFTMAX_ACTIVATIONS = ("softmax", "log_softmax")
BOTH = ("fp32", "bf16")
TINY, CACHED_64K, CACHED_1M, MEMORY_16M = (64,), (64, 1024), (1024, 1024), (16384, 1024)


def activation_grid(label, shape, dtypes, quick=True):
    return Grid(
        label,
        "activation",
        (shape,),
        dtypes=dtypes,
        quick_shapes=(shape,) if quick else (),
        quick_activations=QUICK_ACTIVATIONS,
    )


def linear_grid(label, shapes, quick_shapes=(), quick_dtypes=("fp32",)):
    """Modules throughout: conversion, and most peers, take nothing else."""
    return Grid(
        label,
        "linear",
        shapes,
        LINEAR_ACTIVATIONS,
        BOTH,
        ("module",),
        quick_shapes=quick_shapes,
        quick_activations=("relu",),
        quick_dtypes=quick_dtypes,
    )


def softmax_grid(kind, shapes, quick_shapes, dim=-1):
    return Grid(
        f"softmax: {{dtype}}: {kind}",
        "softmax",
        shapes,
        SOFTMAX_ACTIVATIONS,
        BOTH,
        dim=dim,
        quick_shapes=quick_shapes,
        quick_activations=("softmax",),
    )


def masked_grid(operation, quick_shapes=()):
    return Grid(
        "masked softmax: {dtype}",
        operation,
        ((4, 8, 256, 256), (1, 8, 1024, 1024)),  # batch, heads, queries, keys
        ("softmax",),
        BOTH,
        quick_shapes=quick_shapes,
        quick_activations=("softmax",),
    )


def conv_grids():
    """Images, channels, size, out channels, kernel, stride, groups: layers of ResNet, MobileNet and
    the like."""
    for operation, (label, shapes, quick_shapes) in itertools.product(
        LAYOUTS,
        (
            (
                "3x3",
                (
                    (8, 64, 56, 64, 3, 1, 1),
                    (4, 128, 28, 128, 3, 1, 1),
                    (4, 256, 14, 256, 3, 1, 1),
                    (4, 512, 7, 512, 3, 1, 1),
                    (1, 128, 64, 128, 3, 1, 1),
                ),
                ((4, 128, 28, 128, 3, 1, 1),),
            ),
            ("1x1", ((8, 256, 28, 512, 1, 1, 1), (16, 32, 7, 192, 1, 1, 1)), ()),
            (
                "depthwise",
                ((8, 96, 56, 96, 3, 1, 96), (4, 120, 28, 120, 5, 2, 120)),
                ((4, 120, 28, 120, 5, 2, 120),),
            ),
            ("few channels", ((1, 3, 224, 64, 7, 2, 1), (8, 3, 64, 16, 3, 1, 1)), ()),
        ),
    ):
        yield Grid(
            f"{operation} {{dtype}}: {label}",
            operation,
            shapes,
            ("relu", "leaky_relu", "prelu", "silu"),
            forms=("module",),
            quick_shapes=quick_shapes,
            quick_activations=("relu",),
        )


def model_grids():
    """Images, size."""
    for operation in MODELS:
        kind = "channels last" if operation.endswith("_channels_last") else "contiguous"
        yield Grid(
            f"models {{dtype}}: {kind}",
            operation,
            ((1, 224), (8, 224)),
            ("relu",),
            forms=("module",),
            quick_shapes=((1, 224),) if operation == "resnet18" else (),
            quick_activations=("relu",),
        )


def recurrent_grids():
    """Steps, batch, inputs, hidden units, layers."""
    for mode in GATES:
        for label, suffix, shapes, quick_shapes in (
            ("tiny", "", ((5, 3, 10, 20, 2),), ((5, 3, 10, 20, 2),)),
            ("B = 1", "", ((64, 1, 256, 256, 1),), ((64, 1, 256, 256, 1),)),
            ("B >= 16", "", ((64, 16, 256, 256, 2), (128, 32, 512, 512, 1)), ()),
            ("bidirectional", "_bidirectional", ((32, 64, 128, 128, 2),), ()),
            ("ragged", "_ragged", ((64, 16, 256, 256, 1), (64, 64, 128, 128, 2)), ()),
        ):
            yield Grid(
                f"{mode} {{dtype}}: {label}",
                mode + suffix,
                shapes,
                ("tanh",),
                forms=("module",),
                quick_shapes=quick_shapes,
                quick_activations=("tanh",),
            )


SUITES = {
    "overhead": (
        Grid(
            "64 elements: {form} call",
            "activation",
            (TINY,),
            forms=("functional", "module"),
            quick_shapes=(TINY,),
            quick_activations=QUICK_ACTIVATIONS,
        ),
        Grid(
            "linear 1x10x50: {form} call",
            "linear",
            ((1, 10, 50),),
            LINEAR_ACTIVATIONS,
            forms=("functional", "module"),
            quick_shapes=((1, 10, 50),),
            quick_activations=("relu",),
        ),
    ),
    "activations": (
        activation_grid("activations at 64", TINY, ("fp32",), quick=False),  # overhead has them
        activation_grid("activations in cache {dtype}: 64K", CACHED_64K, ("fp32",)),
        activation_grid("activations in cache {dtype}: 1M", CACHED_1M, BOTH),
        activation_grid("activations at 16M: {dtype}", MEMORY_16M, BOTH),
    ),
    "linear": (
        linear_grid("linear tiny: {dtype}", ((1, 10, 50), (32, 64, 10))),
        linear_grid(
            "linear M <= 8: {dtype}",
            ((1, 1024, 1024), (1, 4096, 4096), (8, 1024, 1024)),
            quick_shapes=((1, 4096, 4096), (8, 1024, 1024)),
        ),
        linear_grid(
            "linear M >= 32 {dtype}: M <= 128",
            ((32, 784, 256), (128, 1024, 4096)),
            quick_shapes=((32, 784, 256), (128, 1024, 4096)),
        ),
        linear_grid(
            "linear M >= 32 {dtype}: M > 128",
            ((512, 4096, 1024), (1024, 1024, 1024), (1000, 333, 517)),
            quick_shapes=((1024, 1024, 1024),),
            quick_dtypes=BOTH,
        ),
    ),
    # Small models with a forward of their own, where the call is what costs.
    "networks": tuple(
        Grid(
            f"networks {{dtype}}: {operation.removeprefix('network_')}",
            operation,
            ((1, 10, 50), (8, 64, 64), (32, 784, 256)),
            ("relu", "gelu"),
            forms=("module",),
            quick_shapes=((1, 10, 50), (8, 64, 64)),
            quick_activations=("relu",),
        )
        for operation in ("network_nested", "network_residual")
    ),
    "softmax": (
        softmax_grid(
            "last dim",
            ((131072, 8), (16384, 64), (2048, 512), (256, 4096)),
            quick_shapes=((16384, 64), (2048, 512)),
        ),
        softmax_grid("vocabulary", ((32, 32000), (8, 128000)), quick_shapes=((8, 128000),)),
        softmax_grid("channel dim", ((32, 21, 64, 64),), ((32, 21, 64, 64),), dim=1),
        softmax_grid("dim 0", ((1024, 1024),), ((1024, 1024),), dim=0),
        masked_grid("masked_softmax"),
        masked_grid("causal_softmax", quick_shapes=((4, 8, 256, 256),)),
    ),
    "conv": tuple(conv_grids()),
    "rnn": tuple(recurrent_grids()),
    "models": tuple(model_grids()),
}
# The machine's own limits are not a grid of cases: limits.py measures them.
SUITE_NAMES = ("limits", *SUITES)


@cache
def registered():
    """fastact's registry; without it, the activations that the tables above name."""
    found = registry.load()
    named = dict.fromkeys((*QUICK_ACTIVATIONS, *LINEAR_ACTIVATIONS, *SOFTMAX_ACTIVATIONS))
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
