"""Is a converted model the model it was made of, with every pair fused?"""

import copy
import doctest
import io
import math
import pickle
import random
import subprocess
import sys
from typing import ClassVar, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastact
from fastact import conversion
from fastact import functional as FF
from fastact.activations import REGISTRY
from fastact.nn.frozen import FrozenLinear
from fastact.testing.cases import CASES

MODES = ["inference", "training"]


class Calls(TorchDispatchMode):
    """What fastact's operators were called with: the activation of each linear, and the names of
    the rest."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.residuals = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("fastact::")
        if name in ("linear", "linear_packed"):
            bound = dict(zip([a.name for a in func._schema.arguments], args, strict=False))
            self.seen.append(("linear", bound.get("activation")))
            self.residuals += bound.get("residual") is not None
        elif name != func._schema.name:
            self.seen.append((name, None))
        return func(*args, **(kwargs or {}))


def calls(model, *inputs, **keywords):
    with torch.no_grad(), Calls() as mode:
        model(*inputs, **keywords)
    return mode.seen


def fused(model, *inputs, **keywords):
    """The activations that ran in a linear."""
    return [name for _, name in calls(model, *inputs, **keywords) if name is not None]


def check(model, *inputs, expected, mode="inference", **tolerances):
    """Converts, compares outputs in training and evaluation where that makes a difference, and
    returns the converted model."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    converted = fastact.convert(model, mode=mode)
    assert fused(converted, *inputs) == expected
    for training in (False, True) if mode == "training" else (False,):
        model.train(training)
        converted.train(training)
        results = []
        for one in (model, converted):
            torch.manual_seed(1)
            results.append(one(*copy.deepcopy(inputs)))
        torch.testing.assert_close(results[1], results[0], **tolerances)
    assert [type(module) for module in model.modules()] == classes
    assert list(converted.state_dict()) == list(before)
    torch.testing.assert_close(dict(converted.state_dict()), before, rtol=0, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    return converted


def mlp():
    return nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
    )


