"""Is linear with an activation F.linear followed by that activation, for every shape and use?"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from fastact import functional, nn
from fastact.activations import FUSIBLE
from fastact.testing.cases import DTYPES, FUSED_CASES, VARIED_FUSED_CASES, pairs
from fastact.testing.inputs import random_tensor

# Error of one product over a reduction of K elements, beside PyTorch's own.
TOLERANCES = {
    torch.float64: {},
    torch.float32: {"rtol": 1e-5, "atol": 2e-5},
    torch.bfloat16: {"rtol": 2**-6, "atol": 2**-4},
    torch.float16: {"rtol": 2**-9, "atol": 2**-7},
}


def _tensors(fused, x, w, b, dtype=torch.float32):
    """Random input, weight, bias and slope of these shapes; deviation 1 before the activation."""
    columns = w[0] if len(w) > 1 else 1
    return (
        (torch.randn(x)).to(dtype),
        (torch.randn(w) / max(w[-1], 1) ** 0.5).to(dtype),
        None if b is None else torch.randn(b).to(dtype),
        torch.linspace(-0.5, 1.5, columns).to(dtype) if fused.learnable else None,
    )


def _mine(fused, x, w, b, slope):
    learnable = {"slope": slope} if fused.learnable else {}
    return functional.linear(x, w, b, activation=fused.name, **fused.parameters, **learnable)


def _twin(fused, x, w, b, slope):
    z = F.linear(x, w, b)
    return fused.twin(z, slope) if fused.learnable else fused.twin(z)


# input, weight, bias
SHAPES = {
    "2-D": ((7, 5), (3, 5), (3,)),
    "vector": ((5,), (3, 5), (3,)),
    "3-D": ((2, 4, 5), (3, 5), (3,)),
    "4-D": ((2, 1, 4, 5), (3, 5), (3,)),
    "no bias": ((7, 5), (3, 5), None),
    "3-D, no bias": ((2, 4, 5), (3, 5), None),
    "1-D weight": ((7, 5), (5,), None),
    "1-D weight, vector": ((5,), (5,), None),
    "1-D weight, 3-D": ((2, 4, 5), (5,), None),
    "one row": ((1, 64), (48, 64), (48,)),
    "one of everything": ((1, 1), (1, 1), (1,)),
    "one column": ((9, 5), (1, 5), (1,)),
    "zero batch": ((0, 5), (3, 5), (3,)),
    "zero batch, 3-D": ((2, 0, 5), (3, 5), (3,)),
    "no columns": ((7, 5), (0, 5), (0,)),
    "K = 0": ((7, 0), (3, 0), (3,)),
    "K = 0, no bias": ((7, 0), (3, 0), None),
    "primes": ((13, 37), (29, 37), (29,)),
    "above a block": ((130, 257), (131, 257), (131,)),
    "scalar bias": ((7, 5), (3, 5), ()),
    "bias of one": ((7, 5), (3, 5), (1,)),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("fused", VARIED_FUSED_CASES, ids=str)
def test_shapes(fused, shapes):
    """What PyTorch takes, with gradients; what PyTorch refuses is refused."""
    tensors = _tensors(fused, *shapes, torch.float64)
    leaves = [[t if t is None else t.clone().requires_grad_() for t in tensors] for _ in range(2)]
    try:
        theirs = _twin(fused, *leaves[1])
    except (RuntimeError, IndexError) as error:
        with pytest.raises(type(error)):
            _mine(fused, *leaves[0])
        return
    mine = _mine(fused, *leaves[0])
    torch.testing.assert_close(mine, theirs, check_stride=True)
    grad = torch.randn_like(theirs)
    mine.backward(grad)
    theirs.backward(grad)
    for own, other in zip(*leaves, strict=True):
        if own is not None:
            # PyTorch's celu differentiates with 1 / alpha in single precision.
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fused, dtype", pairs(FUSED_CASES, DTYPES))
def test_dtypes(fused, dtype):
    tensors = _tensors(fused, (33, 65), (17, 65), (17,), dtype)
    mine = _mine(fused, *tensors)
    # PyTorch rounds to 16 bits before the activation, too, which at a jump makes a difference.
    exact = [t if t is None else t.double() for t in tensors] if dtype.itemsize == 2 else tensors
    torch.testing.assert_close(mine, _twin(fused, *exact).to(dtype), **TOLERANCES[dtype])
    assert mine.is_contiguous()


@pytest.mark.parametrize("name", ["none", "relu", "leaky_relu", "hardtanh", "threshold"])
def test_integers_are_exact(name):
    """Small integers, whose sums float32 holds exactly: not one bit of difference."""
    x = torch.randint(-8, 9, (50, 70)).float()
    w = torch.randint(-8, 9, (30, 70)).float()
    b = torch.randint(-8, 9, (30,)).float()
    keywords = {"threshold": 1.0, "value": -3.0} if name == "threshold" else {}
    activation = None if name == "none" else name
    z = F.linear(x, w, b)
    expected = z if activation is None else getattr(F, name)(z, **keywords)
    result = functional.linear(x, w, b, activation=activation, **keywords)
    assert torch.equal(result, expected)


# Layouts of one matrix, made from a contiguous one of the shape.
LAYOUTS = {
    "transposed": lambda t: t.t().contiguous().t(),
    "slice": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "step": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "offset": lambda t: torch.cat([t[:1], t])[1:],
    "expanded": lambda t: t[:1].expand(t.shape),
    "expanded columns": lambda t: t[:, :1].expand(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["input", "weight", "both"])
@pytest.mark.parametrize(
    "fused", [f for f in FUSED_CASES if str(f) in ("none", "gelu", "prelu")], ids=str
)
def test_layouts(fused, which, layout):
    x, w, b, slope = _tensors(fused, (12, 10), (8, 10), (8,), torch.float64)
    x = LAYOUTS[layout](x) if which in ("input", "both") else x
    w = LAYOUTS[layout](w) if which in ("weight", "both") else w
    gradients = []
    for function in (_mine, _twin):
        leaves = [t.detach().requires_grad_() for t in (x, w, b, slope) if t is not None]
        y = function(fused, *leaves, *([None] if slope is None else []))
        gradients.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaves)))
    torch.testing.assert_close(*gradients)


def test_expanded_and_stepped_bias():
    x, w = random_tensor([4, 5]), random_tensor([6, 5])
    for bias in (torch.tensor(2.0).expand(6), torch.arange(12.0)[::2]):
        torch.testing.assert_close(
            functional.linear(x, w, bias, activation="tanh"), torch.tanh(F.linear(x, w, bias))
        )


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.half, torch.float32)])
def test_mixed_dtypes_are_refused(dtypes):
    low, high = dtypes
    x, w, b = random_tensor([4, 5]), random_tensor([3, 5]), random_tensor([3])
    for cast in ((low, high, high), (high, low, high), (high, high, low)):
        with pytest.raises(RuntimeError, match="dtype"):
            functional.linear(*(t.to(d) for t, d in zip((x, w, b), cast, strict=True)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_other_dtypes(dtype):
    """As PyTorch computes them."""
    x, w, b = (random_tensor(s).to(dtype) for s in ([4, 5], [3, 5], [3]))
    torch.testing.assert_close(functional.linear(x, w, b), F.linear(x, w, b))
    result = functional.linear(x, w, b, activation="tanh")
    torch.testing.assert_close(result, torch.tanh(F.linear(x, w, b)))


@pytest.mark.parametrize(
    "fused",
    # PyTorch cannot differentiate hardsigmoid's gradient.
    [fused for fused in VARIED_FUSED_CASES if fused.name != "hardsigmoid"],
    ids=str,
)
def test_double_backward_of_parameters(fused):
    """A penalty on the gradient, as in WGAN-GP: second derivatives with respect to the weight."""
    results = []
    tensors = _tensors(fused, (4, 5), (3, 5), (3,), torch.float64)
    for function in (_mine, _twin):
        leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
        y = function(fused, *leaves)
        (gradient,) = torch.autograd.grad(y.sum(), leaves[0], create_graph=True)
        penalty = gradient.square().sum() + y.square().sum()
        needed = [t for t in leaves if t is not None]
        results.append(torch.autograd.grad(penalty, needed, allow_unused=True))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 1), (1, 3), (4, 3)], ids=str)
def test_a_bias_that_is_broadcast(shape):
    """PyTorch takes any bias that expands to the result, and so sums its gradient."""
    x, w = torch.randn(4, 5).double(), torch.randn(3, 5).double()
    b = torch.randn(shape).double().requires_grad_()
    for activation, twin in ((None, lambda z: z), ("tanh", torch.tanh)):
        y = functional.linear(x, w, b, activation=activation)
        torch.testing.assert_close(y, twin(F.linear(x, w, b)))
        function = lambda b, a=activation: functional.linear(x, w, b, activation=a)  # noqa: E731
        assert gradcheck(function, (b,))
        assert gradgradcheck(function, (b,))


# ---- the module ---------------------------------------------------------------------------------


def _twin_of(layer):
    twin = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    twin.weight.data.copy_(layer.weight.data)
    if layer.bias is not None:
        twin.bias.data.copy_(layer.bias.data)
    return twin


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("fused", [f for f in FUSED_CASES if not f.learnable], ids=str)
def test_module(fused, bias):
    layer = nn.Linear(6, 5, bias, activation=fused.name, **fused.parameters)
    x = random_tensor([3, 6])
    torch.testing.assert_close(layer(x), fused.twin(_twin_of(layer)(x)))
    assert list(layer.state_dict()) == (["weight", "bias"] if bias else ["weight"])


MODULES = [
    (kind, keywords)
    for kind, keywords in (
        (torch.nn.ReLU, {}),
        (torch.nn.LeakyReLU, {"negative_slope": 0.3}),
        (torch.nn.ELU, {"alpha": 0.5}),
        (torch.nn.GELU, {}),
        (torch.nn.GELU, {"approximate": "tanh"}),
        (torch.nn.Hardtanh, {"min_val": -2.0, "max_val": 0.5}),
        (torch.nn.Softplus, {"beta": 2.0, "threshold": 5.0}),
        (torch.nn.Threshold, {"threshold": 0.1, "value": -2.0}),
        (torch.nn.Softmax, {"dim": -1}),
        (torch.nn.LogSoftmax, {"dim": 0}),
        (torch.nn.SiLU, {"inplace": True}),
        (nn.SiLU, {}),
        (nn.Mish, {"inplace": True}),
        (nn.GELU, {"approximate": "tanh"}),
    )
]


@pytest.mark.parametrize(
    "kind, keywords",
    MODULES,
    ids=[f"{kind.__module__.split('.')[0]}.{kind.__name__}-{kw}" for kind, kw in MODULES],
)
def test_activation_as_a_class_or_an_instance(kind, keywords):
    x = random_tensor([3, 6])
    for layer in (
        nn.Linear(6, 5, activation=kind, **keywords),
        nn.Linear(6, 5, activation=kind(**keywords)),
    ):
        torch.testing.assert_close(layer(x), kind(**keywords)(_twin_of(layer)(x)))
        assert list(layer.state_dict()) == ["weight", "bias"]


def test_gelu_with_approximate():
    x = random_tensor([3, 6])
    layer = nn.Linear(6, 5, activation="gelu", approximate="tanh")
    expected = F.gelu(_twin_of(layer)(x), approximate="tanh")
    torch.testing.assert_close(layer(x), expected)
    by_name = functional.linear(x, layer.weight, layer.bias, activation="gelu_tanh")
    assert torch.equal(by_name, layer(x))


def test_softmax_without_dim_takes_the_last():
    x, w = random_tensor([2, 4, 6]), random_tensor([5, 6])
    expected = torch.softmax(F.linear(x, w), -1)
    torch.testing.assert_close(functional.linear(x, w, activation="softmax"), expected)
    torch.testing.assert_close(
        functional.linear(x, w, activation="softmax", dim=1), torch.softmax(F.linear(x, w), 1)
    )


@pytest.mark.parametrize("count", [1, 5])
def test_learnable_activation(count):
    """PReLU's weight is the submodule "activation"; it trains, moves, saves and loads."""
    layer = nn.Linear(6, 5, activation="prelu", num_parameters=count, init=0.4)
    assert list(layer.state_dict()) == ["weight", "bias", "activation.weight"]
    assert torch.equal(layer.activation.weight, torch.full((count,), 0.4))
    x = random_tensor([3, 6])
    twin = torch.nn.Sequential(_twin_of(layer), torch.nn.PReLU(count, init=0.4))
    torch.testing.assert_close(layer(x), twin(x))
    layer(x).square().sum().backward()
    twin(x).square().sum().backward()
    torch.testing.assert_close(layer.activation.weight.grad, twin[1].weight.grad)
    torch.testing.assert_close(layer.weight.grad, twin[0].weight.grad)
    other = nn.Linear(6, 5, activation=torch.nn.PReLU(count))
    other.load_state_dict(layer.state_dict(), strict=True)
    torch.testing.assert_close(other(x), layer(x))
    assert layer.double().activation.weight.dtype == torch.float64
    assert nn.Linear(6, 5, activation="prelu", device="meta").activation.weight.is_meta


