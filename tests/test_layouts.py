"""Does every operator read and write exactly the elements of a tensor, wherever they lie?"""

import itertools
import os
import subprocess
import sys

import pytest
import torch

import fastact
from fastact.testing import accuracy
from fastact.testing.accuracy import ALONG_DIMENSION, ELEMENTWISE, MEASURED
from fastact.testing.cases import UNARY_CASES, assert_same_bits, pairs
from fastact.testing.inputs import LAYOUTS, random_tensor

UNARY = [case for case in MEASURED if case.row.family == "unary"]
PRELU = [case for case in ELEMENTWISE if case.row.family == "prelu"]


def in_place(case, x):
    return getattr(torch.ops.fastact, case.row.name + "_")(x, *case.values)


def assert_same_slope_gradient(case, grad, x):
    """Of any layout: a sum in another order, of terms that may cancel."""
    found, expected = (
        torch.ops.fastact.prelu_backward(g, t, *case.tensors(t))[1]
        for g, t in ((grad, x), (grad.contiguous(), x.contiguous()))
    )
    terms = (grad.double() * x.double().clamp(max=0)).abs().sum().item()
    eps = torch.finfo(torch.float32).eps
    close = {"rtol": 1e-5, "atol": 4 * eps * terms} if x.dtype == torch.float32 else {}
    torch.testing.assert_close(found, expected, **close)


# ---- more elements than one thread takes -------------------------------------------------------

# At least 250,000 elements; {name: (shape to make, what to make of it)}.
LARGE = {
    "contiguous": ((11, 23_001), lambda t: t),
    "offset": ((250_007,), lambda t: t[5:]),
    "transposed": ((601, 501), lambda t: t.t()),
    "permuted": ((6, 50, 29, 31), lambda t: t.permute(2, 0, 3, 1)),
    "channels last": ((3, 9, 99, 101), lambda t: t.contiguous(memory_format=torch.channels_last)),
    "channels last 3-D": (
        (2, 5, 9, 41, 71),
        lambda t: t.contiguous(memory_format=torch.channels_last_3d),
    ),
    "slice of channels last": (
        (3, 12, 99, 101),
        lambda t: t.contiguous(memory_format=torch.channels_last)[:, 1:10],
    ),
    "column slice": ((701, 801), lambda t: t[:, 7:507]),
    "step": ((601_003,), lambda t: t[1::2]),
    "steps": ((301, 17, 201), lambda t: t[::2, ::2, 1::1]),
    "expanded": ((501, 1, 101), lambda t: t.expand(501, 6, 101)),
    "expanded scalar": ((), lambda t: t.expand(3, 90_001)),
    "overlapping": ((250_100,), lambda t: t.as_strided((2500, 101), (100, 1))),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*UNARY, *PRELU], ids=str)
def test_large(case, dtype):
    torch.set_num_threads(3)
    for name, (shape, view) in LARGE.items():
        x = view(random_tensor(shape, dtype))
        y = accuracy.forward(case, x)
        context = f"{case} {name}"
        dense, tensors = x.contiguous(), case.tensors(x)
        like = dense if case.row.name == "logsigmoid" else torch.empty_like(x)
        assert (y.shape, y.stride()) == (x.shape, like.stride()), context
        assert_same_bits(y, accuracy.forward(case, dense), context)
        grad = view(random_tensor(shape, dtype))
        saved = y if accuracy.saves_output(case) else x
        dx = accuracy.backward(case, grad, saved)
        expected = accuracy.backward(case, grad.contiguous(), saved.contiguous())
        assert_same_bits(dx, expected, context)
        if tensors:
            assert_same_slope_gradient(case, grad, x)


# ---- pairs of layouts --------------------------------------------------------------------------

SHAPE = (4, 6, 5, 7)
SAME_SHAPE = {
    "contiguous": lambda: random_tensor(SHAPE),
    "channels last": lambda: random_tensor(SHAPE).contiguous(memory_format=torch.channels_last),
    "permuted": lambda: random_tensor((5, 4, 7, 6)).permute(1, 3, 0, 2),
    "slice": lambda: random_tensor((4, 9, 5, 12))[:, 2:8, :, 3:10],
    "steps": lambda: random_tensor((8, 6, 15, 14))[::2, :, ::3, ::2],
    "offset": lambda: random_tensor((843,))[3:].view(SHAPE),
    "expanded": lambda: random_tensor((4, 1, 5, 1)).expand(SHAPE),
    "scalar": lambda: random_tensor(()).expand(SHAPE),
}


