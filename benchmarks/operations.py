"""How a case becomes code: the expression to time, the tensors in it, and the work it does.

Expressions are text, so that timeit inlines them: a wrapping Python function would add a call to
what is measured. `F` is torch.nn.functional or fastact.functional.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from . import conv, models, recurrent

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SEED = 20261122
SCALE = 0.125  # of attention scores, for heads of 64
# Elements of which input and output fit the first-level cache, and a longest row among them.
RESIDENT_ELEMENTS, RESIDENT_ROW = 3072, 512
OUTLIERS, OUTLIER_SCALE = 0.05, 30.0  # the share of mixed data that lies far out, and how far


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
        """What gradients are for: all tensors but the mask."""
        tensors = (tensor for name, tensor in self.tensors.items() if name != "mask")
        return [*tensors, *self.parameters]

    def function(self):
        """The module, or the expression as a function of its tensors: what a compiler takes."""
        if "module" in self.scope:
            return self.scope["module"]
        return eval(f"lambda {', '.join(self.tensors)}: {self.expression}", dict(self.scope))

    def through(self, function):
        """The same problem with function(tensors) in place of the expression."""
        call = f"function({', '.join(self.tensors)})"
        return replace(self, expression=call, scope={"function": function})

    def run(self):
        return self.read(eval(self.expression, {**self.scope, **self.tensors}))


def required(function, activation, dim=-1):
    """What a call of the function must say, and dim: leaving it out is deprecated for softmax."""
    try:
        signature = inspect.signature(function).parameters.values()
    except ValueError:  # built-in functions without a signature have only optional arguments
        return {}
    found = {}
    for parameter in signature:
        if parameter.name == "dim":
            found["dim"] = dim
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


def activation_text(case, argument="x"):
    """What users of torch's and of fastact's functional write alike."""
    activation = case.activation
    function = getattr(torch.nn.functional, activation.function)
    slope = ", slope" if activation.takes_slope else ""
    arguments = {**activation.fixed, **required(function, activation, case.dim)}
    return f"F.{activation.function}({argument}{slope}{as_text(arguments)})"


def linear_text(case, library):
    activation = case.activation
    if library is torch.nn.functional:
        return activation_text(case, "F.linear(x, weight, bias)")
    function = getattr(torch.nn.functional, activation.function)
    slope = ", slope=slope" if activation.takes_slope else ""
    arguments = as_text(required_when_fused(function, activation))
    return f"F.linear(x, weight, bias, activation={activation.name!r}{slope}{arguments})"


def conv_text(case, library):
    call = f"F.conv2d(x, weight, bias, {conv.arguments(case)}"
    activation = case.activation
    if library is torch.nn.functional:
        return activation_text(case, call + ")")
    function = getattr(torch.nn.functional, activation.function)
    slope = ", slope=slope" if activation.takes_slope else ""
    arguments = as_text(required_when_fused(function, activation))
    return f"{call}, activation={activation.name!r}{slope}{arguments})"


def masked_text(case, library):
    if library is torch.nn.functional:
        return f"F.softmax({SCALE} * x + mask, dim=-1)"
    mask = "is_causal=True" if case.operation == "causal_softmax" else "mask"
    return f"F.masked_softmax(x, {mask}, scale={SCALE})"


def activation_module(case, nn):
    activation = case.activation
    arguments = required(getattr(torch.nn, activation.module), activation, case.dim)
    return getattr(nn, activation.module)(**activation.fixed, **arguments)


def linear_module(case, nn):
    _, inner, outer = case.shape
    if nn is torch.nn:
        return nn.Sequential(nn.Linear(inner, outer), activation_module(case, nn))
    arguments = required_when_fused(getattr(torch.nn, case.activation.module), case.activation)
    return nn.Linear(inner, outer, activation=case.activation.name, **arguments)


def conv_module(case, nn):
    if nn is torch.nn:
        return nn.Sequential(conv.layer(case, nn.Conv2d), activation_module(case, nn))
    arguments = required_when_fused(getattr(torch.nn, case.activation.module), case.activation)
    return conv.layer(case, nn.Conv2d, activation=case.activation.name, **arguments)


class Network(torch.nn.Module):
    """Two layers in a forward written by hand; `nn` is torch.nn or fastact.nn."""

    def __init__(self, case, nn):
        super().__init__()
        _, inner, outer = case.shape
        self.fc1, self.act = nn.Linear(inner, outer), activation_module(case, nn)
        self.fc2 = nn.Linear(outer, inner)


class NestedNetwork(Network):
    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class ResidualNetwork(Network):
    """In statements, with a residual."""

    def forward(self, x):
        out = self.fc1(x)
        out = self.act(out)
        out = self.fc2(out)
        out += x
        return out


def network_text(case, library):
    first = linear_text(replace(case, operation="linear"), library)
    if case.operation == "network_residual" and library is not torch.nn.functional:
        return f"F.linear({first}, weight2, bias2, residual=x)"
    return f"F.linear({first}, weight2, bias2)" + " + x" * (case.operation == "network_residual")


def network_tensors(case, normal):
    _, inner, outer = case.shape
    return linear_tensors(case, normal) | {
        "weight2": normal(inner, outer) / math.sqrt(outer),
        "bias2": normal(inner),
    }


def linear_tensors(case, normal):
    rows, inner, outer = case.shape
    return {
        "x": normal(rows, inner),
        "weight": normal(outer, inner) / math.sqrt(inner),
        "bias": normal(outer),
    }


def padded_scores(case, normal):
    """The last eighth of the keys is padding, in every batch element."""
    batch, *_, keys = case.shape
    mask = torch.zeros(batch, 1, 1, keys)
    mask[..., -(keys // 8) :] = -math.inf
    return {"x": normal(*case.shape), "mask": mask}


def causal_scores(case, normal):
    queries, keys = case.shape[-2:]
    mask = torch.full((queries, keys), -math.inf).triu(1)
    return {"x": normal(*case.shape), "mask": mask}


@dataclass(frozen=True)
class Operation:
    tensors: Callable  # (case, normal) -> tensors by their name in the text, x first
    # (case, library) -> expression; None: modules alone
    text: Callable | None
    # (case, nn) -> module whose parameters are tensors, in order, but x; None where torch has none
    module: Callable | None
    # The least work of a training step over that of inference, in flops and in bytes. Elementwise:
    # backward reads the incoming gradient and one saved tensor, and writes one: 5 passes against 2.
    # Linear: three products of one size, each reading two operands and writing the third.
    training: float = 2.5
    flops: Callable[..., int] = lambda case: 0
    # Elements of the largest input: its size decides the cache level.
    operand: Callable[..., int] = lambda case: math.prod(case.shape)
    # Elements that inference must read more than once.
    reread: Callable[..., int] = lambda case: 0


ACTIVATION = Operation(
    tensors=lambda case, normal: {"x": normal(*case.shape)},
    text=lambda case, library: activation_text(case),
    module=activation_module,
)
LINEAR = Operation(
    tensors=linear_tensors,
    text=linear_text,
    module=linear_module,
    training=3,
    flops=lambda case: 2 * math.prod(case.shape),
    operand=lambda case: case.shape[1] * case.shape[2],
)
NETWORK = replace(
    LINEAR,
    tensors=network_tensors,
    text=network_text,
    module=NestedNetwork,
    flops=lambda case: 4 * math.prod(case.shape),
)
# The products of a training step are three of one size, as linear's.
CONV = Operation(
    tensors=conv.tensors,
    text=conv_text,
    module=conv_module,
    training=3,
    flops=conv.flops,
    operand=conv.operand,
)
RECURRENT = Operation(
    tensors=recurrent.tensors,
    text=recurrent.text,
    module=recurrent.Recurrent,
    training=3,
    flops=recurrent.flops,
    operand=recurrent.operand,
    reread=recurrent.reread,
)
MODEL = Operation(
    tensors=models.tensors,
    text=None,
    module=models.module,
    training=3,
    flops=models.flops,
    operand=models.operand,
)
OPERATIONS = {
    "activation": ACTIVATION,
    "softmax": ACTIVATION,  # with shapes and a dim that matter
    "masked_softmax": Operation(padded_scores, masked_text, module=None),
    "causal_softmax": Operation(causal_scores, masked_text, module=None),
    "linear": LINEAR,
    "network_nested": NETWORK,
    "network_residual": replace(NETWORK, module=ResidualNetwork),
    **dict.fromkeys(conv.LAYOUTS, CONV),
    **dict.fromkeys(recurrent.FORMS, RECURRENT),
    **dict.fromkeys(models.LAYOUTS, MODEL),
}


def resident(case, elements=RESIDENT_ELEMENTS):
    """The case on data in the first-level cache; None where that would be another case."""
    if OPERATIONS[case.operation] is not ACTIVATION or case.dim != -1 or case.form == "module":
        return None
    row = min(case.shape[-1], RESIDENT_ROW)
    return replace(case, suite="limits", shape=(elements // row, row))


def with_outliers(x):
    generator = torch.Generator().manual_seed(SEED + 2)
    far = torch.rand(x.shape, generator=generator) < OUTLIERS
    return torch.where(far, OUTLIER_SCALE * x, x)


def make_tensors(case, dtype=None):
    """The same values in every process; with dtype, the case's rounded values in that dtype."""
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    tensors = OPERATIONS[case.operation].tensors(case, normal)
    if case.activation.takes_slope:
        tensors["slope"] = torch.tensor([0.25])
    return {
        name: tensor.to(DTYPES[case.dtype]).to(dtype or DTYPES[case.dtype])
        for name, tensor in tensors.items()
    }


