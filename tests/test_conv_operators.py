"""Do conv and its family compute what PyTorch's convolution followed by the activation computes?"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from fastact.testing.cases import FUSED_CASES, FUSED_OF_EACH_KIND

ops = torch.ops.fastact
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
# Relative to the largest output.
TOLERANCES = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
    torch.bfloat16: 2e-2,
    torch.float16: 3e-3,
}


def _assert_close(got, expected, factor=1.0, computed=None):
    """`computed`: in which dtype, where that is not the result's."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    scale = expected.abs().max().item() if expected.numel() else 1.0
    difference = (got.double() - expected.double()).abs()
    worst = difference.max().item() if difference.numel() else 0.0
    assert worst <= factor * TOLERANCES[computed or expected.dtype] * max(scale, 1.0)


def _operands(dims=2, dtype=torch.float32, layout="contiguous", **shape):
    n, c, k, size, kernel = (
        shape.get(name, default)
        for name, default in {"n": 2, "c": 4, "k": 6, "size": 7, "kernel": 3}.items()
    )
    groups = shape.get("groups", 1)
    x = torch.randn([n, c] + [size + i for i in range(dims)], dtype=dtype)
    w = torch.randn([k, c // groups] + [kernel] * dims, dtype=dtype)
    if layout == "channels last" and dims in CHANNELS_LAST:
        x = x.contiguous(memory_format=CHANNELS_LAST[dims])
        w = w.contiguous(memory_format=CHANNELS_LAST[dims])
    if layout == "slice":
        x = torch.cat((x, x), 1)[:, ::2]
    return x, w, torch.randn(k, dtype=dtype)


def _arguments(fused, slope):
    return fused.name, list(fused.values), slope if fused.learnable else None


# (dimensions, operands, how the kernel moves)
GEOMETRIES = [
    (1, {}, {}),
    (1, {"kernel": 5, "size": 12}, {"stride": [3], "padding": [2]}),
    (2, {}, {}),
    (2, {}, {"padding": [1, 2]}),
    (2, {"size": 9}, {"stride": [2], "padding": [1]}),
    (2, {"size": 11}, {"stride": [2, 3], "dilation": [2, 1]}),
    (2, {"kernel": 1}, {}),
    (2, {"kernel": 1}, {"stride": [2]}),
    (2, {"c": 3, "kernel": 7, "size": 20}, {"stride": [2], "padding": [3]}),
    (2, {"groups": 2}, {"padding": [1], "groups": 2}),
    (2, {"k": 4, "groups": 4}, {"padding": [1], "groups": 4}),
    (2, {"k": 8, "groups": 4, "kernel": 5}, {"padding": [2], "stride": [2], "groups": 4}),
    (2, {"n": 0}, {}),
    (2, {"n": 1, "c": 1, "k": 1}, {}),
    (2, {"c": 32, "k": 48}, {"padding": [1]}),
    (3, {"size": 4}, {"padding": [1]}),
    (3, {"size": 5, "kernel": 1}, {"stride": [2, 1, 2]}),
]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "slice"])
@pytest.mark.parametrize("dims, operands, geometry", GEOMETRIES)
def test_of_every_geometry(dims, operands, geometry, layout, dtype):
    """Values, and the memory format, are PyTorch's."""
    x, w, b = _operands(dims, dtype, layout, **operands)
    expected = CONVOLUTIONS[dims](x, w, b, **geometry)
    got = ops.conv(x, w, b, **geometry, activation="relu")
    _assert_close(got, expected.relu())
    _assert_close(ops.conv(x, w, None, **geometry), CONVOLUTIONS[dims](x, w, **geometry))
    if dims < 3 and x.numel():
        assert got.stride() == expected.stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("fused", FUSED_CASES, ids=str)