@pytest.mark.parametrize("case", ELEMENTWISE, ids=str)
def test_layouts_of_gradient_and_saved_tensor(case):
    for one, other in itertools.product(SAME_SHAPE, repeat=2):
        grad, saved = SAME_SHAPE[one](), SAME_SHAPE[other]()
        expected = accuracy.backward(case, grad.contiguous(), saved.contiguous())
        found = accuracy.backward(case, grad, saved)
        assert_same_bits(found, expected, f"{case}: grad {one}, saved {other}")
        assert found.stride() == torch.empty_like(saved).stride()
        if case.row.family == "prelu":
            assert_same_slope_gradient(case, grad, saved)


@pytest.mark.parametrize("dim", range(4))
@pytest.mark.parametrize("operator", ALONG_DIMENSION, ids=str)
def test_layouts_along_a_dimension(operator, dim):
    """Another layout may sum in another order."""
    if SHAPE[dim] % 2 and not operator.reads_output:
        pytest.skip("the gated units halve the dimension")
    for one, other in itertools.product(SAME_SHAPE, repeat=2):
        x = SAME_SHAPE[one]()
        y = operator.forward(x, dim)
        expected = operator.forward(x.contiguous(), dim)
        torch.testing.assert_close(y, expected, msg=lambda text, one=one: f"{one}: {text}")
        saved = y if operator.reads_output else x
        grad = SAME_SHAPE[other]().narrow(dim, 0, y.shape[dim])
        torch.testing.assert_close(
            operator.backward(grad, saved, dim),
            operator.backward(grad.contiguous(), saved.contiguous(), dim),
            msg=lambda text, one=one, other=other: f"grad {other}, input {one}: {text}",
        )


@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_gradient_that_is_the_saved_tensor(case):
    """The same memory twice, which both stay as they are."""
    x = random_tensor((259,))
    expected = accuracy.backward(case, x.clone(), x.clone())
    before = x.clone()
    assert_same_bits(accuracy.backward(case, x, x), expected, case)
    assert_same_bits(x, before, case)


# ---- nothing else is touched -------------------------------------------------------------------

DENSE = [name for name in LAYOUTS if "expanded" not in name and name != "overlapping"]


@pytest.mark.parametrize("case, dtype", pairs(UNARY, [torch.float32, torch.float16]))
def test_in_place_writes_its_own_elements_alone(case, dtype):
    for name in DENSE:
        made = []

        def new(shape, made=made):
            made.append(random_tensor(shape, dtype))
            return made[0]

        x = LAYOUTS[name](new)
        # Layouts that copy (channels last) have no gaps.
        storage = torch.empty(0, dtype=dtype).set_(x.untyped_storage())
        before, expected = storage.clone(), accuracy.forward(case, x)
        mine = torch.zeros(storage.shape, dtype=torch.bool)
        mine.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
        result = in_place(case, x)
        assert result is x
        assert_same_bits(x, expected, f"{case} {name}")
        assert_same_bits(storage[~mine], before[~mine], f"{case} {name}, outside")


