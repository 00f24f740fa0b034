"""Do torch.func's transforms, alone and nested, see through every function?"""

import functools
import itertools

import pytest
import torch
from torch.func import (
    functional_call,
    functionalize,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

from fastact import functional, nn
from fastact.testing.cases import CASES, DEFAULT_CASES, FUSED_CASES, UNARY_CASES, VARIED_FUSED_CASES

# PyTorch has no rules for the derivatives of its glu.
pytestmark = pytest.mark.filterwarnings("ignore:.*the batching rule for aten..glu_")

# PyTorch's celu differentiates with 1 / alpha in single precision.
close = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7)


def _both(case, x):
    """The functions of the input alone."""
    tensors = case.tensors(x)
    return [lambda t, f=f: f(t, *tensors) for f in (case.function, case.twin)]


def _loss(function):
    return lambda x: function(x).square().sum()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_first_order(case):
    x = case.smooth(6)
    mine, twin = _both(case, x)
    tangent = torch.randn_like(x)
    close(grad(_loss(mine))(x), grad(_loss(twin))(x))
    close(jacrev(mine)(x), jacrev(twin)(x))
    close(jacfwd(mine)(x), jacfwd(twin)(x))
    close(jvp(mine, (x,), (tangent,)), jvp(twin, (x,), (tangent,)))
    output, pull = vjp(mine, x)
    close(pull(output), vjp(twin, x)[1](output))
    output, push = linearize(mine, x)
    close((output, push(tangent)), jvp(twin, (x,), (tangent,)))


# PyTorch cannot differentiate hardsigmoid's gradient, so there is nothing to compare with.
TWICE = [case for case in CASES if case.row.name != "hardsigmoid"]


@pytest.mark.parametrize("case", TWICE, ids=str)
def test_higher_orders(case):
    x = case.smooth(4)
    mine, twin = _both(case, x)
    expected = hessian(_loss(twin))(x)
    close(hessian(_loss(mine))(x), expected)
    close(jacrev(jacrev(_loss(mine)))(x), expected)
    close(jacfwd(jacfwd(_loss(mine)))(x), expected)
    close(jacrev(jacfwd(_loss(mine)))(x), expected)
    if case.accepts(x[0]):
        close(*(grad(grad(grad(_loss(f))))(x[0]) for f in (mine, twin)))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("in_dims, out_dims", [(0, 0), (1, 0), (-1, 1), (2, -1)])
def test_vmap(case, in_dims, out_dims):
    x = case.smooth(2, 4, 6)
    mine, twin = _both(case, x.movedim(in_dims, 0)[0])
    dims = {"in_dims": in_dims, "out_dims": out_dims}
    close(vmap(mine, **dims)(x), vmap(twin, **dims)(x))


@pytest.mark.parametrize("case", [c for c in CASES if c.accepts(torch.empty(()))], ids=str)
def test_vmap_of_vmap(case):
    """Down to scalars, along different dimensions, and in chunks."""
    x = case.smooth(2, 4)
    mine, twin = _both(case, x[0, 0])
    close(vmap(vmap(mine))(x), vmap(vmap(twin))(x))
    close(vmap(vmap(mine), in_dims=1)(x), vmap(vmap(twin), in_dims=1)(x))
    close(vmap(mine, chunk_size=2)(x), vmap(twin)(x))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vmap_and_gradients(case):
    x = case.smooth(4, 2)
    mine, twin = _both(case, x[:, 0])
    close(
        vmap(grad(_loss(mine)), in_dims=1)(x),
        vmap(grad(_loss(twin)), in_dims=1)(x),
    )
    close(
        grad(lambda t: vmap(mine, in_dims=1)(t).square().sum())(x),
        grad(lambda t: vmap(twin, in_dims=1)(t).square().sum())(x),
    )
    if case in TWICE:  # against a loop: the twin of prelu fails here
        each = torch.stack([hessian(_loss(twin))(column) for column in x.unbind(1)])
        close(vmap(hessian(_loss(mine)), in_dims=1)(x), each)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vmap_of_a_gradient_alone(case):
    """Only the incoming gradient has a batch dimension, as in a Jacobian."""
    x = case.smooth(6)
    mine, twin = _both(case, x)
    batch = torch.randn(7, *twin(x).shape, dtype=x.dtype)
    pulls = [vjp(f, x)[1] for f in (mine, twin)]
    close(vmap(pulls[0])(batch), vmap(pulls[1])(batch))
    close(vmap(pulls[0], in_dims=1)(batch.t()), vmap(pulls[1])(batch))


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
def test_functionalize(case):
    x = case.smooth(4)
    mine, twin = _both(case, x)

    def writes(function):
        def run(t):
            y = function(t).clone()
            y[1:].copy_(function(t)[1:] * 2)
            return y

        return run

    close(functionalize(mine)(x), twin(x))
    close(functionalize(writes(mine))(x), writes(twin)(x))
    close(grad(_loss(functionalize(mine)))(x), grad(_loss(twin))(x))