def test_of_every_activation(fused, layout):
    for shape in ({}, {"c": 16, "k": 20}):
        x, w, b = _operands(layout=layout, **shape)
        slope = torch.rand(w.shape[0])
        z = F.conv2d(x.double(), w.double(), b.double(), padding=1)
        expected = fused.twin(z, *([slope.double()] if fused.learnable else [])).float()
        got = ops.conv(x, w, b, padding=[1], **_keywords(fused, slope))
        _assert_close(got, expected, factor=4)


def _keywords(fused, slope):
    return dict(zip(("activation", "params", "slope"), _arguments(fused, slope), strict=True))


RESIDUALS = {
    "fits": lambda y: torch.randn_like(y),
    "channels last": lambda y: torch.randn_like(y).contiguous(memory_format=torch.channels_last),
    "broadcasts": lambda y: torch.randn(1, y.shape[1], 1, 1),
    "float64": lambda y: torch.randn_like(y, dtype=torch.float64),
    "larger": lambda y: torch.randn(2, *y.shape),
}


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("activation", [None, "relu", "silu", "prelu"])
def test_residual(residual, layout, activation):
    """activation(conv + residual), promoted and broadcast as + does it."""
    for shape in ({}, {"c": 16, "k": 16}):
        x, w, b = _operands(layout=layout, **shape)
        added = RESIDUALS[residual](F.conv2d(x, w, b, padding=1))
        slope = torch.rand(1, dtype=added.dtype) if activation == "prelu" else None
        z = F.conv2d(x, w, b, padding=1) + added
        activations = {None: z, "relu": F.relu(z), "silu": F.silu(z)}
        expected = F.prelu(z, slope) if activation == "prelu" else activations[activation]
        got = ops.conv(x, w, b, padding=[1], activation=activation, slope=slope, residual=added)
        _assert_close(got, expected, computed=x.dtype)


@pytest.mark.parametrize("activation", [None, "relu", "softmax"])
def test_unbatched(activation):
    x, w, b = _operands()
    parameters = [0.0, 1.0] if activation == "softmax" else []
    got = ops.conv(x[0], w, b, padding=[1], activation=activation, params=parameters)
    z = F.conv2d(x[0], w, b, padding=1)
    expected = {None: lambda z: z, "relu": F.relu, "softmax": lambda z: z.softmax(0)}[activation](z)
    _assert_close(got, expected)


def test_slopes_of_an_unbatched_input_lie_along_its_second_dimension():
    """As PyTorch's prelu has it."""
    x, w, b = _operands()
    z = F.conv2d(x[0], w, b, padding=1)
    slope = torch.rand(z.shape[1])
    got = ops.conv(x[0], w, b, padding=[1], activation="prelu", slope=slope)
    _assert_close(got, F.prelu(z, slope))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_other_dtypes(dtype):
    x, w, b = (torch.randint(-3, 4, t.shape).to(dtype) for t in _operands())
    assert torch.equal(ops.conv(x, w, b, padding=[1]), F.conv2d(x, w, b, padding=1))


# ---- gradients ---------------------------------------------------------------------------------


def _gradients(function, operands):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in operands]
    y = function(*leaves)
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    present = [t for t in leaves if t is not None]
    return y, torch.autograd.grad(y, present, grad)


@pytest.mark.parametrize("save_output", [True, False])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("fused", FUSED_OF_EACH_KIND, ids=str)
def test_gradients(fused, with_residual, save_output):
    for layout, shape in itertools.product(
        ["contiguous", "channels last"], [{}, {"c": 16, "k": 24}]
    ):
        x, w, b = _operands(layout=layout, dtype=torch.float64, **shape)
        slope = torch.rand(w.shape[0], dtype=torch.float64) if fused.learnable else None
        added = torch.randn_like(F.conv2d(x, w, b, padding=1)) if with_residual else None

        def ours(x, w, b, slope, added, fused=fused):
            return ops.conv(
                x, w, b, padding=[1], **_keywords(fused, slope), residual=added,
                save_output=save_output,
            )  # fmt: skip

        def twin(x, w, b, slope, added, fused=fused):
            z = F.conv2d(x, w, b, padding=1)
            z = z if added is None else z + added
            return fused.twin(z, *([] if slope is None else [slope]))

        operands = (x, w, b, slope, added)
        y, got = _gradients(ours, operands)
        expected_y, expected = _gradients(twin, operands)
        _assert_close(y, expected_y)
        for one, other in zip(got, expected, strict=True):
            _assert_close(one, other, factor=10)


