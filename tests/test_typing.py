"""Do type checkers, editors and help() see real signatures, and does a typed program pass?"""

import ast
import inspect
import os
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastact
from fastact import functional, memory, nn
from tools import write_stubs

ROOT = Path(__file__).parent.parent
PROGRAM = Path(__file__).with_name("typed_program.py")


def run(*command):
    finished = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_a_users_program_runs():
    run(str(PROGRAM))


def test_a_users_program_is_well_typed():
    """12 s, all of them mypy's reading of PyTorch; half a second again with its cache."""
    run("-m", "mypy", "--strict", "--follow-imports=silent", str(PROGRAM))


def test_the_program_calls_every_public_name():
    tree = ast.parse(PROGRAM.read_text())
    called = {node.func.attr for node in ast.walk(tree) if is_call_of_a_name(node)}
    functions = [name for name, value in vars(memory).items() if inspect.isfunction(value)]
    everything = {*functional.__all__, *nn.__all__}
    everything |= {name for name in functions if not name.startswith("_")}
    everything |= {name for name in fastact.__all__ if inspect.isfunction(getattr(fastact, name))}
    assert everything <= called, everything - called


def is_call_of_a_name(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)


def test_stubs_are_what_the_modules_say():
    run("tools/write_stubs.py", "--check")


def test_an_outdated_stub_is_found(tmp_path, monkeypatch, capsys):
    stub = (ROOT / "fastact" / "functional.pyi").read_text()
    (tmp_path / "functional.pyi").write_text(stub.replace("alpha", "beta"))
    monkeypatch.setattr(write_stubs, "ROOT", tmp_path)
    stubs = {tmp_path / "functional.pyi": write_stubs.functions}
    monkeypatch.setattr(write_stubs, "STUBS", stubs)
    monkeypatch.setattr(sys, "argv", ["write_stubs.py", "--check"])
    assert write_stubs.main() == 1
    assert "+    alpha: float = 1.0," in capsys.readouterr().err
    (tmp_path / "functional.pyi").write_text(stub)
    assert write_stubs.main() == 0


@pytest.mark.parametrize("name", functional.__all__)
def test_signature_of_a_function(name):
    function = getattr(functional, name)
    mine = inspect.signature(function, eval_str=True)
    assert mine.return_annotation is torch.Tensor
    assert all(p.annotation is not p.empty for p in mine.parameters.values())
    assert f"{name}(input: " in pydoc.plain(pydoc.render_doc(function))


# PyTorch has none of the name, or a builtin, of which Python tells no signature.
WITHOUT_TWIN = {"geglu", "masked_softmax", "reglu", "swiglu"}
BUILTIN = {
    "conv1d", "conv2d", "conv3d", "gelu", "hardshrink", "linear", "logsigmoid", "prelu", "softplus",
    "softshrink",
}  # fmt: skip


def test_which_functions_have_no_twin_to_compare_with():
    assert {name for name in functional.__all__ if not hasattr(F, name)} == WITHOUT_TWIN
    for name in BUILTIN:
        with pytest.raises(ValueError, match="no signature found"):
            inspect.signature(getattr(F, name))


@pytest.mark.parametrize("name", sorted({*functional.__all__} - WITHOUT_TWIN - BUILTIN))
def test_signature_is_the_twins(name):
    mine, twin = (inspect.signature(getattr(module, name)) for module in (functional, F))
    described = [(p.name, p.default, p.kind) for p in mine.parameters.values()]
    assert described == [(p.name, p.default, p.kind) for p in twin.parameters.values()]


# What the forward of a recurrent module takes and returns; torch.nn's layers annotate nothing.
_STATES = {"LSTM": "tuple[torch.Tensor, torch.Tensor]"}


def _forward_of(name):
    states = _STATES.get(name.removesuffix("Cell"), "torch.Tensor")
    if name.endswith("Cell"):
        return f"(self, input: torch.Tensor, hx: {states} | None = None) -> {states}"
    if name in nn.recurrent.__all__:
        return (
            "(self, input: torch.Tensor | torch.nn.utils.rnn.PackedSequence, "
            f"hx: {states} | None = None, *, lengths: torch.Tensor | None = None) "
            f"-> tuple[typing.Any, {states}]"
        )
    return "(self, input: torch.Tensor) -> torch.Tensor"


@pytest.mark.parametrize("name", nn.__all__)
def test_signature_of_a_module(name):
    module, twin = getattr(nn, name), getattr(torch.nn, name)
    forward = inspect.signature(module.forward, eval_str=True)
    assert str(forward) == _forward_of(name)
    assert module.forward.__qualname__ == f"{name}.forward"
    mine, theirs = inspect.signature(module).parameters, inspect.signature(twin).parameters
    described = [(p.name, p.default, p.kind) for p in mine.values()]
    expected = [(p.name, p.default, p.kind) for p in theirs.values()]
    assert described[: len(expected)] == expected
    assert f"class {name}(" in pydoc.plain(pydoc.render_doc(module))


def test_what_types_need_is_shipped(tmp_path):
    run("setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path))
    for name in ("py.typed", "functional.pyi", "nn/activations.pyi"):
        assert (tmp_path / "fastact" / name).exists(), name