class Net(nn.Module):
    """A forward written by hand, of every ordinary kind."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.act = nn.LeakyReLU(0.2)
        self.p = 0.5

    def forward(self, x):
        x = F.relu(self.fc1(x))
        x = F.dropout(x, self.p, self.training)
        x = self.act(self.fc2(x))
        return F.log_softmax(self.fc3(x), dim=1)


X = torch.linspace(-2, 2, 18).reshape(3, 6)

# torch.nn.Hardtanh refuses min_val == max_val, which the function takes.
FUSIBLE = [
    case
    for case in CASES
    if case.row.module and case.row.name in REGISTRY and case.values != (1.0, 1.0)
]

# ---- what is fused -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", FUSIBLE, ids=str)
def test_every_activation_module(case, mode):
    activation = case.twin_module()
    model = nn.Sequential(nn.Linear(6, 5), activation)
    converted = check(model, X, expected=[case.row.name], mode=mode)
    assert type(converted[1]) is getattr(fastact.nn, case.row.module)
    alone = fastact.convert(activation, mode=mode)
    assert type(alone) is type(converted[1])
    torch.testing.assert_close(alone(X[:, :5]), activation(X[:, :5]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", fastact.nn.activations.__all__)
def test_every_module_becomes_its_twin(name, mode):
    required = {"Threshold": (0.1, 0.5), "Softmax": (-1,), "LogSoftmax": (-1,), "Softmin": (-1,)}
    module = getattr(nn, name)(*required.get(name, ()))
    x = torch.randn(2, 4, 6, 6)
    model = nn.Sequential(nn.Identity(), module).eval()
    converted = fastact.convert(model, mode=mode)
    assert type(converted[1]) is getattr(fastact.nn, name)
    assert type(model[1]) is getattr(nn, name)
    torch.testing.assert_close(converted(x), model(x))


FUNCTIONS = {
    "F.relu(z)": "relu",
    "F.relu(z, inplace=True)": "relu",
    "torch.relu(z)": "relu",
    "torch.relu_(z)": "relu",
    "z.relu()": "relu",
    "z.relu_()": "relu",
    "F.relu6(z)": "relu6",
    "F.leaky_relu(z, 0.1)": "leaky_relu",
    "F.leaky_relu(input=z, negative_slope=0.1)": "leaky_relu",
    "F.elu(z, 0.7)": "elu",
    "F.selu(z)": "selu",
    "torch.selu(z)": "selu",
    "F.celu(z, alpha=0.7)": "celu",
    "torch.celu(z, 0.7)": "celu",
    "F.gelu(z)": "gelu",
    "F.gelu(z, approximate='tanh')": "gelu_tanh",
    "F.silu(z)": "silu",
    "F.mish(z)": "mish",
    "torch.sigmoid(z)": "sigmoid",
    "F.sigmoid(z)": "sigmoid",
    "z.sigmoid()": "sigmoid",
    "F.logsigmoid(z)": "logsigmoid",
    "torch.tanh(z)": "tanh",
    "F.tanh(z)": "tanh",
    "z.tanh_()": "tanh",
    "F.hardtanh(z, -0.5, 0.25)": "hardtanh",
    "F.hardsigmoid(z)": "hardsigmoid",
    "F.hardswish(z)": "hardswish",
    "F.softplus(z, 2.0)": "softplus",
    "F.softplus(z, beta=0.5, threshold=1)": "softplus",
    "F.softsign(z)": "softsign",
    "F.tanhshrink(z)": "tanhshrink",
    "F.softshrink(z, 0.25)": "softshrink",
    "F.hardshrink(z, 0.25)": "hardshrink",
    "z.hardshrink(0.25)": "hardshrink",
    "F.threshold(z, 0.25, -1.0)": "threshold",
    "F.threshold(z, 0.25, float('-inf'))": "threshold",
    "F.softmax(z, dim=-1)": "softmax",
    "F.softmax(z, 1)": "softmax",
    "torch.softmax(z, 0)": "softmax",
    "z.softmax(-1)": "softmax",
    "F.log_softmax(z, dim=-1)": "log_softmax",
    "torch.log_softmax(z, -1, dtype=None)": "log_softmax",
    "F.prelu(z, self.slope)": "prelu",
    "torch.prelu(z, self.slope)": "prelu",
    "FF.leaky_relu(z, 0.1)": "leaky_relu",
    "FF.gelu(z, approximate='tanh')": "gelu_tanh",
    "FF.softmax(z, -1)": "softmax",
    "FF.prelu(z, self.slope)": "prelu",
    # Not these: another dtype, a parameter that is a tensor, a second reader, no pair.
    "F.softmax(z, -1, dtype=torch.float64)": None,
    "F.prelu(z, self.slope * 2)": None,
    "F.relu(z) + z": None,
    "F.rrelu(z, 0.1, 0.3)": None,
    "F.glu(F.pad(z, (0, 1)), -1)": None,
    "z + 1": None,
}


def of_expression(expression):
    """A module whose forward is the expression, z the output of a Linear."""
    scope = {"F": F, "FF": FF, "torch": torch}
    exec(f"def forward(self, x):\n    z = self.fc(x)\n    return {expression}", scope)
    kind = type("Expression", (nn.Module,), {"forward": scope["forward"]})
    module = kind()
    module.fc = nn.Linear(6, 5)
    module.slope = nn.Parameter(torch.linspace(-1, 1, 5))
    return module


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("expression", FUNCTIONS)
def test_functions_in_a_forward(expression, mode):
    name = FUNCTIONS[expression]
    converted = check(
        of_expression(expression), X, expected=[] if name is None else [name], mode=mode
    )
    assert type(converted.fc) is (FrozenLinear if mode == "inference" else fastact.nn.Linear)


# The forward of a module with Linears fc (6 to 6), fc2 (6 to 6) and out (6 to 5), a Dropout, a ReLU
# and a parameter; how many residuals are fused, and which activations.
RESIDUALS = {
    "x + self.fc(x)": (1, []),
    "self.fc(x) + x": (1, []),
    "torch.add(x, self.fc(x))": (1, []),
    "self.fc(x).add(x)": (1, []),
    "self.act(self.fc(x) + x)": (1, ["relu"]),
    "F.gelu(x + self.fc(x))": (1, ["gelu"]),
    "torch.softmax(self.fc(x) + x, -1)": (1, ["softmax"]),
    "F.prelu(self.fc(x) + x, self.slope)": (1, ["prelu"]),
    "x + self.fc2(F.silu(self.fc(x)))": (1, ["silu"]),
    "self.fc(x) + self.fc2(x)": (1, []),
    "self.fc(x) + self.slope": (1, []),
    "x.double() + self.fc(x)": (1, []),
    "self.fc(x) + x.double()": (0, []),
    "self.fc(x) + x.size(0)": (0, []),
    "F.relu(self.fc(x) + x.size(0))": (0, []),
    "self.act(self.fc(x) + x.size(0))": (0, []),
    "self.fc(x) + 1": (0, []),
    "(lambda y: y + y)(self.fc(x))": (0, []),
    "(lambda y: (y + x, y))(self.fc(x))": (0, []),
    "(lambda y: (y, F.relu(y)))(self.fc(x) + x)": (1, []),
    "torch.add(x, self.fc(x), alpha=2)": (0, []),
    "(lambda r: (lambda y: (r.mul_(2), y + r))(self.fc(x)))(x * 1)": (0, []),
}


def of_residual(expression):
    scope = {"F": F, "torch": torch}
    exec(f"def forward(self, x):\n    return {expression}", scope)
    module = type("Residual", (nn.Module,), {"forward": scope["forward"]})()
    module.fc, module.fc2, module.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
    module.drop, module.act = nn.Dropout(), nn.ReLU()
    module.slope = nn.Parameter(torch.linspace(-1, 1, 6))
    return module


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("expression", RESIDUALS)
def test_residuals_in_a_forward(expression, mode):
    residuals, activations = RESIDUALS[expression]
    close = {"rtol": 1e-5, "atol": 1e-6}  # of float32, beside float64 too
    converted = check(of_residual(expression), X, expected=activations, mode=mode, **close)
    with torch.no_grad(), Calls() as seen:
        converted(X)
    assert seen.residuals == residuals
    if mode == "training":
        original = fastact.revert(copy.deepcopy(converted))
        for model in (original, converted):
            model.zero_grad()
            y = model(X)
            ys = y if isinstance(y, tuple) else (y,)
            sum(t.square().sum() for t in ys).backward()
        torch.testing.assert_close(
            [p.grad for p in converted.parameters()], [p.grad for p in original.parameters()]
        )


@pytest.mark.parametrize(
    "expression", ["x + self.drop(self.fc(x))", "x + F.dropout(self.fc(x), 0.5, self.training)"]
)
def test_dropout_beside_a_residual(expression):
    """Left out of a frozen forward in evaluation alone; kept where it may drop something."""
    model = of_residual(expression).eval()
    frozen = check(model, X, expected=[])
    with torch.no_grad(), Calls() as seen:
        frozen(X)
    assert seen.residuals == 1
    frozen.train()
    assert not torch.equal(frozen(X), frozen(X))
    with torch.no_grad(), Calls() as seen:
        fastact.convert(model, mode="training")(X)
    assert seen.residuals == 0


class Wrapped:
    """Adds in its own way, and only from the left."""

    def __init__(self, value):
        self.value = value

    def __add__(self, other):
        return self.value - other


# What only a call shows: fused or not, the sum is the one that was written.
UNUSUAL_SUMS = {
    "None": "None",
    "an object of its own": "Wrapped(x)",
    "a number": "x.size(0)",
    "other strides": "x.t().contiguous().t()",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", UNUSUAL_SUMS)
def test_the_first_operand_decides(first, mode):
    class Pick(nn.Module):
        def forward(self, x):
            return eval(UNUSUAL_SUMS[first], {"Wrapped": Wrapped, "x": x})

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.pick, self.fc = Pick(), nn.Linear(6, 6)

        def forward(self, x):
            return self.pick(x) + self.fc(x)

    model = Sum().eval()
    converted = fastact.convert(model, mode=mode)
    if first == "None":
        for one in (model, converted):
            with pytest.raises(TypeError):
                one(X)
        return
    expected, actual = model(X), converted(X)
    torch.testing.assert_close(actual, expected)
    assert actual.stride() == expected.stride()


# Who else holds what += writes to.
IN_PLACE = {
    "x += self.fc(x)\nreturn x": [],
    "z = x * 1\nv = z[:, :3]\nz += self.fc(x)\nreturn v": [],
    "z = x * 1\ny = z\ny += self.fc(x)\nreturn z, y": [],
    "z = x * 1\ny = z\ny *= 2\nreturn z, F.relu(self.fc(x))": ["relu"],
    "y = self.fc(x)\ny += x\nreturn y": [],
    "y = self.fc(x)\ny -= 1\nreturn F.relu(y)": [],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("body", IN_PLACE)
def test_in_place_operators(body, mode):
    scope = {"F": F}
    exec("def forward(self, x):\n    x = x * 1\n    " + body.replace("\n", "\n    "), scope)
    model = type("InPlace", (nn.Module,), {"forward": scope["forward"]})()
    model.fc = nn.Linear(6, 6)
    check(model, X, expected=IN_PLACE[body], mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_an_argument_is_written_to(mode):
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            x += self.fc(x)
            return x + self.fc2(x)

    model = Writes()
    converted = fastact.convert(model, mode=mode)
    mine, theirs = X.clone(), X.clone()
    with torch.no_grad():
        torch.testing.assert_close(converted(mine), model(theirs))
    torch.testing.assert_close(mine, theirs)
    assert not torch.equal(mine, X)


@pytest.mark.parametrize("mode", MODES)
def test_autocast_of_a_sum_before_prelu(mode):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(6, 6), nn.PReLU()

        def forward(self, x):
            return self.act(x + self.fc(x))

    model = Sum()
    converted = fastact.convert(model, mode=mode)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = model(X), converted(X)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=2**-6, atol=2**-6)


def test_a_dropout_with_a_forward_of_its_own():
    model = of_residual("x + self.drop(self.fc(x))").eval()
    model.drop.forward = lambda x: x * 7
    torch.testing.assert_close(fastact.convert(model)(X), model(X))


@pytest.mark.parametrize("mode", MODES)
def test_hooks_on_a_layer_with_a_residual_run(mode):
    converted = fastact.convert(of_residual("x + self.fc(x)"), mode=mode)
    expected = converted(X)
    if mode == "training":
        converted.fc.register_forward_hook(lambda module, args, output: output * 0)
        expected = X
    torch.testing.assert_close(converted(X), expected)


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("mode", MODES)
def test_softmax_without_dim_stays_apart(mode):
    model = nn.Sequential(nn.Linear(6, 5), nn.Softmax())
    converted = fastact.convert(model, mode=mode)
    assert fused(converted, X) == []


@pytest.mark.parametrize("mode", MODES)
def test_sequential(mode):
    converted = check(mlp(), X, expected=["relu", "tanh"], mode=mode)
    assert isinstance(converted, nn.Sequential)
    assert len(converted) == 6
    torch.testing.assert_close(converted[0](X), F.linear(X, converted[0].weight, converted[0].bias))


@pytest.mark.parametrize("mode", MODES)
def test_nested_sequential_and_a_list(mode):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(mlp(), nn.Sequential(nn.Linear(3, 4), nn.SiLU()))
            self.heads = nn.ModuleList([nn.Linear(4, 2) for _ in range(3)])

        def forward(self, x):
            x = self.body(x)
            return [torch.sigmoid(head(x)) for head in self.heads]

    expected = ["relu", "tanh", "silu", "sigmoid", "sigmoid", "sigmoid"]
    check(Stack(), X, expected=expected, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_forward_by_hand(mode):
    converted = check(Net(), X, expected=["relu", "leaky_relu", "log_softmax"], mode=mode)
    assert isinstance(converted, Net)
    assert type(converted).__name__ == "Net"


@pytest.mark.parametrize("mode", MODES)
def test_three_dimensions_and_prelu(mode):
    """torch.nn.PReLU's channels are dimension 1, whatever the Linear's features are."""
    x = torch.randn(2, 5, 6)
    model = nn.Sequential(nn.Linear(6, 7), nn.PReLU(5))
    nn.init.uniform_(model[1].weight)
    check(model, x, expected=["prelu"], mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_dtypes(mode):
    check(mlp().double(), X.double(), expected=["relu", "tanh"], mode=mode)
    # The original rounds between the layer and the activation too.
    check(
        mlp().bfloat16(),
        X.bfloat16(),
        expected=["relu", "tanh"],
        mode=mode,
        rtol=2**-6,
        atol=2**-5,
    )


class Registered(nn.Module):
    """Keeps a register of its subclasses, by name and with an argument."""

    known: ClassVar = {}

    def __init_subclass__(cls, *, tag):
        Registered.known[cls.__name__] = tag, cls


class Tagged(Registered, tag="a"):
    def __init__(this):
        super().__init__()
        this.fc = nn.Linear(6, 6)

    def forward(this, x, /, *more, **keywords):
        return F.relu(this.fc(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.decode = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.decode.weight = self.fc.weight

    def forward(self, x):
        x = x.to(next(self.parameters()).device)
        return torch.sigmoid(self.decode(self.fc(x)))


class Result(NamedTuple):
    logits: torch.Tensor
    features: list[torch.Tensor]


class Recurrent(nn.Module):
    """Layers that are not converted, a buffer that is written, a helper, a result of many parts."""

    def __init__(self):
        super().__init__()
        self.lstm, self.norm = nn.LSTM(6, 5, batch_first=True), nn.LayerNorm(4)
        self.fc, self.scale = nn.Linear(5, 4), 1 / math.sqrt(5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        batch, _ = x.shape
        outputs, (hidden, _) = self.lstm(x[:, None])
        return Result(self._head(outputs[:, -1] * self.scale), [hidden.view(batch, -1)])

    def _head(self, x):
        return self.norm(F.elu(self.fc(x)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "make, expected", [(Tagged, "relu"), (Tied, "sigmoid"), (Recurrent, "elu")]
)
def test_unusual_classes(make, expected, mode):
    model = make()
    converted = fastact.convert(model, mode=mode)
    model.train(mode == "training")
    for one in (converted, copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert fused(one, X) == [expected]
        assert isinstance(one, make)
        torch.testing.assert_close(one(X), model(X))
    assert Registered.known == {"Tagged": ("a", Tagged)}
    if make is Tied:
        assert converted.decode.weight is converted.fc.weight


# ---- what is left ------------------------------------------------------------------------------


class Branching(nn.Module):
    """A forward that torch.fx cannot trace, around modules that it can."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.act = nn.GELU()
        self.body = mlp()
        self.net = Net()

    def forward(self, x):
        if x.sum() > 0:
            x = self.act(self.fc(x))
        return self.body(x) + self.net(x)


