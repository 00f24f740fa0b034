"""Does ``activation=`` of a fused layer mean what the module it is given does, now and later?"""

import copy
import enum
import functools
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

import fastact
from fastact import functional, nn
from fastact.testing.cases import CASES
from fastact.testing.inputs import random_tensor

X = torch.linspace(-2, 2, 18).reshape(3, 6)
# Every module with a row of the registry: nn.Hardtanh refuses min_val == max_val.
GIVEN = [
    case for case in CASES if case.row.module and case.row.fusible and case.values != (1.0, 1.0)
]


class Scaled(torch.nn.ReLU):
    def forward(self, x):
        return super().forward(x) * 3


class Squared(nn.GELU):
    def forward(self, x):
        return super().forward(x).square()


class Shifted(torch.nn.PReLU):
    def forward(self, x):
        return super().forward(x) + 1


class Tempered(torch.nn.Softmax):
    def forward(self, x):
        return super().forward(x / 10)


class Renamed(torch.nn.Tanh):
    """Nothing of its own; yet only exact types are known."""


DERIVED = {
    "ReLU": Scaled,
    "fastact's GELU": Squared,
    "PReLU": Shifted,
    "Softmax": functools.partial(Tempered, -1),
    "no forward": Renamed,
}


def operators(function, *args):
    """What a call runs where no gradient is needed."""
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Mode(), torch.no_grad():
        function(*args)
    return seen


def assert_means(layer, activation, x=X):
    """The layer computes activation(linear(x)), with all gradients."""
    mine, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
    own = layer.weight, layer.bias, *activation.parameters()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y, expected = layer(mine), activation(F.linear(twin, layer.weight, layer.bias))
    torch.testing.assert_close(y, expected)
    grad = torch.linspace(-1, 2, y.numel()).view_as(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, (mine, *own), grad),
        torch.autograd.grad(expected, (twin, *own), grad),
    )


# ---- modules of known classes ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["torch.nn", "fastact.nn", "class"])
@pytest.mark.parametrize("case", GIVEN, ids=str)
def test_known_classes_are_fused(case, how):
    module = case.module() if how == "fastact.nn" else case.twin_module()
    if how == "class" and not case.tensors(X):
        keywords = case.keywords | getattr(case.row.reference, "keywords", {})
        layer = nn.Linear(6, 1, activation=type(module), **keywords)
        assert type(layer.activation) is type(module)
        assert repr(layer.activation) == repr(module)
    else:
        layer = nn.Linear(6, 1, activation=module)
        assert layer.activation is module
    assert operators(layer, X) == ["fastact.linear.default"]
    assert_means(layer, layer.activation)


def test_a_softmin_is_fused():
    layer = nn.Linear(6, 4, activation=torch.nn.Softmin(-1))
    assert operators(layer, X) == ["fastact.linear.default"]
    assert_means(layer, torch.nn.Softmin(-1))


@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 6), (2, 1, 3, 6)], ids=str)
@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Softmin"])
def test_softmax_without_dim(name, shape):
    """PyTorch's choice by the number of dimensions, with its warning."""
    x, make = random_tensor(shape), getattr(torch.nn, name)
    sequence = torch.nn.Sequential(torch.nn.Linear(6, 4), make())
    given = nn.Linear(6, 4, activation=make())
    given.load_state_dict(sequence[0].state_dict())
    with pytest.warns(UserWarning, match="Implicit dimension"):
        expected = sequence(x)
    models = [given, fastact.convert(given)]
    models += [fastact.convert(sequence, mode=mode) for mode in ("training", "inference")]
    for model in models:
        with pytest.warns(UserWarning, match="Implicit dimension"):
            torch.testing.assert_close(model(x), expected)
    by_class = nn.Linear(6, 4, activation=make)
    assert_means(by_class, make(), x)


