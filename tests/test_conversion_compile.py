"""Do PyTorch's compilers, tracers, transforms and watchers take a converted model?"""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fastact
from fastact.testing.conversion import MODES, fused, pair
from fastact.testing.programs import PROGRAMS

X = torch.linspace(-2, 2, 18).reshape(3, 6)
COMPILED = [name for name, row in PROGRAMS.items() if row.compiles]
SOME = ["Nested", "Statements", "Sequence", "Dropouts", "Layers"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", COMPILED)
def test_compile(name, mode, dynamo):
    model, converted = pair(PROGRAMS[name].make, mode)
    model.eval(), converted.eval()
    args, kwargs = PROGRAMS[name].calls[0]()
    expected = model(*args, **kwargs)
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    args, kwargs = PROGRAMS[name].calls[0]()
    torch.testing.assert_close(compiled(*args, **kwargs), expected)


def test_compile_is_fused_and_follows_edits(dynamo):
    graphs = []

    def backend(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph

    model, converted = pair(PROGRAMS["Statements"].make, "training")
    model.eval(), converted.eval()
    compiled = torch.compile(converted, fullgraph=True, backend=backend)
    for edit in (
        lambda m: None,
        lambda m: setattr(m, "slope", 0.9),
        lambda m: setattr(m, "act", nn.Tanh()),
        lambda m: setattr(m, "fc2", nn.Identity()),
    ):
        edit(model), edit(converted)
        for rows in (3, 2, 4):
            torch.testing.assert_close(
                compiled(X.repeat(2, 1)[:rows]), model(X.repeat(2, 1)[:rows])
            )
    assert any("fastact.linear" in target for target in graphs[0])
    x = X.clone().requires_grad_()
    compiled(x).square().sum().backward()
    grad, x.grad = x.grad, None
    model(x).square().sum().backward()
    torch.testing.assert_close(grad, x.grad)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOME)
def test_export(name, mode, strict, dynamo):
    model, converted = pair(PROGRAMS[name].make, mode)
    model.eval(), converted.eval()
    program = torch.export.export(converted, (X,), strict=strict)
    targets = {node.target for node in program.graph.nodes}
    assert torch.ops.fastact.linear.default in targets
    assert torch.ops.fastact.linear_packed.default not in targets
    assert dict.fromkeys(program.state_dict) == dict.fromkeys(converted.state_dict())
    torch.testing.assert_close(program.module()(X), model(X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOME)
def test_jit_trace(name, mode):
    model, converted = pair(PROGRAMS[name].make, mode)
    model.eval(), converted.eval()
    traced = torch.jit.trace(converted, X)
    torch.testing.assert_close(traced(X), model(X))
    assert str(traced.graph) == str(torch.jit.trace(model, X).graph) or mode


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["Nested", "Statements", "Sequence", "Dropouts"])
def test_symbolic_trace(name, mode):
    model, converted = pair(PROGRAMS[name].make, mode)
    model.eval(), converted.eval()
    mine, theirs = (torch.fx.symbolic_trace(one) for one in (converted, model))
    torch.testing.assert_close(mine(X), model(X))
    assert [(n.op, n.target) for n in mine.graph.nodes] == [
        (n.op, n.target) for n in theirs.graph.nodes
    ]
    with pytest.raises(RuntimeError, match="it has no methods of Python code"):
        fastact.convert(mine, use_fallback=False)
    torch.testing.assert_close(fastact.convert(mine)(X), model(X))


# ---- transforms --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOME[:2])
def test_functorch(name, mode):
    model, converted = pair(PROGRAMS[name].make, mode)
    model.eval(), converted.eval()
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    batch = torch.randn(4, 3, 6)

    def loss(one):
        def of(parameters, x):
            return torch.func.functional_call(one, (parameters, buffers), (x,)).square().sum()

        return of

    for transform in (
        lambda one: torch.func.vmap(one)(batch),
        lambda one: torch.func.jacrev(one)(X),
        lambda one: torch.func.jvp(one, (X,), (X,)),
        lambda one: torch.func.grad(loss(one))(parameters, X),
        lambda one: torch.func.vmap(torch.func.grad(loss(one)), (None, 0))(parameters, batch),
        lambda one: torch.func.hessian(lambda x: one(x).sum())(X),
    ):
        torch.testing.assert_close(transform(converted), transform(model), rtol=1e-4, atol=1e-5)


# ---- watchers ----------------------------------------------------------------------------------


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOME)
def test_modes_see_what_they_see_of_the_original(name, mode):
    model, converted = pair(PROGRAMS[name].make, mode)
    model.eval(), converted.eval()
    for watcher in (Operators, Functions):
        names = []
        for one in (model, converted):
            with watcher() as seen:
                one(X)
            names.append(seen.names)
        assert names[1] == names[0] != []
    flops = []
    for one in (model, converted):
        with FlopCounterMode(display=False) as counter:
            one(X)
        flops.append(counter.get_total_flops())
    assert flops[1] == flops[0] > 0


def test_subclasses_of_tensors_see_what_they_see_of_the_original():
    class Noting(torch.Tensor):
        seen = ()

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            Noting.seen += (getattr(func, "__name__", ""),)
            return super().__torch_function__(func, types, args, kwargs or {})

    model, converted = pair(PROGRAMS["Statements"].make, "inference")
    seen = []
    for one in (model, converted):
        Noting.seen = ()
        y = one(X.as_subclass(Noting))
        assert type(y) is Noting
        seen.append(Noting.seen)
    assert seen[1] == seen[0]


def test_the_profiler():
    _, converted = pair(PROGRAMS["Nested"].make, "inference")
    with torch.profiler.profile() as profile:
        converted(X)
    assert "fastact::linear_packed" in {event.key for event in profile.key_averages()}


def test_deterministic_and_anomaly_modes():
    model, converted = pair(PROGRAMS["Nested"].make, "training")
    with torch.autograd.detect_anomaly(check_nan=True):
        converted(X).sum().backward()
    model(X).sum().backward()
    torch.testing.assert_close(
        [p.grad for p in converted.parameters()], [p.grad for p in model.parameters()]
    )


@pytest.mark.parametrize("device", ["meta"])
def test_meta_tensors(device):
    _, converted = pair(PROGRAMS["Statements"].make, "inference")
    converted.to(device)
    assert converted(X.to(device)).shape == (3, 6)
    assert fused(lambda: converted(X.to(device)))


def test_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    _, converted = pair(PROGRAMS["Statements"].make, "training")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert converted(mode.from_tensor(X)).shape == (3, 6)


def test_sparse_and_other_tensors():
    model, converted = pair(PROGRAMS["Nested"].make, "inference")
    for x in (X.to_sparse(), X.to_mkldnn() if torch.backends.mkldnn.is_available() else X):
        found = []
        for one in (model, converted):
            with contextlib.suppress(RuntimeError, NotImplementedError):
                y = one(x)
                found.append(y.to_dense() if y.layout is not torch.strided else y)
        assert len(found) in (0, 2)
        if found:
            torch.testing.assert_close(found[1], found[0])
    nested = torch.nested.nested_tensor([X, X[1:]], layout=torch.jagged)
    torch.testing.assert_close(converted(nested).values(), model(nested).values())
    complex_model = nn.Sequential(nn.Linear(6, 6, dtype=torch.cfloat), nn.Tanh()).eval()
    torch.testing.assert_close(
        fastact.convert(complex_model)(X.cfloat()), complex_model(X.cfloat()).detach()
    )
    assert F is not None
