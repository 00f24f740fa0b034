"""Do the bits of a result depend on threads, alignment, position in memory or place in a batch?"""

import threading

import pytest
import torch

from fastact.testing import accuracy
from fastact.testing.accuracy import ALONG_DIMENSION, ELEMENTWISE, MEASURED
from fastact.testing.cases import DTYPES, assert_same_bits, pairs

THREADS = (1, 2, 3, 8)
# At least four pieces of work, and an odd rest.
LARGE = 350_003
PRELU = [case for case in ELEMENTWISE if case.row.family == "prelu"]


def numbers(count, dtype):
    """The same ones for the same count, NaN and infinities among them."""
    generator = torch.Generator().manual_seed(count)
    x = (torch.randn(count, generator=generator) * 4).to(dtype)
    x[::1009] = torch.nan
    x[1::1013] = torch.inf
    return x


def results(case, x, grad):
    """Of the forward, in-place and backward operators."""
    y = accuracy.forward(case, x)
    saved = y if accuracy.saves_output(case) else x
    found = {"forward": y, "backward": accuracy.backward(case, grad, saved)}
    if case.row.family == "unary":
        written = x.clone(memory_format=torch.preserve_format)
        found["in place"] = getattr(torch.ops.fastact, case.row.name + "_")(written, *case.values)
    return found


def assert_all_same(actual, expected, context):
    for name, tensor in actual.items():
        assert_same_bits(tensor, expected[name], f"{context}, {name}")


@pytest.mark.parametrize("case, dtype", pairs(MEASURED, DTYPES))
def test_number_of_threads(case, dtype):
    x, grad = numbers(LARGE, dtype), numbers(LARGE, dtype).flip(0)
    expected = None
    for threads in THREADS:
        torch.set_num_threads(threads)
        assert torch.get_num_threads() == threads
        found = results(case, x, grad)
        expected = expected or found
        assert_all_same(found, expected, f"{case}, {threads} threads")