@pytest.mark.parametrize("dim", [1.5, True, "1", [1]], ids=repr)
def test_dim_of_another_type(dim):
    """As PyTorch's softmax refuses it."""
    for name in ("softmax", "log_softmax"):
        with pytest.raises(TypeError):
            getattr(F, name)(X, dim)
        calls = [
            lambda name=name: functional.linear(X, torch.ones(4, 6), None, name, dim=dim),
            lambda name=name: nn.Linear(6, 4, activation=name, dim=dim),
        ]
        for call in calls:
            with pytest.raises(TypeError, match=r"fastact\..*: dim: expected an int, got"):
                call()
    for namespace in (torch.nn, nn):
        with pytest.raises(TypeError, match="dim"):
            nn.Linear(6, 4, activation=namespace.Softmax(dim))(X)


def test_dim_of_none_by_name():
    for call in (
        lambda: functional.linear(X, torch.ones(4, 6), None, "softmax", dim=None),
        lambda: nn.Linear(6, 4, activation="softmax", dim=None),
    ):
        with pytest.raises(TypeError, match=r"dim: expected an int, got NoneType"):
            call()


@pytest.mark.parametrize("dim", [np.int64(0), torch.tensor(0)], ids=repr)
def test_dim_as_pytorch_takes_it(dim):
    weight = torch.randn(4, 6)
    expected = torch.softmax(F.linear(X, weight), dim)
    torch.testing.assert_close(functional.linear(X, weight, None, "softmax", dim=dim), expected)
    layer = nn.Linear(6, 4, activation=torch.nn.Softmax(dim))
    assert_means(layer, torch.nn.Softmax(dim))


# ---- modules that are called -------------------------------------------------------------------


@pytest.mark.parametrize("make", DERIVED.values(), ids=DERIVED)
def test_derived_classes_run_as_they_are_written(make):
    module = make()
    layer = nn.Linear(6, 4, activation=module)
    assert layer.activation is module
    for copied in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        if make is not DERIVED["Softmax"]:
            assert type(copied.activation) is make
        assert_means(copied, copied.activation)
    expected = module(F.linear(X, layer.weight, layer.bias))
    for mode in ("training", "inference"):
        torch.testing.assert_close(fastact.convert(layer, mode=mode)(X), expected)
    if isinstance(make, type):
        by_class = nn.Linear(6, 4, activation=make)
        assert type(by_class.activation) is make
        assert_means(by_class, by_class.activation)