@pytest.mark.parametrize("dims, operands, geometry", GEOMETRIES)
def test_gradients_of_every_geometry(dims, operands, geometry):
    for layout, dtype in itertools.product(["contiguous", "channels last"], TOLERANCES):
        x, w, b = _operands(dims, dtype, layout, **operands)
        _, got = _gradients(lambda *t: ops.conv(*t, **geometry, activation="tanh"), (x, w, b))
        _, expected = _gradients(lambda *t: CONVOLUTIONS[dims](*t, **geometry).tanh(), (x, w, b))
        for one, other in zip(got, expected, strict=True):
            _assert_close(one, other, factor=10)


@pytest.mark.parametrize("which", range(3))
def test_one_gradient_alone(which):
    operands = _operands(dtype=torch.float64)
    leaves = [t.requires_grad_() if i == which else t for i, t in enumerate(operands)]
    for activation in (None, "relu", "silu"):
        y = ops.conv(*leaves, padding=[1], activation=activation)
        z = F.conv2d(*leaves, padding=1)
        twin = {None: z, "relu": z.relu(), "silu": F.silu(z)}[activation]
        _assert_close(
            torch.autograd.grad(y.sum(), leaves[which])[0],
            torch.autograd.grad(twin.sum(), leaves[which])[0],
        )


@pytest.mark.parametrize("activation", [None, "tanh", "gelu", "prelu"])
def test_gradcheck(activation):
    x, w, b = (t.requires_grad_() for t in _operands(n=1, c=2, k=2, size=4, dtype=torch.float64))
    slope = torch.rand(2, dtype=torch.float64, requires_grad=True)
    learnable = [slope] if activation == "prelu" else []

    def f(x, w, b, *slope):
        return ops.conv(
            x, w, b, padding=[1], activation=activation, slope=slope[0] if slope else None
        )

    torch.autograd.gradcheck(f, (x, w, b, *learnable), check_forward_ad=True)
    torch.autograd.gradgradcheck(f, (x, w, b, *learnable))


def test_what_is_saved():
    """The input, the weight, and the output where the activation's backward reads that."""
    x, w, b = (t.requires_grad_() for t in _operands())
    for activation, count in ((None, 2), ("relu", 3), ("silu", 4)):
        kept = []

        def pack(t, kept=kept):
            kept.append(t)
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = ops.conv(x, w, b, activation=activation)
        storages = {t.untyped_storage().data_ptr() for t in kept}
        assert len(storages) == count
        assert (y.untyped_storage().data_ptr() in storages) == (activation == "relu")
        # silu's keeps the pre-activation and, to form it again, the bias.