def test_an_instance_of_prelu_is_shared():
    """The weight of the very module given, so that it stays tied elsewhere."""
    activation = torch.nn.PReLU()
    layer = nn.Linear(6, 5, activation=activation)
    assert layer.activation is activation
    activation.weight.data.fill_(2.0)
    x = random_tensor([3, 6])
    torch.testing.assert_close(layer(x), F.prelu(_twin_of(layer)(x), torch.tensor([2.0])))


@pytest.mark.parametrize("name", [None, "relu", "elu", "prelu"])
def test_is_a_torch_linear(name):
    """Constructor, initialisation, repr, state_dict in both directions."""
    torch.manual_seed(3)
    layer = nn.Linear(6, 5, activation=name)
    torch.manual_seed(3)
    twin = torch.nn.Linear(6, 5)
    assert isinstance(layer, torch.nn.Linear)
    assert torch.equal(layer.weight, twin.weight) and torch.equal(layer.bias, twin.bias)
    if name != "prelu":
        layer.load_state_dict(twin.state_dict(), strict=True)
        twin.load_state_dict(layer.state_dict(), strict=True)
    if name is None:
        assert repr(layer) == repr(twin)
    else:
        assert repr(layer).startswith("Linear(")
        assert f"activation={name!r}" in repr(layer)
    if name == "elu":
        assert "alpha=1.0" in repr(layer)


