"""Do compilers, exporters, torch.func's transforms and autocast take recurrent layers?

torch.nn's own have no rule for vmap, and by oneDNN no second derivative: those are compared with
loops over samples, and in float64, which oneDNN leaves alone.
"""

import io
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.utils._pytree import tree_leaves, tree_map

from fastact import nn

LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")
INPUT, H = 3, 4
close = torch.testing.assert_close


def twins(name, dtype=torch.float64, **options):
    mine, twin = (
        getattr(module, name)(INPUT, H, dtype=dtype, **options) for module in (nn, torch.nn)
    )
    twin.load_state_dict(mine.state_dict())
    return mine, twin


def loss_of(layer):
    """A function of (parameters, input, ...)."""

    def loss(parameters, *args, **kwargs):
        outputs = tree_leaves(functional_call(layer, parameters, args, kwargs))
        return sum((t * t.cos()).sum() for t in outputs)

    return loss


def parameters_of(layer):
    return {name: value.detach() for name, value in layer.named_parameters()}


def stacked(results):
    return tree_map(lambda *each: torch.stack(each), *results)


# ---- torch.func --------------------------------------------------------------------------------


@pytest.mark.parametrize("in_dim", [0, 1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_vmap_over_input(name, in_dim):
    mine, twin = twins(name, num_layers=2, bidirectional=True)
    x = torch.randn(6, 5, 2, INPUT, dtype=torch.float64)
    close(vmap(mine, in_dims=in_dim)(x.movedim(0, in_dim)), stacked([twin(one) for one in x]))


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_over_states(name):
    """The input unbatched."""
    mine, twin = twins(name, num_layers=2)
    x = torch.randn(5, 2, INPUT, dtype=torch.float64)
    h = torch.randn(6, 2, 2, H, dtype=torch.float64)
    states = (h, h.cos()) if name == "LSTM" else h
    expected = stacked([twin(x, tree_map(lambda t, i=i: t[i], states)) for i in range(6)])
    close(vmap(mine, in_dims=(None, 0))(x, states), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_over_weights(name):
    """An ensemble, as torch.func.stack_module_state makes one."""
    models = [twins(name, num_layers=2) for _ in range(4)]
    parameters, buffers = stack_module_state([mine for mine, _ in models])
    x = torch.randn(5, 2, INPUT, dtype=torch.float64)

    def call(parameters, x):
        return functional_call(models[0][0], (parameters, buffers), (x,))

    expected = stacked([twin(x) for _, twin in models])
    close(vmap(call, in_dims=(0, None))(parameters, x), expected)
    # And their gradients.
    losses = vmap(grad(loss_of(models[0][0])), in_dims=(0, None))(parameters, x)
    close(losses, stacked([grad(loss_of(t))(parameters_of(t), x) for _, t in models]))


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_over_lengths(name):
    mine, _ = twins(name, bidirectional=True)
    x = torch.randn(4, 5, 2, INPUT, dtype=torch.float64)
    lengths = torch.tensor([[5, 2], [1, 3], [2, 2], [0, 4]])
    expected = stacked([mine(one, lengths=n) for one, n in zip(x, lengths, strict=True)])
    close(vmap(lambda x, n: mine(x, lengths=n))(x, lengths), expected)
    expected = stacked([mine(one, lengths=lengths[0]) for one in x])
    close(vmap(lambda x: mine(x, lengths=lengths[0]))(x), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_with_dropout(name):
    """Each sample draws its own, where that is asked for; torch.func refuses where it is not."""
    mine, _ = twins(name, num_layers=2, dropout=0.5)
    x = torch.randn(5, 2, INPUT, dtype=torch.float64).expand(3, 5, 2, INPUT)
    different = vmap(mine, randomness="different")(x)[0]
    same = vmap(mine, randomness="same")(x)[0]
    assert not torch.equal(different[0], different[1])
    close(same[0], same[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(mine)(x)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_each_sample(name):
    mine, twin = twins(name, num_layers=2, bidirectional=True)
    x = torch.randn(4, 5, 2, INPUT, dtype=torch.float64)
    found = vmap(grad(loss_of(mine)), in_dims=(None, 0))(parameters_of(mine), x)
    close(found, stacked([grad(loss_of(twin))(parameters_of(twin), one) for one in x]))
    summed = grad(lambda p: vmap(partial(loss_of(mine), p))(x).sum())(parameters_of(mine))
    close(summed, tree_map(lambda each: each.sum(0), found))


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives(name):
    mine, twin = twins(name, num_layers=2)
    x = torch.randn(3, 2, INPUT, dtype=torch.float64)
    f, g = (lambda x, m=m: m(x)[0] for m in (mine, twin))
    expected = torch.autograd.functional.jacobian(g, x)
    close(jacrev(f)(x), expected)
    close(jacfwd(f)(x), expected)
    tangent = torch.randn_like(x)
    _, pushed = jvp(f, (x,), (tangent,))
    close(pushed, torch.einsum("abcdef,def->abc", expected, tangent))
    scalar, twins_scalar = (lambda x, h=h: h(x).square().sum() for h in (f, g))
    close(hessian(scalar)(x), torch.autograd.functional.hessian(twins_scalar, x))


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    mine, twin = twins(name)
    x = torch.randn(5, 2, INPUT, dtype=torch.float64)
    close(vmap(mine)(x), stacked([twin(one) for one in x]))
    f, g = (lambda x, m=m: tree_leaves(m(x))[0] for m in (mine, twin))
    close(jacrev(f)(x[0]), torch.autograd.functional.jacobian(g, x[0]))
    close(jacfwd(f)(x[0]), torch.autograd.functional.jacobian(g, x[0]))


# ---- compilers ---------------------------------------------------------------------------------


def operators(graph):
    return [str(node.target) for node in graph.graph.nodes if "fastact" in str(node.target)]


class Recorder:
    """A backend of torch.compile that keeps its graphs."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_compiled_is_one_node(name, dynamic, dynamo):
    mine, twin = twins(name, torch.float32, num_layers=2, bidirectional=True, batch_first=True)
    recorder = Recorder()
    compiled = torch.compile(mine, backend=recorder, fullgraph=True, dynamic=dynamic)
    for shape in ((2, 5, INPUT), (3, 6, INPUT), (4, 9, INPUT)):
        x = torch.randn(shape)
        close(compiled(x), twin(x))
    assert len(recorder.graphs) == 1 if dynamic else len(recorder.graphs) >= 1
    for graph in recorder.graphs:
        assert operators(graph) == [f"fastact.{name.lower()}.default"]


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_with_lengths(name, dynamo):
    mine, _ = twins(name, torch.float32)
    compiled = torch.compile(
        lambda x, n: mine(x, lengths=n), backend="aot_eager", fullgraph=True, dynamic=True
    )
    for lengths in ([5, 2], [1, 3]):
        x = torch.randn(5, 2, INPUT, requires_grad=True)
        n = torch.tensor(lengths)
        found, expected = compiled(x, n), mine(x, lengths=n)
        close(found, expected)
        close(*(torch.autograd.grad(y[0].sum(), x) for y in (found, expected)))


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_training_step(name, dynamo):
    mine, twin = twins(name, torch.float32, num_layers=2)
    compiled = torch.compile(mine, backend="aot_eager", fullgraph=True, dynamic=True)
    for steps in (4, 7):
        x = torch.randn(steps, 2, INPUT)
        for layer, call in ((mine, compiled), (twin, twin)):
            layer.zero_grad()
            call(x)[0].square().sum().backward()
        close([p.grad for p in mine.parameters()], [p.grad for p in twin.parameters()])


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_with_dropout(name, dynamo):
    mine, _ = twins(name, torch.float32, num_layers=2, dropout=0.5)
    compiled = torch.compile(mine, backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 2, INPUT)
    assert not torch.equal(compiled(x)[0], compiled(x)[0])


def test_dynamo_goes_on_refusing_torchs_layers(dynamo):
    """And has its setting back."""
    twin, x = torch.nn.GRU(INPUT, H), torch.randn(5, 2, INPUT)
    mine = torch.compile(nn.GRU(INPUT, H), backend="eager", fullgraph=True)
    assert mine(x)[0].shape == (5, 2, H)
    assert not torch._dynamo.config.allow_rnn
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN"):
        torch.compile(twin, backend="eager", fullgraph=True)(x)


@pytest.mark.parametrize(
    "first", [pytest.param("torch._dynamo", marks=pytest.mark.slow), "fastact"]
)
def test_dynamo_may_be_imported_later(first):
    program = f"""
import torch, {first}, fastact
layer, x = fastact.nn.LSTM(3, 4), torch.randn(5, 2, 3)
model = torch.nn.Sequential(torch.nn.Linear(3, 3), layer)
print(torch.compile(model, backend="eager", fullgraph=True)(x)[0].shape)
"""
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout == "torch.Size([5, 2, 4])\n"


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_packed_sequence(name, dynamo):
    """Not in one graph, as torch.nn's is not."""
    mine, twin = twins(name, torch.float32)
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(n, INPUT) for n in (5, 3)])
    found = torch.compile(mine, backend="eager")(packed)
    close(found[0].data, twin(packed)[0].data)


@pytest.mark.parametrize("name", CELLS)
def test_compiled_cells(name, dynamo):
    mine, twin = twins(name, torch.float32)
    recorder = Recorder()
    compiled = torch.compile(mine, backend=recorder, fullgraph=True, dynamic=True)
    for batch in (2, 5):
        x = torch.randn(batch, INPUT)
        close(compiled(x), twin(x))
    assert len(recorder.graphs) == 1
    operator = name.removesuffix("Cell").lower() + "_cell"
    assert operators(recorder.graphs[0]) == [f"fastact.{operator}.default"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GRU", "LSTMCell"])
def test_inductor(name, inductor):
    mine, twin = twins(name, torch.float32)
    x = torch.randn(*((5, 2) if name == "GRU" else (2,)), INPUT)
    with torch.no_grad():
        close(torch.compile(mine, fullgraph=True)(x), twin(x))


# ---- exporters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_export(name):
    mine, twin = twins(name, torch.float32)
    shape = (5, 2, INPUT) if name in LAYERS else (2, INPUT)
    batch = torch.export.Dim("batch", min=2, max=64)
    dynamic = ({len(shape) - 2: batch},)
    program = torch.export.export(mine, (torch.randn(shape),), dynamic_shapes=dynamic)
    (operator,) = operators(program.graph_module)
    assert operator.startswith(f"fastact.{name.removesuffix('Cell').lower()}")
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    x = torch.randn(*shape[:-2], 7, INPUT)
    close(torch.export.load(buffer).module()(x), twin(x))


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_jit_trace(name):
    mine, twin = twins(name, torch.float32)
    mine.requires_grad_(False), twin.requires_grad_(False)
    shape = (5, 2, INPUT) if name in LAYERS else (2, INPUT)
    traced = torch.jit.trace(mine, torch.randn(shape))
    for batch in (2, 7):
        x = torch.randn(*shape[:-2], batch, INPUT)
        close(traced(x), twin(x))


# ---- autocast ----------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_autocast(name, low):
    """Results in the dtypes of torch.nn's, gradients in the parameters'."""
    shape = (5, 2, INPUT) if name in LAYERS else (2, INPUT)
    for dtype in (torch.float32, low):
        mine, twin = twins(name, torch.float32)
        x = torch.randn(shape, dtype=dtype)
        with torch.autocast("cpu", low):
            outputs = tree_leaves(mine(x))
        sum(t.float().square().sum() for t in outputs).backward()
        assert all(p.grad.dtype == torch.float32 for p in mine.parameters())
        exact = tree_leaves(twin(x.float()))
        sum(t.square().sum() for t in exact).backward()
        close([t.float() for t in outputs], exact, rtol=0.05, atol=0.02)
        for ours, theirs in zip(mine.parameters(), twin.parameters(), strict=True):
            close(ours.grad, theirs.grad, rtol=0.1, atol=0.05)
        if name == "LSTM":  # where oneDNN has no kernel for the dtype, torch.nn's raises
            assert {t.dtype for t in outputs} == {low}
        else:
            with torch.autocast("cpu", low):
                assert [t.dtype for t in tree_leaves(twin(x))] == [t.dtype for t in outputs]


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_of_packed_sequences_and_dropout(name):
    mine, twin = twins(name, torch.float32, num_layers=2, dropout=0.5)
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(n, INPUT) for n in (6, 4, 1)])
    outputs = []
    for module in (mine, twin):
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(module(packed)[0].data)
    assert outputs[0].dtype == outputs[1].dtype
    close(*outputs, rtol=0.05, atol=0.05)