# Rows of one weight, of one weight each, and (channels last) of all weights.
SHAPES = [(LARGE,), (40_009, 3), (7, 5, 61, 139), (3, 2, 100_007), (100_007, 2), (2, 40_001, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", PRELU, ids=str)
def test_number_of_threads_in_the_gradient_of_slopes(case, shape, dtype):
    """A sum over all elements, in any layout."""
    x = numbers(torch.Size(shape).numel(), dtype).nan_to_num(0, 1, 1).view(shape)
    grad = torch.linspace(-1, 1, x.numel()).to(dtype).view(shape)
    formats = [torch.contiguous_format]
    if x.dim() == 4:
        formats.append(torch.channels_last)
    for memory_format in formats:
        x, grad = (t.contiguous(memory_format=memory_format) for t in (x, grad))
        (weight,) = case.tensors(x)
        expected = None
        for threads in THREADS:
            torch.set_num_threads(threads)
            found = torch.ops.fastact.prelu_backward(grad, x, weight)
            expected = expected or found
            for actual, first in zip(found, expected, strict=True):
                assert_same_bits(actual, first, f"{case}, {threads} threads")


def results_along(operator, x, grad, dim):
    y = operator.forward(x, dim)
    saved = y if operator.reads_output else x
    grad = grad.narrow(dim, 0, y.shape[dim])
    return {"forward": y, "backward": operator.backward(grad, saved, dim)}


# Many short rows, few long ones, one; columns; between two dimensions.
ALONG = [
    ((20_003, 18), -1),
    ((4, 90_010), -1),
    ((350_002,), 0),
    ((350, 1003), 0),
    ((90_010, 3), 0),
    ((7, 6, 61, 139), 1),
]


@pytest.mark.parametrize("operator, dtype", pairs(ALONG_DIMENSION, DTYPES))
def test_number_of_threads_along_a_dimension(operator, dtype):
    for shape, dim in ALONG:
        x = numbers(torch.Size(shape).numel(), dtype).nan_to_num(0, 1, 1).view(shape)
        grad = x.flip(0)
        expected = None
        for threads in THREADS:
            torch.set_num_threads(threads)
            found = results_along(operator, x, grad, dim)
            expected = expected or found
            assert_all_same(found, expected, f"{operator} {shape} dim {dim}, {threads} threads")


@pytest.mark.parametrize("case, dtype", pairs(MEASURED, DTYPES))
def test_offset_and_alignment(case, dtype):
    """Every start within 16 elements, for sizes around those of a vector and of a group of four."""
    for size in (1, 7, 16, 33, 63, 259):
        x, grad = numbers(size, dtype)[None, :, None], numbers(size, dtype).flip(0)[None, :, None]
        expected = results(case, x, grad)
        for offset in range(16):
            there = torch.empty(size + 16, dtype=dtype)[offset : offset + size].view_as(x).copy_(x)
            found = results(case, there, grad)
            assert_all_same(found, expected, f"{case}, {size} elements from {offset}")


@pytest.mark.parametrize("case, dtype", pairs(MEASURED, DTYPES))
def test_place_in_a_batch(case, dtype):
    """Alone, first, in the middle and last in a batch, and in a tail of any length."""
    x, grad = numbers(37, dtype), numbers(37, dtype).flip(0)
    expected = results(case, x, grad)
    for before, after in [(0, 1), (1, 0), (5, 3), (64, 64), (1000, 3000)]:
        batch = [t.repeat(before + 1 + after, 1) for t in (x, grad)]
        found = {name: t[before] for name, t in results(case, *batch).items()}
        assert_all_same(found, expected, f"{case}, {before} rows before, {after} after")
    whole = results(case, x, grad)
    for length in range(1, 37):
        found = results(case, x[:length], grad[:length])
        shorter = {name: t[:length] for name, t in whole.items()}
        assert_all_same(found, shorter, f"{case}, the first {length}")


@pytest.mark.parametrize("operator, dtype", pairs(ALONG_DIMENSION, DTYPES))
def test_offset_and_place_along_a_dimension(operator, dtype):
    """A row gives the same bits at any address, and first, in the middle and last in a batch."""
    for size in (2, 14, 16, 34, 64, 130, 1022):
        row = numbers(size, dtype).nan_to_num(0, 1, 1)
        grad = row.flip(0)
        expected = results_along(operator, row[None], grad[None], -1)
        for offset in range(16):
            there = torch.empty(size + 16, dtype=dtype)[offset : offset + size].copy_(row)
            found = results_along(operator, there[None], grad[None], -1)
            assert_all_same(found, expected, f"{operator}, {size} elements from {offset}")
        for before, after in [(0, 1), (1, 0), (5, 3), (40, 200)]:
            batch = [t.repeat(before + 1 + after, 1) for t in (row, grad)]
            found = results_along(operator, *batch, -1)
            found = {name: t[before : before + 1] for name, t in found.items()}
            assert_all_same(found, expected, f"{operator}, {before} rows before, {after} after")
        # Columns: a single one is a row, and may be summed in another order.
        columns = None
        for width in (2, 7, 33, 70):
            batch = [t[:, None].repeat(1, width) for t in (row, grad)]
            found = results_along(operator, *batch, 0)
            columns = columns or {name: t[:, :1] for name, t in found.items()}
            for place in (0, width // 2, width - 1):
                there = {name: t[:, place : place + 1] for name, t in found.items()}
                assert_all_same(there, columns, f"{operator}, column {place} of {width}")


def test_the_same_call_a_hundred_times():
    torch.set_num_threads(8)
    x, grad = numbers(LARGE, torch.float32), numbers(LARGE, torch.float32).flip(0)
    for case in (MEASURED[0], PRELU[1]):
        expected = results(case, x, grad)
        for _ in range(100):
            assert_all_same(results(case, x, grad), expected, case)


def test_calls_from_eight_threads_at_once():
    torch.set_num_threads(2)
    x, grad = numbers(100_003, torch.float32), numbers(100_003, torch.float32).flip(0)
    expected = {str(case): results(case, x, grad) for case in MEASURED}
    problems = []
    barrier = threading.Barrier(8)

    def work(first):
        try:
            barrier.wait(60)
            for i in range(2 * len(MEASURED)):
                case = MEASURED[(first + i) % len(MEASURED)]
                assert_all_same(results(case, x, grad), expected[str(case)], case)
        except BaseException as problem:
            problems.append(problem)

    workers = [threading.Thread(target=work, args=(3 * i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert not worker.is_alive()
    assert not problems
