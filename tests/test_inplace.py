"""Do in-place activations obey PyTorch's rules for tensors, views, versions and graphs?"""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fastact.testing.cases import DTYPES, UNARY_CASES, pairs
from fastact.testing.inputs import LAYOUTS, random_tensor


def _inplace(case):
    """The operator, which every unary activation has, as a function of the input alone."""
    operator = getattr(torch.ops.fastact, case.row.name + "_")
    return lambda x: operator(x, *case.values)


# Public: where the twin has ``inplace=``.
PUBLIC = [case for case in UNARY_CASES if case.row.inplace]


@pytest.mark.parametrize("case, dtype", pairs(UNARY_CASES, DTYPES))
def test_every_layout(case, dtype):
    """The same memory, holding what the function out of place gives, and nothing beside it."""
    for layout, make in LAYOUTS.items():
        x = make(lambda shape: random_tensor(shape, dtype))
        if (0 in x.stride() and x.numel() > 1) or layout == "overlapping":
            continue  # elements that share memory: see test_errors
        expected, address, strides = case.function(x), x.data_ptr(), x.stride()
        whole = torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
        before = whole.clone()
        result = _inplace(case)(x)
        assert (result.data_ptr(), result.stride()) == (address, strides), layout
        torch.testing.assert_close(x, expected, rtol=0, atol=0, msg=f"{case} {layout}")
        # What lies between the elements is untouched: written back, everything is as before.
        mine = torch.zeros_like(whole, dtype=torch.bool)
        torch.as_strided(mine, x.shape, strides, x.storage_offset()).fill_(True)
        assert torch.equal(whole[~mine], before[~mine]), layout


@pytest.mark.parametrize("case", PUBLIC, ids=str)
def test_returns_its_argument(case):
    x = random_tensor([4, 6])
    assert case.function(x, inplace=True) is x
    leaf = random_tensor([4, 6]).requires_grad_()
    y = leaf * 1
    assert case.function(y, inplace=True) is y


@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_leaf_is_refused(case):
    leaf = random_tensor([4]).requires_grad_()
    before = leaf.detach().clone()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        _inplace(case)(leaf)
    with pytest.raises(RuntimeError, match="a view of a leaf Variable"):
        _inplace(case)(leaf[1:])
    assert torch.equal(leaf, before)
    with torch.no_grad():
        _inplace(case)(leaf)
    torch.testing.assert_close(leaf.detach(), case.twin(before))


@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_version_counter(case):
    """One step a call, shared by views and by detached tensors, whether or not grad is on."""
    x = random_tensor([4, 6])
    view, detached = x[1:], x.detach()
    _inplace(case)(x)
    assert x._version == view._version == detached._version == 1
    _inplace(case)(view)
    with torch.no_grad():
        _inplace(case)(x)
    assert x._version == 3
    y = random_tensor([4, 6]).requires_grad_() * 1
    _inplace(case)(y)
    assert y._version == 1


@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_gradients(case):
    """Whether backward reads the input, which is gone, or the output."""
    x = case.smooth(4, 6).requires_grad_()
    assert gradcheck(lambda t: _inplace(case)(t.clone()), (x,), check_forward_ad=True)
    if case.row.name != "hardsigmoid":  # PyTorch cannot differentiate its gradient
        assert gradgradcheck(lambda t: _inplace(case)(t.clone()), (x,))


VIEWS = {
    "slice": lambda t: t[1:3],
    "column": lambda t: t[:, 2],
    "step": lambda t: t[::2],
    "transpose": lambda t: t.t(),
    "view": lambda t: t.view(-1),
    "diagonal": lambda t: t.diagonal(),
    "view of a view": lambda t: t[1:].t()[2:4],
    "everything": lambda t: t[:],
}


@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_gradients_through_views(case):
    """Written through a view, the change is part of the base's history."""
    for name, view in VIEWS.items():
        x = case.smooth(4, 6)
        leaf, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
        base = leaf * 1
        _inplace(case)(view(base))
        base.square().sum().backward()
        # The same out of place.
        other = twin * 1
        changed = case.twin(view(other))
        positions = view(torch.arange(24).view(4, 6)).reshape(-1)
        result = other.reshape(-1).index_copy(0, positions, changed.reshape(-1))
        result.square().sum().backward()
        torch.testing.assert_close(base.reshape(-1), result, msg=f"{case} {name}")
        torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_a_chain_in_place(case):
    """In place after an operation that keeps its output raises; after another it trains."""
    leaf = case.smooth(4, 6).requires_grad_()
    kept = leaf.exp()
    _inplace(case)(kept)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()
    x = case.smooth(4, 6)
    gradients = []
    for function in (_inplace(case), case.twin):
        leaf = x.clone().requires_grad_()
        function(leaf * 2 + 0.1).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_a_second_change(case):
    """Where backward reads the output, a later change of it is an error; else it is harmless."""
    x = case.smooth(4, 6)
    leaf, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = leaf * 1
    _inplace(case)(y)
    y.mul_(2)
    case.twin(twin).mul(2).sum().backward()
    try:
        y.sum().backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_forward_derivative(case):
    x = case.smooth(4, 6)
    tangent = torch.randn_like(x)
    with torch.autograd.forward_ad.dual_level():
        tangents = []
        for function in (_inplace(case), case.twin):
            dual = torch.autograd.forward_ad.make_dual(x.clone(), tangent.clone())
            tangents.append(torch.autograd.forward_ad.unpack_dual(function(dual)).tangent)
    assert tangents[0] is not None
    torch.testing.assert_close(*tangents, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_other_dtypes(case):
    """Integers: as the twin's result copied into the input, or the same error."""
    x = torch.tensor([0, 1, 2, 3, 100, -1, -2, -3])
    try:
        expected = x.clone().copy_(case.twin(x))
    except Exception as error:
        with pytest.raises(type(error)):
            _inplace(case)(x.clone())
    else:
        if case.twin(x).dtype == x.dtype:
            assert torch.equal(_inplace(case)(x.clone()), expected)