# Tensors that begin or end at a page nobody may touch: a stray access ends the process.
GUARDED = """
import ctypes, itertools, mmap, sys
import torch
from fastact.testing import accuracy

PAGE = mmap.PAGESIZE
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
libc = ctypes.CDLL(None, use_errno=True)
ops = torch.ops.fastact
kept = []

def page_between_guards(pages=1):
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (0, (pages + 1) * PAGE):
        if libc.mprotect(ctypes.c_void_p(address + guard), PAGE, 0):
            sys.exit("mprotect failed")
    kept.append(memory)
    return torch.frombuffer(memory, dtype=torch.uint8)[PAGE : -PAGE]

def guarded(page, at_end, dtype, *shape):
    size = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
    start = len(page) - size if at_end else 0
    return page[start : start + size].view(dtype).view(shape)

print(ops.instruction_set(), flush=True)
"""
# Of every size up to 130.
GUARDED_ACTIVATIONS = """
first, second = page_between_guards(), page_between_guards()
for dtype in DTYPES:
    for count in range(1, 131):
        values = torch.linspace(-4, 4, count).to(dtype)
        for at_end in (False, True):
            x, grad = (guarded(page, at_end, dtype, count) for page in (first, second))
            for case in accuracy.ELEMENTWISE:
                x.copy_(values)
                grad.copy_(values)
                if case.row.family == "unary":
                    accuracy.forward(case, x)
                    accuracy.backward(case, grad, x)
                    getattr(ops, case.row.name + "_")(x, *case.values)
                else:  # each element has a slope of its own, in guarded memory too
                    row = x.view(1, count)
                    ops.prelu(row, grad)
                    ops.prelu_backward(row, row, grad)
                    ops.prelu_backward(x, x, grad[:1])
            for operator in accuracy.ALONG_DIMENSION:
                if operator.reads_output or count % 2 == 0:
                    for shape, dim in ((1, count), 1), ((count, 1), 0), ((2, count // 2), 0):
                        if shape[0] * shape[1] != count:
                            continue
                        y = operator.forward(x.view(shape), dim)
                        # The gradient lies in guarded memory, the saved output does not.
                        g = grad[: y.numel()].view(y.shape)
                        operator.backward(g, y if operator.reads_output else x.view(shape), dim)
print("done")
"""
# Every tail of each operand, by every algorithm of the product.
GUARDED_LINEAR = """
pages = [page_between_guards() for _ in range(6)]
for dtype, at_end in itertools.product(DTYPES, (False, True)):
    for m, k, n in itertools.product((1, 3, 9, 29), (1, 7, 16, 17), (*range(1, 18), 33, 63)):
        shapes = (m, k), (n, k), (n,), (n,), (m, n), (m, n)
        if any(torch.Size(shape).numel() * dtype.itemsize > PAGE for shape in shapes):
            continue
        tensors = [guarded(page, at_end, dtype, *s) for page, s in zip(pages, shapes, strict=True)]
        for tensor in tensors:
            tensor.copy_(torch.linspace(-2, 2, tensor.numel()).view(tensor.shape))
        x, w, b, slope, residual, grad = tensors
        packed = ops.pack_linear(w)
        for activation in ("prelu", "softmax", "gelu"):
            own = [activation, [], slope if activation == "prelu" else None]
            y = ops.linear(x, w, b, *own, residual)
            assert torch.allclose(ops.linear_packed(x, packed, w, b, *own, residual), y, 1e-2, 1e-2)
            ops.linear(x, w.t().contiguous().t(), b, *own, residual)
            mask = (True, True, True, activation == "prelu", True)
            ops.linear_backward(grad, residual, x, w, b, own[2], activation, [], mask)
print("done")
"""
# Every engine, with channels and pixels that fill no register.
GUARDED_CONV = """
pages = [page_between_guards(64) for _ in range(6)]
CASES = [(16, 16, 3, 1, 1), (17, 33, 3, 1, 1), (34, 46, 3, 1, 2)]
CASES += [(3, 5, 1, 1, 1), (17, 19, 1, 2, 1)]
for channels in (3, 8, 17):
    for kernel, stride in (3, 1), (3, 2), (5, 1), (5, 2), (4, 3):
        CASES.append((channels, channels, kernel, stride, channels))
    CASES.append((channels, 2 * channels, 3, 1, channels))
found = set()
for dtype, at_end, last in itertools.product(DTYPES, (False, True), (False, True)):
    for (c, k, kernel, stride, groups), (n, h, w) in itertools.product(
        CASES, ((2, 8, 9), (1, 9, 20))
    ):
        def images(page, *shape):
            if not last:
                return guarded(page, at_end, dtype, *shape)
            turned = shape[0], *shape[2:], shape[1]
            return guarded(page, at_end, dtype, *turned).permute(0, 3, 1, 2)

        pad = kernel // 2
        out = [(size + 2 * pad - kernel) // stride + 1 for size in (h, w)]
        x, weight = images(pages[0], n, c, h, w), images(pages[1], k, c // groups, kernel, kernel)
        b, slope = (guarded(page, at_end, dtype, k) for page in pages[2:4])
        residual, grad = (images(page, n, k, *out) for page in pages[4:])
        for t in (x, weight, b, slope, residual, grad):
            t.copy_(torch.linspace(-2, 2, t.numel()).view(t.shape))
        shape = [stride], [pad], [1], groups
        found.add(ops.conv_algorithm(x, weight, *shape))
        for winograd in ("safe", "fast"):
            packed = ops.pack_conv(weight, *shape, winograd=winograd)
            y = ops.conv_packed(x, packed, weight, b, *shape, "prelu", [], slope, residual)
            z = ops.conv(x, weight, b, *shape, "prelu", [], slope, residual)
            assert torch.allclose(y.double(), z.double(), 3e-2, 3e-2), (c, k, kernel, groups)
        ops.conv_training(x, weight, b, *shape, "gelu", [], None)
        mask = (True, True, True, True, True)
        ops.conv_backward(grad, residual, x, weight, b, slope, *shape, "prelu", [], mask)
assert found >= {"winograd2", "pointwise", "depthwise"}, found
print("done")
"""


