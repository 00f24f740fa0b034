"""Where are sites written into the source, what is left, and what is said of it?"""

import importlib
import linecache
import sys
import textwrap
import traceback

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastact
from fastact.testing import programs
from fastact.testing.conversion import MODES, defined, fused, pair, with_forward

X = torch.linspace(-2, 2, 18).reshape(3, 6)


def module_in(folder, name, text):
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return importlib.import_module(name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [
        n for n, m in sys.modules.items() if str(tmp_path) in str(getattr(m, "__file__", ""))
    ]:
        del sys.modules[name]


NET = """\
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return F.relu(self.fc(x))
"""


def test_a_file_edited_after_its_import(folder):
    net = module_in(folder, "edited", NET)
    assert fused(lambda: fastact.convert(net.Net())(X)) == ["relu"]
    for text in (NET.replace("F.relu", "F.gelu"), "\n\nclass Net: pass\n", "not python ("):
        (folder / "edited.py").write_text(textwrap.dedent(text))
        linecache.checkcache()
        model = net.Net()
        with pytest.raises(RuntimeError, match=r"the model \(Net\): forward: it"):
            fastact.convert(model, use_fallback=False)
        converted = fastact.convert(model)
        assert type(converted) is net.Net
        torch.testing.assert_close(converted(X), F.relu(model.fc(X)))


def test_a_file_that_is_gone(folder):
    net = module_in(folder, "gone", NET)
    (folder / "gone.py").unlink()
    linecache.checkcache()
    model = net.Net()
    assert torch.equal(fastact.convert(model)(X), model(X))


def test_functions_without_source():
    scope = {"F": F}
    exec("def forward(self, x):\n    return F.relu(self.fc(x))", scope)
    model = type("Executed", (nn.Module,), {"forward": scope["forward"]})()
    model.fc = nn.Linear(6, 6)
    assert type(fastact.convert(model)) is type(model)
    with pytest.raises(RuntimeError, match=r"\(Executed\): forward: it has no source"):
        fastact.convert(model, use_fallback=False)


def test_functions_that_are_not_their_source():
    """Two on one line, and a code that was changed."""
    scope = defined("pair = [lambda s, x: s.fc(x), lambda s, x: s.fc(x) * 2]\n")
    for forward in scope["pair"]:
        model = type("Lambda", (nn.Module,), {"forward": forward})()
        model.fc = nn.Linear(6, 6)
        assert torch.equal(fastact.convert(model)(X), model(X))
    model = with_forward("return F.relu(self.fc(x)) * 2", fc=nn.Linear(6, 6))
    function = type(model).forward
    function.__code__ = function.__code__.replace(
        co_consts=tuple(3 if c == 2 else c for c in function.__code__.co_consts)
    )
    assert type(fastact.convert(model)) is type(model)


def recorded(function):
    """A decorator that keeps what it wraps in more than a cell."""
    cache = {"function": function}

    def wrapper(*args):
        return cache["function"](*args)

    wrapper.__wrapped__ = function
    return wrapper


class Decorated(programs.Parts):
    @recorded
    def forward(self, x):
        return F.relu(self.fc(x))


def test_an_unknown_decorator():
    model = Decorated().eval()
    assert torch.equal(fastact.convert(model)(X), model(X))
    with pytest.raises(RuntimeError, match=r"\(Decorated\): forward: it is decorated"):
        fastact.convert(model, use_fallback=False)


def test_what_has_no_site_keeps_its_class():
    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.act = nn.LayerNorm(6), nn.LayerNorm(6), nn.ReLU()
            self.inner = nn.Sequential(nn.LayerNorm(6))

        def forward(self, x):
            x = F.relu(self.a(x))
            x = self.act(self.b(x))
            return x + self.inner(x)

    converted = fastact.convert(Norms())
    assert type(converted) is Norms
    norms = nn.Sequential(nn.LayerNorm(6), nn.ReLU())
    assert type(fastact.convert(norms)) is nn.Sequential


def test_only_the_calls_of_layers_are_sites():
    class Mixed(programs.Parts):
        def forward(self, x):
            x = F.relu(self.norm(x))
            return F.relu(self.fc(x)) + x

    converted = fastact.convert(Mixed())
    names = type(converted).forward.__code__.co_freevars
    assert [name for name in names if name.strip("_")[4:].isdigit()] == ["_site0"]


# ---- tracebacks --------------------------------------------------------------------------------


class Lines(programs.Parts):
    def forward(self, x):
        y = self.fc(x)
        y = self.norm(y)
        y = self.act(y)
        z = F.relu(self.fc2(y))
        z = self.other(
            z,
        )
        return z

    def other(self, x):
        raise KeyError("mine")


def lines_of(model, x):
    with pytest.raises((KeyError, RuntimeError, ArithmeticError)) as caught:
        model(x)
    frames = traceback.extract_tb(caught.value.__traceback__)
    return [(f.name, f.lineno, f.line) for f in frames if f.filename == __file__], caught.type


@pytest.mark.parametrize("mode", MODES)
def test_lines_of_errors(mode):
    model, converted = pair(Lines, mode)
    assert lines_of(converted, X) == lines_of(model, X)
    assert lines_of(converted, X[:, :3]) == lines_of(model, X[:, :3])
    for one in (model, converted):
        one.act.register_forward_hook(fail)
    assert lines_of(converted, X) == lines_of(model, X)
    for one in (model, converted):
        one.norm = nn.BatchNorm1d(3)
    assert lines_of(converted, X) == lines_of(model, X)


def fail(*args):
    raise ArithmeticError


def test_the_call_goes_over_lines():
    model = with_forward("return F.relu(\n    self.fc(\n        x))", fc=nn.Linear(6, 6))
    converted = fastact.convert(model)
    found = []
    for one in (model, converted):
        with pytest.raises(RuntimeError) as caught:
            one(X[:, :2])
        frames = traceback.extract_tb(caught.value.__traceback__)
        found.append([f.lineno for f in frames if f.filename.startswith("<fastact.testing")])
    assert found[0] == found[1]


# ---- what is said ------------------------------------------------------------------------------


class Said(programs.Parts):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        x = F.relu(self.fc(x))
        y = self.fc2(x)
        y = self.act(y)
        z = F.relu(self.conv(y[None, None]))
        return self.body(y) + z[0, 0]

    def parts(self, x):
        yield self.fc(x)


def test_dry_run(capsys):
    model = Said()
    for inplace in (False, True):
        assert fastact.convert(model, dry_run=True, inplace=inplace) is model
    assert type(model) is Said and type(model.body) is nn.Sequential
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    lines = capsys.readouterr().out.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    first = Said.forward.__code__.co_firstlineno
    assert (
        lines[0].split()
        == (
            f"(the model) Said forward, line {first + 1}: F.relu(self.fc(x)); "
            f"forward, line {first + 2}: self.fc2(x); "
            f"forward, line {first + 4}: F.relu(self.conv(y[None, None]))"
        ).split()
    )
    assert lines[1].split() == [
        "body",
        "Sequential",
        "each",
        "layer",
        "with",
        "what",
        "follows",
        "it",
    ]
    fastact.convert(nn.LayerNorm(3), dry_run=True)
    assert capsys.readouterr().out == "nothing to convert\n"


def test_dry_run_says_what_is_left(capsys):
    model = Decorated()
    model.fc2 = programs.Doubled(6, 6)
    fastact.convert(model, dry_run=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("Decorated  left as it is: forward: it is decorated")
    assert second.split()[:2] == ["fc2", "Doubled"]
    assert second.endswith("its class is derived from a layer's, and may compute something else")