@pytest.mark.parametrize("mode", MODES)
def test_a_forward_that_cannot_be_traced(mode):
    inner = ["relu", "tanh", "relu", "leaky_relu", "log_softmax"]
    converted = check(Branching(), X + 1, expected=inner, mode=mode)
    assert type(converted) is Branching
    assert type(converted.act) is fastact.nn.GELU
    assert isinstance(converted.fc, fastact.nn.Linear)
    with pytest.raises(
        RuntimeError,
        match=r"fastact\.convert\(\): use_fallback: .*the model "
        r"\(Branching\): its forward cannot be recorded",
    ):
        fastact.convert(Branching(), mode=mode, use_fallback=False)
    fastact.convert(mlp(), mode=mode, use_fallback=False)


class MyLinear(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


@pytest.mark.parametrize("mode", MODES)
def test_other_classes_stay(mode):
    model = nn.Sequential(
        MyLinear(6, 8), nn.ReLU(), nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 3, 3), nn.Hardtanh()
    )
    converted = check(model, X, expected=[], mode=mode)
    assert [type(m) for m in converted] == [
        MyLinear,
        fastact.nn.ReLU,
        nn.Unflatten,
        nn.Conv1d,
        fastact.nn.Hardtanh,
    ]
    with pytest.raises(RuntimeError, match=r"0 \(MyLinear\): its class is derived"):
        fastact.convert(model, mode=mode, use_fallback=False)