HOOKS = {
    "forward": lambda module, seen: module.register_forward_hook(
        lambda m, args, output: seen.append(output) or 2 * output
    ),
    "forward pre": lambda module, seen: module.register_forward_pre_hook(
        lambda m, args: seen.append(args) or (args[0] - 1,)
    ),
    "backward": lambda module, seen: module.register_full_backward_hook(
        lambda m, inputs, outputs: seen.append(inputs) or (3 * inputs[0],)
    ),
    "backward pre": lambda module, seen: module.register_full_backward_pre_hook(
        lambda m, outputs: seen.append(outputs) or (3 * outputs[0],)
    ),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
@pytest.mark.parametrize("name", ["Tanh", "PReLU"])
def test_hooks_run(name, register, when):
    module, seen = getattr(torch.nn, name)(), []
    handle = register(module, seen) if when == "before" else None
    layer = nn.Linear(6, 4, activation=module)
    handle = handle or register(module, seen)
    assert_means(layer, module)
    assert len(seen) == 2  # the layer's call and the twin's
    handle.remove()
    assert operators(layer, X) == ["fastact.linear.default"]
    assert_means(layer, module)
    assert len(seen) == 2


GLOBAL_HOOKS = {
    "forward": lambda seen: torch_module.register_module_forward_hook(
        lambda m, args, output: seen.append(m)
    ),
    "forward pre": lambda seen: torch_module.register_module_forward_pre_hook(
        lambda m, args: seen.append(m)
    ),
    "backward": lambda seen: torch_module.register_module_full_backward_hook(
        lambda m, inputs, outputs: seen.append(m)
    ),
    "backward pre": lambda seen: torch_module.register_module_full_backward_pre_hook(
        lambda m, outputs: seen.append(m)
    ),
}


@pytest.mark.parametrize("register", GLOBAL_HOOKS.values(), ids=GLOBAL_HOOKS)
def test_hooks_of_all_modules_run(register):
    layer, seen = nn.Linear(6, 4, activation=torch.nn.Tanh()), []
    handle = register(seen)
    try:
        layer(X.clone().requires_grad_()).sum().backward()
    finally:
        handle.remove()
    assert set(map(type, seen)) == {nn.Linear, torch.nn.Tanh}
    assert operators(layer, X) == ["fastact.linear.default"]


def test_a_forward_set_on_the_instance():
    module = torch.nn.Tanh()
    layer = nn.Linear(6, 4, activation=module)
    module.forward = lambda x: torch.tanh(x) * 5
    assert_means(layer, module)
    del module.forward
    assert operators(layer, X) == ["fastact.linear.default"]


def test_a_forward_set_on_the_class(monkeypatch):
    layer = nn.Linear(6, 4, activation=torch.nn.Tanh())
    monkeypatch.setattr(torch.nn.Tanh, "forward", lambda self, x: torch.tanh(x) * 5)
    assert_means(layer, layer.activation)


def test_a_parametrized_activation():
    class Positive(torch.nn.Module):
        def forward(self, weight):
            return weight.exp()

    layer = nn.Linear(6, 4, activation=torch.nn.PReLU())
    torch.nn.utils.parametrize.register_parametrization(layer.activation, "weight", Positive())
    expected = F.prelu(F.linear(X, layer.weight, layer.bias), layer.activation.weight)
    torch.testing.assert_close(layer(X), expected)


def test_a_softmax_over_channels():
    layer = nn.Linear(6, 4, activation=torch.nn.Softmax2d())
    assert_means(layer, torch.nn.Softmax2d(), random_tensor([2, 3, 5, 6]))
    with pytest.raises(ValueError, match="Softmax2d"):
        layer(X)


# ---- what is changed later ---------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in GIVEN if c.parameters], ids=str)
def test_settings_are_followed(case):
    defaults = case.row.parameters
    layer = (
        nn.Linear(6, 4, activation=getattr(torch.nn, case.row.module)(**defaults))
        if (case.row.family == "unary")
        else nn.Linear(6, 4, activation=getattr(torch.nn, case.row.module)(-1))
    )
    layer(X)
    for name, value in case.parameters.items():
        setattr(layer.activation, name, value)
    assert operators(layer, X) == ["fastact.linear.default"]
    assert_means(layer, case.twin_module())


def test_another_module_is_followed():
    layer = nn.Linear(6, 4, activation=torch.nn.Tanh())
    layer.activation = torch.nn.GELU(approximate="tanh")
    assert_means(layer, torch.nn.GELU(approximate="tanh"))
    layer.activation.approximate = "none"
    assert_means(layer, torch.nn.GELU())
    layer.activation = Scaled()
    assert_means(layer, Scaled())
    layer.activation = None
    assert_means(layer, torch.nn.Identity())
    del layer.activation
    assert_means(layer, torch.nn.Identity())


def test_an_attribute_of_a_layer_without_is_no_activation():
    """Nor does converting a torch.nn.Linear give a meaning to one that PyTorch does not call."""
    layer = nn.Linear(6, 4)
    layer.activation = torch.nn.ReLU()
    assert_means(layer, torch.nn.Identity())
    theirs = torch.nn.Linear(6, 4)
    theirs.activation = torch.nn.ReLU()
    for mode in ("training", "inference"):
        torch.testing.assert_close(fastact.convert(theirs, mode=mode)(X), theirs(X))


def test_numbers_of_other_types():
    """As the twin takes them, whenever they are set."""
    for value in (np.float32(0.25), True, torch.tensor(0.5), 2):
        expected = F.leaky_relu(F.linear(X, torch.ones(4, 6)), value)
        by_name = functional.linear(
            X, torch.ones(4, 6), activation="leaky_relu", negative_slope=value
        )
        torch.testing.assert_close(by_name, expected)
        layer = nn.Linear(6, 4, activation=torch.nn.LeakyReLU(value))
        assert_means(layer, torch.nn.LeakyReLU(value))
    layer.activation.negative_slope = "steep"
    with pytest.raises(TypeError, match="expected a number, got str 'steep'"):
        layer(X)


# ---- construction ------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["prelu", torch.nn.PReLU, nn.PReLU, Shifted])
def test_made_as_the_layer_is(activation):
    """A parameter of an activation that the layer makes has the layer's dtype and device."""
    layer = nn.Linear(6, 4, activation=activation, dtype=torch.float64, num_parameters=4, init=0.5)
    assert layer.activation.weight.dtype == torch.float64
    assert layer.activation.weight.tolist() == [0.5] * 4
    assert layer(X.double()).dtype == torch.float64
    meta = nn.Linear(6, 4, activation=activation, device="meta")
    assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}


