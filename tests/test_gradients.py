"""Are gradients of every order right, and is no more saved for them than PyTorch saves?"""

import gc
import weakref

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from fastact import functional, nn
from fastact.testing.cases import (
    CASES,
    DEFAULT_CASES,
    DTYPES,
    FUSED_CASES,
    FUSED_OF_EACH_KIND,
    UNARY_CASES,
    pairs,
)
from fastact.testing.inputs import LAYOUTS, random_tensor, special_values


def _leaves(case, x):
    return tuple(t.detach().clone().requires_grad_() for t in (x, *case.tensors(x)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(case):
    leaves = _leaves(case, case.smooth(4, 2))
    assert gradcheck(
        case.function,
        leaves,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
    )
    assert gradgradcheck(
        case.function,
        leaves,
        check_batched_grad=True,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
    )


@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3), (2, 3, 2), (2, 1, 2, 1)], ids=str)
@pytest.mark.parametrize("weights", ["0-dim", "one", "channels"])
def test_gradcheck_of_prelu(shape, weights):
    x = torch.randn(shape, dtype=torch.float64)
    channels = shape[1] if len(shape) > 1 else 1
    sizes = {"0-dim": (), "one": (1,), "channels": (channels,)}
    weight = torch.randn(sizes[weights], dtype=torch.float64)
    leaves = (x.requires_grad_(), weight.requires_grad_())
    assert gradcheck(functional.prelu, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(functional.prelu, leaves, check_fwd_over_rev=True)


@pytest.mark.parametrize("fused", FUSED_CASES, ids=str)
def test_gradcheck_of_linear(fused):
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((3, 4), (2, 4), (2,)))
    slope = torch.randn(2, dtype=torch.float64) if fused.learnable else None
    # No value before the activation lies near a kink: the smallest distance is 0.05.
    leaves = tuple(t.requires_grad_() for t in (x, w, b, slope) if t is not None)

    def function(x, w, b, slope=None):
        learnable = {"slope": slope} if fused.learnable else {}
        return functional.linear(x, w, b, activation=fused.name, **fused.parameters, **learnable)

    assert gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, leaves, check_fwd_over_rev=True, check_rev_over_rev=True)


# ---- against eager PyTorch ---------------------------------------------------------------------


def _gradients(function, leaves, grad, tensors=()):
    return torch.autograd.grad(function(*leaves, *tensors), leaves, grad)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_in_float64(case):
    x = case.smooth(6, 3, 4)
    grad = torch.randn_like(case.twin(x, *case.tensors(x)))
    mine, theirs = (_gradients(f, _leaves(case, x), grad) for f in (case.function, case.twin))
    # PyTorch's celu differentiates with 1 / alpha in single precision.
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


# softmax and log_softmax: see test_softmax.
ELEMENTWISE = [case for case in CASES if case.row.family in ("unary", "prelu")]


@pytest.mark.parametrize("case, dtype", pairs(ELEMENTWISE, DTYPES[1:]))
def test_error_of_gradients(case, dtype):
    """End to end the error is at most PyTorch's plus one unit in the last place of 1; where the
    derivative is larger, two of the derivative."""
    x = case.smooth(11, 18, dtype=dtype)
    grad = torch.ones_like(x)
    (exact,) = _gradients(case.exact, (x.double().requires_grad_(),), grad.double())
    error, theirs = (
        (_gradients(function, _leaves(case, x), grad)[0].double() - exact).abs()
        for function in (case.function, case.twin)
    )
    size = torch.where(exact.abs() > 1, 2 * exact.abs(), 1.0)
    excess = error - theirs - torch.finfo(dtype).eps * size
    assert excess.max() <= 0, f"{excess.max():.3g} at x = {x.flatten()[excess.argmax()]:.9g}"


# torch.testing's, but for a derivative that comes from an output rounded to 16 bits.
TOLERANCES = {
    torch.float64: {},
    torch.float32: {},
    torch.bfloat16: {"rtol": 2**-6, "atol": 2**-5},
    torch.float16: {"rtol": 2**-9, "atol": 2**-8},
}


@pytest.mark.parametrize("case, dtype", pairs(ELEMENTWISE, DTYPES))
def test_gradients_at_kinks(case, dtype):
    """At the very points where the derivative jumps, fastact and PyTorch choose the same side."""
    x = torch.tensor(case.kinks()).to(dtype).repeat(9)
    mine, theirs = (
        _gradients(function, _leaves(case, x), torch.ones_like(x))[0]
        for function in (case.function, case.twin)
    )
    torch.testing.assert_close(mine, theirs, **TOLERANCES[dtype])