@pytest.mark.parametrize("mode", MODES)
def test_parametrized_and_pruned_stay_apart(mode):
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU())
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.prune.l1_unstructured(model[2], "weight", 0.5)
    check(model, X, expected=[], mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", [0, 1])
def test_hooks_stay_and_run(mode, which):
    seen = []
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
    model[which].register_forward_hook(lambda module, args, output: seen.append(output))
    converted = fastact.convert(model, mode=mode)
    assert fused(converted, X) == []
    assert len(seen) == 1
    output = model(X) if which else F.linear(X, model[0].weight, model[0].bias)
    torch.testing.assert_close(seen[0], output)


@pytest.mark.parametrize("mode", MODES)
def test_a_second_use_stays_apart(mode):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.other = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            y = F.relu(self.fc(x))
            z = self.other(y)
            return F.relu(self.fc(y)) + F.relu(z) + torch.tanh(z)

    check(Twice(), X, expected=[], mode=mode)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared, nn.Tanh()))
    converted = check(model, X, expected=[], mode=mode)
    assert converted[0] is converted[2][0]
    # The activation may have several places: it keeps nothing.
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(6, 5), act, nn.Linear(5, 4), act)
    check(model, X, expected=["relu", "relu"], mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_layers_that_are_read_one_by_one(mode):
    """Every layer keeps its own output: what is fused is the call of its container."""

    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            kept = [self.body(x)]
            for layer in self.body:
                x = layer(x)
                kept.append(x)
            return kept

    model = Features().eval()
    converted = fastact.convert(model, mode=mode)
    assert fused(converted, X) == ["relu", "tanh"]
    torch.testing.assert_close(converted(X), model(X))


@pytest.mark.parametrize("mode", MODES)
def test_what_lies_between_a_pair(mode):
    """The layer is called where it was: afterwards its input is written to."""

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            x = x * 1
            y = self.fc(x)
            x.mul_(2)
            return F.relu(y) + x

    check(Between(), X, expected=["relu"], mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_filter(mode):
    asked = []

    def accepts(module, name):
        asked.append(name)
        return name not in ("0", "4")

    converted = fastact.convert(mlp(), mode=mode, filter_fn=accepts)
    assert sorted(asked) == ["", "0", "1", "3", "4", "5"]
    assert type(converted[0]) is nn.Linear and type(converted[4]) is nn.Tanh
    assert isinstance(converted[3], fastact.nn.Linear)
    assert fused(converted, X) == []
    model = mlp()
    others = fastact.convert(
        model, mode=mode, filter_fn=lambda module, name: module is not model[3]
    )
    assert type(others[3]) is nn.Linear
    assert fused(others, X) == ["relu"]
    only_layers = fastact.convert(
        mlp(), mode=mode, filter_fn=lambda module, name: isinstance(module, nn.Linear)
    )
    assert type(only_layers[1]) is nn.ReLU
    assert calls(only_layers.eval(), X) == [("linear", None)] * 3


# ---- forwards that would be wrong if what was traced once were run for ever --------------------


class Arguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x, mask=None, *, scale=1.0):
        x = F.relu(self.fc(x))
        if mask is not None:
            x = x * mask
        return x * scale


@pytest.mark.parametrize("mode", MODES)
def test_arguments_with_defaults(mode):
    model = Arguments()
    converted = fastact.convert(model, mode=mode)
    assert fused(converted, X) == ["relu"]
    assert fused(converted, x=X, mask=None) == ["relu"]
    mask = torch.ones(6)
    assert fused(converted, X, mask) == []  # its own forward
    for arguments, keywords in ((X,), {}), ((X, mask), {"scale": 2.0}), ((X,), {"mask": mask}):
        torch.testing.assert_close(converted(*arguments, **keywords), model(*arguments, **keywords))
    with pytest.raises(TypeError, match="unexpected keyword"):
        converted(X, masks=mask)


def test_settings_are_watched():
    class Settings(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.drop = nn.Linear(6, 6), nn.Dropout(0.0)
            self.double, self.function, self.dims = False, torch.tanh, (1, 0)

        def forward(self, x):
            x = F.dropout(F.relu(self.fc(x)), self.drop.p, self.drop.training)
            x = self.function(x).permute(self.dims)
            return x * 2 if self.double else x

    for mode in MODES:
        model = Settings()
        if mode == "training":
            model.eval()
        converted = fastact.convert(model, mode=mode)
        model.eval()
        assert fused(converted, X) == ["relu"]
        for edit in (
            lambda module: setattr(module, "double", True),
            lambda module: setattr(module, "function", torch.sin),
            lambda module: setattr(module, "dims", (0, 1)),
            lambda module: setattr(module.drop, "p", 1.0),
            lambda module: module.drop.train(),
        ):
            edit(model)
            edit(converted)
            torch.testing.assert_close(converted(X), model(X))
            assert fused(converted, X) == []


def test_containers_in_a_forward_are_watched():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])
            self.named = nn.ModuleDict({"a": nn.Linear(6, 6)})

        def forward(self, x):
            for layer in self.layers:
                x = torch.tanh(layer(x))
            for layer in self.named.values():
                x = torch.relu(layer(x))
            return x

    for mode in MODES:
        model = Listed()
        converted = fastact.convert(model, mode=mode)
        assert fused(converted, X) == ["tanh", "tanh", "relu"]
        for edit in (
            lambda module: module.layers.append(nn.LayerNorm(6)),
            lambda module: module.layers.pop(2) and module.named.update({"b": nn.Softsign()}),
        ):
            edit(model)
            edit(converted)
            torch.testing.assert_close(converted(X), model(X))
            assert fused(converted, X) == []