def test_repr_rebuilds_the_layer():
    layer = nn.Linear(6, 5, bias=False, activation="leaky_relu", negative_slope=0.3)
    again = eval(repr(layer), {"Linear": nn.Linear})
    assert repr(again) == repr(layer)


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "torch.save"])
def test_copies(how, tmp_path):
    layer = nn.Linear(6, 5, activation="prelu", num_parameters=5)
    torch.nn.init.uniform_(layer.activation.weight)
    x = random_tensor([3, 6])
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    elif how == "deepcopy":
        twin = copy.deepcopy(layer)
    else:
        torch.save(layer.state_dict(), tmp_path / "state")
        twin = nn.Linear(6, 5, activation="prelu", num_parameters=5)
        twin.load_state_dict(torch.load(tmp_path / "state", weights_only=True), strict=True)
    assert repr(twin) == repr(layer)
    assert torch.equal(twin(x), layer(x))
    twin.activation.weight.data.fill_(0.1)
    assert not torch.equal(twin(x), layer(x))


def test_writes_to_the_weight_are_seen():
    """Nothing is kept of an earlier call, not even by a write that leaves no trace."""
    layer = nn.Linear(64, 48, activation="relu")
    x = random_tensor([40, 64])
    layer(x)
    for write in (
        lambda w: w.data.mul_(2),
        lambda w: w.detach().numpy().__imul__(-1),
        lambda w: w.data.copy_(torch.randn(48, 64)),
    ):
        write(layer.weight)
        torch.testing.assert_close(
            layer(x), torch.relu(F.linear(x, layer.weight, layer.bias)), rtol=1e-5, atol=1e-4
        )


def test_training():
    """Some steps of SGD, beside PyTorch's, from the same start."""
    mine = torch.nn.Sequential(
        nn.Linear(8, 16, activation="gelu"),
        nn.Linear(16, 16, activation="leaky_relu", negative_slope=0.2),
        nn.Linear(16, 4, activation="log_softmax"),
    )
    twin = torch.nn.Sequential(
        torch.nn.Linear(8, 16),
        torch.nn.GELU(),
        torch.nn.Linear(16, 16),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Linear(16, 4),
        torch.nn.LogSoftmax(-1),
    )
    for own, theirs in zip(mine.parameters(), twin.parameters(), strict=True):
        theirs.data.copy_(own.data)
    x, target = random_tensor([32, 8]), torch.randint(4, (32,))
    losses = []
    for model in (mine, twin):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(10):
            optimizer.zero_grad()
            loss = F.nll_loss(model(x), target)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for own, theirs in zip(mine.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-4)


def test_every_row_of_the_registry_is_fused_here():
    assert {fused.name for fused in FUSED_CASES} == {None, *FUSIBLE}