# ---- PyTorch's systems -------------------------------------------------------------------------

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
AOT = ("test_aot_dispatch_static", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("fused", FUSED_OF_EACH_KIND, ids=str)
def test_opcheck(fused):
    for grad in (False, True):
        x, w, b = (t.requires_grad_(grad) for t in _operands())
        slope = torch.rand(6, requires_grad=grad)
        arguments = (x, w, b, [1], [1], [1], 1, *_arguments(fused, slope))
        opcheck(ops.conv, arguments, test_utils=CHECKS + (AOT if grad else ()))


@pytest.mark.parametrize("dims, operands, geometry", GEOMETRIES)
def test_opcheck_of_every_geometry(dims, operands, geometry):
    for layout, dtype in itertools.product(
        ["contiguous", "channels last", "slice"], [torch.float32, torch.bfloat16]
    ):
        x, w, b = (t.requires_grad_() for t in _operands(dims, dtype, layout, **operands))
        if layout == "slice" and not x.numel():
            continue  # which the checks cannot copy
        keywords = {**geometry, "activation": "relu"}
        opcheck(ops.conv, (x, w, b), keywords, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("fused", FUSED_OF_EACH_KIND, ids=str)
def test_opcheck_in_training(fused):
    """The operators that conv's node is made of; autograd is conv's own."""
    checks = ("test_schema", "test_faketensor")
    for layout in ("contiguous", "channels last"):
        x, w, b = _operands(layout=layout, c=16, k=16)
        geometry = ([1], [1], [1], 1)
        name, values, slope = _arguments(fused, torch.rand(16))
        forward = (x, w, b, *geometry, name, values, slope)
        opcheck(ops.conv_training, forward, test_utils=checks)
        y, z = ops.conv_training(*forward)
        saved = None if name is None else z if fused.learnable or name == "silu" else y
        for mask in ((True, True, True, fused.learnable, True), (True, *[False] * 4)):
            arguments = (torch.randn_like(y), saved, x, w, b, slope, *geometry, name, values, mask)
            opcheck(ops.conv_backward, arguments, test_utils=checks)


def test_opcheck_packed():
    x, w, b = _operands(c=16, k=16)
    opcheck(ops.pack_conv, (w, [1], [1]), test_utils=("test_schema", "test_faketensor"))
    for packed in (ops.pack_conv(w, [1], [1]), torch.empty(0, dtype=torch.uint8)):
        arguments = (x, packed, w, b, [1], [1], [1], 1, "relu")
        opcheck(ops.conv_packed, arguments, test_utils=CHECKS)


def test_autocast():
    x, w, b = _operands()
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.conv(x, w, b, padding=[1], activation="relu")
        packed = ops.conv_packed(x, ops.pack_conv(w), w, b, padding=[1], activation="relu")
        expected = F.relu(F.conv2d(x, w, b, padding=1))
    assert y.dtype == packed.dtype == expected.dtype == torch.bfloat16
    _assert_close(y, expected)
    _assert_close(packed, expected)


@pytest.mark.parametrize("batched", [(0, None, None), (0, 0, None), (None, 0, 0), (1, 0, 0)])
def test_vmap(batched):
    x, w, b = _operands(dtype=torch.float64)
    operands = [
        t if dim is None else torch.stack((t, t + 1), dim)
        for t, dim in zip((x, w, b), batched, strict=True)
    ]
    got = torch.vmap(lambda x, w, b: ops.conv(x, w, b, activation="silu"), batched)(*operands)
    expected = torch.vmap(lambda x, w, b: F.silu(F.conv2d(x, w, b)), batched)(*operands)
    _assert_close(got, expected)


def test_per_sample_gradients():
    x, w, b = _operands(n=3, dtype=torch.float64)

    def loss(function):
        def of_sample(w, b, x):
            return function(x[None], w, b).square().sum()

        return torch.vmap(torch.func.grad(of_sample, (0, 1)), (None, None, 0))(w, b, x)

    ours = loss(lambda x, w, b: ops.conv(x, w, b, activation="silu"))
    twin = loss(lambda x, w, b: F.silu(F.conv2d(x, w, b)))
    for one, other in zip(ours, twin, strict=True):
        _assert_close(one, other, factor=10)


def test_compiled():
    x, w, b = (t.requires_grad_() for t in _operands())

    def f(x, w, b):
        return ops.conv(x, w, b, padding=[1], activation="relu").square().sum()

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True, dynamic=True)
    got = torch.autograd.grad(compiled(x, w, b), (x, w, b))
    expected = torch.autograd.grad(f(x, w, b), (x, w, b))
    for one, other in zip(got, expected, strict=True):
        _assert_close(one, other)


# ---- arguments that do not fit -----------------------------------------------------------------

R = torch.randn
X, W = R(2, 4, 7, 7), R(6, 4, 3, 3)
REFUSED = {
    "None": ((None, W), {}, "input"),
    "no weight": ((X, None), {}, "weight"),
    "2-D weight": ((X, R(6, 4)), {}, "weight"),
    "3-D input": ((R(2, 2, 4, 7, 7), W), {}, "input"),
    "channels": ((R(2, 5, 7, 7), W), {}, "input"),
    "dtype": ((X.double(), W), {}, "weight"),
    "device": ((X, W.to("meta")), {}, "weight"),
    "bias": ((X, W, R(1)), {}, "bias"),
    "bias dtype": ((X, W, R(6).double()), {}, "bias"),
    "groups": ((X, W), {"groups": 4}, "weight"),
    "no groups": ((X, W), {"groups": 0}, "groups"),
    "stride": ((X, W), {"stride": [0]}, "stride"),
    "strides": ((X, W), {"stride": [1, 1, 1]}, "stride"),
    "no strides": ((X, W), {"stride": []}, "stride"),
    "padding": ((X, W), {"padding": [-1]}, "padding"),
    "dilation": ((X, W), {"dilation": [0]}, "dilation"),
    "huge dilation": ((X, W), {"dilation": [2**62]}, "dilation"),
    "kernel": ((X, R(6, 4, 8, 3)), {}, "input"),
    "empty kernel": ((X, R(6, 4, 0, 3)), {}, "weight"),
    "no output": ((X, R(0, 4, 3, 3)), {}, "weight"),
    "slope": ((X, W), {"activation": "prelu"}, "slope"),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, device):
    """By the kernels and by the fake kernels alike."""
    arguments, keywords, argument = REFUSED[case]
    if device == "meta" and case == "device":
        return  # which is that of all then
    for grad in (False, True):
        given = [
            a if a is None else (a.to(device) if case != "device" else a).detach()
            for a in arguments
        ]
        given = [a if a is None else a.requires_grad_(grad) for a in given]
        with pytest.raises((RuntimeError, TypeError)) as refusal:
            ops.conv(*given, **keywords)
        message = str(refusal.value)
        assert message.startswith(f"fastact.conv(): {argument}: expected "), message
        assert "got" in message


def test_backward_refuses():
    y = F.conv2d(X, W)
    fitting = (y, y, X, W, None, None, [1], [0], [1], 1, "relu", [], (True,) * 3 + (False, False))
    ops.conv_backward(*fitting)
    for position, value, name in (
        (0, R(2, 6, 5, 4), "grad"),
        (0, None, "grad"),
        (1, None, "saved"),
        (1, R(2, 6, 5), "saved"),
        (2, R(2, 5, 7, 7), "input"),
        (2, None, "input"),
        (3, None, "weight"),
        (4, R(3), "bias"),
    ):
        arguments = [*fitting]
        arguments[position] = value
        with pytest.raises(
            (RuntimeError, TypeError), match=rf"^fastact.conv_backward\(\): {name}: "
        ):
            ops.conv_backward(*arguments)


def test_packed_refuses():
    with pytest.raises(RuntimeError, match=r"^fastact.conv_packed\(\): packed: expected"):
        ops.conv_packed(X, torch.empty(7, dtype=torch.uint8), W)
    with pytest.raises(ValueError, match="winograd: expected 'off', 'safe' or 'fast', got 'nope'"):
        ops.pack_conv(W, winograd="nope")


def test_winograd_setting():
    assert ops.winograd() == "safe"
    try:
        ops.set_winograd("off")
        assert ops.winograd() == "off"
        with pytest.raises(ValueError, match="winograd"):
            ops.set_winograd("on")
    finally:
        ops.set_winograd("safe")