def unrecordable(body, **attributes):
    scope = {"F": F, "torch": torch, "random": random, "checkpoint": checkpoint}
    exec("def forward(self, x):\n" + "\n".join(f"    {line}" for line in body), scope)
    module = type("Unrecordable", (nn.Module,), {"forward": scope["forward"]})()
    module.fc = nn.Linear(6, 6)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


PAIR = "x = F.relu(self.fc(x))"
UNRECORDABLE = {
    "sets an attribute": ([PAIR, "self.last = x", "return x"], {}),
    "counts": ([PAIR, "self.count += 1", "return x * self.count"], {"count": 0}),
    "keeps values": ([PAIR, "self.seen.append(x)", "return x"], {"seen": []}),
    "draws": ([PAIR, "return x if torch.rand(()) < 0.5 else x * 2"], {}),
    "draws in Python": ([PAIR, "return x if random.random() < 0.5 else x * 2"], {}),
    "a constant": ([PAIR, "return x + torch.ones(6)"], {}),
    "grad mode": (["with torch.no_grad():", "    " + PAIR, "return x"], {}),
    "autocast": (["with torch.autocast('cpu', enabled=True):", "    " + PAIR, "return x"], {}),
    "checkpoint": (["return checkpoint(lambda x: F.relu(self.fc(x)), x, use_reentrant=False)"], {}),
    "branches": ([PAIR, "return x if x.sum() > 0 else -x"], {}),
    "iterates": ([PAIR, "return sum(row for row in x)"], {}),
    "asks for a class": ([PAIR, "return x if isinstance(x, torch.Tensor) else x[0]"], {}),
}


