"""Are the gated units right along every dimension, in every layout, and for every pair of values?

What all operators share is tested along the first and the last dimension by the case table.
"""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from fastact import functional
from fastact.activations import REGISTRY
from fastact.testing.cases import DTYPES, assert_same_bits, pairs, significant_strides
from fastact.testing.inputs import random_tensor, special_values

NAMES = [row.name for row in REGISTRY.values() if row.halves_dimension]
by_name = pytest.mark.parametrize("name", NAMES)
# The half that the activation is applied to, and PyTorch's activation.
GATES = {
    "glu": (1, torch.sigmoid, REGISTRY["sigmoid"].exact),
    "swiglu": (0, F.silu, REGISTRY["silu"].exact),
    "geglu": (0, F.gelu, REGISTRY["gelu"].exact),
    "reglu": (0, torch.relu, REGISTRY["relu"].exact),
}
# torch.testing's, but for intermediate results that PyTorch rounds to 16 bits.
TOLERANCES = {
    torch.float64: {},
    torch.float32: {},
    torch.bfloat16: {"rtol": 2**-6, "atol": 2**-7},
    torch.float16: {"rtol": 2**-9, "atol": 2**-10},
}


def mine(name):
    return getattr(functional, name)


def composed(name, x, dim=-1, exact=False):
    """The unit as PyTorch's functions compute it; exact: as they would with all digits."""
    half, *activations = GATES[name]
    halves = list(x.chunk(2, dim))
    halves[half] = activations[exact](halves[half])
    return halves[0] * halves[1]


def twin(name):
    return F.glu if name == "glu" else functools.partial(composed, name)


def at(context):
    return lambda text: f"{context}: {text}"


def gradient(function, x, grad, *arguments):
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(function(leaf, *arguments), leaf, grad)[0]


# ---- values ------------------------------------------------------------------------------------

# Every size even; {name: what to make of a function that makes a contiguous tensor}.
LAYOUTS = {
    "vector": lambda new: new(34),
    "matrix": lambda new: new(6, 38),
    "two in every dimension": lambda new: new(2, 2, 2, 2, 2),
    "4-D": lambda new: new(4, 6, 2, 10),
    "channels last": lambda new: new(4, 6, 2, 10).to(memory_format=torch.channels_last),
    "permuted": lambda new: new(4, 6, 2, 10).permute(2, 0, 3, 1),
    "steps": lambda new: new(8, 6, 6, 20)[::2, :, ::3, ::2],
    "slice": lambda new: new(4, 9, 2, 13)[:, 2:8, :, 3:13],
    "offset": lambda new: new(485)[5:].view(4, 6, 2, 10),
    "expanded": lambda new: new(4, 1, 2, 1).expand(4, 6, 2, 10),
    "scalar": lambda new: new().expand(4, 6),
    "overlapping": lambda new: new(40).as_strided((6, 10), (3, 1), 1),
    "unit dimensions": lambda new: new(1, 4, 1, 6)[0].transpose(0, 1),
}


@pytest.mark.parametrize("name, dtype", pairs(NAMES, DTYPES))
def test_every_dimension_of_every_layout(name, dtype):
    """Against float64; the gradient too, with incoming ones of several layouts."""
    exactly = functools.partial(composed, name, exact=True)
    for layout, make in LAYOUTS.items():
        x = make(lambda *shape: random_tensor(shape, dtype))
        before = x.clone()
        for dim in range(-x.dim(), x.dim()):
            if x.shape[dim] % 2:
                continue
            context = f"{layout}, dim={dim}"
            y = mine(name)(x, dim)
            exact = exactly(x.double(), dim)
            assert (y.shape, y.dtype) == (exact.shape, dtype), context
            assert significant_strides(y) == significant_strides(F.glu(x.double(), dim)), context
            torch.testing.assert_close(y, exact.to(dtype), **TOLERANCES[dtype], msg=at(context))
            g = random_tensor(y.shape, dtype)
            order = [*reversed(range(g.dim()))]
            turned = g.permute(order).contiguous().permute(order)
            for incoming in (g, turned, g.new_ones(()).expand_as(g)):
                dx = gradient(mine(name), x, incoming, dim)
                expected = gradient(exactly, x.double(), incoming.double(), dim)
                torch.testing.assert_close(
                    dx, expected.to(dtype), **TOLERANCES[dtype], msg=at(context)
                )
        assert_same_bits(x, before, layout)


