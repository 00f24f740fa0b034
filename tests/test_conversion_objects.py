"""Is a converted model still the object it was: class, state, copies, pickles; and can it be
undone?"""

import copy
import gc
import io
import os
import pickle
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastact
from fastact.testing import programs
from fastact.testing.conversion import MODES, assert_same, fused, outcome, pair
from fastact.testing.programs import PROGRAMS

X = torch.linspace(-2, 2, 18).reshape(3, 6)
OBJECTS = ["Nested", "Statements", "Sequence", "Derived", "Concrete", "Registered", "Data", "Tied"]
OBJECTS += ["TwiceDecorated", "Layers", "Slopes", "Arguments"]


def mlp():
    return nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OBJECTS)
def test_what_it_is(name, mode):
    model, converted = pair(PROGRAMS[name].make, mode)
    kind = type(model)
    assert isinstance(converted, kind)
    assert type(converted).__name__ == kind.__name__
    assert type(converted).__qualname__ == kind.__qualname__
    assert type(converted).__module__ == kind.__module__
    assert type(converted).__doc__ == kind.__doc__
    assert repr(converted) == repr(model)
    assert list(converted.state_dict()) == list(model.state_dict())
    assert [n for n, _ in converted.named_modules()] == [n for n, _ in model.named_modules()]
    for mine, theirs in zip(converted.modules(), model.modules(), strict=True):
        assert vars(mine).keys() == vars(theirs).keys()


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
@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("how", COPIES)
def test_copies(how, name, mode):
    _, converted = pair(PROGRAMS[name].make, mode)
    converted.eval()
    args, kwargs = PROGRAMS[name].calls[0]()
    expected = converted(*args, **kwargs)
    twin = COPIES[how](converted)
    assert repr(twin) == repr(converted)
    assert type(twin) is type(converted)
    assert fused(lambda: twin(*args, **kwargs)) == fused(lambda: converted(*args, **kwargs)) != []
    torch.testing.assert_close(twin(*args, **kwargs), expected, rtol=0, atol=0)
    for key, parameter in twin.named_parameters():
        assert (parameter is converted.get_parameter(key)) == (how == "copy")
    # Its own modules, not those of the model that it was copied from.
    if how != "copy":
        with torch.no_grad():
            for parameter in converted.parameters():
                parameter.zero_()
        torch.testing.assert_close(twin(*args, **kwargs), expected, rtol=0, atol=0)


def test_a_pickle_holds_the_plain_weights_alone():
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU())
    plain = len(pickle.dumps(model))
    converted = fastact.convert(model)
    converted(torch.randn(16, 512))
    assert len(pickle.dumps(converted)) < plain + 4096


