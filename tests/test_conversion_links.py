"""What does a site know: which calls and sums are fused with the layer before them?"""

import copy
import unittest.mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastact
from fastact.activations import REGISTRY
from fastact.conversion import links
from fastact.testing.cases import CASES
from fastact.testing.conversion import MODES, assert_same, fused, gradients, with_forward

X = torch.linspace(-2, 2, 18).reshape(3, 6)

# torch.nn.Hardtanh refuses min_val == max_val, which the function takes.
FUSIBLE = [
    case for case in CASES if case.row.module and case.row.fusible and case.values != (1.0, 1.0)
]


def check(model, *inputs, expected, mode="inference", **tolerances):
    """Converts; compares outputs and gradients in training and in evaluation; returns the
    converted model."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    for training in (True, False):
        model.train(training)
        converted = fastact.convert(copy.deepcopy(model), mode=mode)
        if mode == "inference":
            model.eval().requires_grad_(False)
        found = []
        for one in (model, converted):
            torch.manual_seed(1)
            output = one(*copy.deepcopy(inputs))
            result = {"output": output}
            if mode == "training":
                result["gradients"] = gradients(output, one.parameters())
            found.append(result)
        assert_same({**found[1]}, {**found[0]}, **tolerances)
        model.zero_grad()
    with torch.no_grad():
        assert fused(lambda: converted(*inputs)) == expected
    assert [type(module) for module in model.modules()] == classes
    assert list(converted.state_dict()) == list(before)
    torch.testing.assert_close(dict(converted.state_dict()), before, rtol=0, atol=0)
    return converted


# ---- activations -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", FUSIBLE, ids=str)
def test_every_activation_module(case, mode):
    # torch.nn.ReLU6 calls hardtanh.
    name = "hardtanh" if case.row.name == "relu6" else case.row.name
    for activation in (case.twin_module(), case.module()):
        converted = check(nn.Sequential(nn.Linear(6, 5), activation), X, expected=[name], mode=mode)
        assert type(converted[1]) is type(activation)


FUNCTIONS = {
    "F.relu(z)": "relu",
    "F.relu(z, inplace=True)": "relu",
    "torch.relu(z)": "relu",
    "torch.relu_(z)": "relu",
    "z.relu()": "relu",
    "z.relu_()": "relu",
    "F.relu6(z)": "relu6",
    "F.leaky_relu(z, 0.1)": "leaky_relu",
    "F.leaky_relu(z, negative_slope=0.1)": "leaky_relu",
    "F.leaky_relu(z, self.steep)": "leaky_relu",
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
    "F.softmax(z, dim=-1)": "softmax",
    "F.softmax(z, 1)": "softmax",
    "torch.softmax(z, 0)": "softmax",
    "z.softmax(-1)": "softmax",
    "F.log_softmax(z, dim=-1)": "log_softmax",
    "torch.log_softmax(z, -1, dtype=None)": "log_softmax",
    "F.prelu(z, self.slope)": "prelu",
    "torch.prelu(z, self.slope)": "prelu",
    "FF.leaky_relu(z, 0.1)": "leaky_relu",
    "FF.gelu(z, 'tanh')": "gelu_tanh",
    "FF.softmax(z, -1)": "softmax",
    "FF.prelu(z, self.slope)": "prelu",
    # Not these: another dtype, a parameter that is computed, infinite or no number, a second
    # reader, no activation.
    "F.softmax(z, -1, dtype=torch.float64)": "",
    "F.prelu(z, self.slope * 2)": "",
    "F.leaky_relu(z, float('0.1'))": "",
    "F.relu(z) + z": "",
    "F.rrelu(z, 0.1, 0.3, False)": "",
    "F.glu(F.pad(z, (0, 1)), -1)": "",
    "z + 1": "",
}


def in_statements(expression):
    return f"z = self.fc(x)\nreturn {expression}"


def nested(expression):
    return f"return {expression.replace('(z', '(self.fc(x)').replace('z.', 'self.fc(x).')}"


BODIES = {f"{e}-statements": (in_statements(e), name) for e, name in FUNCTIONS.items()}
BODIES |= {
    f"{e}-nested": (nested(e), name)
    for e, name in FUNCTIONS.items()
    if " z" not in e and not e.startswith("z ")  # it is the first argument, and read once
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("body, name", BODIES.values(), ids=BODIES)
def test_functions(body, name, mode):
    parts = {"fc": nn.Linear(6, 5), "slope": nn.Parameter(torch.linspace(-1, 1, 5)), "steep": 0.3}
    check(with_forward(body, **parts), X, expected=[name], mode=mode)


WRONG = ["F.gelu(z, 'tanh')", "F.leaky_relu(z, slope=1)", "torch.relu(z, inplace=True)"]
WRONG += ["F.threshold(z)", "F.softmax(z, -1, 3, None, 5)", "F.relu(z, input=1)"]
WRONG += ["F.softmax(z, 3)", "F.gelu(z, approximate='other')", "F.prelu(z, self.wide)"]


@pytest.mark.parametrize("expression", WRONG)
def test_wrong_arguments_raise_what_pytorch_raises(expression):
    for body in (in_statements(expression), nested(expression)):
        model = with_forward(body, fc=nn.Linear(6, 5), wide=nn.Parameter(torch.ones(4)))
        model.requires_grad_(False).eval()
        errors = []
        for one in (model, fastact.convert(model)):
            with pytest.raises((TypeError, RuntimeError, IndexError)) as caught:
                one(X)
            errors.append((caught.type, str(caught.value)))
        assert errors[0] == errors[1]


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("mode", MODES)
def test_softmax_without_dim_stays_apart(mode):
    check(nn.Sequential(nn.Linear(6, 5), nn.Softmax()), X, expected=[""], mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_prelu_of_three_dimensions(mode):
    """torch.nn.PReLU's channels are dimension 1, whatever the Linear's features are."""
    model = nn.Sequential(nn.Linear(6, 7), nn.PReLU(5))
    nn.init.uniform_(model[1].weight)
    check(model, torch.randn(2, 5, 6), expected=["prelu"], mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_with_its_own_activation(mode):
    model = nn.Sequential(
        fastact.nn.Linear(6, 5, activation="gelu"),
        nn.ReLU(),
        fastact.nn.Linear(5, 4, activation="prelu"),
        fastact.nn.Linear(4, 4),
        fastact.nn.Tanh(),
    )
    own = ["", "", "tanh"] if mode == "inference" else ["tanh"]
    check(model, X, expected=own, mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype, mode):
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh()).to(dtype)
    # The original rounds between the layer and the activation too.
    loose = {} if dtype is torch.float64 else {"rtol": 2**-5, "atol": 2**-4}
    check(model, X.to(dtype), expected=["relu", "tanh"], mode=mode, **loose)


def test_foreign_rows_name_known_activations():
    assert {row.name for row in links.FOREIGN.values()} - {""} <= REGISTRY.keys()


class SiLUActivation(nn.Module):
    def forward(self, input):
        return F.silu(input)


def test_a_module_of_another_library(monkeypatch):
    monkeypatch.setitem(links.FOREIGN, f"{__name__}.SiLUActivation", links.Foreign("silu"))
    model = nn.Sequential(nn.Linear(6, 5), SiLUActivation()).eval()
    check(model, X, expected=["silu"])

    class Impostor(nn.Module):
        __qualname__ = "SiLUActivation"

        def forward(self, input):
            return input * 2

    check(nn.Sequential(nn.Linear(6, 5), Impostor()).eval(), X, expected=[""])
    converted = fastact.convert(model)
    converted[1].forward = lambda x: x * 3
    assert fused(lambda: converted(X)) == [""]


# ---- sums --------------------------------------------------------------------------------------

# The body of a forward of a module with Linears fc (6 to 6), fc2 (6 to 6), a Dropout, a ReLU and a
# parameter; and what is fused.
SUMS = {
    "x + self.fc(x)": ["residual"],
    "self.fc(x) + x": ["residual"],
    "torch.add(x, self.fc(x))": ["residual"],
    "torch.add(self.fc(x), x)": ["residual"],
    "self.fc(x).add(x)": ["residual"],
    "self.act(self.fc(x) + x)": ["residual relu"],
    "F.gelu(x + self.fc(x))": ["residual gelu"],
    "torch.softmax(self.fc(x) + x, -1)": ["residual softmax"],
    "F.prelu(self.fc(x) + x, self.slope)": ["residual prelu"],
    "x + self.fc2(F.silu(self.fc(x)))": ["silu", "residual"],
    "self.fc(x) + self.fc2(x)": ["", "residual"],
    "(self.fc(x) + x) + x": ["residual"],
    "x + self.drop(self.fc(x))": ["dropout residual"],
    "x + F.dropout(self.fc(x), 0.5, self.training)": ["dropout residual"],
    "self.fc(x) + self.slope": [""],
    "x.double() + self.fc(x)": [""],
    "self.fc(x) + x.double()": [""],
    "F.relu(self.fc(x) + x.size(0))": [""],
    "self.fc(x) + 1": [""],
    "(lambda y: y + y)(self.fc(x))": [""],
    "(lambda y: (y + x, y))(self.fc(x))": [""],
    "torch.add(x, self.fc(x), alpha=2)": [""],
    "(lambda r: (lambda y: (r.mul_(2), y + r))(self.fc(x)))(x * 1)": [""],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("expression", SUMS)
def test_sums(expression, mode):
    parts = {
        "fc": nn.Linear(6, 6),
        "fc2": nn.Linear(6, 6),
        "drop": nn.Dropout(0.5),
        "act": nn.ReLU(),
        "slope": nn.Parameter(torch.linspace(-1, 1, 6)),
    }
    close = {"rtol": 1e-5, "atol": 2e-6}  # of float32, beside float64 too
    check(with_forward(f"return {expression}", **parts), X, expected=SUMS[expression], mode=mode,
          **close)  # fmt: skip


class Wrapped:
    """Adds in its own way, and only from the left."""

    def __init__(self, value):
        self.value = value

    def __add__(self, other):
        return self.value - other


# What only a call shows: fused or not, the sum is the one that was written.
UNUSUAL_SUMS = {
    "None": lambda x: None,
    "an object of its own": Wrapped,
    "a number": lambda x: x.size(0),
    "other strides": lambda x: x.t().contiguous().t(),
    "a broadcast row": lambda x: x[0],
    "more rows": lambda x: torch.stack((x, x)),
    "another dtype": lambda x: x.double(),
    "a subclass": lambda x: x.as_subclass(Marked),
}


class Marked(torch.Tensor):
    pass


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", UNUSUAL_SUMS)
@pytest.mark.parametrize("order", ["self.pick(x) + self.fc(x)", "self.fc(x) + self.pick(x)"])
def test_the_operands_decide(order, first, mode):
    model = with_forward(f"return {order}", fc=nn.Linear(6, 6), pick=UNUSUAL_SUMS[first]).eval()
    converted = fastact.convert(model, mode=mode)
    found = []
    for one in (model, converted):
        try:
            y = one(X)
            found.append((type(y), y.dtype, y.stride(), y.as_subclass(torch.Tensor)))
        except TypeError as error:
            found.append((str(error),))
    assert found[1][:-1] == found[0][:-1]
    if len(found[0]) > 1:
        # Of float32, beside float64 too.
        torch.testing.assert_close(found[1][-1], found[0][-1], rtol=1e-5, atol=1e-6)


# Who else holds what += writes to.
IN_PLACE = {
    "x += self.fc(x)\nreturn x": [""],
    "z = x * 1\nv = z[:, :3]\nz += self.fc(x)\nreturn v": [""],
    "z = x * 1\ny = z\ny += self.fc(x)\nreturn z, y": [""],
    "z = x * 1\ny = z\ny *= 2\nreturn z, F.relu(self.fc(x))": ["relu"],
    "y = self.fc(x)\ny += x\nreturn y": ["residual"],
    "y = self.fc(x)\nw = y\ny += x\nreturn w, y": [""],
    "y = self.fc(x)\ny += y\nreturn y": [""],
    "y = self.fc(x)\ny += x.double()\nreturn y": [""],
    "y = self.fc(x)\ny -= 1\nreturn F.relu(y)": [""],
    "y = self.fc(x)\ny = F.relu_(y)\nreturn y": ["relu"],
    "y = self.fc(x)\nF.relu_(y)\nreturn y": [""],
    "h = y = self.fc(x)\ny = F.relu_(y)\nreturn h, y": [""],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("body", IN_PLACE)
def test_in_place_operators(body, mode):
    check(
        with_forward(f"x = x * 1\n{body}", fc=nn.Linear(6, 6)),
        X,
        expected=IN_PLACE[body],
        mode=mode,
    )


@pytest.mark.parametrize("mode", MODES)
def test_autocast_of_a_sum_before_prelu(mode):
    model = with_forward("return self.act(x + self.fc(x))", fc=nn.Linear(6, 6), act=nn.PReLU())
    converted = fastact.convert(model, mode=mode)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = model(X), converted(X)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=2**-6, atol=2**-6)


# ---- norms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_norm_is_folded(bias, affine, dtype):
    norm = nn.BatchNorm1d(5, affine=affine)
    for tensor in (norm.running_mean, norm.running_var, *norm.parameters()):
        nn.init.uniform_(tensor, 0.5, 2)
    model = nn.Sequential(nn.Linear(6, 5, bias=bias), norm, nn.ReLU()).to(dtype)
    converted = check(model, X.to(dtype), expected=["norm relu"])
    for edit in (
        lambda m: m[1].running_mean.add_(1),
        lambda m: setattr(m[1], "eps", 0.5),
        lambda m: m[0].weight.mul_(2),
        lambda m: affine and m[1].weight.mul_(3),
        lambda m: m[1].register_buffer("running_var", torch.full((5,), 0.25, dtype=dtype)),
        lambda m: bias and setattr(m[0], "bias", None),
    ):
        with torch.no_grad():
            edit(model), edit(converted)
            torch.testing.assert_close(converted(X.to(dtype)), model.eval()(X.to(dtype)))
    assert fused(lambda: converted(X.to(dtype))) == ["norm relu"]


NORMS_APART = {
    "in training": (nn.BatchNorm1d(5), lambda m: m.train(), X),
    "without statistics": (nn.BatchNorm1d(5, track_running_stats=False), lambda m: None, X),
    "over the second of three": (nn.BatchNorm1d(3), lambda m: None, X[None].repeat(2, 1, 1)),
    "with hooks": (nn.BatchNorm1d(5), lambda m: m[1].register_forward_hook(lambda *a: None), X),
    "of another kind": (nn.LayerNorm(5), lambda m: None, X),
    "patched": (nn.BatchNorm1d(5), lambda m: setattr(m[1], "forward", torch.neg), X),
}


@pytest.mark.parametrize("why", NORMS_APART)
def test_a_norm_that_is_not_folded(why):
    norm, edit, x = NORMS_APART[why]
    model = nn.Sequential(nn.Linear(6, 5), copy.deepcopy(norm)).eval()
    converted = fastact.convert(copy.deepcopy(model))
    edit(model), edit(converted)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), model(x))
        assert fused(lambda: converted(x)) == [""]


def test_a_norm_of_other_features_raises():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(4)).eval()
    for one in (model, fastact.convert(model)):
        with pytest.raises(RuntimeError, match="running_mean should contain 5 elements"):
            one(X)


# ---- what somebody has replaced ----------------------------------------------------------------

REPLACED = {
    "torch.nn.functional.relu": "return self.act(self.fc(x))",
    "torch.nn.functional.linear": "return F.relu(self.fc(x))",
    "torch.Tensor.relu": "return self.fc(x).relu()",
    "torch.nn.Linear.forward": "return F.relu(self.fc(x))",
    "torch.nn.ReLU.forward": "return self.act(self.fc(x))",
    "torch.nn.Module.__call__": "return self.act(self.fc(x))",
    "torch.nn.Module._call_impl": "return self.act(self.fc(x))",
    "torch.nn.functional.dropout": "return self.drop(self.fc(x)) + x",
}


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REPLACED)
def test_functions_replaced_after_the_conversion(name, mode, nested):
    body = REPLACED[name]
    parts = {"fc": nn.Linear(6, 6), "act": nn.ReLU(), "drop": nn.Dropout()}
    model = with_forward(body, **parts).eval()
    if nested:
        model = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), model).eval()
    converted = fastact.convert(copy.deepcopy(model), mode=mode)
    owner, _, attribute = name.rpartition(".")
    owner = eval(owner)
    original, calls = getattr(owner, attribute), []

    def patched(*args, **kwargs):
        calls.append(len(args))
        return original(*args, **kwargs)

    counts = []
    with unittest.mock.patch.object(owner, attribute, patched):
        for one in (model, converted):
            calls.clear()
            y = one(X)
            counts.append(list(calls))
            torch.testing.assert_close(y, model(X))
    assert counts[1] == counts[0] != []


# What torch.nn's modules hold and PyTorch's functions refuse, or take: a dimension that is a float,
# ints of more than 64 bits.
ODD_PARAMETERS = [
    nn.Softmax(dim=1.0),
    nn.LogSoftmax(dim=-1.0),
    nn.Softmin(dim=1.0),
    nn.Softmax(dim=True),
    nn.LeakyReLU(2**70),
    nn.LeakyReLU(True),
    nn.ELU(2),
    nn.Threshold(2**65, 0),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("activation", ODD_PARAMETERS, ids=str)
def test_parameters_are_taken_and_refused_as_eager_does(activation, mode):
    def outcome(model):
        try:
            return model(X)
        except Exception as error:
            return type(error)

    for model in (
        nn.Sequential(nn.Linear(6, 4), activation),
        with_forward("return self.act(self.fc(x))", fc=nn.Linear(6, 4), act=activation),
    ):
        converted = fastact.convert(model, mode=mode)
        for _ in range(3):  # looked up first, confirmed then
            mine, theirs = outcome(converted), outcome(model)
            if isinstance(theirs, type):
                assert mine is theirs
            else:
                torch.testing.assert_close(mine, theirs)