@pytest.mark.parametrize("what", UNRECORDABLE)
def test_forwards_that_a_graph_cannot_repeat(what):
    body, attributes = UNRECORDABLE[what]
    model = unrecordable(body, **attributes)
    state, generators = copy.deepcopy(vars(model)), (torch.get_rng_state(), random.getstate())
    converted = fastact.convert(model, mode="training")
    assert vars(model).keys() == state.keys()
    assert {**attributes} == {name: getattr(model, name) for name in attributes}
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert fused(converted, X) == []
    with pytest.raises(RuntimeError, match="cannot be recorded"):
        fastact.convert(model, mode="training", use_fallback=False)
    for one in (model, converted):
        for name, value in attributes.items():
            setattr(one, name, copy.copy(value))
    results = []
    for one in (model, converted):
        torch.manual_seed(0)
        random.seed(0)
        results.append([one(X) for _ in range(5)])
        assert all((y.requires_grad) == (what != "grad mode") for y in results[-1])
    torch.testing.assert_close(results[1], results[0])


def test_an_argument_is_a_tensor_to_isinstance():
    body = ["x = x if isinstance(x, torch.Tensor) else x[0]", PAIR, "return x"]
    for mode in MODES:
        model = unrecordable(body)
        converted = fastact.convert(model, mode=mode)
        assert fused(converted, X) == ["relu"]
        assert fused(converted, [X]) == []
        torch.testing.assert_close(converted([X]), model([X]))


def test_recording_leaves_no_trace_on_torch():
    before = dict(vars(nn.Module))
    fastact.convert(Branching())
    assert dict(vars(nn.Module)) == before


# ---- inference ---------------------------------------------------------------------------------


def test_inference_is_frozen():
    model = mlp()
    converted = fastact.convert(model)
    assert not converted.training and model.training
    assert not any(parameter.requires_grad for parameter in converted.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not converted(X).requires_grad
    assert calls(converted, X) == [("linear", "relu"), ("linear", "tanh"), ("linear", None)]
    with torch.no_grad():
        model[0].weight.zero_()
    assert converted[0].weight.abs().sum() > 0
    model.load_state_dict(converted.state_dict())
    with pytest.raises(RuntimeError, match=r"0\.weight: this layer is frozen; load into the orig"):
        converted.load_state_dict(model.state_dict())


def test_a_refused_conversion_changes_nothing():
    model = Branching()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(RuntimeError, match="cannot be recorded"):
        fastact.convert(model, inplace=True, use_fallback=False)
    assert [type(module) for module in model.modules()] == classes
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_inplace():
    for mode in MODES:
        model = mlp()
        layers, parameters = list(model), list(model.parameters())
        assert fastact.convert(model, mode=mode, inplace=True) is model
        assert [a is b for a, b in zip(model, layers, strict=True)] == [True] * 6
        assert [a is b for a, b in zip(model.parameters(), parameters, strict=True)] == [True] * 6
        assert fused(model, X) == ["relu", "tanh"]
        layer = nn.Linear(6, 5)
        assert fastact.convert(layer, mode=mode, inplace=True) is layer
        assert isinstance(layer, fastact.nn.Linear)


def test_a_layer_with_its_own_activation():
    model = nn.Sequential(
        fastact.nn.Linear(6, 5, activation="gelu"),
        nn.ReLU(),
        fastact.nn.Linear(5, 4, activation="prelu"),
    )
    check(model, X, expected=["gelu", "prelu"])
    check(model, X, expected=["gelu", "prelu"], mode="training")


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "torch.save": lambda model: through_torch_save(model),
}


