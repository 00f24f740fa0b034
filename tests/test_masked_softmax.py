"""Is softmax under a mask right in every form of the mask, and in every derivative?"""

import itertools

import pytest
import torch
from torch.library import opcheck

from fastact import functional
from fastact.testing.cases import DTYPES
from fastact.testing.inputs import random_tensor

MASKS = ((2, 3, 5, -1), (1, 1, 5, -1), (2, 1, 1, -1), (-1,), (5, 1), (), (3, 5, -1), (2, 3, 5, 1))
# In lanes, in few registers, in many.
LENGTHS = (1, 3, 8, 17, 33, 64, 65, 130, 700)


def _exact(x, mask, scale=1.0, is_causal=False, dim=-1):
    z = x.double() * scale
    if is_causal:
        z = z.masked_fill(~torch.ones(x.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    elif mask is not None:
        z = z.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else z + mask
    return torch.softmax(z, dim)


def _close(actual, exact):
    expected = exact.to(actual.dtype)
    torch.testing.assert_close(actual, expected, equal_nan=True)
    assert actual.is_contiguous()


def _mask(kind, shape, dtype):
    return torch.rand(shape) > 0.3 if kind == "bool" else torch.randn(shape).to(dtype)


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_broadcast_masks(dtype, kind):
    for length, shape, scale in itertools.product(LENGTHS, MASKS, (1.0, 0.3)):
        x = torch.randn(2, 3, 5, length).to(dtype)
        mask = _mask(kind, [length if size == -1 else size for size in shape], dtype)
        _close(functional.masked_softmax(x, mask, scale=scale), _exact(x, mask, scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_causal(dtype):
    for rows, length in itertools.product((1, 7, 200), LENGTHS):
        x = torch.randn(2, rows, length).to(dtype)
        y = functional.masked_softmax(x, scale=0.5, is_causal=True)
        _close(y, _exact(x, None, 0.5, True))
        # What is masked is not read.
        above = torch.ones(rows, length, dtype=torch.bool).triu(1)
        assert torch.equal(
            functional.masked_softmax(x.masked_fill(above, torch.nan), scale=0.5, is_causal=True), y
        )


@pytest.mark.parametrize("dim", [0, 1, -2])
@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_other_dimensions(kind, dim):
    x, mask = torch.randn(4, 5, 6), _mask(kind, (5, 1), torch.float32)
    _close(functional.masked_softmax(x, mask, dim, 0.7), _exact(x, mask, 0.7, dim=dim))


def test_no_mask_is_softmax():
    x = random_tensor([5, 33])
    assert torch.equal(functional.masked_softmax(x), functional.softmax(x, -1))


def test_special_values():
    x = torch.zeros(3, 40)
    x[0, 1], x[1, 2] = torch.inf, torch.nan
    keep = torch.ones(3, 40, dtype=torch.bool)
    keep[0, 1] = keep[1, 2] = False
    keep[2] = False
    y = functional.masked_softmax(x, keep)
    torch.testing.assert_close(y[:2], keep[:2] / 39)
    assert y[2].isnan().all()  # as softmax of nothing but -inf
    assert functional.masked_softmax(x)[:2].isnan().any(1).all()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,), ()])
def test_empty(shape):
    x = torch.randn(shape)
    for mask in (torch.ones(shape), torch.ones(shape, dtype=torch.bool)):
        torch.testing.assert_close(functional.masked_softmax(x, mask), torch.softmax(x, -1))


def test_layouts():
    x, mask = torch.randn(6, 5, 4).permute(2, 0, 1), torch.randn(5, 6).t()
    _close(functional.masked_softmax(x, mask), _exact(x, mask))
    _close(functional.masked_softmax(x, mask[:1].expand(6, 5)), _exact(x, mask[:1]))
    _close(
        functional.masked_softmax(x[..., ::2], mask[:, ::2] > 0),
        _exact(x[..., ::2], mask[:, ::2] > 0),
    )


FORMS = {
    "additive": lambda x, m: functional.masked_softmax(x, m, scale=0.7),
    "bool": lambda x, m: functional.masked_softmax(x, m > -1, scale=0.7) * m.sum(),
    "causal": lambda x, m: functional.masked_softmax(x, scale=0.7, is_causal=True) * m.sum(),
    "other dim": lambda x, m: functional.masked_softmax(x, m, 0, 0.7),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_gradients(form):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(form, (x, mask), check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(form, (x, mask), check_fwd_over_rev=True)


@pytest.mark.parametrize("dims", [(0, None), (1, 0), (0, 1), (2, 0)], ids=str)
def test_vmap(dims):
    x, mask = torch.randn(3, 3, 3, 4), torch.randn(4) if dims[1] is None else torch.randn(3, 3)
    if dims[1] is not None:
        mask = mask.unsqueeze(-1).expand(3, 3, 4 if dims[0] != 3 else 3)
    mapped = torch.func.vmap(functional.masked_softmax, in_dims=dims)(x, mask)
    twin = torch.func.vmap(lambda a, b: torch.softmax(a + b, -1), in_dims=dims)(x, mask)
    torch.testing.assert_close(mapped, twin)


def test_opcheck():
    operator = torch.ops.fastact.masked_softmax
    x = torch.randn(2, 3, 4)
    for mask, causal in (
        (None, False),
        (None, True),
        (torch.randn(3, 1), False),
        (torch.rand(4) > 0.5, False),
    ):
        for grad in (False, True):
            opcheck(operator, (x.clone().requires_grad_(grad), mask, -1, 0.5, causal))


def test_compiled(dynamo):
    compiled = torch.compile(functional.masked_softmax, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 4, requires_grad=True)
    mask = torch.randn(3, 1, requires_grad=True)
    y, twin = compiled(x, mask), functional.masked_softmax(x, mask)
    torch.testing.assert_close(y, twin)
    g = torch.randn_like(y)
    torch.testing.assert_close(*(torch.autograd.grad(t, (x, mask), g) for t in (y, twin)))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            (torch.ones(3, dtype=torch.int64),),
            r"mask: expected bool or the dtype of input, Float, got Long",
        ),
        (
            (torch.ones(2),),
            r"mask: expected a shape that broadcasts to input's, \[2, 3\], got \[2\]",
        ),
        ((torch.ones(1, 2, 3),), r"mask: expected a shape that broadcasts"),
        ((torch.ones(3), -1, 1.0, True), r"mask: expected None with is_causal=True"),
        ((None, 0, 1.0, True), r"dim: expected the last of at least 2 dimensions"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(RuntimeError, match=r"fastact\.masked_softmax\(\): " + message):
        functional.masked_softmax(torch.zeros(2, 3), *arguments)
    with pytest.raises(
        RuntimeError, match=r"fastact\.masked_softmax\(\): input: expected a floating"
    ):
        functional.masked_softmax(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(IndexError):
        functional.masked_softmax(torch.zeros(2, 3), None, 2)


# ---- elements that take no part -----------------------------------------------------------------

KEEP = torch.tensor([[True, True, False], [False, False, False], [False, True, True]])
# What follows a softmax in models whose rows may take no element.
REMEDIES = {
    "masked_fill": lambda y: y.masked_fill(~KEEP, 0.0),
    "nan_to_num": lambda y: y.nan_to_num(0.0),
    "where": lambda y: torch.where(KEEP.any(-1, keepdim=True), y, 0.0),
    "index": lambda y: y[KEEP.any(-1)],
}


def _masked_fill_and_softmax(x, mask=KEEP, scale=1.0):
    return torch.softmax((x * scale).masked_fill(~mask, -torch.inf), -1)


@pytest.mark.parametrize("remedy", REMEDIES.values(), ids=REMEDIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_take_no_element_train(dtype, remedy):
    x = torch.randn(2, 3, 3).to(dtype)
    gradients = []
    for function in (functional.masked_softmax, _masked_fill_and_softmax):
        leaf = x.clone().requires_grad_()
        weights = torch.linspace(1, 2, 3).to(dtype)
        if remedy is REMEDIES["index"]:
            y = torch.stack([remedy(function(row, KEEP)) for row in leaf])
        else:
            y = remedy(function(leaf, KEEP))
        (y * weights).sum().backward()
        assert leaf.grad.isfinite().all()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dim", [-1, 0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_of_what_takes_no_part_is_zero(dtype, dim):
    """In rows of NaN too, and for gradients that are no numbers."""
    for length in LENGTHS:
        mask = torch.rand(4, length) > 0.4
        mask[1] = False
        x = torch.randn(2, 4, length).to(dtype)
        x[0, 2, 0] = torch.nan
        grad = torch.randn(2, 4, length).to(dtype)
        grad[1, 3] = torch.inf
        forms = [
            (lambda t, m=mask: functional.masked_softmax(t, m, dim), mask),
            (lambda t, m=mask: functional.masked_softmax(t, m[:, :1], dim), mask[:, :1]),
        ]
        if dim == -1:
            lower = torch.ones(4, length, dtype=torch.bool).tril()
            forms.append((lambda t: functional.masked_softmax(t, is_causal=True), lower))
        for form, takes_part in forms:
            leaf = x.clone().requires_grad_()
            (dx,) = torch.autograd.grad(form(leaf), leaf, grad)
            assert not dx[~takes_part.expand_as(dx)].any()
            twin = x.clone().requires_grad_()
            y = torch.softmax(twin.masked_fill(~takes_part, -torch.inf), dim)
            (expected,) = torch.autograd.grad(y, twin, grad)
            torch.testing.assert_close(dx, expected, equal_nan=True)


def test_higher_derivatives_of_rows_that_take_no_element():
    """Those of masked_fill and softmax."""
    x, v = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)

    def derivatives(function):
        def loss(t):
            return function(t, KEEP).nan_to_num(0.0).square().sum()

        gradient = torch.func.grad(loss)
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        (second,) = torch.autograd.grad((first * v).sum(), leaf)
        return first, second, gradient(x), torch.func.vmap(gradient)(torch.stack([x, 2 * x]))

    for mine, theirs in zip(
        derivatives(functional.masked_softmax), derivatives(_masked_fill_and_softmax), strict=True
    ):
        torch.testing.assert_close(mine, theirs, equal_nan=True)


@pytest.mark.parametrize("form", ["bool", "causal", "none"])
def test_opcheck_of_the_gradient(form):
    grad, y = torch.randn(2, 3, 4), torch.rand(2, 3, 4)
    mask = torch.rand(3, 4) > 0.5 if form == "bool" else None
    for needs_grad in (False, True):
        operands = (grad.clone().requires_grad_(needs_grad), y.clone().requires_grad_(needs_grad))
        arguments = (*operands, mask, -1, 0.5, form == "causal")
        opcheck(torch.ops.fastact.masked_softmax_backward, arguments)
