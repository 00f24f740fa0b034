"""Is linear with a residual F.linear, then PyTorch's +, then the activation, wherever it runs?"""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.library import opcheck

from fastact import functional
from fastact.testing.cases import DTYPES, FUSED_CASES, FUSED_OF_EACH_KIND, pairs

ops = torch.ops.fastact
SOME = [f for f in FUSED_CASES if str(f) in ("none", "relu", "gelu", "softmax-dim=-1", "prelu")]


def _mine(fused, x, w, b, residual, slope):
    learnable = {"slope": slope} if fused.learnable else {}
    keywords = {**fused.parameters, **learnable}
    return functional.linear(x, w, b, activation=fused.name, residual=residual, **keywords)


def _twin(fused, x, w, b, residual, slope):
    z = F.linear(x, w, b) + residual
    return fused.twin(z, slope) if fused.learnable else fused.twin(z)


def _tensors(m, k, n, residual, dtype=torch.float64):
    """Input, weight, bias, residual and slope."""
    return (
        torch.randn(m, k).to(dtype),
        (torch.randn(n, k) / max(k, 1) ** 0.5).to(dtype),
        torch.randn(n).to(dtype),
        torch.randn(residual).to(dtype),
        torch.linspace(-0.5, 1.5, n).to(dtype),
    )


# The rows, the columns of input and the rows of weight that lead to each algorithm, and
# to both ways of finishing rows.
SHAPES = [(1, 10, 50), (8, 33, 70), (20, 70, 130), (40, 500, 900), (250, 128, 200), (400, 64, 130)]
SHAPES += [(5, 0, 3), (5, 3, 0), (0, 3, 5)]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2**-6, torch.half: 2**-8}


@pytest.mark.parametrize("fused, dtype", pairs(SOME, DTYPES))
def test_on_every_road(fused, dtype):
    for m, k, n in SHAPES:
        x, w, b, residual, slope = _tensors(m, k, n, (m, n), dtype)
        exact = _twin(fused, *(t.double() for t in (x, w, b, residual, slope))).to(dtype)
        tolerance = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
        torch.testing.assert_close(_mine(fused, x, w, b, residual, slope), exact, **tolerance)
        own_slope = slope if fused.learnable else None
        packed = ops.pack_linear(w), w, b, fused.name, list(fused.values), own_slope, residual
        torch.testing.assert_close(ops.linear_packed(x, *packed), exact, **tolerance)


# Residuals of the product's own shape, [4, 6], and others that PyTorch's + takes.
RESIDUALS = {
    "same": lambda r: r,
    "transposed": lambda r: r.t().contiguous().t(),
    "expanded": lambda r: r[:1].expand(4, 6),
    "row": lambda r: r[0],
    "column": lambda r: r[:, :1],
    "scalar": lambda r: r[0, 0],
    "larger": lambda r: torch.stack([r, -r]),
    "float32": lambda r: r.float(),
    "integers": lambda r: r.round().long(),
}


@pytest.mark.parametrize("residual", RESIDUALS.values(), ids=RESIDUALS)
@pytest.mark.parametrize("fused", FUSED_OF_EACH_KIND, ids=str)
def test_every_residual_with_gradients(fused, residual):
    x, w, b, r, slope = _tensors(4, 5, 6, (4, 6))
    slope = slope if residual(r).dim() < 3 else slope[1:2]  # PReLU's channels are dimension 1
    differentiable = [True, True, True, residual(r).is_floating_point(), fused.learnable]
    results = []
    for function in (_mine, _twin):
        leaves = [t.clone().requires_grad_() for t in (x, w, b, r, slope)]
        y = function(fused, *leaves[:3], residual(leaves[3]), leaves[4])
        needed = [t for t, wanted in zip(leaves, differentiable, strict=True) if wanted]
        results.append((y, *torch.autograd.grad(y.square().sum(), needed)))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
    assert results[0][0].dtype == results[1][0].dtype


@pytest.mark.parametrize("fused", FUSED_OF_EACH_KIND, ids=str)
def test_derivatives_of_every_order(fused):
    tensors = [t.requires_grad_() for t in _tensors(3, 4, 5, (3, 5))]

    def function(x, w, b, r, slope):
        return _mine(fused, x, w, b, r, slope if fused.learnable else None)

    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, tensors)


@pytest.mark.parametrize("fused", SOME, ids=str)
def test_only_what_needs_a_gradient_gets_one(fused):
    """Each of the five alone: its gradient is the twin's, and no other is formed."""
    tensors = _tensors(4, 5, 6, (4, 6))
    for which in range(5 if fused.learnable else 4):
        gradients = []
        for function in (_mine, _twin):
            leaves = [t.clone().requires_grad_(i == which) for i, t in enumerate(tensors)]
            y = function(fused, *leaves)
            y.backward(torch.ones_like(y))
            assert [t.grad is not None for t in leaves] == [i == which for i in range(5)]
            gradients.append(leaves[which].grad)
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("fused", FUSED_OF_EACH_KIND, ids=str)
def test_operator(fused):
    for requires_grad in (False, True):
        x, w, b, r, slope = (t.requires_grad_(requires_grad) for t in _tensors(4, 5, 3, (4, 3)))
        own_slope = slope if fused.learnable else None
        arguments = (x, w, b, fused.name, list(fused.values), own_slope, r)
        opcheck(ops.linear, arguments)
        opcheck(ops.linear, (*arguments[:-1], r[0]))
    packed = ops.pack_linear(w.detach())
    opcheck(ops.linear_packed, (x, packed, *arguments[1:]), test_utils=("test_schema",))