def through_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [mlp, Net, Branching, Arguments])
@pytest.mark.parametrize("how", COPIES)
def test_copies(how, make, mode):
    converted = fastact.convert(make(), mode=mode).eval()
    twin = COPIES[how](converted)
    assert repr(twin) == repr(converted)
    assert calls(twin, X) == calls(converted, X) != []
    torch.testing.assert_close(twin(X), converted(X), rtol=0, atol=0)
    for name, parameter in twin.named_parameters():
        assert (parameter is converted.get_parameter(name)) == (how == "copy")
    # Its own modules, not those of the model that it was copied from.
    if how != "copy":
        with torch.no_grad():
            for parameter in converted.parameters():
                parameter.zero_()
        assert twin(X).abs().sum() > 0
    assert type(twin) is type(converted)


def test_a_pickle_holds_the_plain_weights_alone():
    layer = nn.Linear(512, 512)
    plain = len(pickle.dumps(layer))
    assert len(pickle.dumps(fastact.convert(layer))) < 1.01 * plain + 4096


def test_a_pickle_is_read_in_another_process(tmp_path):
    model = nn.Sequential(mlp(), nn.Sequential(nn.Linear(3, 4), nn.GELU()))
    converted = fastact.convert(model)
    torch.save((converted, X, converted(X)), tmp_path / "model.pt")
    program = (
        "import torch; model, x, y = torch.load('model.pt', weights_only=False);"
        "torch.testing.assert_close(model(x), y); print(type(model[0][0]).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "FrozenLinear"


@pytest.mark.parametrize("size", [6, 300])
def test_another_dtype(size):
    model = nn.Sequential(nn.Linear(size, size), nn.ReLU())
    x = torch.randn(64, size, dtype=torch.float64)
    converted = fastact.convert(model).double()
    assert converted[0].weight.dtype is torch.float64
    torch.testing.assert_close(converted(x), model.double()(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("make", [mlp, Net, Branching, Arguments])
def test_export(make, strict, dynamo):
    model = make().eval()
    if make is Branching:
        model = nn.Sequential(model.body, nn.ReLU())
    converted = fastact.convert(model)
    program = torch.export.export(converted, (X,), strict=strict)
    targets = {node.target for node in program.graph.nodes}
    assert torch.ops.fastact.linear.default in targets
    assert torch.ops.fastact.linear_packed.default not in targets
    assert dict.fromkeys(program.state_dict) == dict.fromkeys(converted.state_dict())
    torch.testing.assert_close(program.module()(X), model(X))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [mlp, Net, Arguments])
def test_compile(make, mode, dynamo):
    model = make().eval()
    converted = fastact.convert(model, mode=mode)
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), model(X))
    torch.testing.assert_close(compiled(X[:2]), model(X[:2]))  # with a symbolic size
    if mode == "training":
        converted.zero_grad()
        compiled(X).square().sum().backward()
        mine = [parameter.grad.clone() for parameter in converted.parameters()]
        model.zero_grad()
        model(X).square().sum().backward()
        theirs = [parameter.grad for parameter in model.parameters()]
        torch.testing.assert_close(mine, theirs)


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [mlp, Net, Branching])
def test_training_keeps_the_parameters(make):
    model = make()
    converted = fastact.convert(model, mode="training")
    names = dict(model.named_parameters())
    assert names.keys() == dict(converted.named_parameters()).keys()
    assert all(converted.get_parameter(name) is value for name, value in names.items())
    assert converted.training
    converted.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(converted.state_dict(), strict=True)


@pytest.mark.parametrize("make", [mlp, Net, Branching])
def test_training_steps_are_equal(make):
    original = make()
    models = [original, fastact.convert(copy.deepcopy(original), mode="training")]
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        torch.manual_seed(3)
        for _ in range(3):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()
    mine, theirs = ([p.grad for p in model.parameters()] for model in reversed(models))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*(dict(model.state_dict()) for model in models))


def test_an_optimizer_of_the_original_trains_the_converted():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    converted = fastact.convert(model, mode="training").eval()
    before = converted(X)
    before.sum().backward()
    optimizer.step()
    assert not torch.equal(converted(X), before)
    torch.testing.assert_close(converted(X), model.eval()(X))


def test_dropout_follows_train_and_eval():
    for make in (mlp, Net):
        converted = fastact.convert(make(), mode="training")
        assert not torch.equal(converted(X), converted(X))
        converted.eval()
        assert torch.equal(converted(X), converted(X))
        assert len(fused(converted, X)) == len(fused(converted.train(), X)) >= 2


EDITS = {
    "weights": lambda m: m[0].weight.data.mul_(2),
    "bias": lambda m: setattr(m[0], "bias", None),
    "slope": lambda m: setattr(m[1], "negative_slope", 0.5),
    "longer": lambda m: m.append(nn.Tanh()),
    "shorter": lambda m: m.pop(1),
    "inserted": lambda m: m.insert(1, nn.LayerNorm(5)),
    "layer": lambda m: m.__setitem__(0, MyLinear(6, 5)),
    "activation": lambda m: m.__setitem__(1, nn.Hardsigmoid()),
    "function": lambda m: m.__setitem__(1, nn.Flatten(0)),
    "weight_norm": lambda m: nn.utils.parametrizations.weight_norm(m[0]),
    "pruned": lambda m: nn.utils.prune.l1_unstructured(m[0], "weight", 0.5),
    "forward_hook": lambda m: m[0].register_forward_hook(lambda *args: args[-1] + 1),
    "pre_hook": lambda m: m[1].register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_after_a_training_conversion_are_honoured(edit):
    model = nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU())
    converted = fastact.convert(copy.deepcopy(model), mode="training")
    for one in (model, converted):
        torch.manual_seed(0)
        EDITS[edit](one)
    torch.testing.assert_close(converted(X), model(X))