def test_a_pickle_is_read_in_another_process(tmp_path):
    (tmp_path / "nets.py").write_text(
        "import torch.nn.functional as F\nfrom torch import nn\n\n\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(6, 6)\n"
        "        self.body = nn.Sequential(self.fc, nn.Tanh())\n\n"
        "    def forward(self, x):\n        return self.body(F.relu(self.fc(x)))\n"
    )
    program = (
        "import torch, {extra} nets\nfrom fastact.testing.conversion import fused\n"
        "model, x, y = torch.load('model.pt', weights_only=False)\n"
        "torch.testing.assert_close(model(x), y)\n"
        "print(fused(lambda: model(x)), type(model).__mro__[1].__name__)"
    )
    root = str(Path(fastact.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, str(tmp_path)])}
    first = (
        "import torch, fastact, nets\nmodel, x = fastact.convert(nets.Net()), torch.randn(2, 6)\n"
        "torch.save((model, x, model(x)), 'model.pt')"
    )
    for text in (first, program.format(extra=""), program.format(extra="fastact,")):
        done = subprocess.run(
            [sys.executable, "-c", text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['relu', 'tanh'] _Quiet"


def test_state_dicts_go_both_ways():
    model = mlp()
    for mode in MODES:
        converted = fastact.convert(model, mode=mode)
        new = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
        assert converted.load_state_dict(new, strict=True).missing_keys == []
        model.load_state_dict(converted.state_dict(), strict=True)
        torch.testing.assert_close(converted.eval()(X), model.eval()(X))
        buffer = io.BytesIO()
        torch.save(converted.state_dict(), buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)


# ---- conversion itself -------------------------------------------------------------------------


def test_inference_is_a_copy_in_evaluation_without_gradients():
    model = mlp()
    converted = fastact.convert(model)
    assert not converted.training and model.training
    assert not any(parameter.requires_grad for parameter in converted.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not converted(X).requires_grad
    with torch.no_grad():
        model[0].weight.zero_()
    assert converted[0].weight.abs().sum() > 0


def test_training_shares_parameters_and_buffers():
    model = nn.Sequential(mlp(), nn.BatchNorm1d(3))
    converted = fastact.convert(model, mode="training")
    for mine, theirs in (
        (converted.named_parameters(), model.named_parameters()),
        (converted.named_buffers(), model.named_buffers()),
    ):
        assert all(a is b for (_, a), (_, b) in zip(mine, theirs, strict=True))
    assert converted.training


@pytest.mark.parametrize("mode", MODES)
def test_inplace(mode):
    model = mlp()
    layers, parameters = list(model), list(model.parameters())
    assert fastact.convert(model, mode=mode, inplace=True) is model
    assert all(a is b for a, b in zip(model, layers, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert fused(lambda: model.eval()(X)) == ["relu dropout", "tanh", ""]


@pytest.mark.parametrize("mode", MODES)
def test_filter(mode):
    asked = []

    def accepts(module, name):
        asked.append(name)
        return name not in ("0", "4")

    def found(model):
        return fused(lambda: model.eval()(X))

    model = mlp()
    converted = fastact.convert(model, mode=mode, filter_fn=accepts)
    assert sorted(asked) == ["", "0", "1", "3", "4", "5"]
    assert found(converted) == found(pickle.loads(pickle.dumps(converted))) == ["", ""]
    others = fastact.convert(model, mode=mode, filter_fn=lambda module, _: module is not model[3])
    assert found(others) == ["relu dropout", ""]
    # The model itself has an empty name.
    inner = fastact.convert(model, mode=mode, filter_fn=lambda module, name: name)
    assert type(inner) is nn.Sequential
    assert found(fastact.convert(converted, mode=mode)) == ["relu dropout", "tanh", ""]


def test_a_layer_of_a_loop_left_out():
    model = PROGRAMS["Layers"].make()
    converted = fastact.convert(model, filter_fn=lambda module, name: name != "layers.1")
    assert fused(lambda: converted(X)) == ["relu"]
    torch.testing.assert_close(converted(X), model(X))


class Unhappy(Exception):
    pass


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("again", [False, True])
def test_a_filter_that_raises_leaves_the_model_as_it_was(again, mode):
    def raises(module, name):
        if name == "4":
            raise Unhappy
        return name != "0"

    model = mlp()
    if again:
        fastact.convert(model, mode=mode, inplace=True, filter_fn=lambda module, name: name != "3")
    state = [(type(m), m.training, list(vars(m))) for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    with pytest.raises(Unhappy):
        fastact.convert(model, mode=mode, inplace=True, filter_fn=raises)
    assert [(type(m), m.training, list(vars(m))) for m in model.modules()] == state
    assert [p.requires_grad for p in model.parameters()] == grads


def test_a_refused_conversion_changes_nothing():
    model = nn.Sequential(programs.Doubled(6, 6), nn.Linear(6, 6))
    with pytest.raises(RuntimeError, match=r"0 \(Doubled\): its class is derived"):
        fastact.convert(model, inplace=True, use_fallback=False)
    assert type(model) is nn.Sequential
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    fastact.convert(mlp(), use_fallback=False)


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("mode", MODES)
def test_lazy_layers(mode):
    make = lambda: nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3), nn.Tanh())  # noqa: E731
    model = make()
    converted = fastact.convert(model, mode=mode, inplace=True)
    assert fused(lambda: converted(X)) == ["tanh"]
    assert fused(lambda: converted(X)) == ["relu", "tanh"]
    torch.testing.assert_close(converted(X), torch.tanh(model[2](F.relu(model[0](X)))))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OBJECTS)
def test_converting_again(name, mode):
    model, converted = pair(PROGRAMS[name].make, mode)
    again = fastact.convert(converted, mode=mode)
    assert type(again) is type(converted)
    args, kwargs = PROGRAMS[name].calls[0]()
    seen = [outcome(lambda one=one: one(*args, **kwargs)) for one in (again, model)]
    assert_same(*seen)
    if mode == "training":
        frozen = fastact.convert(converted)
        assert [type(m) for m in fastact.revert(converted).modules()] == [
            type(m) for m in model.modules()
        ]
        torch.testing.assert_close(frozen(*args, **kwargs), model.eval()(*args, **kwargs))


@pytest.mark.parametrize("name", OBJECTS)
def test_revert(name):
    model = PROGRAMS[name].make()
    hook = model.register_forward_hook(lambda *a: None)
    before = [(m, type(m), {**vars(m)}) for m in model.modules()]
    assert (
        fastact.convert(model, mode="training", inplace=True, filter_fn=lambda m, n: n != "fc2")
        is model
    )
    assert fastact.revert(model) is model
    for module, kind, attributes in before:
        assert type(module) is kind and vars(module) == attributes
    assert fastact.revert(model) is model
    hook.remove()


def test_a_part_is_reverted():
    model = fastact.convert(nn.ModuleList([mlp(), mlp()]), mode="training").eval()
    fastact.revert(model[0])
    assert type(model[0]) is nn.Sequential
    assert fused(lambda: model[0](X)) == []
    assert fused(lambda: model[1](X)) == ["relu dropout", "tanh", ""]


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
            "model: expected one that was not converted with mode='inference', got the model",
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
    with pytest.raises(
        RuntimeError, match=r"fastact\.revert\(\): model: .*mode='inference', got 0"
    ):
        fastact.revert(nn.Sequential(fastact.convert(mlp())))
    _, converted = pair(PROGRAMS["Nested"].make, "training")
    converted.scale = nn.Parameter(torch.ones(2))
    nn.utils.parametrize.register_parametrization(converted, "scale", Doubles())
    with pytest.raises(RuntimeError, match=r"fastact\.revert\(\): model: expected the class that"):
        fastact.revert(converted)
    nn.utils.parametrize.remove_parametrizations(converted, "scale")
    assert type(fastact.revert(converted)) is programs.Nested


class Doubles(nn.Module):
    def forward(self, x):
        return 2 * x


def test_a_model_that_cannot_be_copied():
    model = mlp()
    model.lock = (_ for _ in ())
    with pytest.raises(RuntimeError, match="inplace=True needs no copy"):
        fastact.convert(model)
    assert fused(lambda: fastact.convert(model, inplace=True)(X)) == ["relu dropout", "tanh", ""]


def test_classes_are_collected():
    def convert_once():
        class Once(programs.Parts):
            def forward(self, x):
                return F.relu(self.fc(x))

        converted = fastact.convert(Once())
        converted(X)
        return weakref.ref(Once), weakref.ref(type(converted))

    kinds = convert_once()
    gc.collect()  # the class made
    gc.collect()  # its base
    assert [kind() for kind in kinds] == [None, None]
