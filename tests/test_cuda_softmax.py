"""Do the CUDA kernels of softmax, by rows, by columns and under masks, compute what PyTorch does?
Run on the host by an emulator (tools/cuda_emulator.py)."""

from __future__ import annotations

import math

import pytest
import torch
from emulated import complaints, each_dtype, each_fault, few_dtypes, numbers

from tools.cuda_emulator import DTYPES, SEEDS, Fault, Session, build

NONE, ADDED, BOOLEAN, CAUSAL = range(4)


@pytest.fixture(scope="module")
def library():
    return build("softmax")


def close(result, truth):
    epsilon = torch.finfo(result.dtype).eps
    torch.testing.assert_close(
        result.double(), truth, rtol=8 * epsilon, atol=8 * epsilon, equal_nan=True
    )


def truth_of(z, dim, log):
    return (torch.log_softmax if log else torch.softmax)(z, dim)


# Rows for a warp, with one access a thread and more; for a block of 256 threads and of 512; for
# the online kernel. Of whole accesses, and others.
LENGTHS = [(5, 1), (6, 8), (3, 67), (5, 200), (3, 512), (2, 501), (2, 1024), (2, 999)]
LONG = [(2, 4104), (1, 8200), (1, 17000), (1, 16401)]


def rows_case(library, index, shape, seed, scale, log):
    rows, length = shape
    dtype = DTYPES[index]
    session = Session(library, seed, seed // 4 % 2)
    x = session.input("x", numbers(rows, length, dtype=dtype, scale=3.0))
    y = session.output("y", x.shape, dtype)
    library.call("test_softmax", index, x, y, rows, length, scale, log, NONE, None, [1, 1, 0, 0])
    reads = 2 if length > 1024 * 16 else 1
    assert not session.reports()
    assert session.traffic() == {"x": (reads, 0), "y": (0, 1)}
    wide = x.double().requires_grad_()
    truth = truth_of(wide * scale, -1, log)
    close(y, truth.detach())
    bits = y.clone()

    session = Session(library, seed, seed // 4 % 2)
    grad = session.input("grad", numbers(rows, length, dtype=dtype, seed=1))
    y = session.input("y", y)
    dx = session.output("dx", x.shape, dtype)
    library.call(
        "test_softmax_backward",
        index,
        grad,
        y,
        dx,
        rows,
        length,
        scale,
        log,
        NONE,
        None,
        [1, 1, 0, 0],
    )
    assert not session.reports()
    reads = 2 if length > 1024 * 8 else 1
    y_reads = 1 if log else reads
    assert session.traffic() == {"grad": (reads, 0), "y": (y_reads, 0), "dx": (0, 1)}
    y, g = y.double(), grad.double()
    close(dx, g - y.exp() * g.sum(-1, True) if log else scale * y * (g - (g * y).sum(-1, True)))
    return bits


@each_dtype
@pytest.mark.parametrize("shape", LENGTHS, ids=str)
def test_rows(library, index, shape):
    results = [rows_case(library, index, shape, s, [1.0, -0.5][s % 2], s % 4 > 1) for s in SEEDS]
    assert len(results) == len(SEEDS)


@few_dtypes
@pytest.mark.parametrize("shape", LONG, ids=str)
def test_long_rows(library, index, shape):
    same = [rows_case(library, index, shape, seed, 1.0, False) for seed in (0, 1)]
    assert torch.equal(*same)
    rows_case(library, index, shape, 4, 0.5, True)


@pytest.mark.parametrize("length", [3, 40, 600, 17000])
def test_special_values(library, length):
    """Rows of -infinity alone, with infinity, with NaN, and with large numbers."""
    x = torch.zeros(5, length)
    x[0] = -math.inf
    x[1, -1] = math.inf
    x[2, 0] = math.nan
    x[3] = torch.linspace(-3e4, 3e4, length)
    x[4, :-1] = -math.inf
    for log in (False, True):
        session = Session(library, 1)
        data = session.input("x", x)
        y = session.output("y", x.shape, x.dtype)
        library.call("test_softmax", 0, data, y, 5, length, 1.0, log, NONE, None, [1, 1, 0, 0])
        assert not session.reports()
        close(y, truth_of(x.double(), -1, log))


@few_dtypes
@pytest.mark.parametrize("kind", [ADDED, BOOLEAN, CAUSAL], ids=["added", "boolean", "causal"])
@pytest.mark.parametrize("length", [9, 64, 520])
def test_masks(library, index, kind, length):
    """[batch, rows, length], with a mask of [rows, length] or [batch, 1, length]."""
    batch, rows, dtype = 2, 5, DTYPES[index]
    for seed in SEEDS if length < 500 else range(2):
        per_batch = seed % 2 == 1
        session = Session(library, seed)
        x = session.input("x", numbers(batch, rows, length, dtype=dtype, scale=3.0))
        shape = (batch, 1, length) if per_batch else (1, rows, length)
        keep = numbers(*shape, dtype=torch.float64, seed=seed, scale=3.0) > -1
        keep[..., 0] = True
        mask, dims = None, [rows, batch, 0 if per_batch else length, length if per_batch else 0]
        z = x.double() * 0.5
        if kind == ADDED:
            mask = session.input("mask", numbers(*shape, dtype=dtype, seed=seed, scale=3.0))
            z = z + mask.double()
        elif kind == BOOLEAN:
            mask = session.input("mask", keep)
            z = z.masked_fill(~keep, -math.inf)
        else:
            keep = torch.ones(rows, length, dtype=torch.bool).tril()
            z = z.masked_fill(~keep, -math.inf)
        y = session.output("y", x.shape, dtype)
        count = batch * rows
        library.call("test_softmax", index, x, y, count, length, 0.5, False, kind, mask, dims)
        assert not session.reports()
        assert session.traffic()["y"] == (0, 1)
        assert session.traffic()["x"][0] <= 1
        close(y, torch.softmax(z, -1))

        session = Session(library, seed)
        grad = session.input("grad", numbers(batch, rows, length, dtype=dtype, seed=1))
        y = session.input("y", y)
        mask = None if mask is None else session.input("mask", mask)
        dx = session.output("dx", x.shape, dtype)
        library.call(
            "test_softmax_backward", index, grad, y, dx, count, length, 0.5, False, kind, mask, dims
        )
        assert not session.reports()
        y, g = y.double(), grad.double()
        close(dx, 0.5 * y * (g - (g * y).sum(-1, True)))


def test_a_row_that_takes_no_element(library):
    for length in (8, 17000):
        session = Session(library, 0)
        x = session.input("x", torch.zeros(1, length))
        mask = session.input("mask", torch.zeros(1, length, dtype=torch.bool))
        y = session.output("y", x.shape, x.dtype)
        library.call("test_softmax", 0, x, y, 1, length, 1.0, False, BOOLEAN, mask, [1, 1, 0, 0])
        assert not session.reports()
        assert y.isnan().all()


# [outer, length, inner]: kept in registers and read twice, of whole accesses and others.
COLUMNS = [(2, 5, 40), (1, 7, 33), (3, 16, 8), (1, 70, 64), (2, 33, 5), (1, 1, 3)]


@each_dtype
@pytest.mark.parametrize("shape", COLUMNS, ids=str)
def test_columns(library, index, shape):
    dtype = DTYPES[index]
    kept = 16 // (16 // dtype.itemsize) * 8
    reads = 1 if shape[1] <= kept else 2
    for seed in SEEDS:
        log, scale = seed % 2 == 1, 0.5
        session = Session(library, seed, seed // 4)
        x = session.input("x", numbers(*shape, dtype=dtype, scale=3.0))
        y = session.output("y", shape, dtype)
        library.call("test_along", index, x, y, *shape, scale, log)
        assert not session.reports()
        assert session.traffic() == {"x": (reads, 0), "y": (0, 1)}
        close(y, truth_of(x.double() * scale, 1, log))

        session = Session(library, seed, seed // 4)
        grad = session.input("grad", numbers(*shape, dtype=dtype, seed=1))
        y = session.input("y", y)
        dx = session.output("dx", shape, dtype)
        library.call("test_along_backward", index, grad, y, dx, *shape, scale, log)
        assert not session.reports()
        assert session.traffic() == {"grad": (reads, 0), "y": (reads, 0), "dx": (0, 1)}
        y, g = y.double(), grad.double()
        sums = (g if log else g * y).sum(1, True)
        close(dx, g - y.exp() * sums if log else scale * y * (g - sums))


# ---- what the checks are worth -----------------------------------------------------------------

FAULTS = [
    Fault("reduction.h", "    __syncthreads();\n    v = lane", "    v = lane"),
    Fault("reduction.h", "int step = kWarp / 2", "int step = kWarp / 4"),
    Fault("reduction.h", "__shfl_xor_sync(kAllLanes", "__shfl_xor_sync(0xffffu"),
    Fault("reduction.h", "static_cast<C>(-INFINITY)", "C(0)"),
    Fault("softmax.h", "if (row >= rows) return;  // the whole warp", "// the whole warp"),
    Fault("softmax.h", "if (column >= a.length) continue;\n    FASTACT_UNROLL", "FASTACT_UNROLL"),
    Fault(
        "softmax.h",
        "int64_t i = first; i < a.length; i += kLongThreads * kCount) {\n    auto",
        "int64_t i = first; i <= a.length; i += kLongThreads * kCount) {\n    auto",
    ),
    Fault("softmax.h", "largest = reduce_block<Max, kWarps>(largest);", ""),
    Fault("softmax.h", "reach = row - divide(row, size) * size + 1", "reach = row + 1"),
    Fault("softmax.h", "at += (row - outer * sizes[d]) * strides[d]", "at += row * strides[d]"),
    Fault("softmax.h", "column >= taken", "column > taken"),
    Fault("softmax.h", "a.length % kCount == 0 && mask", "mask"),
    Fault("softmax.h", "sum = sum_at(top);", ""),
    Fault("softmax_columns.h", "  __syncthreads();\n  FASTACT_UNROLL", "  FASTACT_UNROLL"),
    Fault("softmax_columns.h", "active = column < inner;", "active = column <= inner;"),
    Fault(
        "softmax_columns.h",
        "const int64_t end = tile.active ? length : 0;",
        "const int64_t end = length;",
        2,
    ),
    Fault("softmax_columns.h", "outer * length * inner + column;", "outer * inner + column;"),
    Fault("softmax_columns.h", "if (d < end) finish(kept[i], d);", "finish(kept[i], d);"),
    Fault(
        "softmax_columns.h", "int other = 1; other < kTileRows", "int other = 2; other < kTileRows"
    ),
]


def notice(library) -> str:
    checks = [
        *(lambda s=shape: rows_case(library, 0, s, 0, 1.0, False) for shape in LENGTHS),
        lambda: rows_case(library, 0, (1, 16401), 0, 1.0, False),
        lambda: test_masks(library, 0, CAUSAL, 9),
        lambda: test_masks(library, 0, BOOLEAN, 9),
        *(lambda s=shape: test_columns(library, 0, s) for shape in COLUMNS[:4]),
    ]
    return complaints(checks)


def test_nothing_is_noticed_without_a_fault(library):
    assert not notice(library)


@each_fault(FAULTS)
def test_faults_are_noticed(fault):
    assert notice(build("softmax", fault, few=True))