@pytest.mark.parametrize("case, dtype", pairs(UNARY_CASES, DTYPES))
def test_gradients_of_special_values(case, dtype):
    """Infinities, subnormals, the largest numbers: what PyTorch gives, or the limit where that is
    NaN. (Of NaN itself PyTorch's gradient depends on the dtype: 0, 1 or NaN.)"""
    x = special_values(dtype)
    x = x[~x.isnan()]
    mine, theirs = (
        _gradients(function, _leaves(case, x), torch.ones_like(x))[0]
        for function in (case.function, case.twin)
    )
    limit = theirs.isnan() & mine.isfinite()
    # PyTorch's celu differentiates with 1 / alpha in single precision.
    tolerance = TOLERANCES[dtype] or {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(mine, torch.where(limit, mine, theirs), equal_nan=True, **tolerance)


@pytest.mark.parametrize("case, dtype", pairs(CASES, (torch.float32, torch.bfloat16)))
def test_layouts_of_gradients(case, dtype):
    """Every layout of the input, with incoming gradients of other layouts."""
    # Of log_softmax the gradient is a difference, of a term for each element of the row.
    terms = 8 if case.row.family == "softmax" else 1
    tolerance = {key: terms * value for key, value in TOLERANCES[dtype].items()}
    for layout, make in LAYOUTS.items():
        x = make(lambda shape: case.smooth(*shape, dtype=dtype))
        if not case.accepts(x):
            continue
        ones = torch.ones_like(case.twin(x, *case.tensors(x)))
        for grad in (ones, torch.ones((), dtype=dtype).expand(ones.shape), ones.contiguous()):
            mine, theirs = (
                _gradients(function, (x.detach().requires_grad_(),), grad, case.tensors(x))
                for function in (case.function, case.twin)
            )
            context = f"{layout}, strides of the gradient {grad.stride()}"
            torch.testing.assert_close(
                mine,
                theirs,
                msg=lambda text, context=context: f"{context}: {text}",
                **tolerance,
            )


# ---- what is saved -----------------------------------------------------------------------------


def _saved_by(function, *inputs):
    """The result, and the tensors that its graph saves."""
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function(*inputs)
    return result, saved


def _storages(tensors, without=()):
    """Bytes of the distinct storages of tensors."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    for tensor in without:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_saves_its_input_or_its_output(case):
    """One tensor and no copy of it, beside the learnable ones."""
    x, *tensors = _leaves(case, random_tensor([4, 6]))
    y, saved = _saved_by(case.function, x, *tensors)
    _, theirs = _saved_by(case.twin, x, *tensors)
    assert len(saved) == 1 + len(tensors)
    assert saved[0].data_ptr() in (x.data_ptr(), y.data_ptr())
    assert saved[0].shape in (x.shape, y.shape)
    assert _storages(saved) <= max(_storages(theirs), x.nbytes + 4 * len(tensors))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_saves_nothing_without_need(case):
    x, *tensors = _leaves(case, random_tensor([4, 6]))
    frozen = [t.detach() for t in (x, *tensors)]
    assert _saved_by(case.function, *frozen)[1] == []
    with torch.no_grad():
        assert _saved_by(case.function, x, *tensors)[1] == []


def _stack_bytes(layers, x):
    model = torch.nn.Sequential(*layers)
    _, saved = _saved_by(model, x)
    return _storages(saved, without=model.parameters())


@pytest.mark.parametrize("fused", [f for f in FUSED_CASES if not f.learnable], ids=str)
def test_bytes_saved_by_a_stack(fused):
    """Linear + activation, over and over: distinct storages, as memory counts."""
    depth, x = 6, random_tensor([32, 64])
    one = x.nbytes
    layers = [nn.Linear(64, 64, activation=fused.name, **fused.parameters) for _ in range(depth)]
    mine = _stack_bytes(layers, x)

    class Twin(torch.nn.Module):
        def forward(self, z):
            return fused.twin(z)

    twins = [m for _ in range(depth) for m in (torch.nn.Linear(64, 64), Twin())]
    theirs = _stack_bytes(twins, x)
    assert mine <= theirs
    if fused.name in ("leaky_relu", "elu") and min(fused.parameters.values(), default=1.0) >= 0:
        # x and every output, where PyTorch saves every value before the activation too.
        assert mine == (depth + 1) * one
        assert theirs == 2 * depth * one


@pytest.mark.parametrize("case", CASES, ids=str)
def test_change_of_a_saved_tensor_is_caught(case):
    x, *tensors = _leaves(case, random_tensor([4, 6]))
    x = x * 1
    y, saved = _saved_by(case.function, x, *tensors)
    saves_input = saved[0].data_ptr() == x.data_ptr()
    y = case.function(x, *tensors)  # under hooks nothing is checked
    z = y.sum()
    (x if saves_input else y).detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_saved_tensors_are_freed(case):
    x, *tensors = _leaves(case, random_tensor([4, 6]))
    inner = x * 1
    y = case.function(inner, *tensors)
    references = [weakref.ref(inner)]
    z = y.sum()
    z.backward(retain_graph=True)
    z.backward()
    with pytest.raises(RuntimeError, match="second time"):
        z.backward()
    del inner, y, z
    gc.collect()
    assert references[0]() is None


# ---- what works with any saved tensor ------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
def test_checkpoint(case, reentrant):
    x = case.smooth(4, 8)
    gradients = []
    for function in (case.function, case.twin):
        leaves = _leaves(case, x)
        y = checkpoint(
            lambda *t, f=function: f(f(t[0], *t[1:]), *t[1:]), *leaves, use_reentrant=reentrant
        )
        y.square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
def test_hooks_on_saved_tensors(case):
    """What a hook gives back is what backward reads: a copy, a copy on another device."""
    x = case.smooth(4, 6)
    theirs, leaves = _leaves(case, x), _leaves(case, x)
    case.twin(*theirs).square().sum().backward()
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t):
        copied = case.function(*leaves)
    copied.square().sum().backward()
    with torch.autograd.graph.save_on_cpu():
        moved = case.function(*leaves)
    moved.square().sum().backward()
    for mine, twin in zip(leaves, theirs, strict=True):
        torch.testing.assert_close(mine.grad, 2 * twin.grad)


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
def test_no_tangent_is_dropped(case):
    x = case.smooth(4, 6)
    tensors = case.tensors(x)
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        mine, theirs = (
            forward_ad.unpack_dual(function(dual, *tensors)).tangent
            for function in (case.function, case.twin)
        )
        assert mine is not None
        torch.testing.assert_close(mine, theirs)


WEIGHT = torch.full((1,), 0.5)
CHAINS = {
    "unary": lambda y: functional.leaky_relu(y),
    "unary that saves its input": lambda y: functional.silu(y),
    "prelu": lambda y: functional.prelu(y, WEIGHT),
    "softmax": lambda y: functional.softmax(y, 0),
    "linear": lambda y: functional.linear(y, WEIGHT.view(1, 1), activation="tanh"),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_deep_graph_is_freed(chain):
    """Without recursion: the stack would not hold 100,000 frames."""
    y = torch.ones(1, requires_grad=True)
    for _ in range(100_000):
        y = chain(y)
    del y


# Those of linear's tensors that need a gradient.
NEEDS = ["input", "weight", "bias", "slope", "input weight", "weight bias", "input bias slope"]


@pytest.mark.parametrize(
    "fused, needs",
    [
        pytest.param(fused, needs, id=f"{fused}-{needs}")
        for fused in FUSED_OF_EACH_KIND
        for needs in NEEDS
        if fused.learnable or "slope" not in needs
    ],
)
def test_only_needed_gradients_of_linear(fused, needs):
    """Any subset of the tensors may need a gradient; for the others nothing is saved."""
    shapes = {"input": [3, 4], "weight": [2, 4], "bias": [2], "slope": [2]}
    needed = needs.split()
    values = {name: random_tensor(shape) for name, shape in shapes.items()}

    def mine(input, weight, bias, slope):
        learnable = {"slope": slope} if fused.learnable else {}
        parameters = {**fused.parameters, **learnable}
        return functional.linear(input, weight, bias, activation=fused.name, **parameters)

    def twin(input, weight, bias, slope):
        z = torch.nn.functional.linear(input, weight, bias)
        return fused.twin(z, slope) if fused.learnable else fused.twin(z)

    gradients = []
    for function in (mine, twin):
        tensors = {n: t.clone().requires_grad_(n in needed) for n, t in values.items()}
        y, saved = _saved_by(lambda f=function, t=tensors: f(**t))
        y.square().sum().backward()
        assert [name for name, t in tensors.items() if t.grad is not None] == needed
        gradients.append([tensors[name].grad for name in needed])
        if function is mine:
            pointers = {tensor.data_ptr() for tensor in saved}
            assert (tensors["input"].data_ptr() in pointers) == ("weight" in needed)
            assert (tensors["weight"].data_ptr() in pointers) == ("input" in needed)
    torch.testing.assert_close(*gradients)