def test_edits_of_a_layer_before_a_function_are_honoured():
    for expression in ("F.leaky_relu(z, 0.3)", "F.prelu(z, self.slope)", "F.softmax(z, dim=0)"):
        model = of_expression(expression)
        converted = fastact.convert(copy.deepcopy(model), mode="training")
        for one in (model, converted):
            one.fc.register_forward_hook(lambda *args: args[-1] + 1)
        assert fused(converted, X) == []
        torch.testing.assert_close(converted(X), model(X))


def test_hooks_of_the_container_run():
    seen = []
    model = mlp()
    model.register_forward_hook(lambda module, args, output: seen.append(len(args)))
    converted = fastact.convert(model, mode="training")
    converted.register_full_backward_hook(lambda *args: seen.append("backward"))
    converted(X.clone().requires_grad_()).sum().backward()
    assert seen == [1, "backward"]


@pytest.mark.parametrize("make", [mlp, Net, Branching, Arguments])
def test_revert(make):
    model = make()
    converted = fastact.convert(model, mode="training")
    assert fastact.revert(converted) is converted
    assert [type(m) for m in converted.modules()] == [type(m) for m in model.modules()]
    assert [vars(m).keys() for m in converted.modules()] == [
        vars(m).keys() for m in model.modules()
    ]
    torch.testing.assert_close(converted.eval()(X), model.eval()(X), rtol=0, atol=0)
    assert fastact.revert(converted) is converted


def test_revert_leaves_what_was_fastacts_before():
    model = nn.Sequential(fastact.nn.Linear(6, 5, activation="relu"), fastact.nn.Tanh(), nn.ReLU())
    reverted = fastact.revert(fastact.convert(model, mode="training"))
    assert [type(m) for m in reverted] == [fastact.nn.Linear, fastact.nn.Tanh, nn.ReLU]
    assert fused(reverted, X) == ["relu"]


def test_converting_again():
    converted = fastact.convert(mlp(), mode="training")
    again = fastact.convert(converted, mode="training")
    assert fused(again, X) == ["relu", "tanh"]
    frozen = fastact.convert(again, mode="inference")
    assert fused(frozen, X) == ["relu", "tanh"]
    assert [type(m) for m in fastact.revert(again)] == [type(m) for m in mlp()]
    twice = fastact.convert(frozen)
    assert fused(twice, X) == ["relu", "tanh"]
    torch.testing.assert_close(twice(X), frozen(X))


# ---- reports and errors ------------------------------------------------------------------------


def test_dry_run(capsys):
    model = Branching()
    classes = [type(module) for module in model.modules()]
    for inplace in (False, True):
        assert fastact.convert(model, dry_run=True, inplace=inplace) is model
    assert [type(module) for module in model.modules()] == classes
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    lines = capsys.readouterr().out.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    text = "\n".join(lines)
    assert "(the model)  Branching  left as it is: its forward cannot be recorded" in text
    assert "net.fc2      Linear     fastact.nn.frozen.FrozenLinear; fused with act" in text
    fastact.convert(nn.Conv2d(1, 1, 1), dry_run=True)
    assert capsys.readouterr().out == "nothing to convert\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "error, message, model, keywords",
    [
        (TypeError, "model: expected a torch.nn.Module, got function", lambda: F.relu, {}),
        (TypeError, "got a compiled one", lambda: torch.jit.trace(nn.ReLU(), X), {}),
        (TypeError, "got a compiled one", lambda: torch.compile(mlp()), {}),
        (
            ValueError,
            "mode: expected 'inference' or 'training', got 'train'",
            mlp,
            {"mode": "train"},
        ),
        (TypeError, "filter_fn: expected a function .*, got list", mlp, {"filter_fn": []}),
        (
            RuntimeError,
            "model: expected no frozen layer, got 0",
            lambda: fastact.convert(mlp()),
            {"mode": "training"},
        ),
    ],
)
def test_errors(error, message, model, keywords):
    with pytest.raises(error, match=r"fastact\.convert\(\): .*" + message):
        fastact.convert(model(), **keywords)


def test_errors_of_revert():
    with pytest.raises(TypeError, match=r"fastact\.revert\(\): model: expected .*, got int"):
        fastact.revert(1)
    with pytest.raises(RuntimeError, match=r"fastact\.revert\(\): model: .*frozen layer, got 0"):
        fastact.revert(fastact.convert(mlp()))
    converted = fastact.convert(mlp(), mode="training")
    nn.utils.parametrizations.weight_norm(converted[0])
    with pytest.raises(RuntimeError, match=r"fastact\.revert\(\): 0: expected the class that"):
        fastact.revert(converted)


def test_a_model_that_cannot_be_copied():
    model = mlp()
    model.lock = (_ for _ in ())
    with pytest.raises(RuntimeError, match="inplace=True needs no copy"):
        fastact.convert(model)
    assert fused(fastact.convert(model, inplace=True), X) == ["relu", "tanh"]


def test_examples_in_docstrings():
    known = {"torch": torch, "fastact": fastact}
    outcome = doctest.testmod(conversion, extraglobs=known)
    assert outcome.attempted > 0
    assert outcome.failed == 0
