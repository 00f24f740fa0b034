"""Is the matrix product right for every shape, layout, dtype and algorithm, the same in every bit
whatever the threads and the batch?"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from fastact.testing.cases import DTYPES, FUSED_CASES
from fastact.testing.inputs import random_tensor

ops = torch.ops.fastact

pytestmark = pytest.mark.skipif(not ops.enabled(), reason="ATen's own product runs")

# Around the rows of a micro-tile, a tile and the few that are dot products; the columns of a
# register and of a panel; and the units of k in a register and in a block.
ROWS = (1, 2, 3, 5, 8, 9, 13, 33, 65, 195, 300)
COLUMNS = (1, 7, 16, 33, 64, 100, 257)
DEPTHS = (0, 1, 2, 15, 64, 513, 1027)


def _products(x, w, b):
    """The product by each engine that may run it."""
    yield "plain", ops.linear(x, w, b)
    yield "packed", ops.linear_packed(x, ops.pack_linear(w), w, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes(dtype):
    """More than 1,000: at most twice PyTorch's error, in each direction of a training step."""
    count = 0
    # One rounding of the result; sums are formed in float32 or float64.
    one = torch.finfo(dtype).eps
    for m, n, k in itertools.product(ROWS, COLUMNS, DEPTHS):
        x, w, b = (
            random_tensor([m, k], dtype),
            random_tensor([n, k], dtype),
            random_tensor([n], dtype),
        )
        grad = random_tensor([m, n], dtype)
        exact = [t.double() for t in (x, w, b, grad)]
        x64, w64, b64, g64 = exact

        def check(actual, theirs, truth, size, context):
            error = (actual.double() - truth).abs()
            allowed = 2 * (theirs.double() - truth).abs().max() + one * size + 1e-6
            assert (error <= allowed).all(), f"{context}: {error.max()}"

        truth = F.linear(x64, w64, b64)
        size = x64.abs() @ w64.abs().t() + b64.abs()
        theirs = F.linear(x, w, b)
        for name, product in _products(x, w, b):
            check(product, theirs, truth, size, f"{name} {m}x{k}x{n}")
            count += 1
        if k and m < 100:
            dx, dw, db, *_ = ops.linear_backward(
                grad, None, x, w, None, None, None, [], [True, True, True, False, False]
            )
            check(dx, grad @ w, g64 @ w64, g64.abs() @ w64.abs(), f"dx {m}x{k}x{n}")
            check(dw, grad.t() @ x, g64.t() @ x64, g64.abs().t() @ x64.abs(), f"dw {m}x{k}x{n}")
            check(db, grad.sum(0), g64.sum(0), g64.abs().sum(0), f"db {m}x{k}x{n}")
    assert count > 1000


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integers_are_exact(dtype):
    """Sums that the dtype holds exactly: not one bit of difference, by any algorithm."""
    for m, n, k in itertools.product((1, 7, 9, 40, 200), (5, 64, 130), (3, 16, 31)):
        x, w = (torch.randint(-2, 3, shape).to(dtype) for shape in ((m, k), (n, k)))
        b = torch.randint(-2, 3, (n,)).to(dtype)
        for name, product in _products(x, w, b):
            assert torch.equal(product.double(), F.linear(x.double(), w.double(), b.double())), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_gradient_of_the_bias_is_exact_to_some_units(dtype):
    """Of equal numbers, whose rounding errors do not cancel; of infinities; and of any shape."""
    for m, n in ((32768, 1), (8000, 4), (4097, 17), (1000, 32), (300, 300), (70000, 3)):
        x, w, grad = torch.zeros(m, 1), torch.zeros(n, 1), torch.full((m, n), 0.1)
        arguments = [t.to(dtype) for t in (grad, x, w)]
        mask = [False, False, True, False, False]
        [g, *operands] = arguments
        _, _, db, *_ = ops.linear_backward(g, None, *operands, None, None, None, [], mask)
        exact = g[0, 0].double().item() * m
        assert (db.double() / exact - 1).abs().max() < 8 * torch.finfo(dtype).eps, (m, n)
        g[m // 3] = math.inf
        _, _, db, *_ = ops.linear_backward(g, None, *operands, None, None, None, [], mask)
        assert db.isinf().all(), (m, n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "m, n, k", [(5, 300, 700), (20, 520, 600), (100, 640, 513), (400, 200, 520)]
)
def test_any_number_of_threads(dtype, m, n, k):
    x, w, b = (random_tensor(s, dtype) for s in ([m, k], [n, k], [n]))
    grad = random_tensor([m, n], dtype)

    def results():
        backward = ops.linear_backward(
            grad, None, x, w, None, None, None, [], [True, True, True, False, False]
        )
        return [*dict(_products(x, w, b)).values(), *backward]

    expected = results()
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for actual, other in zip(results(), expected, strict=True):
            assert torch.equal(actual, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_alone_and_in_a_batch(dtype):
    """A frozen model's packed product: in any batch. A plain one: up to 8 rows, and from 9 on."""
    for k in (20, 530):
        x, w, b = random_tensor([200, k], dtype), random_tensor([70, k], dtype), None
        packed = ops.pack_linear(w)
        frozen = ops.linear_packed(x, packed, w, b)
        for rows in (1, 3, 8, 9, 20, 100):
            assert torch.equal(ops.linear_packed(x[:rows], packed, w, b), frozen[:rows])
        for rows in (9, 20, 100, 200):
            assert torch.equal(ops.linear(x[:rows], w, b), frozen[:rows])
        for rows in (3, 8):
            assert torch.equal(ops.linear(x[:rows], w, b)[:1], ops.linear(x[:1], w, b))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [4, 40, 300])
def test_layouts(m, dtype):
    """Operands as they lie, also where rows overlap or stand still; small integers are exact."""
    n, k = 70, 90

    def wide(shape):
        return torch.randint(-1, 2, shape).to(dtype)

    inputs = {
        "transposed": wide([k, m]).t(),
        "slice": wide([m, k + 9])[:, 4 : k + 4],
        "step": wide([m, 2 * k])[:, ::2],
        "one row for all": wide([1, k]).expand(m, k),
        "one column for all": wide([m, 1]).expand(m, k),
        "overlapping": wide([m + k]).as_strided((m, k), (1, 1)),
    }
    weights = {
        "contiguous": wide([n, k]),
        "transposed": wide([k, n]).t(),
        "slice": wide([n, k + 5])[:, 3 : k + 3],
        "one row for all": wide([1, k]).expand(n, k),
    }
    for (x_name, x), (w_name, w) in itertools.product(inputs.items(), weights.items()):
        for name, product in _products(x, w, None):
            expected = F.linear(x.double(), w.double())
            assert torch.equal(product.double(), expected), (name, x_name, w_name)


@pytest.mark.parametrize("fused", FUSED_CASES, ids=str)
@pytest.mark.parametrize("m", [3, 30, 200])
def test_epilogue_of_a_tile(fused, m):
    """An activation on the tiles gives what it gives on the whole product."""
    x, w, b = random_tensor([m, 33]), random_tensor([70, 33]) / 6, random_tensor([70])
    slope = torch.linspace(-1, 1, 70) if fused.learnable else None
    arguments = (fused.name, list(fused.values), slope)
    z = ops.linear(x, w, b)
    expected = fused.twin(z, slope) if fused.learnable else fused.twin(z)
    for result in (
        ops.linear(x, w, b, *arguments),
        ops.linear_packed(x, ops.pack_linear(w), w, b, *arguments),
        ops.linear_training(x, w, b, *arguments)[0],
    ):
        torch.testing.assert_close(result, expected)
    torch.testing.assert_close(ops.linear_training(x, w, b, *arguments)[1], z)


def test_nothing_outside_is_read():
    """NaN around the operands does not come in."""
    for m, n, k in ((3, 21, 19), (20, 21, 19), (300, 71, 33)):
        buffers = [torch.full((rows + 2, k + 7), torch.nan) for rows in (m, n)]
        x, w = (buffer[1:-1, 3 : k + 3] for buffer in buffers)
        x.copy_(torch.randint(-3, 4, x.shape))
        w.copy_(torch.randint(-3, 4, w.shape))
        for name, product in _products(x, w, None):
            assert torch.equal(product, F.linear(x, w)), name


def test_special_values():
    """NaN and infinities go where they belong, and nowhere else."""
    for m in (3, 30, 300):
        x, w = torch.randint(1, 4, (m, 40)).float(), torch.randint(1, 4, (50, 40)).float()
        x[0, 3], x[1, 4], w[2, 5] = torch.nan, torch.inf, -torch.inf
        for name, product in _products(x, w, None):
            torch.testing.assert_close(product, F.linear(x, w), equal_nan=True, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_a_packed_weight_of_another_kind(dtype):
    x, w, packed = random_tensor([4, 5]), random_tensor([3, 5]), torch.ones(3, dtype=dtype)
    with pytest.raises(RuntimeError, match=r"fastact\.linear_packed\(\): packed: expected .* got"):
        ops.linear_packed(x, packed, w)
