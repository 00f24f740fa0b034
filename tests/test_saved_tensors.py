"""What becomes of a gradient when somebody changes a tensor between forward and backward?"""

import pytest
import torch
import torch.nn.functional as F

from fastact import functional
from fastact.activations import REGISTRY
from fastact.testing.cases import DEFAULT_CASES, FUSED_CASES, VARIED_FUSED_CASES

# ---- outputs that are written to -----------------------------------------------------------------


def _operands(fused, dtype=torch.float64):
    torch.manual_seed(0)
    operands = [torch.randn(*shape, dtype=dtype) for shape in ((3, 5), (4, 5), (4,), (3, 4))]
    if fused.learnable:
        operands.append(torch.rand(4, dtype=dtype))
    return operands


def _linear(fused, x, w, b, slope=None, residual=None):
    own = (fused.name, fused.values, slope, residual)
    return torch.ops.fastact.linear(x, w, b, *own, save_output=False)


def _twin(fused, x, w, b, slope=None, residual=None):
    z = F.linear(x, w, b)
    slopes = [] if slope is None else [slope]
    return fused.twin(z if residual is None else z + residual, *slopes)


def _gradients(function, operands, needed, residual):
    leaves = [t.clone().requires_grad_(i in needed) for i, t in enumerate(operands)]
    x, w, b, r, *slope = leaves
    y = function(x, w, b, *(slope or [None]), r if residual else None)
    y += 1
    y *= torch.linspace(1, 2, 4, dtype=y.dtype)
    used = [t for i, t in enumerate(leaves) if t.requires_grad and (residual or i != 3)]
    return torch.autograd.grad(y.sum(), used)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("needed", [(0, 1, 2, 3, 4), (1, 2), (0,)], ids=["all", "own", "input"])
@pytest.mark.parametrize("fused", FUSED_CASES, ids=str)
def test_output_may_be_written_to(fused, needed, residual):
    operands = _operands(fused)
    reads_output = fused.name is not None and REGISTRY[fused.name].twin_saves_output
    unfused = reads_output and (residual or needed != (0, 1, 2, 3, 4))
    if unfused:  # as PyTorch, which may refuse it
        mine = _outcome(
            lambda: _gradients(lambda *a: _linear(fused, *a), operands, needed, residual)
        )
        assert mine == _outcome(
            lambda: _gradients(lambda *a: _twin(fused, *a), operands, needed, residual)
        )
        return
    mine = _gradients(lambda *a: _linear(fused, *a), operands, needed, residual)

    def theirs_of_a_copy(*arguments):
        return _twin(fused, *arguments).clone()

    theirs = _gradients(theirs_of_a_copy, operands, needed, residual)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("fused", VARIED_FUSED_CASES, ids=str)
def test_higher_orders_without_the_output(fused):
    x, w, b, _, *slope = _operands(fused)
    leaves = [t.requires_grad_() for t in (x, w, b, *slope)]

    def written(*operands):
        y = _linear(fused, *operands)
        y += 1
        return y

    assert torch.autograd.gradcheck(written, leaves)
    assert torch.autograd.gradgradcheck(written, leaves)


@pytest.mark.parametrize("fused", VARIED_FUSED_CASES, ids=str)
def test_transforms_without_the_output(fused):
    x, w, b, _, *slope = _operands(fused)
    slopes = slope or [None]

    def loss(function):
        return lambda x: function(fused, x, w, b, *slopes).square().sum()

    grad = torch.func.grad
    torch.testing.assert_close(grad(loss(_linear))(x), grad(loss(_twin))(x))
    torch.testing.assert_close(
        torch.func.vmap(grad(loss(_linear)))(torch.stack([x, -x])),
        torch.stack([grad(loss(_twin))(x), grad(loss(_twin))(-x)]),
    )
    _, tangent = torch.func.jvp(loss(_linear), (x,), (torch.ones_like(x),))
    _, expected = torch.func.jvp(loss(_twin), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, expected)


def test_bindings_take_the_flag():
    from fastact import _C

    x, w = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    for save_output in (True, False):
        y = _C.linear(x, w, None, "elu", (1.0,), None, None, save_output)
        y += 1
        if save_output:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()
        else:
            y.sum().backward()


