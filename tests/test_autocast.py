"""Under autocast, does every operator run in the dtype in which its twin runs?"""

import contextlib
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

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


@contextlib.contextmanager
def _cuda_without_a_device(low):
    """CUDA's autocast, on tensors without values."""
    with FakeTensorMode():
        torch.set_autocast_dtype("cuda", low)
        torch.set_autocast_enabled("cuda", True)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("low", LOW, ids=str)
def test_dtypes_on_cuda(low):
    with _cuda_without_a_device(low):
        for dtype in DTYPES:
            x = torch.empty(4, 6, dtype=dtype, device="cuda")
            for case in CASES:
                tensors = case.tensors(x)
                mine, theirs = (f(x, *tensors).dtype for f in (case.function, case.twin))
                assert mine == theirs, f"{case} of {dtype}"
            mask = torch.ones_like(x)
            assert functional.masked_softmax(x, mask).dtype == torch.softmax(x + mask, -1).dtype
            for name, asked in itertools.product(("softmax", "softmin", "log_softmax"), DTYPES):
                mine, theirs = (getattr(f, name)(x, -1, dtype=asked) for f in (functional, F))
                assert mine.dtype == theirs.dtype == asked, f"{name} of {dtype}"


@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("added", [None, torch.float32, torch.bfloat16], ids=str)
def test_dtypes_of_linear_on_cuda(added, low):
    with _cuda_without_a_device(low):
        for dtype, fused in itertools.product(DTYPES[1:], FUSED_CASES):
            x, w, b, slope, residual = (
                torch.empty(shape, dtype=kind, device="cuda")
                for shape, kind in (
                    ((4, 6), dtype),
                    ((3, 6), torch.float32),
                    ((3,), torch.float32),
                    ((3,), torch.float32),
                    ((4, 3), added),
                )
            )
            learnable = {"slope": slope} if fused.learnable else {}
            more = {} if added is None else {"residual": residual}
            mine = functional.linear(x, w, b, fused.name, **fused.parameters, **learnable, **more)
            z = F.linear(x, w, b)
            z = z if added is None else z + residual
            theirs = fused.twin(z, slope) if fused.learnable else fused.twin(z)
            assert mine.dtype == theirs.dtype, f"{fused} of {dtype}"


@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_dtypes_of_recurrent_layers_on_cuda(name, low):
    """All that autocast casts is in the lower precision there, cells and states too. (PyTorch asks
    the device which gru and which cells to run: its rnn and lstm show it.)"""
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[name]
    with _cuda_without_a_device(low):
        for dtype in DTYPES[1:]:
            x, h = (torch.empty(s, dtype=dtype, device="cuda") for s in ((5, 2, 6), (1, 2, 4)))
            rows = 4 * gates
            w = [torch.empty(s, device="cuda") for s in ((rows, 6), (rows, 4), (rows,), (rows,))]
            states = (h, h) if name == "lstm" else (h,)
            results = getattr(torch.ops.fastact, name)(x, *states, w)
            row, state = (torch.empty(s, dtype=dtype, device="cuda") for s in ((2, 6), (2, 4)))
            operands = (row, *(state for _ in states), *w)
            cell = getattr(torch.ops.fastact, f"{name}_cell")(*operands)
            found = [*results, *(cell if name == "lstm" else [cell])]
            assert {t.dtype for t in found} == {low}, f"{name} of {dtype}"
            if name != "gru":
                twin = torch._VF.lstm if name == "lstm" else torch._VF.rnn_tanh
                hx = states if name == "lstm" else h
                theirs = twin(x, hx, w, True, 1, 0.0, False, False, False)
                assert [t.dtype for t in theirs] == [t.dtype for t in results]


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
