"""Under autocast, does every operator run in the dtype in which its twin runs?"""

import functools

import pytest
import torch
import torch.nn.functional as F

from fastact import functional, nn
from fastact.testing.cases import CASES, DEFAULT_CASES, FUSED_CASES
from fastact.testing.inputs import random_tensor

LOW = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DEVICES = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))


def _autocast(device, low):
    return torch.autocast(device, dtype=low)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_dtype_of_results_and_gradients(case, low, device):
    for dtype in DTYPES:
        x = case.smooth(4, 6, dtype=dtype).to(device)
        results = []
        for function in (case.function, case.twin):
            leaves = [t.clone().requires_grad_() for t in (x, *case.tensors(x))]
            with _autocast(device, low):
                y = function(*leaves)
            y.backward(torch.ones_like(y))
            results.append((y, *(leaf.grad for leaf in leaves)))
        mine, theirs = results
        assert [t.dtype for t in mine] == [t.dtype for t in theirs], f"{dtype} input"
        eps = max(torch.finfo(low).eps, torch.finfo(dtype).eps)
        torch.testing.assert_close(mine, theirs, rtol=4 * eps, atol=8 * eps)


def _linear(fused, x, w, b, slope):
    learnable = {"slope": slope} if fused.learnable else {}
    return functional.linear(x, w, b, activation=fused.name, **fused.parameters, **learnable)


def _twin(fused, x, w, b, slope):
    z = F.linear(x, w, b)
    return fused.twin(z, slope) if fused.learnable else fused.twin(z)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("fused", FUSED_CASES, ids=str)
def test_linear(fused, low, device):
    """As F.linear followed by the activation, for inputs of the same and of other dtypes."""
    for dtype in DTYPES[1:]:
        x = random_tensor([4, 6], dtype, device)
        w, b, slope = (random_tensor(s, device=device) for s in ([3, 6], [3], [3]))
        results = []
        for function in (_linear, _twin):
            leaves = [t.clone().requires_grad_() for t in (x, w, b, slope)]
            needed = leaves if fused.learnable else leaves[:3]
            with _autocast(device, low):
                y = function(fused, *leaves)
            gradients = torch.autograd.grad(y, needed, torch.ones_like(y))
            results.append((y, *gradients))
        assert [t.dtype for t in results[0]] == [t.dtype for t in results[1]], f"{dtype} input"
        assert results[0][1].dtype == dtype
        torch.testing.assert_close(results[0][0], results[1][0], rtol=0.05, atol=0.1)


def test_a_weight_is_cast_once():
    """Autocast keeps the cast of a parameter until its context ends."""
    w = random_tensor([3, 6]).requires_grad_()
    x = random_tensor([4, 6]).requires_grad_()
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        functional.linear(x, w)
        functional.linear(x, w)
    casts = {t.data_ptr() for t in saved if t.dtype == torch.bfloat16 and sorted(t.shape) == [3, 6]}
    assert len(casts) == 1


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
def test_disabled_inside(case):
    """torch.autocast(enabled=False) within is obeyed."""
    x = case.smooth(4, 6, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        y = case.function(x, *case.tensors(x))
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, case.twin(x, *case.tensors(x)))


@pytest.mark.parametrize("low", LOW, ids=str)
def test_model(low):
    """Modules in a row, through a training step."""
    mine = torch.nn.Sequential(
        nn.Linear(6, 8, activation="silu"), nn.PReLU(), nn.Linear(8, 4), nn.Softmax(dim=-1)
    )
    twin = torch.nn.Sequential(
        torch.nn.Linear(6, 8),
        torch.nn.SiLU(),
        torch.nn.PReLU(),
        torch.nn.Linear(8, 4),
        torch.nn.Softmax(dim=-1),
    )
    for own, theirs in zip(mine.parameters(), twin.parameters(), strict=True):
        theirs.data.copy_(own.data)
    x = random_tensor([5, 6])
    outputs = []
    for model in (mine, twin):
        with torch.autocast("cpu", low):
            y = model(x)
        y.float().square().sum().backward()
        outputs.append(y)
    assert outputs[0].dtype == outputs[1].dtype
    gradients = [[p.grad for p in model.parameters()] for model in (mine, twin)]
    assert all(gradient.dtype == torch.float32 for gradient in gradients[0])
    close = functools.partial(torch.testing.assert_close, rtol=0.05, atol=0.01)
    close(outputs[0], outputs[1])
    close(gradients[0], gradients[1])


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
def test_compiled(case):
    """Autocast entered inside a compiled function."""
    torch._dynamo.reset()

    def run(function):
        def inner(x):
            with torch.autocast("cpu", torch.bfloat16):
                return function(x, *tensors)

        return inner

    x = case.smooth(4, 6, dtype=torch.float32)
    tensors = case.tensors(x)
    y = torch.compile(run(case.function), backend="aot_eager", fullgraph=True)(x)
    expected = run(case.twin)(x)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
