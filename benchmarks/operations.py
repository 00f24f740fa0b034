"""How a case becomes code: the expression to time, the tensors in it, and the work it does.

Expressions are text, so that timeit inlines them: a wrapping Python function would add a call to
what is measured. `F` is torch.nn.functional or fastact.functional.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SEED = 20261122


@dataclass
class Problem:
    """One contender's form of a case."""

    expression: str
    tensors: dict[str, torch.Tensor]
    scope: dict[str, Any]  # every other name in the expression
    parameters: list[torch.Tensor] = field(default_factory=list)  # of a module in the scope
    read: Callable[[Any], torch.Tensor] = lambda result: result

    @property
    def leaves(self):
        return [*self.tensors.values(), *self.parameters]

    def function(self):
        """The module, or the expression as a function of its tensors: what a compiler takes."""
        if "module" in self.scope:
            return self.scope["module"]
        return eval(f"lambda {', '.join(self.tensors)}: {self.expression}", dict(self.scope))

    def through(self, function):
        """The same problem with function(tensors) in place of the expression."""
        call = f"function({', '.join(self.tensors)})"
        return Problem(call, self.tensors, {"function": function}, self.parameters)

    def run(self):
        return self.read(eval(self.expression, {**self.scope, **self.tensors}))


def required(function, activation):
    """What a call of the function must say, and dim: leaving it out is deprecated for softmax."""
    try:
        signature = inspect.signature(function).parameters.values()
    except ValueError:  # built-in functions without a signature have only optional arguments
        return {}
    found = {}
    for parameter in signature:
        if parameter.name == "dim":
            found["dim"] = -1
        elif (
            parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            and parameter.default is parameter.empty
            and parameter.name != "input"
        ):
            found[parameter.name] = activation.parameters.get(parameter.name, 0.0)
    return found


def required_when_fused(function, activation):
    """The same for activation= of a layer, where dim is -1 unless said otherwise."""
    found = required(function, activation)
    found.pop("dim", None)
    return found


def as_text(arguments):
    return "".join(f", {name}={value!r}" for name, value in arguments.items())


def activation_text(activation, argument="x"):
    """What users of torch's and of fastact's functional write alike."""
    function = getattr(torch.nn.functional, activation.function)
    slope = ", slope" if activation.family == "prelu" else ""
    arguments = {**activation.fixed, **required(function, activation)}
    return f"F.{activation.function}({argument}{slope}{as_text(arguments)})"


def linear_text(activation, library):
    if library is torch.nn.functional:
        return activation_text(activation, "F.linear(x, weight, bias)")
    function = getattr(torch.nn.functional, activation.function)
    slope = ", slope=slope" if activation.family == "prelu" else ""
    arguments = as_text(required_when_fused(function, activation))
    return f"F.linear(x, weight, bias, activation={activation.name!r}{slope}{arguments})"


def activation_module(activation, nn):
    arguments = required(getattr(torch.nn, activation.module), activation)
    return getattr(nn, activation.module)(**activation.fixed, **arguments)


def linear_module(case, nn):
    _, inner, outer = case.shape
    if nn is torch.nn:
        return nn.Sequential(nn.Linear(inner, outer), activation_module(case.activation, nn))
    arguments = required_when_fused(getattr(torch.nn, case.activation.module), case.activation)
    return nn.Linear(inner, outer, activation=case.activation.name, **arguments)


def linear_tensors(case, normal):
    rows, inner, outer = case.shape
    return {
        "x": normal(rows, inner),
        "weight": normal(outer, inner) / math.sqrt(inner),
        "bias": normal(outer),
    }


@dataclass(frozen=True)
class Operation:
    tensors: Callable  # (case, normal) -> tensors by their name in the text, x first
    text: Callable  # (activation, library) -> expression
    module: Callable  # (case, nn) -> module whose parameters are tensors, in order, but x
    flops: Callable[..., int]
    operand: Callable[..., int]  # elements of the largest input: its size decides the cache level


OPERATIONS = {
    "activation": Operation(
        tensors=lambda case, normal: {"x": normal(*case.shape)},
        text=lambda activation, library: activation_text(activation),
        module=lambda case, nn: activation_module(case.activation, nn),
        flops=lambda case: 0,
        operand=lambda case: math.prod(case.shape),
    ),
    "linear": Operation(
        tensors=linear_tensors,
        text=linear_text,
        module=linear_module,
        flops=lambda case: 2 * math.prod(case.shape),
        operand=lambda case: case.shape[1] * case.shape[2],
    ),
}


def make_tensors(case, dtype=None):
    """The same values in every process; with dtype, the case's rounded values in that dtype."""
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    tensors = OPERATIONS[case.operation].tensors(case, normal)
    if case.activation.family == "prelu":
        tensors["slope"] = torch.tensor([0.25])
    return {
        name: tensor.to(DTYPES[case.dtype]).to(dtype or DTYPES[case.dtype])
        for name, tensor in tensors.items()
    }


def functional_problem(case, library, dtype=None):
    text = OPERATIONS[case.operation].text(case.activation, library)
    return Problem(text, make_tensors(case, dtype), {"F": library})


def module_problem(case, nn):
    tensors = make_tensors(case)
    module = OPERATIONS[case.operation].module(case, nn).to(DTYPES[case.dtype]).eval()
    x, *values = tensors.values()
    parameters = list(module.parameters())
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
    return Problem("module(x)", {"x": x}, {"module": module}, parameters)


def problem(case, functional, nn):
    """The case in the words of a library with these two namespaces."""
    if case.form == "module":
        return module_problem(case, nn)
    return functional_problem(case, functional)


def incoming_gradient(output, dtype):
    generator = torch.Generator().manual_seed(SEED + 1)
    return torch.randn(output.shape, generator=generator).to(dtype)


def results(problem, incoming=None):
    """The output and, given an incoming gradient for it, the gradients of all leaves."""
    output = problem.run()
    if incoming is None:
        return [output]
    return [output.detach(), *torch.autograd.grad(output, problem.leaves, incoming(output))]


def truth(case, train):
    """results() of the eager expression in float64, on the case's own rounded inputs."""
    exact = functional_problem(case, torch.nn.functional, torch.float64)
    if not train:
        return results(exact)
    for leaf in exact.leaves:
        leaf.requires_grad_()
    return results(
        exact, lambda output: incoming_gradient(output, DTYPES[case.dtype]).to(torch.float64)
    )


def error(found, exact):
    """The largest |found - exact| / max(1, largest |exact|) of all tensors: absolute up to 1,
    relative to a tensor's largest value above."""
    worst = 0.0
    for tensor, reference in zip(found, exact, strict=True):
        if tensor.shape != reference.shape:
            raise ValueError(f"shape {tuple(tensor.shape)}, expected {tuple(reference.shape)}")
        scale = max(1.0, reference.abs().max().item())
        difference = (tensor.to(torch.float64) - reference).abs().max().item()
        if not math.isfinite(difference):
            raise ValueError("the output holds values that are not finite")
        worst = max(worst, difference / scale)
    return worst
