"""Every activation module of torch.nn as a subclass of its twin, made from the registry."""

from __future__ import annotations

import torch
from torch.compiler import is_dynamo_compiling  # noqa: F401  (in the text of _TEMPLATE)

from fastact import _C, functional
from fastact.activations import REGISTRY, Activation
from fastact.exec_source import exec_source

_TEMPLATE = """\
def forward(self, input: torch.Tensor) -> torch.Tensor:
    if is_dynamo_compiling():
        return functional.{name}({traced})
    return {bound}({arguments})
"""


def _define(row: Activation) -> type[torch.nn.Module]:
    """The module of one activation. Its forward calls the bindings: through the function
    it would take 0.1 us more. What it calls are names of this module, where Dynamo looks for them.
    """
    twin = getattr(torch.nn, row.module)
    arguments = ", ".join(["input", *(f"self.{name}" for name in row.parameters)])
    bound = f"_bound_{row.name}"
    text = _TEMPLATE.format(
        name=row.name,
        arguments=arguments,
        traced=arguments + (", inplace=self.inplace" if row.inplace else ""),
        bound=f"({bound}_ if self.inplace else {bound})" if row.inplace else bound,
    )
    scope = globals()
    scope[bound] = getattr(_C, row.name)
    if row.inplace:
        scope[bound + "_"] = getattr(_C, row.name + "_")
    exec_source(text, f"<fastact.nn.{row.module}>", scope)
    forward = scope.pop("forward")
    forward.__qualname__ = f"{row.module}.forward"
    return type(
        row.module,
        (twin,),
        {
            "forward": forward,
            "__doc__": f"torch.nn.{row.module}: {row.formula}. Same constructor and state_dict.",
            "__module__": "fastact.nn",
        },
    )


# The forms of a function share a module that chooses among them.
_modules = {
    row.module: _define(row)
    for row in REGISTRY.values()
    if row.is_plain and row.module and not row.form
}
globals().update(_modules)


class GELU(torch.nn.GELU):
    """torch.nn.GELU: x * Phi(x), or its tanh form with ``approximate="tanh"``."""

    __module__ = "fastact.nn"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.gelu(input, self.approximate)


class PReLU(torch.nn.PReLU):
    """torch.nn.PReLU: x if x > 0 else weight * x, weight learnable."""

    __module__ = "fastact.nn"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.prelu(input, self.weight)


class RReLU(torch.nn.RReLU):
    """torch.nn.RReLU: a leaky ReLU whose slope is drawn in training, and the mean otherwise."""

    __module__ = "fastact.nn"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.rrelu(input, self.lower, self.upper, self.training, self.inplace)


class Softmax(torch.nn.Softmax):
    """torch.nn.Softmax: exp(x) / sum(exp(x)) over ``dim``."""

    __module__ = "fastact.nn"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.softmax(input, self.dim, _stacklevel=5)


class Softmax2d(torch.nn.Softmax2d):
    """torch.nn.Softmax2d: softmax over the channels of [N, C, H, W] or [C, H, W]."""

    __module__ = "fastact.nn"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.dim() not in (3, 4):
            raise ValueError(
                f"fastact.nn.Softmax2d: input: expected 3 or 4 dimensions, got {input.dim()}"
            )
        return functional.softmax(input, -3)


class Softmin(torch.nn.Softmin):
    """torch.nn.Softmin: softmax(-x) over ``dim``."""

    __module__ = "fastact.nn"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.softmin(input, self.dim, _stacklevel=5)


class LogSoftmax(torch.nn.LogSoftmax):
    """torch.nn.LogSoftmax: x - log(sum(exp(x))) over ``dim``."""

    __module__ = "fastact.nn"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.log_softmax(input, self.dim, _stacklevel=5)


__all__ = [
    *_modules,
    "GELU",
    "LogSoftmax",
    "PReLU",
    "RReLU",
    "Softmax",
    "Softmax2d",
    "Softmin",
]
