"""Do the operators compute on CUDA devices what PyTorch computes in float64?

With FASTACT_EMULATED_OPERATORS, a library of tools/cuda_emulator.py, the same tests run on the
host: test_cuda_operators.py does that.
"""

from __future__ import annotations

import ctypes
import os

import pytest
import torch

from fastact.testing.accuracy import DEFAULT_CASES, exact

EMULATED = os.environ.get("FASTACT_EMULATED_OPERATORS")
if EMULATED:
    torch.ops.load_library(EMULATED)
DEVICE = "cpu" if EMULATED else "cuda"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPS = torch.ops.fastact

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not EMULATED and not torch.cuda.is_available(), reason="no CUDA device"),
]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def launches() -> int:
    """How many kernels the emulator has started."""
    count = ctypes.CDLL(EMULATED).emulator_launches
    count.restype = ctypes.c_uint64
    return count()


@pytest.fixture
def kernels_ran():
    """A test of these is worth nothing where ATen computed."""
    before = launches() if EMULATED else 0
    yield
    assert not EMULATED or launches() > before


def values(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.linspace(-6, 6, torch.Size(shape).numel()).to(dtype).view(shape).to(DEVICE)


# What kernels are handed: whole vectors and a rest, another layout, gaps, a misaligned address.
LAYOUTS = {
    "contiguous": lambda dtype: values(3, 5, 7, 2, dtype=dtype),
    "channels last": lambda dtype: values(2, 6, 4, 3, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    ),
    "transposed": lambda dtype: values(6, 36, dtype=dtype).t(),
    "every other": lambda dtype: values(18, 28, dtype=dtype)[:, ::2],
    "misaligned": lambda dtype: values(1025, dtype=dtype)[1:].view(2, 8, 64),
    "expanded": lambda dtype: values(4, 1, dtype=dtype).expand(4, 6),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def close(result: torch.Tensor, truth: torch.Tensor, factor: int = 1) -> None:
    """To rounding, and to the digits that a saved output has lost."""
    assert not result.is_cuda or not EMULATED
    # In float64 the truth has no more digits than the result.
    epsilon = torch.finfo(result.dtype).eps * factor * (8 if result.dtype.itemsize == 8 else 1)
    torch.testing.assert_close(
        result.double().cpu(),
        truth.double().cpu(),
        rtol=16 * epsilon,
        atol=4 * epsilon,
        equal_nan=True,  # rows that a mask leaves nothing of
    )


# ---- activations -------------------------------------------------------------------------------

UNARY = [case for case in DEFAULT_CASES if case.row.family == "unary"]
FEW = [case for case in UNARY if case.row.name in ("relu", "gelu", "softplus", "logsigmoid")]
each_unary = pytest.mark.parametrize("case", UNARY, ids=str)
each_few = pytest.mark.parametrize("case", FEW, ids=str)


def operator(case, suffix: str = ""):
    return getattr(OPS, case.row.name + suffix)


@each_unary
@each_dtype
def test_activation(case, dtype, kernels_ran):
    x = values(7, 83, dtype=dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    y, truth = operator(case)(x, *case.values), exact(case, wide)
    close(y.detach(), truth.detach())
    grad = values(83, 7, dtype=dtype).t()
    (dx,) = torch.autograd.grad(y, x, grad)
    (truth,) = torch.autograd.grad(truth, wide, grad.double())
    # PyTorch's own derivative of hardsigmoid takes 1/6 in float32.
    close(dx, truth, 2**27 if case.row.name == "hardsigmoid" and dtype.itemsize == 8 else 1)


@each_few
@each_layout
@each_dtype
def test_layouts_of_activations(case, layout, dtype, kernels_ran):
    x = LAYOUTS[layout](dtype)
    y = operator(case)(x, *case.values)
    close(y, exact(case, x.double()))
    twin = x.contiguous() if case.row.name == "logsigmoid" else x
    assert y.stride() == torch.empty_like(twin).stride()
    for grad in (values(*x.shape, dtype=dtype), LAYOUTS[layout](dtype)):
        wide = x.double().requires_grad_()
        (truth,) = torch.autograd.grad(exact(case, wide), wide, grad.double())
        leaf = x.detach().requires_grad_()
        (dx,) = torch.autograd.grad(operator(case)(leaf, *case.values), leaf, grad)
        close(dx, truth)
        assert dx.stride() == torch.empty_like(twin).stride()


@each_few
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
def test_activations_in_place(case, layout, kernels_ran):
    x = LAYOUTS[layout](torch.float32)
    truth = exact(case, x.double())
    assert operator(case, "_")(x, *case.values) is x
    close(x, truth)


def test_activations_of_nothing():
    for shape in ((0,), (3, 0, 2)):
        x = torch.empty(shape, device=DEVICE, requires_grad=True)
        y = OPS.gelu(x)
        assert y.shape == x.shape
        y.sum().backward()
        assert x.grad.shape == x.shape


def test_activations_without_a_kernel():
    x = torch.arange(-3, 4, device=DEVICE)
    assert torch.equal(OPS.relu(x), torch.relu(x))
    assert torch.equal(OPS.silu(x.to(torch.complex64)), torch.nn.functional.silu(x + 0j))


def test_in_place_refuses_expanded_tensors():
    with pytest.raises(RuntimeError, match=r"single memory location|overlap"):
        OPS.relu_(torch.zeros(1, device=DEVICE).expand(4))


def test_grad_of_another_dtype_is_refused():
    x = values(4)
    with pytest.raises(RuntimeError, match=r"fastact\.relu_backward\(\): grad: expected the dtype"):
        OPS.relu_backward(x.double(), x)


# ---- gated units -------------------------------------------------------------------------------

GATES = {
    "glu": lambda a, b: a * torch.sigmoid(b),
    "swiglu": lambda a, b: torch.nn.functional.silu(a) * b,
    "geglu": lambda a, b: torch.nn.functional.gelu(a) * b,
    "reglu": lambda a, b: torch.relu(a) * b,
}


@pytest.mark.parametrize("name", GATES)
@each_layout
@each_dtype
def test_gated(name, layout, dtype, kernels_ran):
    x = LAYOUTS[layout](dtype)
    for dim in [d for d in range(x.dim()) if x.size(d) % 2 == 0]:
        leaf, wide = x.detach().requires_grad_(), x.double().requires_grad_()
        y = getattr(OPS, name)(leaf, dim)
        truth = GATES[name](*wide.chunk(2, dim))
        close(y.detach(), truth.detach(), 4)
        grads = [
            values(*y.shape, dtype=dtype),
            values(*y.shape[::-1], dtype=dtype).permute(*range(y.dim())[::-1]),
        ]
        for grad in grads:
            (dx,) = torch.autograd.grad(y, leaf, grad, retain_graph=True)
            (dx_truth,) = torch.autograd.grad(truth, wide, grad.double(), retain_graph=True)
            close(dx, dx_truth, 4)


def test_gated_of_nothing():
    for shape, dim in (((0, 4), 1), ((3, 0), 1), ((4, 0, 2), 0)):
        x = torch.empty(shape, device=DEVICE, requires_grad=True)
        y = OPS.swiglu(x, dim)
        assert y.shape == torch.nn.functional.glu(x, dim).shape
        y.sum().backward()
        assert x.grad.shape == x.shape


# ---- PReLU -------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [True, False], ids=["one slope", "a slope a channel"])
@each_layout
@each_dtype
def test_prelu(layout, one, dtype, kernels_ran):
    x = LAYOUTS[layout](dtype)
    # As a view with gaps.
    slope = values(2 if one else 2 * x.size(1), dtype=dtype)[::2]
    leaves = x.detach().requires_grad_(), slope.detach().requires_grad_()
    wide = x.double().requires_grad_(), slope.double().requires_grad_()
    y = OPS.prelu(*leaves)
    truth = torch.prelu(*wide)
    close(y.detach(), truth.detach())
    assert y.stride() == torch.empty_like(x).stride()
    for grad in (values(*x.shape, dtype=dtype), LAYOUTS[layout](dtype)):
        dx, dslope = torch.autograd.grad(y, leaves, grad, retain_graph=True)
        truths = torch.autograd.grad(truth, wide, grad.double(), retain_graph=True)
        close(dx, truths[0])
        close(dslope, truths[1], 8)


def test_prelu_of_many_rows(kernels_ran):
    for shape in ((70, 5, 130), (300, 37), (1, 3, 9000)):
        x = values(*shape).requires_grad_()
        slope = torch.linspace(-1, 2, shape[1], device=DEVICE).requires_grad_()
        wide = x.detach().double().requires_grad_(), slope.detach().double().requires_grad_()
        got = torch.autograd.grad(OPS.prelu(x, slope).sum(), (x, slope))
        truth = torch.autograd.grad(torch.prelu(*wide).sum(), wide)
        for one, other in zip(got, truth, strict=True):
            torch.testing.assert_close(one.double().cpu(), other.cpu(), rtol=1e-5, atol=1e-5)


def test_prelu_of_nothing():
    x = torch.empty(0, 3, 2, device=DEVICE, requires_grad=True)
    slope = torch.ones(3, device=DEVICE, requires_grad=True)
    OPS.prelu(x, slope).sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(slope.grad, torch.zeros_like(slope))


# ---- softmax -----------------------------------------------------------------------------------

SOFTMAX = {
    "softmax": (lambda x, dim: OPS.softmax(x, dim, 1.0), torch.softmax),
    "scaled": (lambda x, dim: OPS.softmax(x, dim, -0.5), lambda x, dim: (x * -0.5).softmax(dim)),
    "log_softmax": (lambda x, dim: OPS.log_softmax(x, dim), torch.log_softmax),
}


@pytest.mark.parametrize("name", SOFTMAX)
@each_layout
@each_dtype
def test_softmax(name, layout, dtype, kernels_ran):
    ours, theirs = SOFTMAX[name]
    x = LAYOUTS[layout](dtype)
    for dim in range(-1, x.dim() - 1):
        leaf, wide = x.detach().requires_grad_(), x.double().requires_grad_()
        y, truth = ours(leaf, dim), theirs(wide, dim)
        assert y.is_contiguous()
        close(y.detach(), truth.detach())
        grad = values(*y.shape[::-1], dtype=dtype).permute(*range(y.dim())[::-1])
        (dx,) = torch.autograd.grad(y, leaf, grad)
        (truth,) = torch.autograd.grad(truth, wide, grad.double())
        close(dx, truth, 8)


def test_softmax_of_nothing():
    for shape in ((0, 4), (3, 0), (2, 0, 5)):
        x = torch.empty(shape, device=DEVICE, requires_grad=True)
        for dim in range(len(shape)):
            y = OPS.softmax(x, dim, 1.0)
            y.sum().backward()
            assert y.shape == x.shape
    x = torch.tensor(3.0, device=DEVICE)
    assert OPS.softmax(x, 0, 1.0).item() == 1
    assert OPS.log_softmax(x, 0).item() == 0


def keeping() -> torch.Tensor:
    return torch.arange(4 * 6 * 10, device=DEVICE).view(4, 6, 10) % 3 != 0


# By dtype; made when a test runs, since tests are collected where there is no device.
MASKS = {
    "none": lambda dtype: None,
    "boolean": lambda dtype: keeping(),
    "boolean rows": lambda dtype: keeping()[0, :1],
    "boolean, transposed": lambda dtype: keeping()[:, :, :6].mT.repeat(1, 1, 2)[:, :, :10],
    "boolean, a matrix each": lambda dtype: keeping()[:, None, 0],
    "boolean, one an element": lambda dtype: keeping()[:, :, :1],
    "added": lambda dtype: values(6, 10, dtype=dtype),
    "added, to every matrix": lambda dtype: values(4, 1, 10, dtype=dtype),
    "added, a number a row": lambda dtype: values(6, 1, dtype=dtype),
    "added, one": lambda dtype: values(1, dtype=dtype)[0],
    "causal": lambda dtype: None,
}


@pytest.mark.parametrize("kind", MASKS)
@each_dtype
def test_masked_softmax(kind, dtype, kernels_ran):
    x = values(6, 4, 10, dtype=dtype).transpose(0, 1)
    mask, causal = MASKS[kind](dtype), kind == "causal"
    leaf, wide = x.detach().requires_grad_(), x.double().requires_grad_()
    y = OPS.masked_softmax(leaf, mask, -1, 0.5, causal)
    scores = wide * 0.5
    if causal:
        mask = torch.ones(6, 10, dtype=torch.bool, device=DEVICE).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask.double()
    truth = torch.softmax(scores, -1)
    close(y.detach(), truth.detach())
    grad = values(10, 6, 4, dtype=dtype).permute(2, 1, 0)
    alive = ~truth.detach().isnan().any(-1, keepdim=True)
    (dx,) = torch.autograd.grad(y, leaf, grad)
    (truth,) = torch.autograd.grad(truth, wide, grad.double())
    zero = torch.zeros((), dtype=torch.float64, device=DEVICE)
    close(torch.where(alive, dx, zero.to(dtype)), torch.where(alive, truth, zero), 8)


def test_masked_softmax_along_another_dimension():
    x, mask = values(4, 6), torch.arange(24, device=DEVICE).view(4, 6) % 4 != 1
    truth = x.masked_fill(~mask, -torch.inf).softmax(0)
    torch.testing.assert_close(OPS.masked_softmax(x, mask, 0, 1.0, False), truth)


# ---- linear and conv ---------------------------------------------------------------------------

EPILOGUES = ["relu", "gelu_tanh", "silu", "gelu", None]
SHAPES = [(9, 24, 16), (2, 5, 7, 13), (70, 33, 8)]  # rows..., in, out
each_epilogue = pytest.mark.parametrize("activation", EPILOGUES)


def activated(activation: str | None, z: torch.Tensor) -> torch.Tensor:
    case = next((case for case in UNARY if case.row.name == activation), None)
    return exact(case, z) if case else z


def close_products(result: torch.Tensor, truth: torch.Tensor) -> None:
    """Of sums of some ten products of numbers around 1, on tensor cores."""
    epsilon = max(torch.finfo(result.dtype).eps, 1e-7 if EMULATED else 1e-3)
    if result.dtype == torch.float64:
        epsilon = 1e-14
    scale = truth.abs().max().item() + 1
    torch.testing.assert_close(
        result.double().cpu(), truth.double().cpu(), rtol=64 * epsilon, atol=16 * epsilon * scale
    )


def operands(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Leaves, and the same in float64."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator).to(dtype).to(DEVICE) for shape in shapes]
    return [t.requires_grad_() for t in drawn]


def compare_gradients(y, truth, leaves, wide) -> None:
    close_products(y.detach(), truth.detach())
    grad = values(*y.shape, dtype=y.dtype)
    if y.dim() == 4:
        grad = grad.contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(y, leaves, grad)
    truths = torch.autograd.grad(truth, wide, grad.double())
    for gradient, of_truth in zip(gradients, truths, strict=True):
        close_products(gradient, of_truth)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("add", [False, True], ids=["", "residual"])
@each_epilogue
@each_dtype
def test_linear(activation, shape, add, dtype, kernels_ran):
    *rows, k, n = shape
    leaves = operands((*rows, k), (n, k), (n,), *[(*rows, n)] * add, dtype=dtype)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    x, w, b, *residual = leaves
    y = OPS.linear(x, w, b, activation, [], None, residual[0] if add else None, True)
    z = torch.nn.functional.linear(*wide[:3])
    compare_gradients(y, activated(activation, z + wide[3] if add else z), leaves, wide)
    with torch.no_grad():  # inference may take another road
        y = OPS.linear(x, w, None if add else b, activation, [], None, *residual or [None], True)
        z = torch.nn.functional.linear(wide[0], wide[1], None if add else wide[2])
        close_products(y, activated(activation, z + wide[3] if add else z))


def test_linear_of_strided_operands(kernels_ran):
    x, w = values(24, 18)[:, ::2].t(), values(24, 10).t()
    b, residual = values(20)[::2], values(10, 9).t()
    with torch.no_grad():
        y = OPS.linear(x, w, b, "silu", [], None, residual, True)
    close_products(y, torch.nn.functional.silu((x @ w.t() + b + residual).double()))
    assert y.is_contiguous()


def test_linear_of_nothing():
    for shape in ((0, 4), (3, 0)):
        x = torch.ones(shape, device=DEVICE, requires_grad=True)
        w = torch.ones(5, shape[1], device=DEVICE, requires_grad=True)
        b = torch.ones(5, device=DEVICE, requires_grad=True)
        y = OPS.linear(x, w, b, "relu", [], None, None, True)
        assert torch.equal(y, torch.ones(shape[0], 5, device=DEVICE))
        y.sum().backward()
        assert torch.equal(b.grad, torch.full_like(b, shape[0]))


def test_linear_keeps_nan():
    x = torch.full((4, 8), torch.nan, device=DEVICE)
    with torch.no_grad():
        y = OPS.linear(x, values(6, 8), values(6), "relu", [], None, None, True)
    assert y.isnan().all()


@pytest.mark.parametrize("last", [False, True], ids=["", "channels last"])
@pytest.mark.parametrize("add", [False, True], ids=["", "residual"])
@each_epilogue
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_conv(activation, add, last, dtype):
    leaves = operands((2, 4, 9, 8), (8, 4, 3, 3), (8,), *[(2, 8, 9, 8)] * add, dtype=dtype)
    if last:  # but the residual, which then lies in another way than the output
        leaves[:2] = [
            t.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
            for t in leaves[:2]
        ]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    x, w, b, *residual = leaves
    before = launches() if EMULATED else 0
    y = OPS.conv(x, w, b, [1], [1], [1], 1, activation, [], None, *residual or [None], True)
    z = torch.nn.functional.conv2d(*wide[:3], padding=1)
    compare_gradients(y, activated(activation, z + wide[3] if add else z), leaves, wide)
    if EMULATED and (activation or add):
        assert launches() > before
    with torch.no_grad():
        inference = OPS.conv(
            x, w, b, [1], [1], [1], 1, activation, [], None, *residual or [None], True
        )
        close_products(inference, y.detach().double())
        assert inference.stride() == y.stride()


# ---- recurrent layers --------------------------------------------------------------------------

# The kind, hidden units, layers, both directions, biases, units that it projects to.
LAYERS = [
    ("rnn tanh", 8, 1, False, True, 0),
    ("rnn relu", 5, 2, True, False, 0),
    ("gru", 8, 2, False, True, 0),
    ("gru", 5, 1, True, False, 0),
    ("lstm", 8, 1, False, True, 0),
    ("lstm", 6, 2, True, True, 0),
    ("lstm", 8, 2, True, False, 4),
]


def recurrent(kind: str, x, states, weights, noise, bias: bool, both: bool):
    if kind == "lstm":
        return OPS.lstm(x, *states, weights, None, noise, bias, both)
    if kind == "gru":
        return OPS.gru(x, states[0], weights, None, noise, bias, both)
    return OPS.rnn(x, states[0], weights, None, noise, bias, both, kind.removeprefix("rnn "))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@each_dtype
def test_recurrent(layer, dtype, kernels_ran):
    kind, units, layers, both, bias, projected = layer
    name = kind.partition(" ")[0].upper()
    options = {"nonlinearity": kind.partition(" ")[2]} if name == "RNN" else {}
    options |= {"proj_size": projected} if projected else {}
    module = getattr(torch.nn, name)(
        6, units, layers, bias=bias, bidirectional=both, **options, device=DEVICE
    )
    directions, width = 1 + both, projected or units
    x, h = operands((7, 3, 6), (layers * directions, 3, width), dtype=dtype)
    (c,) = operands((layers * directions, 3, units), dtype=dtype)
    states = [h, c] if kind == "lstm" else [h]
    weights = [w.detach().to(dtype).requires_grad_() for w in module.parameters()]
    leaves = [x, *states, *weights]
    module = module.double()
    for parameter, weight in zip(module.parameters(), weights, strict=True):
        parameter.data.copy_(weight.detach())
    wide = [t.detach().double().requires_grad_() for t in (x, *states)]

    results = recurrent(kind, x, states, weights, None, bias, both)
    output, last = module(wide[0], tuple(wide[1:]) if len(states) == 2 else wide[1])
    truths = [output, *(last if len(states) == 2 else [last])]
    # Sums of 16-bit products are rounded in every step.
    tolerance = {"rtol": 0.0, "atol": 60 * torch.finfo(dtype).eps}
    if dtype == torch.float32 and not EMULATED:
        tolerance["atol"] = 1e-2  # tensor cores may compute in TF32
    grads = [values(*y.shape, dtype=dtype) / 6 for y in results]
    got = [*results, *torch.autograd.grad(results, leaves, grads)]
    truth = [
        *truths,
        *torch.autograd.grad(
            truths, [*wide, *module.parameters()], [grad.double() for grad in grads]
        ),
    ]
    for mine, theirs in zip(got, truth, strict=True):
        scale = theirs.abs().max().clamp(min=1)
        torch.testing.assert_close(
            (mine.detach().double() / scale).cpu(), (theirs.detach() / scale).cpu(), **tolerance
        )
    with torch.no_grad():
        again = recurrent(kind, x, states, weights, None, bias, both)
    # ATen's products may take another order where operands lie at other addresses.
    for mine, theirs in zip(again, results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", ["rnn tanh", "gru", "lstm"])
def test_recurrent_gradients_of_parts(kind, kernels_ran):
    """Of one output alone, of some leaves alone, with noise between layers."""
    gates = {"rnn tanh": 1, "gru": 3, "lstm": 4}[kind]
    x, h, c = operands((4, 2, 8), (2, 2, 8), (2, 2, 8), dtype=torch.float64)
    weights = operands(*[(gates * 8, 8), (gates * 8, 8)] * 2, dtype=torch.float64)
    noise = (torch.arange(64, device=DEVICE).view(1, 4, 2, 8) % 3).double()
    states = [h, c] if kind == "lstm" else [h]

    def of_part(part: int, leaf: torch.Tensor, device: str) -> torch.Tensor:
        move = lambda t: t.detach().to(device)  # noqa: E731
        moved = move(leaf).requires_grad_()
        swap = lambda t: moved if t is leaf else move(t)  # noqa: E731
        results = recurrent(
            kind, swap(x), [*map(swap, states)], [*map(swap, weights)], move(noise), False, False
        )
        return torch.autograd.grad(results[part].sin().sum(), moved)[0].cpu()

    for part in range(1 + len(states)):
        for leaf in (x, h, weights[1]):
            mine = of_part(part, leaf, DEVICE)
            numeric = torch.zeros_like(mine).flatten()
            flat = leaf.detach().flatten()
            for i in range(0, flat.numel(), 17):
                sides = []
                for step in (1e-5, -1e-5):
                    moved = flat.clone()
                    moved[i] += step
                    moved = moved.view_as(leaf)
                    pick = lambda t, m=moved, own=leaf: m if t is own else t.detach()  # noqa: E731
                    y = recurrent(
                        kind,
                        pick(x),
                        [*map(pick, states)],
                        [*map(pick, weights)],
                        noise,
                        False,
                        False,
                    )
                    sides.append(y[part].sin().sum().item())
                numeric[i] = (sides[0] - sides[1]) / 2e-5
                assert mine.flatten()[i].item() == pytest.approx(numeric[i].item(), abs=1e-6)


# ---- what only a device has --------------------------------------------------------------------

on_device = pytest.mark.skipif(bool(EMULATED), reason="of a device alone")


def work(x: torch.Tensor) -> list[torch.Tensor]:
    """A call of every family."""
    y = OPS.linear(x, x[:16], x[0, :16], "silu", [], None, None, True)
    lstm = OPS.lstm(
        x.view(4, 8, 64),
        *[x[None, :8, :16]] * 2,
        [x[:, :64].repeat(2, 1), x.repeat(2, 1)[:, :16]],
        None,
        None,
        False,
        False,
    )
    return [
        OPS.gelu(x), OPS.swiglu(x, 1), OPS.prelu(x, x[0]), OPS.softmax(x, 0, 1.0),
        OPS.log_softmax(x, 1), OPS.masked_softmax(x, None, -1, 1.0, True), y, *lstm,
    ]  # fmt: skip


@on_device
def test_graphs_capture():
    x = values(32, 64)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        work(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = work(x)
    x.mul_(-0.5)
    graph.replay()
    with torch.no_grad():
        for one, other in zip(captured, work(x), strict=True):
            assert torch.equal(one, other)


@on_device
def test_streams():
    x = values(32, 64)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = x * 2
        results = work(late)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.no_grad():
        for one, other in zip(results, work(x * 2), strict=True):
            assert torch.equal(one, other)


@on_device
def test_same_bits_each_time():
    def run() -> list[torch.Tensor]:
        x = values(2000, 96).requires_grad_()
        slope = values(96).requires_grad_()
        y = OPS.prelu(x, slope).sin() + OPS.linear(x, x[:96], slope, "gelu", [], None, None, True)
        return [y.detach(), *torch.autograd.grad(y.sum(), (x, slope))]

    for one, other in zip(run(), run(), strict=True):
        assert torch.equal(one, other)


@on_device
def test_other_devices_are_refused():
    x, slope = values(4, 6), torch.ones(6)
    with pytest.raises(RuntimeError, match=r"fastact\.prelu\(\): weight: expected the device of"):
        OPS.prelu(x, slope)


@on_device
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_second_device():
    x = values(32, 64)
    with torch.no_grad():
        for one, other in zip(work(x.to("cuda:1")), work(x), strict=True):
            assert one.device.index == 1
            assert torch.equal(one.cpu(), other.cpu())
