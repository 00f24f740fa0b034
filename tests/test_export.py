"""Does torch.export carry every operator, and run it elsewhere?"""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx

from fastact import functional, nn
from fastact.testing.cases import DEFAULT_CASES, FUSED_OF_EACH_KIND, OF_EACH_KIND, VARIED_CASES
from fastact.testing.inputs import random_tensor

ROOT = Path(__file__).parent.parent


class Wrapped(torch.nn.Module):
    def __init__(self, case):
        super().__init__()
        self.function = case.function
        for i, tensor in enumerate(case.tensors(torch.ones(1, 6))):
            self.register_buffer(f"tensor{i}", tensor)

    def forward(self, x):
        return self.function(x * 2, *self.buffers())


def _targets(program):
    return [str(node.target) for node in program.graph.nodes]


@pytest.mark.parametrize("case", VARIED_CASES, ids=str)
def test_export(case):
    """The graph holds fastact's operator, before and after decomposition, for any batch size."""
    model = Wrapped(case)
    shapes = ({0: Dim.DYNAMIC},)
    program = export(model, (random_tensor([4, 6]),), dynamic_shapes=shapes, strict=False)
    decomposed = program.run_decompositions()
    x = random_tensor([7, 6])
    for step in (program, decomposed):
        assert f"fastact.{case.row.name}.default" in _targets(step)
        torch.testing.assert_close(step.module()(x), case.twin(x * 2, *model.buffers()))


@pytest.mark.parametrize("case", OF_EACH_KIND, ids=str)
def test_strict_export(case):
    model = Wrapped(case)
    shapes = ({0: Dim.DYNAMIC},)
    program = export(model, (random_tensor([4, 6]),), dynamic_shapes=shapes, strict=True)
    x = random_tensor([7, 6])
    torch.testing.assert_close(program.module()(x), case.twin(x * 2, *model.buffers()))


@pytest.mark.parametrize("fused", FUSED_OF_EACH_KIND, ids=str)
def test_export_of_linear(fused):
    keywords = {"num_parameters": 4} if fused.learnable else fused.parameters
    layer = nn.Linear(5, 4, activation=fused.name, **keywords)
    shapes = {"input": {0: Dim.DYNAMIC}}
    program = export(layer, (random_tensor([3, 5]),), dynamic_shapes=shapes, strict=False)
    x = random_tensor([7, 5])
    for step in (program, program.run_decompositions()):
        assert "fastact.linear.default" in _targets(step)
        torch.testing.assert_close(step.module()(x), layer(x))


def test_a_saved_program():
    model = torch.nn.Sequential(
        nn.Linear(5, 4, activation="prelu"), nn.SiLU(), nn.Threshold(0.1, 2)
    )
    program = export(model, (random_tensor([3, 5]),), strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    x = random_tensor([3, 5])
    torch.testing.assert_close(torch.export.load(buffer).module()(x), model(x))


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(case, mode):
    """Forward and backward as a graph of operators."""

    def gradient(x, *tensors):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(case.function(leaf, *tensors).sum(), leaf)[0]

    x = case.smooth(4, 6)
    graph = make_fx(gradient, tracing_mode=mode)(x, *case.tensors(x))
    targets = [str(node.target) for node in graph.graph.nodes]
    assert f"fastact.{case.row.name}_backward.default" in targets
    x = case.smooth(4, 6)
    leaf = x.clone().requires_grad_()
    case.twin(leaf, *case.tensors(x)).sum().backward()
    torch.testing.assert_close(graph(x, *case.tensors(x)), leaf.grad)


def test_a_graph_shows_one_operator_per_call():
    """Nothing of the implementation leaks into a traced graph."""
    x, w = random_tensor([3, 4]), random_tensor([5, 4])
    graph = make_fx(lambda x, w: functional.linear(x, w, activation="gelu"))(x, w)
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert calls == ["fastact.linear.default"]


# How a model is written and loaded, and what the loader says of an operator that it does not know.
FORMATS = {
    "torch.export": (
        lambda model, x, path: torch.export.save(export(model, (x,)), path),
        "torch.export.load(path).module()",
        "We failed to resolve torch.ops.fastact.linear.default to an operator",
    ),
    "AOTInductor": (
        lambda model, x, path: torch._inductor.aoti_compile_and_package(
            export(model, (x,)), package_path=path
        ),
        "torch._inductor.aoti_load_package(path)",
        "Could not find schema for fastact::linear",
    ),
    "TorchScript": (
        lambda model, x, path: torch.jit.trace(model, x).save(path),
        "torch.jit.load(path)",
        "Unknown builtin op: fastact::linear",
    ),
}
LOAD = """
import sys, torch
{first}
path = sys.argv[1]
print({load}(torch.linspace(-2, 2, 15).reshape(3, 5)).tolist())
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["torch.export", "TorchScript", pytest.param("AOTInductor", marks=pytest.mark.slow)],
)
def test_who_loads_a_program_is_told_of_fastact(name, tmp_path):
    """docs/export.md states what PyTorch says where fastact was not imported."""
    write, load, says = FORMATS[name]
    model = torch.nn.Sequential(nn.Linear(5, 4, activation="relu"), nn.SiLU()).requires_grad_(False)
    x = torch.linspace(-2, 2, 15).reshape(3, 5)
    path = str(tmp_path / "model.pt2")
    write(model, x, path)
    refused, loaded = (
        subprocess.run(
            [sys.executable, "-c", LOAD.format(first=first, load=load), path],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        for first in ("", "import fastact")
    )
    assert refused.returncode == 1
    assert says in refused.stderr
    assert loaded.returncode == 0, loaded.stderr
    torch.testing.assert_close(torch.tensor(ast.literal_eval(loaded.stdout)), model(x))