# ---- operands that become others -----------------------------------------------------------------


def _new_data(tensor, other):
    tensor.data = other


def _set(tensor, other):
    tensor.set_(other)


def _resize(tensor, other):
    tensor.resize_(*other.shape)


CHANGES = [_new_data, _set, _resize]


def _outcome(function):
    """The gradient, or RuntimeError where there is none: never what lies behind the memory."""
    try:
        return function()
    except RuntimeError:
        return RuntimeError


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "prelu", "softmax"])
@pytest.mark.parametrize("operand", ["input", "weight"])
@pytest.mark.parametrize("change", CHANGES)
def test_linear_operand_is_changed(change, operand, activation):
    def gradient(function):
        torch.manual_seed(0)
        x, w = torch.randn(4, 6), torch.randn(5, 6)
        changed, other = (x, w) if operand == "input" else (w, x)
        other.requires_grad_()
        y = function(x, w)
        with torch.no_grad():
            change(changed, torch.full((8, 6), 7.0)[:3])
        y.backward(torch.ones(4, 5))
        return other.grad

    slope = torch.tensor([0.2])
    activations = {
        None: lambda z: z,
        "relu": F.relu,
        "gelu": F.gelu,
        "prelu": lambda z: F.prelu(z, slope),
        "softmax": lambda z: F.softmax(z, -1),
    }
    learnable = {"slope": slope} if activation == "prelu" else {}
    mine = _outcome(
        lambda: gradient(lambda x, w: functional.linear(x, w, None, activation, **learnable))
    )
    theirs = _outcome(lambda: gradient(lambda x, w: activations[activation](F.linear(x, w))))
    if theirs is RuntimeError:
        assert mine is RuntimeError
    else:
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["gelu", "silu", "softplus", "glu", "prelu"])
def test_input_is_changed(name, change):
    weights = [torch.tensor([0.2])] if name == "prelu" else []
    x = torch.randn(4, 6, requires_grad=True)
    y = getattr(functional, name)(x, *weights)
    with pytest.raises(RuntimeError):
        with torch.no_grad():
            change(x, torch.ones(2, 6))
        y.backward(torch.ones_like(y))


@pytest.mark.parametrize("count", [0, 2, 599, 601])
def test_prelu_weight_is_changed(count):
    """Fewer slopes than channels would be read, and their gradients written, beyond the end."""
    x, w = torch.randn(4, 600, requires_grad=True), torch.full((600,), 0.2, requires_grad=True)
    y = functional.prelu(x, w)
    w.data = torch.full((count,), 0.2)
    with pytest.raises(RuntimeError, match=r"prelu_backward\(\): weight: expected 1 or 600"):
        y.backward(torch.ones_like(y))


def test_memory_behind_an_operand_does_not_count():
    memory = torch.zeros(8, 6)
    grad, weight = torch.ones(4, 5), torch.zeros(5, 6)
    arguments = (None, memory[:3], weight, None, None, None, [], (False, True, False, False, False))
    with pytest.raises(RuntimeError, match=r"input: expected the shape of grad"):
        torch.ops.fastact.linear_backward(grad, *arguments)


@pytest.mark.parametrize("size", [0, 8])
def test_memory_that_was_taken_away(size):
    """Sharded training resizes a storage to nothing."""
    x, w = torch.randn(6, 5), torch.randn(4, 5)
    for call in (
        lambda: functional.relu(x),
        lambda: functional.softmax(x, -1),
        lambda: functional.glu(x, 0),
        lambda: functional.linear(x, w),
        lambda: functional.linear(w, x),
        lambda: torch.ops.fastact.pack_linear(x),
    ):
        x.untyped_storage().resize_(size)
        with pytest.raises(RuntimeError):
            call()


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
def test_registry_says_what_pytorch_saves(case):
    """Writing to what PyTorch keeps raises; converted models follow it."""
    kept = []

    def keep(tensor):
        kept.append(tensor.data_ptr())
        return tensor

    x = torch.randn(3, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = case.twin(x, *case.tensors(x))
    assert (y.data_ptr() in kept) == case.row.twin_saves_output