# Halves longer than a piece of work, with and without a rest; many short ones; columns.
LARGE = [
    ((2 * 16384,), 0),
    ((3, 2 * 16385), -1),
    ((2, 2 * 50_021), -1),
    ((2, 3, 16_391), 0),
    ((30_011, 2), -1),
    ((2, 70_001), 0),
    ((5, 34, 1009), 1),
]


@pytest.mark.parametrize("shape, dim", LARGE, ids=str)
@by_name
def test_more_than_a_thread_takes(name, shape, dim):
    torch.set_num_threads(3)
    x = random_tensor(shape)
    y = mine(name)(x, dim)
    exact = composed(name, x.double(), dim, exact=True)
    torch.testing.assert_close(y, exact.float())
    g = random_tensor(y.shape)
    expected = gradient(functools.partial(composed, name, exact=True), x.double(), g.double(), dim)
    torch.testing.assert_close(gradient(mine(name), x, g, dim), expected.float())


def _pairs_of_special_values(dtype):
    values = special_values(dtype)
    return torch.cartesian_prod(values, values).t().contiguous()


def _exact(name, x):
    """Output and gradient of columns of pairs in float64, from the limits of the activation and of
    its derivative; NaN where those make 0 * inf."""
    half, _, activation = GATES[name]
    gate, value = x[half].double(), x[1 - half].double()
    # Farther out than float64's own exponential reaches, and no farther than its square.
    finite = gate.clamp(-1e150, 1e150).requires_grad_()
    (derivative,) = torch.autograd.grad(activation(finite).sum(), finite)
    result = torch.where(gate == -math.inf, activation(finite), activation(gate)).detach()
    gradient = [value * derivative, result]
    return (value * result)[None], torch.stack(gradient[::-1] if half else gradient)


@pytest.mark.parametrize("name, dtype", pairs(NAMES, DTYPES))
def test_special_values(name, dtype):
    """Each with each: what PyTorch gives, or the exact value. Where both are 0 * inf, ours may have
    a limit."""
    x = _pairs_of_special_values(dtype)
    y, theirs = mine(name)(x, 0), twin(name)(x, 0)
    exact = _exact(name, x)[0].to(dtype)
    tolerance = torch.testing._comparison.default_tolerances(dtype)
    close = torch.isclose(y, theirs, *tolerance, equal_nan=True)
    close |= theirs.isnan() & exact.isnan() & ~x.isnan().any(0)
    torch.testing.assert_close(y, torch.where(close, y, exact), equal_nan=True)


@pytest.mark.parametrize("name, dtype", pairs(NAMES, DTYPES))
def test_gradients_of_special_values(name, dtype):
    """The same within a rounding of the derivative. (Of NaN itself PyTorch's gradient depends on
    the dtype.)"""
    x = _pairs_of_special_values(dtype)
    x = x[:, ~x.isnan().any(0)]
    ones = torch.ones_like(x[:1])
    dx, theirs = (gradient(f, x, ones, 0) for f in (mine(name), twin(name)))
    exact = _exact(name, x)[1]
    # The derivatives, at most about 1, are rounded before they meet the other half.
    scale = torch.maximum(x.double().abs().nan_to_num().flip(0), exact.abs())
    slack = 4 * torch.finfo(dtype).eps * scale
    tolerance = TOLERANCES[dtype] or {"rtol": 1e-5, "atol": 1e-6}
    close = torch.isclose(dx, theirs, **tolerance, equal_nan=True)
    close |= dx == exact.to(dtype)
    close |= (dx.double() - exact).abs() <= slack
    close |= theirs.isnan() & exact.isnan()
    wrong = (~close).any(0)
    assert not wrong.any(), (
        f"{int(wrong.sum())} differ; at {x[:, wrong][:, 0].tolist()} got "
        f"{dx[:, wrong][:, 0].tolist()}, expected {exact[:, wrong][:, 0].tolist()}, "
        f"PyTorch {theirs[:, wrong][:, 0].tolist()}"
    )


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 6), (0, 3), (3, 0, 2)], ids=str)
@pytest.mark.parametrize("name, dtype", pairs(NAMES, DTYPES))
def test_no_elements(name, dtype, shape):
    for dim in range(-len(shape), len(shape)):
        if shape[dim] % 2:
            continue
        x = torch.ones(shape, dtype=dtype, requires_grad=True)
        y = mine(name)(x, dim)
        expected = F.glu(x, dim)
        assert (y.shape, y.dtype) == (expected.shape, dtype)
        y.sum().backward()
        assert x.grad.shape == x.shape