@pytest.mark.parametrize("isa", fastact.info()["instruction_sets"])
@pytest.mark.parametrize(
    "program",
    [GUARDED_ACTIVATIONS, GUARDED_LINEAR, GUARDED_CONV],
    ids=["each", "linear", "conv"],
)
def test_nothing_outside_is_read_or_written(program, isa):
    """A stray access ends the process with a segmentation fault."""
    finished = subprocess.run(
        [sys.executable, "-c", GUARDED + program],
        env=os.environ | {"FASTACT_ISA": isa},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "expected one that this processor has" in finished.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == [isa, "done"]


# ---- more than 2^31 elements -------------------------------------------------------------------

HUGE = 2**31 + 17


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)


def check_ends(tensor, expected):
    """The first and last elements, those around 2^31, and a few millions between."""
    for start in (0, 2**30, 2**31 - 1000, HUGE - 1000):
        assert torch.equal(tensor[start : start + 1000], expected(start, 1000).to(tensor.dtype))
    sample = tensor[:: 2**10 - 1]
    steps = torch.arange(len(sample)) * (2**10 - 1)
    assert torch.equal(sample, expected(steps, None).to(tensor.dtype))


def sawtooth(start, count):
    """Element i is i mod 251 - 125."""
    position = start if count is None else torch.arange(start, start + count)
    return position % 251 - 125


def fill(tensor):
    period = (torch.arange(251 * 4096) % 251 - 125).to(tensor.dtype)
    for start in range(0, len(tensor), len(period)):
        part = tensor[start : start + len(period)]
        part.copy_(period[: len(part)])


@pytest.mark.slow
def test_huge_in_place(two_threads):
    x = torch.empty(HUGE, dtype=torch.bfloat16)
    fill(x)
    torch.ops.fastact.relu_(x)
    check_ends(x, lambda start, count: sawtooth(start, count).clamp(min=0))


@pytest.mark.slow
def test_huge_forward_and_backward(two_threads):
    x = torch.empty(HUGE, dtype=torch.bfloat16)
    fill(x)
    y = torch.ops.fastact.leaky_relu(x, 0.5)
    check_ends(y, lambda s, n: torch.where(sawtooth(s, n) > 0, sawtooth(s, n), sawtooth(s, n) / 2))
    del y
    grad = torch.tensor(2.0, dtype=torch.bfloat16).expand(HUGE)
    dx = torch.ops.fastact.relu_backward(grad, x)
    check_ends(dx, lambda start, count: torch.where(sawtooth(start, count) > 0, 2, 0))


@pytest.mark.slow
def test_huge_strides(two_threads):
    """Elements more than 2^31 apart, and rows that begin beyond."""
    x = torch.empty(HUGE, dtype=torch.bfloat16)
    fill(x)
    far = x[:: 2**31]
    assert torch.equal(torch.ops.fastact.relu(far), far.clamp(min=0))
    rows = x.as_strided((3, 10), (2**30, 1), 1)
    expected = rows.clamp(min=0)
    assert torch.equal(torch.ops.fastact.relu(rows), expected)
    torch.ops.fastact.relu_(rows)
    assert torch.equal(rows, expected)


@pytest.mark.slow
def test_huge_prelu(two_threads):
    x = torch.empty(HUGE - 17, dtype=torch.bfloat16)
    fill(x)
    weight = torch.tensor([0.5, 2.0], dtype=torch.bfloat16)
    y = torch.ops.fastact.prelu(x.view(2**20, 2, 2**10), weight).view(-1)
    for start in (0, 2**30, 2**31 - 2**10):
        slope = weight[start // 2**10 % 2].item()
        values = sawtooth(start, 1000).to(torch.bfloat16)
        expected = torch.where(values > 0, values, values * slope)
        assert torch.equal(y[start : start + 1000], expected)
