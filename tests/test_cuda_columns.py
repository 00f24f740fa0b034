"""Do the CUDA kernels of PReLU, and of what follows a matrix product, compute what PyTorch does,
with sums that have one order? Run on the host by an emulator (tools/cuda_emulator.py)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from emulated import complaints, each_dtype, each_fault, numbers

from tools.cuda_emulator import DTYPES, SEEDS, Fault, Session, build

SUM_DTYPE = {torch.float64: torch.float64}  # else float32


@pytest.fixture(scope="module")
def library():
    return build("columns")


def close(result, truth, count=1):
    """``count``: how many numbers of the size of 1 are summed."""
    epsilon = torch.finfo(result.dtype).eps
    partial = torch.finfo(SUM_DTYPE.get(result.dtype, torch.float32)).eps
    torch.testing.assert_close(
        result.double(), truth.double(), rtol=4 * epsilon, atol=4 * epsilon + 2 * count * partial
    )


def rows_of(shape, slopes):
    """(rows, length, along) of a contiguous tensor whose second dimension holds the slopes."""
    if slopes == 1:
        return 1, torch.Size(shape).numel(), False
    if len(shape) == 2:
        return shape[0], shape[1], True
    return shape[0] * shape[1], torch.Size(shape[2:]).numel(), False


# Shape and number of slopes: one for all, rows of whole vectors and others, columns; longer than a
# warp's piece of a row, and more rows than one part of the columns' sums.
PRELU = [
    ((3, 5, 8), 5),
    ((2, 3, 4, 3), 3),
    ((1, 2, 2100), 2),
    ((2, 1, 4500), 1),
    ((70, 24), 24),
    ((9, 37), 37),
    ((1, 1, 1), 1),
]


def run_prelu(library, index, shape, slopes, seed):
    dtype, offset = DTYPES[index], seed // 4 % 2
    session = Session(library, seed, offset)
    _, length, along = rows_of(shape, slopes)
    x = session.input("x", numbers(*shape, dtype=dtype))
    slope = session.input("slope", numbers(slopes, dtype=dtype, seed=1))
    y = session.output("y", shape, dtype)
    library.call("test_prelu", index, x, slope, y, x.numel(), length, slopes, along)
    return session, x, slope, y


def run_prelu_backward(library, index, shape, slopes, seed):
    dtype, offset = DTYPES[index], seed // 4 % 2
    session = Session(library, seed, offset)
    rows, length, along = rows_of(shape, slopes)
    grad = session.input("grad", numbers(*shape, dtype=dtype, seed=2))
    x = session.input("x", numbers(*shape, dtype=dtype))
    slope = session.input("slope", numbers(slopes, dtype=dtype, seed=1))
    dx = session.output("dx", shape, dtype)
    dslope = session.output("dslope", (slopes,), dtype)
    own = SUM_DTYPE.get(dtype, torch.float32)
    if along:
        count = library.dll.test_column_parts(rows)
        parts = session.output("parts", (count, length), own)
        name = "test_prelu_columns_backward"
        library.call(name, index, grad, x, slope, dx, dslope, parts, rows, length)
    else:
        count = library.dll.test_pieces(dtype.itemsize, length)
        parts = session.output("parts", (rows, count), own)
        name = "test_prelu_rows_backward"
        library.call(name, index, grad, x, slope, dx, dslope, parts, rows, length, slopes)
    return session, grad, x, slope, dx, dslope


def prelu_truth(grad, x, slope):
    wide_x, wide_slope = x.double().requires_grad_(), slope.double().requires_grad_()
    y = F.prelu(wide_x, wide_slope)
    return y.detach(), *torch.autograd.grad(y, (wide_x, wide_slope), grad.double())


@each_dtype
@pytest.mark.parametrize(("shape", "slopes"), PRELU, ids=str)
def test_prelu(library, index, shape, slopes):
    sums = []
    for seed in SEEDS:
        session, x, slope, y = run_prelu(library, index, shape, slopes, seed)
        assert not session.reports()
        traffic = session.traffic()
        assert (traffic["x"], traffic["y"]) == ((1, 0), (0, 1))
        session, grad, x, slope, dx, dslope = run_prelu_backward(
            library, index, shape, slopes, seed
        )
        truth, dx_truth, dslope_truth = prelu_truth(grad, x, slope)
        close(y, truth)
        close(dx, dx_truth)
        close(dslope, dslope_truth, x.numel() // slopes)
        assert not session.reports()
        traffic = session.traffic()
        assert (traffic["grad"], traffic["x"], traffic["dx"]) == ((1, 0), (1, 0), (0, 1))
        assert traffic["parts"] == (1, 1)
        sums.append(dslope.clone())
    assert all(torch.equal(sums[0], other) for other in sums[:4])
    assert all(torch.equal(sums[4], other) for other in sums[4:])


# ---- bias, residual, activation ----------------------------------------------------------------

ACTIVATIONS = [lambda z: z, F.relu, F.gelu]
SHAPES = [(3, 8), (70, 24), (5, 37), (600, 16)]


@each_dtype
@pytest.mark.parametrize("activation", range(3), ids=["none", "relu", "gelu"])
def test_epilogue(library, activation, index):
    dtype = DTYPES[index]
    for seed in SEEDS:
        rows, columns = SHAPES[seed % 3]
        session = Session(library, seed, seed // 4)
        x = session.input("x", numbers(rows, columns, dtype=dtype))
        bias = residual = kept = None
        z = x.double()
        if seed % 4 != 1:
            bias = session.input("bias", numbers(columns, dtype=dtype, seed=1))
            z = z + bias.double()
        if seed % 4 != 2:
            residual = session.input("residual", numbers(rows, columns, dtype=dtype, seed=2))
            z = z + residual.double()
        if seed % 4 != 3:
            kept = session.output("kept", x.shape, dtype)
        y = session.output("y", x.shape, dtype)
        library.call("test_epilogue", activation, index, x, bias, residual, kept, y, rows, columns)
        assert not session.reports()
        traffic = session.traffic()
        assert (traffic["x"], traffic["y"]) == ((1, 0), (0, 1))
        assert traffic.get("residual", (1, 0)) == (1, 0)
        assert traffic.get("kept", (0, 1)) == (0, 1)
        close(y, ACTIVATIONS[activation](z))
        if kept is not None:
            close(kept, z)


def run_epilogue_backward(library, activation, index, shape, seed, offset=0):
    dtype = DTYPES[index]
    rows, columns = shape
    session = Session(library, seed, offset)
    grad = session.input("grad", numbers(rows, columns, dtype=dtype, seed=2))
    z = numbers(rows, columns, dtype=dtype)
    saved = session.input("saved", z.relu() if activation == 1 else z)
    dz = session.output("dz", z.shape, dtype)
    dbias = session.output("dbias", (columns,), dtype)
    own = SUM_DTYPE.get(dtype, torch.float32)
    parts = session.output("parts", (library.dll.test_column_parts(rows), columns), own)
    library.call(
        "test_epilogue_backward", activation, index, grad, saved, dz, dbias, parts, rows, columns
    )
    wide = z.double().requires_grad_()
    (truth,) = torch.autograd.grad(ACTIVATIONS[activation](wide), wide, grad.double())
    return session, dz, dbias, truth


@each_dtype
@pytest.mark.parametrize("activation", [1, 2], ids=["relu", "gelu"])
def test_epilogue_backward(library, activation, index):
    for shape in SHAPES:
        sums = []
        for seed in range(2) if shape == SHAPES[-1] else SEEDS:
            session, dz, dbias, truth = run_epilogue_backward(
                library, activation, index, shape, seed, seed // 4
            )
            assert not session.reports()
            traffic = session.traffic()
            assert (traffic["grad"], traffic["saved"], traffic["dz"]) == ((1, 0), (1, 0), (0, 1))
            assert traffic["parts"] == (1, 1)
            close(dz, truth, 2)
            close(dbias, truth.sum(0), shape[0])
            sums.append(dbias.clone())
        assert all(torch.equal(sums[0], other) for other in sums)


@each_dtype
def test_bias_backward(library, index):
    for shape in [*SHAPES, (0, 8)]:
        rows, columns = shape
        for seed in range(2):
            session = Session(library, seed)
            grad = session.input("grad", numbers(rows, columns, dtype=DTYPES[index]))
            dbias = session.output("dbias", (columns,), grad.dtype)
            own = SUM_DTYPE.get(grad.dtype, torch.float32)
            parts = session.output("parts", (library.dll.test_column_parts(rows), columns), own)
            library.call("test_bias_backward", index, grad, dbias, parts, rows, columns)
            assert not session.reports()
            close(dbias, grad.double().sum(0), rows)


# ---- what the checks are worth -----------------------------------------------------------------

ROWS = "const int64_t last = first + rows_of_part < rows ? first + rows_of_part : rows;"
FAULTS = [
    Fault("columns.h", "  __syncthreads();\n", ""),
    Fault("reduction.h", "step > 0; step /= 2", "step > 1; step /= 2"),
    Fault("columns.h", ROWS, "const int64_t last = first + rows_of_part;"),
    Fault("columns.h", "int64_t row = first + y; row < last", "int64_t row = y; row < last"),
    Fault("columns.h", "row += kRowThreads", "row += kRowThreads - 1"),
    Fault(
        "columns.h", "if (y != 0 || column >= columns) return;", "if (column >= columns) return;"
    ),
    Fault(
        "columns.h", "int other = 1; other < kRowThreads", "int other = 1; other < kRowThreads - 1"
    ),
    Fault("columns.h", "(y * kCount + k) * kColumnThreads + x] =", "y * kCount + k] ="),
    Fault("columns.h", "int64_t{blockIdx.y} * columns + column + k", "column + k"),
    Fault("columns.h", "if (column < columns) {", "{"),
    Fault("prelu.h", "if (piece >= all_pieces) return;  // the whole warp", ""),
    Fault("prelu.h", "if (lane == 0) parts[piece] = sum;", "parts[piece] = sum;"),
    Fault("prelu.h", "sum = reduce_warp<Sum>(sum);", ""),
    Fault("prelu.h", "(piece - row * pieces) * kPiece<T>", "piece * kPiece<T>"),
    Fault("prelu.h", "i += kWarp * kCount", "i += kWarp"),
    Fault("prelu.h", "divide(i, pieces) * slopes + blockIdx.x", "divide(i, pieces) + blockIdx.x"),
    Fault("prelu.h", "int i = whole + lane;", "int i = whole;"),
    Fault("reduction.h", "if (lane == 0) of_warp[warp] = v;", "of_warp[warp] = v;"),
    Fault("reduction.h", "    __syncthreads();\n    v = lane", "    v = lane"),
    Fault("reduction.h", "v = lane < kWarps ? of_warp[lane]", "v = lane <= kWarps ? of_warp[lane]"),
    Fault("epilogue.h", "i - divide(i, columns) * columns", "i - divide(i, columns)"),
]


def notice(library) -> str:
    noticed = ""

    def compare(result, truth, count):
        return complaints([lambda: close(result, truth, count)])

    for seed, (shape, slopes) in enumerate([*PRELU[:6], PRELU[1]]):  # the last: misaligned
        session, x, slope, y = run_prelu(library, 0, shape, slopes, seed)
        noticed += session.reports()
        session, grad, x, slope, dx, dslope = run_prelu_backward(library, 0, shape, slopes, seed)
        noticed += session.reports()
        traffic = session.traffic()
        noticed += "" if traffic["grad"] == (1, 0) and traffic["parts"] == (1, 1) else "traffic\n"
        truth, dx_truth, dslope_truth = prelu_truth(grad, x, slope)
        noticed += compare(y, truth, 1) + compare(dx, dx_truth, 1)
        noticed += compare(dslope, dslope_truth, x.numel() // slopes)
    session, dz, dbias, truth = run_epilogue_backward(library, 1, 0, (70, 24), 0)
    noticed += session.reports() + compare(dz, truth, 1) + compare(dbias, truth.sum(0), 70)
    session = Session(library, 0)
    x, bias = (session.input(*named) for named in (("x", dz), ("bias", dbias)))
    y = session.output("y", x.shape, x.dtype)
    library.call("test_epilogue", 0, 0, x, bias, None, None, y, 70, 24)
    return noticed + session.reports() + compare(y, x + bias, 1)


def test_nothing_is_noticed_without_a_fault(library):
    assert not notice(library)


@each_fault(FAULTS)
def test_faults_are_noticed(fault):
    assert notice(build("columns", fault, few=True))