@by_name
def test_keyword_forms(name):
    x = random_tensor([4, 6])
    expected = composed(name, x, 0)
    for y in (
        mine(name)(x, 0),
        mine(name)(x, dim=0),
        mine(name)(input=x, dim=-2),
        mine(name)(dim=0, input=x),
        getattr(torch.ops.fastact, name)(x, 0),
        getattr(torch.ops.fastact, name)(x, dim=-2),
    ):
        torch.testing.assert_close(y, expected)
    torch.testing.assert_close(mine(name)(x), composed(name, x, -1))


@by_name
def test_lazily_negated_inputs(name):
    x = random_tensor([4, 6], torch.float64)
    torch.testing.assert_close(mine(name)(torch._neg_view(x)), composed(name, -x))
    y = composed(name, x)
    dx = gradient(mine(name), x, torch._neg_view(y))
    torch.testing.assert_close(dx, gradient(functools.partial(composed, name), x, -y))


@by_name
def test_gradient_in_the_memory_of_the_input(name):
    x = random_tensor([4, 6])
    expected = gradient(mine(name), x, x[:, :3].clone())
    before = x.clone()
    assert_same_bits(gradient(mine(name), x, x[:, :3]), expected)
    assert_same_bits(x, before)


# ---- what the kernels do not cover -------------------------------------------------------------


def _outcome(function, *arguments):
    try:
        return function(*arguments)
    except Exception as error:
        return type(error)


OTHER_DTYPES = (torch.bool, torch.uint8, torch.int64, torch.complex64, torch.float8_e5m2)


@pytest.mark.parametrize("name, dtype", pairs(NAMES, OTHER_DTYPES))
def test_other_dtypes(name, dtype):
    """What the twin computes, or the error that it raises."""
    x = torch.tensor([[0, 1, 2, 5], [3, 0, 1, 1]]).to(dtype)
    actual, expected = _outcome(mine(name), x), _outcome(twin(name), x)
    if isinstance(expected, type):
        assert actual is expected
    else:
        torch.testing.assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@by_name
def test_other_layouts(name):
    """PyTorch has a glu of strided tensors alone; jagged ones work along their regular dimensions,
    which fastact's operators do too."""
    x = random_tensor([4, 6])
    parts = [random_tensor([3, 6]), random_tensor([2, 6])]
    nested = torch.nested.nested_tensor(parts)
    for other in (x.to_sparse(), x.to_sparse_csr(), x.to_mkldnn(), nested):
        with pytest.raises(RuntimeError):
            mine(name)(other)
    y = mine(name)(torch.nested.nested_tensor(parts, layout=torch.jagged))
    for actual, part in zip(y.unbind(), parts, strict=True):
        torch.testing.assert_close(actual, composed(name, part))


@by_name
def test_meta(name):
    x = torch.empty(4, 6, 2, device="meta", dtype=torch.bfloat16)
    for dim in range(-3, 3):
        y = mine(name)(x, dim)
        assert (y.shape, y.stride(), y.dtype, y.device) == (
            F.glu(x, dim).shape,
            F.glu(x, dim).stride(),
            torch.bfloat16,
            x.device,
        )


# ---- errors ------------------------------------------------------------------------------------

REFUSED = {
    "odd": ((3, 5), -1, "expected an even size in dimension 1, which is halved, got 5"),
    "odd, first": ((3, 4), 0, "expected an even size in dimension 0, which is halved, got 3"),
    "odd, middle": ((2, 1, 2), -2, "expected an even size in dimension 1, which is halved, got 1"),
    "0-dimensional": ((), -1, "expected at least 1 dimension, got a 0-dimensional tensor"),
    "dim too large": ((2, 4), 2, r"expected to be in range of \[-2, 1\], but got 2"),
    "dim too small": ((2, 4), -3, r"expected to be in range of \[-2, 1\], but got -3"),
}


