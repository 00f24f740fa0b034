"""Does advise watch any program, and leave everything as it was?"""

import collections
import copy
import dataclasses
import gc
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from advised_models import Forward, Named, X, found, names
from torch import nn

import fastact

# ---- what advise leaves as it was --------------------------------------------------------------


class Busy(nn.Module):
    """Changes whatever a forward can change."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.embedding = nn.Embedding(4, 8, max_norm=0.1)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("late", None)
        self.count, self.seen, self.cache, self.last = 0, [], {}, collections.deque()

    def forward(self, x, fail=False):
        self.count += 1
        self.seen.append(x.mean())
        self.last.append(1)
        self.cache["x"] = x
        self.calls += 1
        self.late = torch.ones(3)
        self.new = x
        random.random()
        y = self.norm(self.fc(x)) + self.embedding(torch.arange(4).repeat(16))
        y.sum().backward()
        with torch.no_grad():
            self.fc.weight.clamp_(-0.01, 0.01)
            self.fc.bias.data.zero_()
            self.norm.weight.data = torch.full((8,), 7.0)
            self.norm.weight.data.mul_(2)
        x.mul_(2)
        x.requires_grad_().sum().backward()
        self.fc.requires_grad_(False)
        if fail:
            raise KeyError("the model's own")
        return F.dropout(y)


def state_of(model):
    return {
        name: (type(module), dict(vars(module)), list(module._parameters), list(module._buffers))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("fail", [False, True])
def test_leaves_everything_as_it_was(fail):
    model, x = Busy(), torch.randn(64, 8)
    model.fc.weight.grad = gradient = torch.ones(8, 8)
    before, state = copy.deepcopy(model), state_of(model)
    address = model.norm.weight.data_ptr()
    x_before, random_before = x.clone(), random.getstate()
    torch_before = torch.get_rng_state()
    hooks = [
        dict(getattr(nn.modules.module, f"_global_forward{kind}_hooks")) for kind in ("", "_pre")
    ]
    if fail:
        with pytest.raises(KeyError, match="the model's own"):
            fastact.advise(model, x, fail)
    else:
        fastact.advise(model, x, fail)
    assert state_of(model).keys() == state.keys()
    for name, module in model.named_modules():
        assert vars(module).keys() == state[name][1].keys()
    assert (model.count, model.seen, model.cache, model.late) == (0, [], {}, None)
    assert not model.last
    assert model.fc.weight.grad is gradient and (gradient == 1).all()
    assert model.norm.weight.grad is None
    for (name, one), other in zip(
        model.state_dict().items(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert torch.equal(x, x_before) and x.grad is None and not x.requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.norm.weight.data_ptr() == address
    assert random.getstate() == random_before
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert hooks == [
        dict(getattr(nn.modules.module, f"_global_forward{kind}_hooks")) for kind in ("", "_pre")
    ]
    assert torch.overrides._get_current_function_mode() is None


def test_a_model_in_a_function_is_left_as_it_was():
    model, x = Busy(), torch.randn(64, 8)
    before = copy.deepcopy(model.state_dict())
    fastact.advise(lambda x: model(x), x)
    assert model.count == 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_runs_as_without_being_watched():
    model, x = Busy(), torch.randn(64, 8)
    results = []
    model.register_forward_hook(lambda module, args, output: results.append(output.detach()))
    torch.manual_seed(3)
    fastact.advise(model, x)
    torch.manual_seed(3)
    model(x)
    assert torch.equal(*results)


# ---- all kinds of Python -----------------------------------------------------------------------


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    more: dict


def generator(self, batch):
    for x in batch.more["parts"]:
        yield self.b(self.a(x))


STRANGE = {
    "no parameters": (lambda x: x.relu(), (X,), set()),
    "dict": (
        Forward(lambda m, d: m.b(m.a(d["x"])), a=nn.Linear(8, 8), b=nn.Linear(8, 8)),
        ({"x": X},),
        {"collapsing-linear-maps"},
    ),
    "dataclass and generator": (
        Forward(generator, a=nn.Linear(8, 8), b=nn.Linear(8, 8)),
        (Batch(X, {"parts": [X, X]}),),
        {"collapsing-linear-maps"},
    ),
    "shared weights": (
        Forward(lambda m, x: m.a(m.a(x)), a=nn.Linear(8, 8)),
        (X,),
        {"collapsing-linear-maps"},
    ),
    "several outputs": (
        Forward(
            lambda m, x: (m.a(x), [m.b(x)], None, "text"), a=nn.Linear(8, 8), b=nn.Linear(8, 2)
        ),
        (X,),
        set(),
    ),
    "complex": (lambda x: (x + 1j * x).abs().relu(), (X,), set()),
    "integers": (lambda x: F.one_hot(x).float().softmax(-1), (torch.arange(4),), set()),
    "bool": (lambda x: torch.where(x > 0, x, -x)[x[:, 0] > 0].relu(), (X,), set()),
    "no_grad inside": (
        Forward(
            lambda m, x: torch.no_grad()(lambda: m.act(m.fc(x)))() + 1,
            fc=nn.Linear(8, 8),
            act=nn.ReLU(inplace=True),
        ),
        (X,),
        set(),
    ),
    "inference_mode inside": (
        Forward(
            lambda m, x: torch.inference_mode()(lambda: m.b(m.act(m.a(x))))(),
            a=nn.Linear(8, 8),
            act=nn.ReLU(inplace=True),
            b=nn.Linear(8, 8),
        ),
        (X,),
        set(),
    ),
    "vmap": (lambda x: torch.vmap(lambda row: F.relu(row).sum())(x), (X,), set()),
    "func.grad": (lambda x: torch.func.grad(lambda y: torch.tanh(y).sum())(x), (X,), set()),
    "checkpoint": (
        Forward(
            lambda m, x: torch.utils.checkpoint.checkpoint(
                lambda y: m.b(m.a(y)), x, use_reentrant=False
            ),
            a=nn.Linear(8, 8),
            b=nn.Linear(8, 8),
        ),
        (X,),
        {"collapsing-linear-maps"},
    ),
    "numpy": (lambda x: torch.from_numpy(x.numpy() * 2).relu(), (X,), set()),
    "numbers": (lambda x, n, s: x.sum() * n, (X, 3, "text"), set()),
    "no tensor": (lambda: torch.ones(3).relu(), (), set()),
    "packed sequence": (
        nn.GRU(8, 4),
        (nn.utils.rnn.pack_sequence([X[:3], X[:2]]),),
        set(),
    ),
    "sparse": (lambda x: (x.to_sparse() @ torch.ones(8, 2)).relu(), (X,), set()),
    "nested": (
        lambda x: torch.nested.nested_tensor([x[:2], x[:3]], layout=torch.jagged).relu(),
        (X,),
        set(),
    ),
    "meta": (nn.Sequential(nn.Linear(8, 8, device="meta"), nn.ReLU()), (X.to("meta"),), set()),
    "empty": (
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2), nn.Tanh()),
        (X[:0],),
        set(),
    ),
    "empty, in place": (lambda x: (y := x * 2).relu_() + y[1:].sum() + y.T.sum(), (X[:0],), set()),
    "sparse, in place": (lambda x: (x * 1).to_sparse().relu_().to_dense(), (X,), set()),
    "scalar": (lambda x: x.sum().tanh().relu(), (X,), set()),
    "autograd.grad inside": (
        lambda x: torch.autograd.grad(torch.tanh(x.requires_grad_()).sum(), x)[0],
        (X.clone(),),
        set(),
    ),
    "functional call": (
        lambda x: torch.func.functional_call(
            nn.Linear(2, 2), {"weight": torch.ones(2, 2), "bias": torch.ones(2)}, (x[:, :2],)
        ),
        (X,),
        set(),
    ),
    "parametrization": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8)),
        (X,),
        {"collapsing-linear-maps"},
    ),
    "converted for training": (
        fastact.convert(
            nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU()), mode="training"
        ),
        (X,),
        {"collapsing-linear-maps"},
    ),
    "fused and in place": (
        nn.Sequential(fastact.nn.Linear(8, 8, activation="relu"), fastact.nn.ReLU(inplace=True)),
        (X,),
        set(),
    ),
    "slices written": (
        Forward(lambda m, x: _write(m.a(x)), a=nn.Linear(8, 8)),
        (X,),
        set(),
    ),
}


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


STRANGE |= {
    "autograd.Function": (
        Forward(lambda m, x: m.b(Double.apply(m.a(x))), a=nn.Linear(8, 8), b=nn.Linear(8, 8)),
        (X,),
        {"collapsing-linear-maps"},
    ),
    "torch.fx": (
        torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))),
        (X,),
        {"collapsing-linear-maps"},
    ),
}


def _write(y):
    y[:, 0] = 0
    y += 1
    torch.relu(y, out=y) if False else None
    return y.clamp_(0)


def test_keeps_no_value_alive():
    def forward(m, x):
        y = m.fc(x)
        z = m.fc(y).softmax(-1)
        references = [weakref.ref(tensor) for tensor in (y, z)]
        out = z.sum()
        del y, z
        gc.collect()
        alive.extend(reference() is not None for reference in references)
        return out

    alive = []
    with torch.no_grad():
        fastact.advise(Forward(forward, fc=nn.Linear(8, 8)), X)
    assert alive == [False, False]


def test_code_that_was_written_by_fx_has_no_place():
    [advice] = fastact.advise(STRANGE["torch.fx"][0], X)
    assert (advice.module, advice.file) == ("0", None)


@pytest.mark.parametrize("model, inputs, expected", STRANGE.values(), ids=STRANGE)
def test_any_python_works(model, inputs, expected):
    assert names(model, *inputs) == expected


def test_compiled_models_run_as_written(dynamo):
    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4), nn.ReLU())
    compiled = torch.compile(plain, backend="eager")
    compiled(X)
    assert names(compiled, X) == {"collapsing-linear-maps"}
    inner = Forward(lambda m, x: m.net(x), net=compiled)
    assert found(inner, X) == [("collapsing-linear-maps", "net.0")]
    assert torch.equal(compiled(X), plain(X))


def test_compiled_functions_run_as_written(dynamo):
    layers = nn.Linear(8, 8), nn.Linear(8, 8)
    function = torch.compile(lambda x: layers[1](layers[0](x)), backend="eager")
    function(X)
    assert names(function, X) == {"collapsing-linear-maps"}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_under_the_callers_grad_mode(mode):
    model, x = Busy(), torch.randn(64, 8)
    before = copy.deepcopy(model.state_dict())
    model.forward = lambda x: model.norm(model.fc(x).relu_()).mul_(model.calls.add_(1))
    with mode():
        assert names(model, x) == {"activation-before-batch-norm"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_autocast():
    with torch.autocast("cpu"):
        assert names(Named(), X) == {"collapsing-linear-maps"}
