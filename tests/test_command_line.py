"""Do the commands do what --help says, with its exit codes?"""

import json
import subprocess
import sys

import pytest
import torch

import fastact
from fastact.__main__ import main
from fastact.testing import cases

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Linear(4, width)
        self.second = nn.Linear(width, 3)

    def forward(self, x):
        return self.second(self.first(x))

net = Net(16)
good = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
embedding = nn.Embedding(2, 4)
number = 3

def make(width=8):
    return Net(width)

def function(x):
    return net(x).softmax(0)

def broken():
    raise KeyError("of its own")

def example_inputs():
    return torch.randn(5, 4)

batch = (torch.randn(2, 4),)

def loss(output):
    return nn.functional.cross_entropy(output, torch.zeros(len(output)).long())
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some_model.py"
    path.write_text(MODEL)
    yield str(path)
    sys.modules.pop("some_model", None)
    sys.path.remove(str(tmp_path)) if str(tmp_path) in sys.path else None


def run(capsys, *arguments):
    code = main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_every_command_shows_an_example(capsys):
    for name in ("info", "plot", "advise", "selftest", "convert"):
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert f"  python -m fastact {name}" in text
        assert "exit codes: 0 done" in text


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["plot"], ["plot", "relu"], ["convert"]])
def test_usage_errors(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_as_a_program():
    command = [sys.executable, "-m", "fastact", "info", "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0
    assert json.loads(finished.stdout) == fastact.info() | {
        "threads": json.loads(finished.stdout)["threads"]
    }


def test_info(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert dict(line.split(maxsplit=1) for line in out.splitlines())["torch"] == torch.__version__


# ---- plot --------------------------------------------------------------------------------------


def test_plot(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "x.svg"
    code, said, _ = run(
        capsys, "plot", "leaky_relu", "softmax", "--negative-slope", 0.1, "--out", out
    )
    assert (code, said) == (0, f"wrote {out}\n")
    assert "leaky_relu(negative_slope=0.1)" in out.read_text()
    code, said, _ = run(capsys, "plot", "prelu", "--weight", 0.5, "--out", out, "--json")
    [facts] = json.loads(said)["activations"]
    assert facts["name"] == "prelu(weight=0.5)" and facts["range"] == ["-inf", "inf"]


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["gelo", "--out", "x.png"], "got 'gelo'; nearest: gelu"),
        (["relu", "--out", "x.bmp"], "out: expected a name ending in .png"),
        (["relu", "--out", "none/x.png"], "No such file"),
        (["relu", "--alpha", "1", "--out", "x.png"], "relu takes none"),
    ],
)
def test_plot_errors(capsys, tmp_path, monkeypatch, arguments, text):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "plot", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("python -m fastact plot: error: ") and text in err
    assert list(tmp_path.iterdir()) == []


def test_plot_without_permission(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")

    def refuse(self, *arguments, **keywords):
        raise PermissionError(13, "Permission denied", str(tmp_path / "x.png"))

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", refuse)  # root may write anywhere
    code, _, err = run(capsys, "plot", "relu", "--out", tmp_path / "x.png")
    assert code == 2 and "Permission denied" in err


# ---- advise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Net", "net", "make"])
def test_advise(capsys, file, name):
    code, out, _ = run(capsys, "advise", f"{file}:{name}")
    assert code == 1
    assert "collapsing-linear-maps  first (Linear), " in out and f"{file}:12" in out
    code, out, _ = run(capsys, "advise", f"{file}:{name}", "--json", "--shape", "7x4")
    [advice] = json.loads(out)
    assert (advice["rule"], advice["module"], advice["line"]) == (
        "collapsing-linear-maps",
        "first",
        12,
    )
    code, out, _ = run(capsys, "advise", f"{file}:{name}", "--ignore", "collapsing-linear-maps")
    assert code == 0 and out.startswith("nothing to advise")


def test_advise_of_a_function_and_of_losses(capsys, file):
    code, out, _ = run(capsys, "advise", f"{file}:function", "--inputs", "batch")
    assert code == 1 and "softmax-over-batch" in out
    for loss in ("loss", "CrossEntropyLoss", "cross_entropy"):
        code, out, _ = run(capsys, "advise", f"{file}:function", "--loss", loss)
        assert "softmax-before-cross-entropy" in out
    assert run(capsys, "advise", f"{file}:good", "--loss", "MSELoss")[0] == 0
    assert run(capsys, "advise", f"{file}:embedding", "--shape", "3x2:int64")[0] == 0


def test_advise_lists_its_rules(capsys):
    from fastact.advice import RULES

    code, out, _ = run(capsys, "advise", "--rules")
    assert code == 0
    assert all(name in out and rule.reason in out for name, rule in RULES.items())


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["{file}"], "expected FILE:MODEL"),
        ([], "FILE:MODEL is required"),
        (["nothing.py:Net"], "nothing.py: no such file"),
        (["{file}:Nte"], "no name 'Nte'; nearest: Net"),
        (["{file}:number"], "expected a model, got int"),
        (["{file}:broken"], "KeyError: 'of its own'"),
        (["{file}:Net", "--shape", "3x5"], "RuntimeError: mat1 and mat2 shapes"),
        (["{file}:Net", "--shape", "3xa"], "--shape: expected sizes"),
        (["{file}:Net", "--shape", "3x4:float33"], "--shape: expected sizes"),
        (["{file}:Net", "--inputs", "bach"], "--inputs: no name 'bach'; nearest: batch"),
        (["{file}:Net", "--loss", "MSELos"], "got 'MSELos'; nearest: MSELoss"),
        (["{file}:Net", "--ignore", "dead"], "expected names of rules, got 'dead'"),
    ],
)
def test_advise_errors(capsys, file, arguments, text):
    code, out, err = run(capsys, "advise", *(a.format(file=file) for a in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("python -m fastact advise: error: ") and text in err
    assert "_Failure" not in err


def test_a_file_that_raises_or_has_no_inputs(capsys, tmp_path):
    for text, expected in (("1 / 0", "ZeroDivisionError"), ("def", "SyntaxError")):
        path = tmp_path / f"bad_{expected}.py"
        path.write_text(text)
        code, _, err = run(capsys, "advise", f"{path}:net", "--shape", "3")
        assert code == 2 and expected in err
    path = tmp_path / "random.py"  # the name of a module that is there already
    path.write_text("import torch\nnet = torch.nn.Linear(2, 2)")
    code, _, err = run(capsys, "advise", f"{path}:net")
    assert code == 2 and "expected --shape, --inputs, or a name example_inputs" in err
    assert not hasattr(sys.modules["random"], "net")


# ---- selftest and convert ----------------------------------------------------------------------


def test_selftest_passes(capsys):
    code, out, _ = run(capsys, "selftest", "--json")
    found = json.loads(out)
    assert code == 0 and found["failed"] == []
    assert found["passed"] > 8 * len(cases.CASES)


def test_selftest_notices(capsys, monkeypatch):
    case = next(case for case in cases.CASES if case.row.name == "elu")
    monkeypatch.setattr("fastact.selftest.CASES", [case])
    monkeypatch.setattr("fastact.selftest.FUSED_CASES", [])
    monkeypatch.setattr(fastact.functional, "elu", lambda x, alpha=1.0: torch.selu(x))
    code, out, _ = run(capsys, "selftest")
    assert code == 1
    assert "FAILED elu float32: AssertionError" in out
    assert out.splitlines()[-1] == "5 of 9 checks passed on cpu"


@pytest.mark.parametrize(
    "device, text",
    [("cuda", "PyTorch finds none"), ("mps", "got 'mps'"), ("nonsense", "got 'nonsense'")],
)
def test_selftest_of_a_device_that_is_not_there(capsys, device, text):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU: what is tested is a machine without")
    code, _, err = run(capsys, "selftest", "--device", device)
    assert code == 2 and text in err


def test_convert(capsys, file):
    code, out, _ = run(capsys, "convert", f"{file}:good")
    assert code == 0 and "Sequential" in out and "each layer with what follows it" in out
    code, said, _ = run(capsys, "convert", f"{file}:good", "--mode", "training", "--json")
    assert code == 0 and json.loads(said)["mode"] == "training" and json.loads(said)["plan"]
    code, _, err = run(capsys, "convert", f"{file}:function")
    assert code == 2 and "expected a torch.nn.Module" in err