# The paths that check for themselves.
PATHS = {
    "kernel": lambda function, x, dim: function(x, dim),
    "gradient": lambda function, x, dim: function(x.requires_grad_(), dim),
    "forward mode": lambda function, x, dim: jvp(lambda t: function(t, dim), (x,), (x,)),
    "meta": lambda function, x, dim: function(x.to("meta"), dim),
    "float8": lambda function, x, dim: function(x.to(torch.float8_e5m2), dim),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape, dim, message", REFUSED.values(), ids=REFUSED)
@by_name
def test_refused(name, shape, dim, message, path):
    """With the type of F.glu's error."""
    with pytest.raises((RuntimeError, IndexError)) as theirs:
        F.glu(torch.ones(shape), dim)
    with pytest.raises(theirs.type, match=message) as caught:
        PATHS[path](mine(name), torch.ones(shape), dim)
    assert caught.type is theirs.type
    assert name in str(caught.value) or caught.type is IndexError


@pytest.mark.parametrize("dim", ["a", None, 0.5, (0,)], ids=repr)
@by_name
def test_dim_of_another_type(name, dim):
    x = torch.ones(2, 4)
    with pytest.raises(TypeError):
        F.glu(x, dim)
    with pytest.raises(TypeError):
        mine(name)(x, dim)


@pytest.mark.parametrize("call", [(), (None,), ([1.0, 2.0],), (3.0,), ("x",)], ids=repr)
@by_name
def test_input_of_another_type(name, call):
    with pytest.raises(TypeError, match=name):
        mine(name)(*call)


@by_name
def test_gradient_of_another_shape(name):
    """Autograd never passes one; the operator broadcasts it, as ATen's, or refuses it. It does not
    read beyond its end: here, numbers that are NaN."""
    operator = getattr(torch.ops.fastact, name + "_backward")
    x = random_tensor([4, 6])
    memory = torch.full((4, 6), math.nan)
    memory[0, :3] = 2.0
    for shape in ((), (1,), (3,), (1, 3)):
        g = memory.flatten()[: math.prod(shape)].view(shape)
        try:
            dx = operator(g, x, -1)
        except RuntimeError:
            continue
        torch.testing.assert_close(dx, operator(torch.full((4, 3), 2.0), x, -1))
    for shape in ((4, 6), (2, 4, 3), (5,), (0,)):
        with pytest.raises(RuntimeError):
            operator(torch.ones(shape), x, -1)


# ---- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, -1])
@by_name
def test_gradcheck(name, dim):
    """In the middle, and of tensors with gaps and of other orders."""
    x = torch.randn(4, 4, 2, dtype=torch.float64)
    x = x + 0.05 * x.sign()  # reglu's kink
    function = lambda t: mine(name)(t, dim)  # noqa: E731
    for leaf in (x[:, :2], x[:2, ::2].transpose(0, 1)):
        leaf = leaf.requires_grad_()
        assert gradcheck(
            function,
            (leaf,),
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
            check_undefined_grad=True,
        )
        assert gradgradcheck(
            function,
            (leaf,),
            check_batched_grad=True,
            check_fwd_over_rev=True,
            check_rev_over_rev=True,
        )


@by_name
def test_both_sides_of_the_kink(name):
    """At a gate of exactly 0 the gradient is PyTorch's; signs of zeros too."""
    half, *_ = GATES[name]
    x = torch.stack([torch.tensor([0.0, -0.0, 0.0, -0.0]), torch.tensor([2.0, 2.0, -3.0, 0.0])])
    x = x.flip(0) if half else x
    g = torch.tensor([[1.0, -1.0, 2.0, 3.0]])
    torch.testing.assert_close(gradient(mine(name), x, g, 0), gradient(twin(name), x, g, 0))


@by_name
def test_gradient_of_a_saturated_gate(name):
    """Its digits do not get lost in 1 - act(x), wherever the gate lies."""
    gates = torch.linspace(-12, 12, 4001)
    half, *_ = GATES[name]
    x = torch.ones(2, 4001)
    x[half] = gates
    grad = torch.ones(1, 4001)
    exactly = functools.partial(composed, name, exact=True)
    dx = gradient(mine(name), x, grad, 0)[half]
    exact = gradient(exactly, x.double(), grad.double(), 0)[half]
    torch.testing.assert_close(dx.double(), exact, rtol=4 * 2.0**-23, atol=1e-8)


@by_name
def test_saved(name):
    """The input alone, of which no copy is made."""
    x = torch.randn(4, 6, requires_grad=True)
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    for view in (x, x.t()):
        saved.clear()
        with hooks:
            mine(name)(view, 0)
        assert [t.data_ptr() for t in saved] == [x.data_ptr()]


# ---- transforms --------------------------------------------------------------------------------

close = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("in_dim", [0, 1, 2, -1])
@pytest.mark.parametrize("dim", [0, 1, -1, -2])
@by_name
def test_vmap(name, dim, in_dim):
    """Positive dimensions are the sample's; forward, gradient, Jacobians."""
    x = torch.randn(4, 6, 2, dtype=torch.float64).movedim(0, in_dim)
    samples = x.unbind(in_dim)
    functions = [lambda t, f=f: f(t, dim) for f in (mine(name), twin(name))]
    mapped = [torch.stack([functions[1](s) for s in samples])]
    close(vmap(functions[0], in_dims=in_dim)(x), mapped[0])
    losses = [lambda t, f=f: f(t).square().sum() for f in functions]
    each = torch.stack([grad(losses[1])(s) for s in samples])
    close(vmap(grad(losses[0]), in_dims=in_dim)(x), each)
    for jacobian in (jacfwd, jacrev):
        close(jacobian(functions[0])(samples[0]), jacrev(functions[1])(samples[0]))


@by_name
def test_vmap_of_the_backward_operator(name):
    """Either tensor may lack the batch dimension."""
    operator = getattr(torch.ops.fastact, name + "_backward")
    x, g = torch.randn(5, 4, 6), torch.randn(5, 2, 6)
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
    close(
        vmap(lambda g, x: operator(g, x, 0))(g, x),
        torch.stack([operator(g[i], x[i], 0) for i in range(5)]),
    )
    close(
        vmap(lambda g, x: operator(g, x, 0), in_dims=(2, None))(g.movedim(0, 2), x[0]),
        torch.stack([operator(g[i], x[0], 0) for i in range(5)]),
    )
    close(
        vmap(lambda g, x: operator(g, x, -2), in_dims=(None, 1))(g[0], x.movedim(0, 1)),
        torch.stack([operator(g[0], x[i], -2) for i in range(5)]),
    )


@by_name
def test_vmap_refuses_what_a_sample_refuses(name):
    """A dimension of the batch is none of the sample."""
    for shape, dim, error in (
        ((4,), -1, RuntimeError),  # 0-dimensional samples
        ((4,), 0, RuntimeError),
        ((4, 3), 0, RuntimeError),
        ((4, 2), 1, IndexError),
        ((4, 2), -2, IndexError),
    ):
        with pytest.raises(error):
            vmap(lambda t, dim=dim: mine(name)(t, dim))(torch.ones(shape))


@by_name
def test_opcheck(name):
    """Between two dimensions, with and without gradients; the backward operator."""
    operator, backward = (getattr(torch.ops.fastact, name + kind) for kind in ("", "_backward"))
    x = torch.randn(2, 4, 3)
    torch.library.opcheck(operator, (x, 1))
    torch.library.opcheck(operator, (x.transpose(0, 2).requires_grad_(), -2))
    torch.library.opcheck(backward, (torch.randn(2, 2, 3), x, 1))
    torch.library.opcheck(
        backward, (torch.randn(3, 2, 2).transpose(0, 2).requires_grad_(), x.requires_grad_(), 1)
    )


# ---- torch.compile -----------------------------------------------------------------------------


@pytest.mark.usefixtures("dynamo")
@by_name
def test_compiled(name):
    """All dimensions in one graph, with every size left open, the halved ones too."""

    def uses(function):
        def run(x):
            y = function(x + 1, 1)
            return function(y.transpose(1, 2), dim=-2) * function(y).transpose(1, 2)

        return run

    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(
            uses(mine(name)), fullgraph=True, dynamic=True, backend="aot_eager"
        )
        for shape in ((3, 8, 4), (5, 12, 6), (2, 16, 8)):
            x = torch.randn(shape, dtype=torch.float64)
            results = []
            for function in (compiled, uses(twin(name))):
                leaf = x.clone().requires_grad_()
                y = function(leaf)
                y.square().sum().backward()
                results.append((y, leaf.grad))
            close(*results)


@pytest.mark.usefixtures("dynamo")
@by_name
def test_compiled_refuses_an_odd_size(name):
    compiled = torch.compile(mine(name), fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="expected an even size in dimension 1"):
        compiled(torch.ones(2, 3))


@pytest.mark.usefixtures("dynamo")
@by_name
def test_two_dimensions_do_not_share_a_compiled_backward(name):
    x = torch.randn(4, 4, dtype=torch.float64)

    def gradient_along(function, dim):
        leaf = x.clone().requires_grad_()
        function(leaf, dim).square().sum().backward()
        return leaf.grad

    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    for dim in (0, 1, 0, -1):
        with torch._dynamo.compiled_autograd._enable(compiler):
            found = gradient_along(mine(name), dim)
        close(found, gradient_along(twin(name), dim))