def functional_problem(case, library, dtype=None):
    text = OPERATIONS[case.operation].text(case, library)
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


def exact_problem(case):
    """The eager expression, or module, in float64, on the case's own rounded inputs."""
    if OPERATIONS[case.operation].text is not None:
        return functional_problem(case, torch.nn.functional, torch.float64)
    made = module_problem(case, torch.nn)
    made.scope["module"].double()
    return replace(made, tensors={"x": made.tensors["x"].double()})


def truth(case, train):
    """results() of that."""
    exact = exact_problem(case)
    if not train:
        return results(exact)
    for leaf in exact.leaves:
        leaf.requires_grad_()
    return results(
        exact, lambda output: incoming_gradient(output, DTYPES[case.dtype]).to(torch.float64)
    )


def error(found, exact):
    """The largest |found - exact| / largest |exact| of all tensors: relative to a tensor's largest
    value, because a probability among 128,000 is small everywhere."""
    worst = 0.0
    for tensor, reference in zip(found, exact, strict=True):
        if tensor.shape != reference.shape:
            raise ValueError(f"shape {tuple(tensor.shape)}, expected {tuple(reference.shape)}")
        scale = reference.abs().max().item() or 1.0
        difference = (tensor.to(torch.float64) - reference).abs().max().item()
        if not math.isfinite(difference):
            raise ValueError("the output holds values that are not finite")
        worst = max(worst, difference / scale)
    return worst