@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_inplace_operators(case):
    x = case.smooth(2, 4)
    operator = getattr(torch.ops.fastact, case.row.name + "_")

    def inplace(t):
        return operator(t.clone(), *case.values)

    close(vmap(inplace)(x), case.twin(x))
    close(grad(_loss(inplace))(x), grad(_loss(case.twin))(x))
    close(functionalize(inplace)(x), case.twin(x))
    close(vmap(grad(_loss(inplace)))(x), vmap(grad(_loss(case.twin)))(x))


# Inputs of prelu and the dimensions to map over: input [B,] N, C, ...; weight [B,] 1 or C.
PRELU = {
    "weight of one": ((3, 4, 5), (3, 1), (0, 0)),
    "weights of channels": ((3, 4, 5), (3, 5), (0, 0)),
    "weights of channels at the end": ((4, 5, 3), (5, 3), (2, 1)),
    "scalars as weights": ((3, 4, 5), (3,), (0, 0)),
    "scalars as weights of vectors": ((3, 4), (3,), (0, 0)),
    "scalars as weights of scalars": ((3,), (3,), (0, 0)),
    "weights alone": ((4, 5), (3, 5), (None, 0)),
    "weight alone": ((4, 5), (3, 1), (None, 0)),
    "input alone": ((3, 4, 5), (5,), (0, None)),
    "input alone, one weight": ((3, 4), (1,), (0, None)),
    "images": ((3, 2, 4, 5, 6), (3, 4), (0, 0)),
    "vectors": ((3, 7), (3, 1), (0, 0)),
}


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")  # the twin
@pytest.mark.parametrize("shape, weights, in_dims", PRELU.values(), ids=PRELU)
def test_vmap_of_prelu(shape, weights, in_dims):
    x = torch.randn(shape, dtype=torch.float64)
    w = torch.randn(weights, dtype=torch.float64)

    def gradients(function):
        return grad(lambda t, s: function(t, s).square().sum(), argnums=(0, 1))

    mapped = functools.partial(vmap, in_dims=in_dims)
    close(mapped(functional.prelu)(x, w), mapped(torch.prelu)(x, w))
    close(mapped(gradients(functional.prelu))(x, w), mapped(gradients(torch.prelu))(x, w))


# Dimensions to map over of linear's input, weight and bias.
LINEAR = {
    "input": (0, None, None),
    "weight": (None, 0, None),
    "bias": (None, None, 0),
    "weight and bias": (None, 0, 0),
    "everything": (0, 0, 0),
    "everything, at the end": (-1, -1, -1),
    "input and bias": (1, None, 0),
}


def _linear_arguments(in_dims, *shapes):
    batch = 5
    for shape, dim in zip(shapes, in_dims, strict=True):
        full = shape if dim is None else (batch, *shape)
        t = torch.randn(full, dtype=torch.float64)
        yield t if dim is None else t.movedim(0, dim)


@pytest.mark.parametrize("in_dims", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "fused", [f for f in FUSED_CASES if str(f) in ("none", "leaky_relu", "silu")], ids=str
)
def test_vmap_of_linear(fused, rank, in_dims):
    x, w, b = _linear_arguments(in_dims, (2, 6, 4)[-rank:], (3, 4), (3,))

    def mine(x, w, b):
        return functional.linear(x, w, b, activation=fused.name, **fused.parameters)

    def twin(x, w, b):
        return fused.twin(torch.nn.functional.linear(x, w, b))

    mapped = functools.partial(vmap, in_dims=in_dims)
    close(mapped(mine)(x, w, b), mapped(twin)(x, w, b))
    gradients = [
        mapped(grad(lambda *t, f=f: f(*t).square().sum(), argnums=(0, 1, 2)))(x, w, b)
        for f in (mine, twin)
    ]
    close(*gradients)


