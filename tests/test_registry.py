"""Does every name exist wherever it has to: registry, operators, functions, modules, tests?"""

import inspect
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from fastact import functional, nn
from fastact.activations import FUSIBLE, REFUSED, REGISTRY
from fastact.layers import LAYERS
from fastact.testing.cases import CASES, public_function
from fastact.testing.samples import EXPECTED_SAMPLES

ROWS = list(REGISTRY.values())
UNARY = [row for row in ROWS if row.family == "unary"]


def over(rows):
    return pytest.mark.parametrize("row", rows, ids=[row.name for row in rows])


def _schemas():
    """Of the operators that compute."""
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("fastact::") and any(
            isinstance(value.type, torch.TensorType) for value in schema.returns
        ):
            yield schema.name.removeprefix("fastact::"), schema


def test_names_of_operators():
    """Those of the rows are there; test_opcheck.py tells that each is checked."""
    names = [name for name, _ in _schemas()]
    assert len(names) == len(set(names)), "an operator has two overloads"
    expected = {f"{row.name}{kind}" for row in ROWS for kind in ("", "_backward")}
    expected |= {f"{row.name}_" for row in UNARY}
    assert expected <= set(names)


def test_names_of_functions():
    functions = set(functional.__all__)
    assert {row.function for row in ROWS} <= functions
    assert all(hasattr(F, name) or hasattr(torch.ops.fastact, name) for name in functions)
    assert all(inspect.isfunction(getattr(functional, name)) for name in functional.__all__)
    # PyTorch's generators test every one that PyTorch has.
    assert set(EXPECTED_SAMPLES) == {name for name in functional.__all__ if hasattr(F, name)}


def test_names_of_modules():
    modules = {row.module for row in ROWS if row.module}
    by_hand = {row.twin.__name__ for row in LAYERS.values()}
    by_hand |= {"RReLU", "Softmax2d", "Softmin", *nn.recurrent.__all__}
    assert set(nn.__all__) == modules | by_hand
    for name in nn.__all__:
        module = getattr(nn, name)
        assert issubclass(module, getattr(torch.nn, name)), name
        assert module.__module__.startswith("fastact.nn")
        assert module.__name__ == name


def test_every_row_has_cases():
    assert {case.row.name for case in CASES} == set(REGISTRY)


def test_nothing_of_torch_is_missing():
    """Every activation module of torch.nn; MultiheadAttention aside, as the interface says."""
    theirs = set(torch.nn.modules.activation.__all__) - {"MultiheadAttention"}
    assert theirs - set(nn.__all__) == set()


@over(ROWS)
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


@over([row for row in UNARY if not row.requires_parameters])
def test_defaults_are_the_twins(row):
    """Called without parameters, function and twin are the same function."""
    x = torch.linspace(-8, 25, 101)
    torch.testing.assert_close(public_function(row)(x), row.reference(x))
    torch.testing.assert_close(row.operator(x), row.reference(x))


@over(ROWS)
def test_row_is_complete(row):
    assert row.formula
    assert row.module is None or row.module in nn.__all__
    assert row.family in ("unary", "prelu", "softmax", "gated")
    assert row.results in ("", "probabilities", "log-probabilities")
    low, high = row.domain
    assert math.isfinite(low) and math.isfinite(high) and low < high
    assert row.ulp >= 0
    twin = getattr(F, row.name, None)
    if twin is not None:
        assert row.reference in (twin, getattr(torch, row.name, None))
    # What draws and measures an activation calls it so.
    if row.family == "unary":
        x = torch.linspace(low, high, 33)
        assert row.exact(x, **row.parameters).isfinite().all()
        assert row.exact(x, **row.parameters).dtype == torch.float64


@over(ROWS)
def test_results_column(row):
    """It names those whose results, or their exponentials, lie between 0 and 1: of all rows."""
    tensors = [torch.full((1,), 0.25) for _ in row.tensors]
    y = row.operator(20 * torch.randn(1000), *tensors)
    in_unit_interval = {
        "probabilities": bool(((y >= 0) & (y <= 1)).all()),
        "log-probabilities": bool((y <= 0).all()),
    }
    assert [name for name, holds in in_unit_interval.items() if holds] == (
        [row.results] if row.results else []
    )


@over([row for row in UNARY if hasattr(F, row.name)])
def test_inplace_column(row):
    """``inplace=`` is where the twin has it, and nowhere else."""
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
    """Every row can be fused that keeps the shape; every other says why not."""
    x, w = torch.ones(2, 3), torch.ones(4, 3)
    for name in REGISTRY.keys() - FUSIBLE.keys():
        assert name in REFUSED
        with pytest.raises(ValueError, match="cannot be fused: it changes the shape"):
            functional.linear(x, w, activation=name)
    for row in FUSIBLE.values():
        learnable = {"slope": torch.ones(1)} if row.takes_slope else {}
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