class Gated(torch.nn.GLU):
    pass


REFUSED = {
    "GLU": torch.nn.GLU,
    "a GLU": torch.nn.GLU(),
    "fastact's GLU": nn.GLU(0),
    "derived from GLU": Gated,
    "RReLU": torch.nn.RReLU,
    "fastact's RReLU": nn.RReLU(),
    "MultiheadAttention": torch.nn.MultiheadAttention,
    "Identity": torch.nn.Identity(),
    "Dropout": torch.nn.Dropout,
    "Module": torch.nn.Module,
    "Sequential": torch.nn.Sequential(torch.nn.ReLU()),
    "function": F.relu,
    "builtin": torch.relu,
    "int": 3,
    "list": ["relu"],
    "bytes": b"relu",
    "dict": {},
}


@pytest.mark.parametrize("activation", REFUSED.values(), ids=REFUSED)
def test_refused(activation):
    with pytest.raises(ValueError, match=r"fastact\.nn\.Linear\(\): activation: "):
        nn.Linear(6, 4, activation=activation)
    with pytest.raises(ValueError, match=r"fastact\.linear\(\): activation: "):
        functional.linear(X, torch.ones(4, 6), activation=activation)


def test_arguments_that_the_class_refuses():
    with pytest.raises(TypeError, match=r"fastact\.nn\.Linear\(\): activation: .*Threshold"):
        nn.Linear(6, 4, activation=torch.nn.Threshold)
    with pytest.raises(TypeError, match=r"fastact\.nn\.Linear\(\): activation: .*PReLU.*beta"):
        nn.Linear(6, 4, activation="prelu", beta=1)


class Choice(str, enum.Enum):  # noqa: UP042  (a StrEnum's str() is the name, this one's is not)
    RELU = "relu"
    GELU = "gelu"
    PRELU = "prelu"


def test_names_that_are_more_than_strings():
    """As configurations have them."""
    weight = torch.ones(4, 6)
    for name in (Choice.RELU, np.str_("relu")):
        y = functional.linear(X, weight, activation=name)
        torch.testing.assert_close(y, torch.relu(F.linear(X, weight)))
        layer = nn.Linear(6, 4, activation=name)
        assert "activation='relu'" in repr(layer)
        assert_means(layer, torch.nn.ReLU())
    layer = nn.Linear(6, 4, activation=Choice.GELU, approximate="tanh")
    assert_means(layer, torch.nn.GELU(approximate="tanh"))
    layer = nn.Linear(6, 4, activation=Choice.PRELU)
    assert_means(layer, layer.activation)


def test_one_module_of_two_layers():
    module = torch.nn.PReLU()
    a, b = (nn.Linear(6, 4, activation=module) for _ in range(2))
    assert a.activation is b.activation is module
    assert_means(a, module)
    assert_means(b, module)


# ---- compiled ----------------------------------------------------------------------------------


def test_compiled(dynamo):
    layer = nn.Linear(6, 4, activation=torch.nn.LeakyReLU(0.2))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), layer(X))
    layer.activation.negative_slope = 0.5
    torch.testing.assert_close(
        compiled(X), F.leaky_relu(F.linear(X, layer.weight, layer.bias), 0.5)
    )
    layer.activation = Scaled()
    torch.testing.assert_close(compiled(X), layer(X))


def test_compiled_with_a_hook(dynamo):
    """There when compiled: Dynamo does not look for hooks that come later."""
    layer = nn.Linear(6, 4, activation=torch.nn.Tanh())
    layer.activation.register_forward_hook(lambda m, args, output: output + 1)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), torch.tanh(F.linear(X, layer.weight, layer.bias)) + 1)
