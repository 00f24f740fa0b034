"""Do the CUDA kernels of activations and gated units compute what PyTorch does, touch no memory but
their own, and move each byte once? Run on the host by an emulator (tools/cuda_emulator.py)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from emulated import each_dtype, each_fault

from fastact.activations import REGISTRY
from fastact.testing.accuracy import DEFAULT_CASES, exact, saves_output
from fastact.testing.ulp import ulp_error
from tools.cuda_emulator import DTYPES, SEEDS, Fault, Session, build

UNARY = [case for case in DEFAULT_CASES if case.row.family == "unary"]
FEW = [case for case in UNARY if case.row.name in ("relu", "gelu", "softplus")]
THREADS = 256
# One element, less than a vector, a block and a bit, some blocks.
SIZES = (1, 3, 1027, 2500)

# In ULP, of the host's mathematical library in place of CUDA's.
FORWARD_BOUND = 4.0


def bound_of(dtype: torch.dtype, bound: float) -> float:
    return 0.52 if dtype.itemsize == 2 else bound


def check(result: torch.Tensor, truth: torch.Tensor, bound: float) -> None:
    if result.dtype == torch.float64:  # the truth has no more digits
        torch.testing.assert_close(result, truth, rtol=1e-13, atol=1e-15)
        return
    error = ulp_error(result, truth.double())
    assert error.max() <= bound_of(result.dtype, bound), error.max()


@pytest.fixture(scope="module")
def library():
    return build("elementwise")


def arguments_of(case, index, size):
    dtype = DTYPES[index]
    return case.row.name, index, torch.linspace(-9, 9, size).to(dtype), list(case.values)


def run_forward(library, case, index, size, seed, offset=0):
    name, number, data, parameters = arguments_of(case, index, size)
    session = Session(library, seed, offset)
    x = session.input("x", data)
    y = session.output("y", data.shape, data.dtype)
    library.call("test_forward", name, number, x, y, size, parameters)
    return session, x, y


CASES = [(case, 0) for case in UNARY] + [(case, i) for case in FEW for i in (1, 2, 3)]


@pytest.mark.parametrize(("case", "index"), CASES, ids=str)
def test_forward(library, case, index):
    results = []
    for seed in SEEDS:
        size, offset = SIZES[seed % len(SIZES)], seed // len(SIZES)
        session, x, y = run_forward(library, case, index, size, seed, offset)
        assert not session.reports()
        assert session.traffic() == {"x": (1, 0), "y": (0, 1)}
        check(y, exact(case, x), FORWARD_BOUND)
        results.append(y.clone())
    for aligned, misaligned in zip(results[:4], results[4:], strict=True):
        assert torch.equal(aligned.view(torch.uint8), misaligned.view(torch.uint8))


@pytest.mark.parametrize(("case", "index"), CASES, ids=str)
def test_backward(library, case, index):
    for seed in SEEDS:
        size, offset = SIZES[seed % len(SIZES)], seed // len(SIZES)
        name, number, data, parameters = arguments_of(case, index, size)
        x = data.double().requires_grad_()
        y = exact(case, x)
        session = Session(library, seed, offset)
        grad = session.input("grad", torch.linspace(0.5, 2, size).to(data.dtype))
        (truth,) = torch.autograd.grad(y, x, grad.double())
        saved = y.detach().to(data.dtype) if saves_output(case) else data
        saved = session.input("saved", saved)
        dx = session.output("dx", data.shape, data.dtype)
        library.call("test_backward", name, number, grad, saved, dx, size, parameters)
        assert not session.reports()
        assert session.traffic() == {"grad": (1, 0), "saved": (1, 0), "dx": (0, 1)}
        # From a rounded output, digits of the derivative are gone.
        epsilon = torch.finfo(data.dtype).eps
        torch.testing.assert_close(dx.double(), truth, rtol=16 * epsilon, atol=4 * epsilon)


def test_in_place(library):
    for seed in SEEDS:
        session = Session(library, seed)
        x = session.both("x", torch.linspace(-9, 9, 1027))
        before = x.clone()
        library.call("test_forward", "gelu", 0, x, x, 1027, [])
        assert not session.reports()
        assert session.traffic() == {"x": (1, 1)}
        torch.testing.assert_close(x, F.gelu(before))


def test_every_activation_is_there(library):
    for case in UNARY:
        run_forward(library, case, 0, 1, 0)
    assert len(UNARY) == sum(row.family == "unary" for row in REGISTRY.values())
    with pytest.raises(ValueError, match="test_forward"):
        session = Session(library, 0)
        x = session.both("x", torch.zeros(1))
        library.call("test_forward", "no activation", 0, x, x, 1, [])


# ---- gated units: PyTorch's glu has the gate second, the others have it first ------------------

GATES = [torch.sigmoid, F.silu, F.gelu, F.relu]


def gated_truth(gate, x):
    first, second = x.double().unbind(1)
    return first * torch.sigmoid(second) if gate == 0 else GATES[gate](first) * second


@each_dtype
@pytest.mark.parametrize("gate", range(4), ids=["glu", "swiglu", "geglu", "reglu"])
def test_gated(library, gate, index):
    for seed in SEEDS:
        # Rows of whole vectors, and others; a misaligned one of each.
        outer, length = ((5, 48), (37, 5), (1, 1029), (3, 256))[seed % 4]
        session = Session(library, seed, seed // 4)
        data = torch.linspace(-4, 4, outer * 2 * length).to(DTYPES[index])
        x = session.input("x", data.view(outer, 2, length))
        y = session.output("y", (outer, length), x.dtype)
        library.call("test_gated", gate, index, x, y, outer, length, gate != 0)
        wide = x.double().requires_grad_()
        truth = gated_truth(gate, wide)
        assert not session.reports()
        assert session.traffic() == {"x": (1, 0), "y": (0, 1)}
        check(y, truth.detach(), FORWARD_BOUND)

        session = Session(library, seed, seed // 4)
        grad = session.input("grad", torch.linspace(-1, 2, outer * length).to(x.dtype))
        x = session.input("x", x)
        dx = session.output("dx", x.shape, x.dtype)
        library.call("test_gated_backward", gate, index, grad, x, dx, outer, length, gate != 0)
        (truth,) = torch.autograd.grad(truth, wide, grad.double().view(outer, length))
        assert not session.reports()
        assert session.traffic() == {"grad": (1, 0), "x": (1, 0), "dx": (0, 1)}
        epsilon = torch.finfo(x.dtype).eps
        torch.testing.assert_close(dx.double(), truth, rtol=16 * epsilon, atol=4 * epsilon)


# ---- what the checks are worth -----------------------------------------------------------------

FAULTS = [
    Fault("for_each.h", "i < end; i +=", "i <= end; i +="),
    Fault("for_each.h", "int i = whole * kCount + thread", "int i = whole * kCount + kCount"),
    Fault("for_each.h", "if (thread < whole)", "if (thread <= whole)"),
    Fault("for_each.h", "i += kForEachThreads", "i += kForEachThreads / 2"),
    Fault("for_each.h", "wide ? end / kCount : 0", "end / kCount"),
    Fault("for_each.h", "block + thread * kCount", "block + thread * (kCount - 1)"),
    Fault("for_each.h", "int i = whole * kCount + thread", "int i = thread"),
    Fault("for_each.h", "(n + kOfBlock - 1) / kOfBlock", "(n - 1 + kOfBlock / 2) / kOfBlock"),
    Fault("for_each.h", "const int64_t block = int64_t{blockIdx.x}", "const int64_t block = 0"),
    Fault("elementwise.h", "v.store(y + i);", "v.store(const_cast<T*>(x) + i);"),
    Fault("elementwise.h", "kCount>::load(saved + i)", "kCount>::load(grad + i)"),
    Fault("elementwise.h", "a.store(dgate + at);", "a.store(dvalue + at);"),
    Fault("elementwise.h", "length % kLanes<T> == 0 && is_aligned(x)", "is_aligned(x)"),
]


def notice(library) -> str:
    """What a run of all kernels shows."""
    noticed = ""
    relu = next(case for case in UNARY if case.row.name == "relu")
    for seed, (size, offset) in enumerate([(1027, 0), (2500, 1), (3, 0)]):
        session, x, y = run_forward(library, relu, 0, size, seed, offset)
        noticed += session.reports()
        noticed += "" if session.traffic() == {"x": (1, 0), "y": (0, 1)} else "traffic\n"
        noticed += "" if torch.equal(y, x.relu()) else "values\n"

        session = Session(library, seed, offset)
        grad, saved = session.input("grad", x + 1), session.input("saved", x)
        dx = session.output("dx", x.shape, x.dtype)
        library.call("test_backward", "relu", 0, grad, saved, dx, size, [])
        noticed += session.reports()
        noticed += "" if torch.equal(dx, (x > 0) * grad) else "values\n"
    for seed, (outer, length) in enumerate([(5, 48), (7, 9)]):
        session = Session(library, seed)
        x = session.input("x", torch.randn(outer, 2, length))
        y = session.output("y", (outer, length), x.dtype)
        library.call("test_gated", 3, 0, x, y, outer, length, True)
        noticed += session.reports()
        noticed += "" if torch.equal(y, x[:, 0].relu() * x[:, 1]) else "values\n"
        session = Session(library, seed)
        grad, x = session.input("grad", y), session.input("x", x)
        dx = session.output("dx", x.shape, x.dtype)
        library.call("test_gated_backward", 3, 0, grad, x, dx, outer, length, True)
        noticed += session.reports()
    return noticed


def test_nothing_is_noticed_without_a_fault(library):
    assert not notice(library)


@each_fault(FAULTS)
def test_faults_are_noticed(fault):
    assert notice(build("elementwise", fault, few=True))
