"""Does every name exist wherever it has to: registry, operators, functions, modules, tests?"""

import inspect
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from fastact import functional, nn
from fastact.activations import REGISTRY
from fastact.testing.cases import (
    CASES,
    EXPECTED_SAMPLES,
    GATED,
    public_function,
)

ROWS = list(REGISTRY.values())
UNARY = [row for row in ROWS if row.family == "unary"]
by_name = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


def _schemas():
    """Of the operators that compute."""
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("fastact::") and any(
            isinstance(value.type, torch.TensorType) for value in schema.returns
        ):
            yield schema.name.removeprefix("fastact::"), schema


def test_names_of_operators():
    names = [name for name, _ in _schemas()]
    assert len(names) == len(set(names)), "an operator has two overloads"
    expected = {f"{row.name}{kind}" for row in [*ROWS, *GATED] for kind in ("", "_backward")}
    expected |= {f"{row.name}_" for row in UNARY}
    expected |= {
        "masked_softmax",
        "masked_softmax_backward",
        "linear",
        "linear_training",
        "linear_backward",
        "linear_packed",
        "pack_linear",
    }
    expected |= {
        f"{mode}{kind}"
        for mode in ("rnn", "gru", "lstm")
        for kind in ("", "_training", "_backward", "_cell")
    }
    assert set(names) == expected


def test_names_of_functions():
    functions = {row.name for row in [*ROWS, *GATED]} | {
        "linear",
        "masked_softmax",
        "rrelu",
        "softmin",
    }
    # "gelu_tanh" is gelu(approximate="tanh").
    assert set(functional.__all__) == functions - {"gelu_tanh"}
    assert all(inspect.isfunction(getattr(functional, name)) for name in functional.__all__)
    # PyTorch's generators test every one that PyTorch has.
    assert set(EXPECTED_SAMPLES) == {name for name in functional.__all__ if hasattr(F, name)}


def test_names_of_modules():
    modules = {row.module for row in [*ROWS, *GATED] if row.module}
    assert set(nn.__all__) == modules | {"Linear", "RReLU", "Softmax2d", "Softmin"} | set(
        nn.recurrent.__all__
    )
    for name in nn.__all__:
        module = getattr(nn, name)
        assert issubclass(module, getattr(torch.nn, name)), name
        assert module.__module__.startswith("fastact.nn")
        assert module.__name__ == name


def test_every_row_has_cases():
    assert {case.row.name for case in CASES} == {row.name for row in [*ROWS, *GATED]}


def test_nothing_of_torch_is_missing():
    """Every activation module of torch.nn; MultiheadAttention aside, as the interface says."""
    theirs = set(torch.nn.modules.activation.__all__) - {"MultiheadAttention"}
    assert theirs - set(nn.__all__) == set()


@by_name
def test_schemas(row):
    """Forward, in-place and backward agree in their parameters, and with the registry."""
    schemas = dict(_schemas())
    forward = [a for a in schemas[row.name].arguments if a.has_default_value()]
    assert {a.name: a.default_value for a in forward} == row.parameters
    assert str(schemas[row.name].arguments[0].type) == "Tensor"
    parameters = [(a.name, str(a.type)) for a in forward]
    backward = [(a.name, str(a.type)) for a in schemas[row.name + "_backward"].arguments]
    assert backward[len(backward) - len(parameters) :] == parameters
    if row.family == "unary":
        inplace = schemas[row.name + "_"]
        assert [(a.name, str(a.type)) for a in inplace.arguments[1:]] == parameters
        assert inplace.arguments[0].is_out is False
        assert inplace.arguments[0].alias_info.is_write
    else:
        assert row.name + "_" not in schemas


@by_name
def test_defaults_are_the_twins(row):
    """Called without parameters, function and twin are the same function."""
    if row.family != "unary" or row.name == "threshold":  # PyTorch's has no defaults
        return
    x = torch.linspace(-8, 25, 101)
    torch.testing.assert_close(public_function(row)(x), row.reference(x))
    torch.testing.assert_close(row.operator(x), row.reference(x))


@by_name
def test_row_is_complete(row):
    assert row.formula
    assert row.module is None or row.module in nn.__all__
    assert row.family in ("unary", "prelu", "softmax")
    assert row.operator is getattr(torch.ops.fastact, row.name)
    low, high = row.domain
    assert math.isfinite(low) and math.isfinite(high) and low < high
    assert row.ulp >= 0
    twin = getattr(F, row.name, None)
    if twin is not None and row.name not in ("sigmoid", "tanh", "softmax", "log_softmax"):
        assert row.reference is twin
    # What draws and measures an activation calls it so.
    if row.family == "unary":
        x = torch.linspace(low, high, 33)
        assert row.exact(x, **row.parameters).isfinite().all()
        assert row.exact(x, **row.parameters).dtype == torch.float64


@by_name
def test_inplace_column(row):
    """``inplace=`` is where the twin has it, and nowhere else."""
    if row.family != "unary" or not hasattr(F, row.name):
        return
    try:
        theirs = "inplace" in inspect.signature(getattr(F, row.name)).parameters
    except ValueError:  # a builtin
        theirs = False
    assert row.inplace == theirs
    assert ("inplace" in inspect.signature(getattr(functional, row.name)).parameters) == theirs
    assert ("inplace" in inspect.signature(getattr(torch.nn, row.module)).parameters) == theirs


@pytest.mark.parametrize("name", sorted(functional.__all__))
def test_documented(name):
    """Each function says what it computes, with an example."""
    doc = getattr(functional, name).__doc__
    assert doc and ">>>" in doc


def test_modules_have_documents_of_their_own():
    for name in nn.__all__:
        assert getattr(nn, name).__doc__ != getattr(torch.nn, name).__doc__, name


def test_names_resolve_in_linear():
    """Every row can be fused."""
    x, w = torch.ones(2, 3), torch.ones(4, 3)
    for row in ROWS:
        learnable = {"slope": torch.ones(1)} if row.family == "prelu" else {}
        result = functional.linear(x, w, activation=row.name, **learnable)
        assert result.shape == (2, 4)
        if row.family == "unary":
            torch.testing.assert_close(
                result, row.reference(torch.full((2, 4), 3.0), **row.parameters)
            )


def test_plain_import_is_light():
    """Nothing heavy comes along; the benchmark's targets name these."""
    heavy = ["matplotlib", "pandas", "rich", "triton", "pytest", "numpy.testing", "torch._inductor"]
    code = (
        "import torch, sys; before = set(sys.modules); import fastact; "
        f"print([m for m in {heavy!r} if m in sys.modules and m not in before])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"
