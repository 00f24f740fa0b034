"""Do nested and jagged tensors get what PyTorch gives them, in every grad mode?"""

import contextlib
import warnings

import pytest
import torch
import torch.nn.functional as F

from fastact import functional
from fastact.activations import REGISTRY
from fastact.testing.cases import DEFAULT_CASES, VARIED_FUSED_CASES

MODES = {
    "grad": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}
LAYOUTS = {"nested": torch.strided, "jagged": torch.jagged}


@pytest.fixture(autouse=True)
def _no_prototype_warning():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested tensors.*")
        yield


def _nested(layout):
    torch.manual_seed(0)
    rows = [torch.randn(3, 6), torch.randn(5, 6)]
    return torch.nested.nested_tensor(rows, layout=LAYOUTS[layout])


def _outcome(function):
    """What comes out, as the tensors inside, or the type of the error."""
    try:
        result = function()
    except Exception as error:
        return type(error)
    assert result.is_nested
    return result.unbind()


def _compare(mine, theirs):
    if isinstance(theirs, type):
        # PyTorch has no such kernel; where fastact composes one of kernels that there are, well.
        assert not isinstance(mine, type) or issubclass(mine, (RuntimeError, ValueError)), mine
    else:
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
def test_activations(case, layout, mode):
    x = _nested(layout)
    weights = case.tensors(torch.ones(1))
    with MODES[mode]():
        mine = _outcome(lambda: case.function(x, *weights))
        theirs = _outcome(lambda: case.row.reference(x, *weights, **case.keywords))
    _compare(mine, theirs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fused", VARIED_FUSED_CASES, ids=str)
def test_linear(fused, layout, mode):
    x, w, b = _nested(layout), torch.randn(4, 6), torch.randn(4)
    slope = torch.tensor([0.2]) if fused.learnable else None
    settings = {"activation": fused.name, "slope": slope, **fused.parameters}
    packed = torch.ops.fastact.pack_linear(w)
    with MODES[mode]():
        mine = _outcome(lambda: functional.linear(x, w, b, **settings))
        frozen = _outcome(
            lambda: torch.ops.fastact.linear_packed(
                x, packed, w, b, fused.name, fused.values, slope
            )
        )
        slopes = [slope] if fused.learnable else []
        theirs = _outcome(lambda: fused.twin(F.linear(x, w, b), *slopes))
    _compare(mine, theirs)
    _compare(frozen, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_masked_softmax(mode, layout):
    x = _nested(layout)
    with MODES[mode]():
        mine = _outcome(lambda: functional.masked_softmax(x, scale=0.5))
        theirs = _outcome(lambda: torch.softmax(x * 0.5, -1))
    _compare(mine, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pytorch_computes_some(layout):
    """The comparisons above would prove nothing where PyTorch refused everything."""
    x = _nested(layout)
    with torch.inference_mode():
        computed = [n for n in ("relu", "gelu", "softmax") if _is_computed(REGISTRY[n], x)]
        assert not isinstance(_outcome(lambda: F.linear(x, torch.randn(4, 6))), type)
    assert computed == ["relu", "gelu", "softmax"]


def _is_computed(row, x):
    keywords = {"dim": -1} if row.along_dimension else {}
    return not isinstance(_outcome(lambda: row.reference(x, **keywords)), type)
