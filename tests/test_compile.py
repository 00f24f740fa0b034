"""Does torch.compile take every function and module whole, with sizes left open, and train it?"""

import contextlib
import functools

import pytest
import torch
from torch.func import grad, hessian, jvp, vmap

from fastact import functional, nn
from fastact.testing.cases import (
    DEFAULT_CASES,
    FUSED_OF_EACH_KIND,
    OF_EACH_KIND,
    UNARY_CASES,
    VARIED_CASES,
    VARIED_FUSED_CASES,
)
from fastact.testing.inputs import random_tensor

pytestmark = pytest.mark.usefixtures("dynamo")

# PyTorch's celu differentiates with 1 / alpha in single precision.
close = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7)


def _random(*shape):
    return random_tensor(shape, torch.float64)


def _train(function, x, *parameters):
    """The result, and the gradients of x and of parameters."""
    leaf = x.detach().clone().requires_grad_()
    y = function(leaf)
    loss = y.square().sum()
    return y.detach(), *torch.autograd.grad(loss, [leaf, *parameters])


@contextlib.contextmanager
def _compiled_once(function):
    """The compiled function; a second compilation, for another size, is an error."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")


@pytest.mark.parametrize("case", VARIED_CASES, ids=str)
def test_functions_and_modules(case):
    """The function, the function in place and the module, in one graph, for changing sizes."""
    tensors = case.tensors(torch.ones(1, 4, dtype=torch.float64))
    if case.row.module:
        module, twin_module = case.module().double(), case.twin_module().double()
    else:
        module, twin_module = case.function, case.twin

    def uses(function, module, inplace):
        def run(x):
            y = function(x * 2, *tensors)
            if case.row.inplace:
                y = y + inplace(x * 3)
            return y.cos() + module(x.t().contiguous().t())

        return run

    mine = uses(case.function, module, functools.partial(case.function, inplace=True))
    twin = uses(case.twin, twin_module, case.twin)
    with _compiled_once(mine) as compiled:
        for size in (5, 9, 17):
            x = _random(size, 4)
            parameters = [list(getattr(m, "parameters", list)()) for m in (module, twin_module)]
            close(_train(compiled, x, *parameters[0]), _train(twin, x, *parameters[1]))


@pytest.mark.parametrize("case", OF_EACH_KIND, ids=str)
def test_sizes_0_and_1_and_no_grad(case):
    tensors = case.tensors(torch.ones(1, 4, dtype=torch.float64))
    compiled = torch.compile(
        lambda x: case.function(x + 1, *tensors), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for size in (0, 1, 6):
        x = _random(size, 4)
        close(_train(compiled, x), _train(lambda t: case.twin(t + 1, *tensors), x))
        with torch.no_grad():
            close(compiled(x), case.twin(x + 1, *tensors))


@pytest.mark.parametrize("case", [case for case in DEFAULT_CASES if case.row.inplace], ids=str)
def test_inplace_on_an_input(case):
    """What the graph writes into its argument is there afterwards."""
    compiled = torch.compile(
        functools.partial(case.function, inplace=True), fullgraph=True, backend="aot_eager"
    )
    x = _random(5, 4)
    expected = case.twin(x)
    with torch.no_grad():
        result = compiled(x)
    close(result, expected)
    close(x, expected)
    leaf = _random(5, 4).requires_grad_()
    y = leaf * 1
    compiled(y).sum().backward()
    twin = leaf.detach().clone().requires_grad_()
    case.twin(twin).sum().backward()
    close(leaf.grad, twin.grad)


@pytest.mark.parametrize("fused", VARIED_FUSED_CASES, ids=str)
def test_linear(fused):
    slope = torch.rand(4, dtype=torch.float64, requires_grad=True) if fused.learnable else None
    learnable = {"slope": slope} if fused.learnable else {}
    w, b = _random(4, 6).requires_grad_(), _random(4).requires_grad_()

    def mine(x):
        return functional.linear(x, w, b, activation=fused.name, **fused.parameters, **learnable)

    def twin(x):
        z = torch.nn.functional.linear(x, w, b)
        return fused.twin(z, slope) if fused.learnable else fused.twin(z)

    with _compiled_once(mine) as compiled:
        for size in (5, 9):
            x = _random(size, 6)
            parameters = [w, b, *learnable.values()]
            close(_train(compiled, x, *parameters), _train(twin, x, *parameters))


def test_modules_with_activations():
    model = torch.nn.Sequential(
        nn.Linear(6, 8, activation="gelu", approximate="tanh"),
        nn.Linear(8, 8, activation="prelu", num_parameters=8),
        nn.Linear(8, 4, activation=torch.nn.Softplus(beta=2.0)),
    ).double()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    x = _random(5, 6)
    parameters = list(model.parameters())
    close(_train(compiled, x, *parameters), _train(model, x, *parameters))


@pytest.mark.parametrize("name", ["leaky_relu", "tanh", "silu"])
def test_transforms_inside(name):
    """torch.func under Dynamo."""
    case = next(case for case in DEFAULT_CASES if case.row.name == name)

    def several(function):
        def loss(x):
            return function(x).square().sum()

        return lambda x: (
            grad(loss)(x),
            vmap(function)(x.reshape(2, 3)),
            jvp(function, (x,), (x,))[1],
            hessian(loss)(x),
        )

    x = case.smooth(6)
    compiled = torch.compile(several(case.function), fullgraph=True, backend="aot_eager")
    close(compiled(x), several(case.twin)(x))


# What backward reads depends on the sign of a parameter.
NEGATIVE = [case for case in UNARY_CASES if min(case.parameters.values(), default=0) < 0]


@pytest.mark.parametrize("case", [*VARIED_CASES, *NEGATIVE], ids=str)
def test_compiled_autograd(case):
    """The backward pass itself as a graph: every node hands over what it saved."""
    x = case.smooth(4, 8) / 4

    def gradients(function):
        leaves = [t.clone().requires_grad_() for t in (x, *case.tensors(x))]
        function(function(*leaves), *leaves[1:]).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        mine = gradients(case.function)
    close(mine, gradients(case.twin))


@pytest.mark.parametrize("fused", FUSED_OF_EACH_KIND, ids=str)
def test_compiled_autograd_of_linear(fused):
    x, w, b = (_random(*s) for s in ((3, 5), (4, 5), (4,)))
    slopes = [torch.rand(4, dtype=torch.float64)] if fused.learnable else []

    def mine(x, w, b, *slope):
        learnable = {"slope": slope[0]} if slope else {}
        return functional.linear(x, w, b, activation=fused.name, **fused.parameters, **learnable)

    def twin(x, w, b, *slope):
        return fused.twin(torch.nn.functional.linear(x, w, b), *slope)

    def gradients(function):
        leaves = [t.clone().requires_grad_() for t in (x, w, b, *slopes)]
        function(*leaves).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        compiled = gradients(mine)
    close(compiled, gradients(twin))


def test_two_parameters_do_not_share_a_graph():
    """A parameter is part of what a compiled backward pass depends on."""
    x = _random(4, 6)

    def gradients(function, slope):
        leaf = x.clone().requires_grad_()
        function(leaf, slope).sum().backward()
        return leaf.grad

    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    for slope in (0.1, 0.5, 0.1):
        with torch._dynamo.compiled_autograd._enable(compiler):
            mine = gradients(functional.leaky_relu, slope)
        close(mine, gradients(torch.nn.functional.leaky_relu, slope))


# ---- Inductor -----------------------------------------------------------------------------------


class Mixed(torch.nn.Module):
    """Operators that Inductor calls, ATen that it fuses, in place and as an epilogue of linear,
    between neighbours."""

    def __init__(self, namespace, functions):
        super().__init__()
        self.functions = functions
        self.first = torch.nn.Linear(6, 8)
        if namespace is nn:
            self.second = nn.Linear(8, 8, activation="gelu")
        else:
            self.second = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())
        self.inplace = namespace.SiLU(inplace=True)
        self.last = namespace.PReLU()

    def forward(self, x):
        y = self.inplace(self.second(self.first(x)) + 1)
        y = self.last(y - 0.5) * y
        return self.functions.tanh(y * 3) + self.functions.leaky_relu(y.sin(), 0.3)


@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_inductor(inductor):
    mine = Mixed(nn, functional).double()
    twin = Mixed(torch.nn, torch.nn.functional).double()
    for own, theirs in zip(mine.parameters(), twin.parameters(), strict=True):
        theirs.data.copy_(own.data)
    compiled = torch.compile(mine, fullgraph=True, dynamic=True)
    for size in (5, 9):
        x = _random(size, 6)
        close(_train(compiled, x, *mine.parameters()), _train(twin, x, *twin.parameters()))


def test_cheap_activations_are_handed_over():
    """What Inductor fuses at no cost reaches it as ATen; an expensive one stays an operator."""
    for case in DEFAULT_CASES:
        targets = []

        def record(graph, inputs, targets=targets):
            targets += [str(node.target) for node in graph.graph.nodes if node.op != "output"]
            return graph.forward

        torch._dynamo.reset()
        compiled = torch.compile(case.function, backend=record, fullgraph=True)
        x = _random(4, 6)
        compiled(x, *case.tensors(x))
        is_operator = any("fastact" in target for target in targets)
        assert is_operator == (not case.row.inductor_fuses), (str(case), targets)