@pytest.mark.parametrize("fused", FUSED_CASES, ids=str)
def test_vmap_of_every_activation_of_linear(fused):
    x, w = torch.randn(5, 2, 4, dtype=torch.float64), torch.randn(5, 3, 4, dtype=torch.float64)
    slopes = [torch.rand(5, 3, dtype=torch.float64)] if fused.learnable else []

    def mine(x, w, *slope):
        learnable = {"slope": slope[0]} if slope else {}
        return functional.linear(x, w, activation=fused.name, **fused.parameters, **learnable)

    def twin(x, w, *slope):
        return fused.twin(torch.nn.functional.linear(x, w), *slope)

    close(vmap(mine)(x, w, *slopes), vmap(twin)(x, w, *slopes))
    close(
        vmap(mine, in_dims=(0, None, *[None for _ in slopes]))(x, w[0], *(s[0] for s in slopes)),
        vmap(twin, in_dims=(0, None, *[None for _ in slopes]))(x, w[0], *(s[0] for s in slopes)),
    )
    losses = [lambda *t, f=f: f(*t).square().sum() for f in (mine, twin)]
    close(*(grad(f, argnums=(0, 1))(x[0], w[0], *(s[0] for s in slopes)) for f in losses))
    close(*(jacfwd(f)(x[0], w[0], *(s[0] for s in slopes)) for f in (mine, twin)))


def test_ensemble():
    """Several models as one, by torch.func's own recipe; PReLU's weight among the parameters."""
    models = [
        torch.nn.Sequential(
            nn.Linear(6, 8, activation="gelu"), nn.Linear(8, 8, activation="prelu"), nn.Mish()
        ).double()
        for _ in range(3)
    ]
    for model in models:
        torch.nn.init.uniform_(model[1].activation.weight)
    parameters, buffers = stack_module_state(models)
    x = torch.randn(3, 5, 6, dtype=torch.float64)

    def call(parameters, buffers, x):
        return functional_call(models[0], (parameters, buffers), (x,))

    expected = torch.stack([model(t) for model, t in zip(models, x, strict=True)])
    close(vmap(call)(parameters, buffers, x), expected)


def test_per_sample_gradients():
    model = torch.nn.Sequential(nn.Linear(6, 8, activation="elu"), nn.Tanh(), nn.Linear(8, 1))
    model.double()
    parameters = dict(model.named_parameters())
    x = torch.randn(5, 6, dtype=torch.float64)

    def loss(parameters, sample):
        return functional_call(model, parameters, (sample,)).sum()

    mine = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        model.zero_grad()
        model(sample).sum().backward()
        for name, parameter in parameters.items():
            close(mine[name][i], parameter.grad)


def _penalties(forward):
    """Second derivatives with respect to several tensors at once, by every nesting."""
    torch.manual_seed(1)
    x, w = torch.randn(4, 3).double(), torch.randn(5, 3).double()
    loss = lambda x, w: forward(x, w).sin().sum()  # noqa: E731
    grads = torch.func.grad(loss, (0, 1))
    yield torch.func.grad(lambda x: sum(g.sum() for g in grads(x, w)))(x)
    yield from itertools.chain(*torch.func.hessian(loss, (0, 1))(x, w))
    yield from itertools.chain(*torch.func.jacrev(torch.func.jacrev(loss, (0, 1)), (0, 1))(x, w))
    yield from torch.func.jvp(grads, (x, w), (x.cos(), w.cos()))[1]
    # A step within a step, as in MAML.
    outer = w.clone().requires_grad_()
    loss(x, outer - 0.1 * torch.func.grad(loss, 1)(x, outer)).backward()
    yield outer.grad


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize("fused", VARIED_FUSED_CASES, ids=str)
def test_nested_transforms_of_linear(fused):
    slope = torch.linspace(-0.5, 1.5, 5).double() if fused.learnable else None

    def mine(x, w):
        learnable = {} if slope is None else {"slope": slope}
        return functional.linear(x, w, activation=fused.name, **fused.parameters, **learnable)

    def twin(x, w):
        z = torch.nn.functional.linear(x, w)
        return fused.twin(z) if slope is None else fused.twin(z, slope)

    if fused.name == "hardsigmoid":
        # PyTorch has no second derivative of it; the first one is a step.
        assert all(own.isfinite().all() for own in _penalties(mine))
        return
    for own, other in zip(_penalties(mine), _penalties(twin), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-6)


def test_forward_mode_of_a_packed_linear():
    """A tangent of any of the tensors arrives."""
    x, w, b, slope = (torch.randn(s).double() for s in ((4, 3), (5, 3), (5,), (5,)))
    packed = torch.ops.fastact.pack_linear(w)

    def mine(x, w, b, slope):
        return torch.ops.fastact.linear_packed(x, packed, w, b, "prelu", [], slope)

    def twin(x, w, b, slope):
        return torch.nn.functional.prelu(torch.nn.functional.linear(x, w, b), slope)

    tensors = (x, w, b, slope)
    for i in range(4):
        tangents = tuple(t.cos() if j == i else torch.zeros_like(t) for j, t in enumerate(tensors))
        torch.testing.assert_close(
            torch.func.jvp(mine, tensors, tangents)[1], torch.func.jvp(twin, tensors, tangents)[1]
        )


def test_batches_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="size"):
        vmap(functional.prelu)(torch.randn(3, 4), torch.randn(2, 1))