@pytest.mark.parametrize("in_dims", [(0, None, None, 0), (None, 0, None, None), (None, None, 0, 1)])
@pytest.mark.parametrize("shape", [(6, 3), (3,), (), (2, 6, 3)], ids=str)
@pytest.mark.parametrize("fused", SOME, ids=str)
def test_vmap(fused, shape, in_dims):
    full = [(6, 4), (3, 4), (3,), shape]
    tensors = []
    for dims, mapped in zip(full, in_dims, strict=True):
        mapped = mapped if mapped is None else min(mapped, len(dims))
        sizes = dims if mapped is None else (*dims[:mapped], 5, *dims[mapped:])
        tensors.append(torch.randn(sizes, dtype=torch.float64))
    dims = tuple(d if d is None else min(d, len(s)) for d, s in zip(in_dims, full, strict=True))
    slope = torch.rand(1, dtype=torch.float64)
    run = functools.partial(vmap, in_dims=dims)
    mine, twin = (lambda *t, f=f: f(fused, *t, slope) for f in (_mine, _twin))
    torch.testing.assert_close(run(mine)(*tensors), run(twin)(*tensors))
    gradients = [
        run(grad(lambda *t, f=f: f(*t).square().sum(), argnums=(0, 1, 2, 3)))(*tensors)
        for f in (mine, twin)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fused", SOME, ids=str)
def test_autocast(fused, dtype):
    """A residual keeps its dtype, and the sum takes the wider one, as PyTorch's + does."""
    x, w, b, residual, slope = _tensors(4, 5, 6, (4, 6), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mine, twin = (f(fused, x, w, b, residual.to(dtype), slope) for f in (_mine, _twin))
    assert mine.dtype == twin.dtype
    torch.testing.assert_close(mine, twin, rtol=2**-6, atol=2**-5)


@pytest.mark.parametrize("fused", SOME, ids=str)
def test_compile(fused):
    x, w, b, r, slope = (t.requires_grad_() for t in _tensors(4, 5, 6, (4, 6)))
    compiled = torch.compile(functools.partial(_mine, fused), fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, functools.partial(_twin, fused)):
        y = function(x, w, b, r, slope)
        leaves = [x, w, b, r, *([slope] if fused.learnable else [])]
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("fused", FUSED_OF_EACH_KIND, ids=str)
def test_saves_no_more_than_pytorch(fused):
    saved = []
    for function in (_mine, _twin):
        tensors = [t.requires_grad_() for t in _tensors(40, 50, 60, (40, 60))]
        storages = {}

        def pack(t, storages=storages):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = function(fused, *tensors)
        saved.append(sum(storages.values()))
        del y
    assert saved[0] <= saved[1]


@pytest.mark.parametrize("shape", [(7, 193), (193,)], ids=str)
def test_the_same_bits_with_gradients_and_on_any_thread(shape):
    """A residual that has to be broadcast does not lead to another product."""
    x, w, b, r, _ = _tensors(7, 384, 193, shape, torch.float32)
    packed = ops.pack_linear(w)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for weight in (w, w.clone().requires_grad_()):
            results.append(functional.linear(x, weight, b, residual=r).detach())
    assert all(torch.equal(result, results[0]) for result in results)
    expected = ops.linear_packed(x, packed, w, b) + r
    torch.testing.assert_close(
        ops.linear_packed(x, packed, w, b, None, [], None, r), expected, rtol=0, atol=1e-6
    )


def test_thread_counts_and_batches():
    x, w, b, r, _ = _tensors(300, 65, 130, (300, 130), torch.float32)
    whole = functional.linear(x, w, b, "softmax", residual=r)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert torch.equal(functional.linear(x, w, b, "softmax", residual=r), whole)
    part = functional.linear(x[100:150], w, b, "softmax", residual=r[100:150])
    assert torch.equal(part, whole[100:150])


@pytest.mark.parametrize(
    "residual, error, text",
    [
        (torch.zeros(4, 7), RuntimeError, r"must match .* \(in fastact\.linear\(\)\)"),
        ("x", TypeError, r"residual: expected a Tensor or None, got str"),
        (3, TypeError, r"residual: expected a Tensor or None, got int"),
    ],
    ids=["shape", "text", "number"],
)
def test_what_is_refused(residual, error, text):
    with pytest.raises(error, match=text):
        functional.linear(torch.zeros(4, 5), torch.zeros(6, 5), residual=residual)
