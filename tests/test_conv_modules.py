"""Are Conv1d, Conv2d and Conv3d with an activation torch.nn's followed by it, and the functions
torch.nn.functional's?"""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F

import fastact
from fastact import functional, nn
from fastact.testing.cases import FUSED_CASES, FUSED_OF_EACH_KIND

DIMS = (1, 2, 3)
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
TOLERANCES = {
    torch.float64: {"rtol": 1e-7, "atol": 1e-9},
    torch.float32: {"rtol": 1e-4, "atol": 2e-5},
    torch.bfloat16: {"rtol": 2**-6, "atol": 2**-5},
    torch.float16: {"rtol": 2**-9, "atol": 2**-8},
}
by_dims = pytest.mark.parametrize("dims", DIMS)


def _pair(dims, *args, activation=None, **options):
    """fastact's layer and torch.nn's, of the same parameters."""
    params = options.pop("params", {})
    mine = getattr(nn, f"Conv{dims}d")(*args, activation=activation, **options, **params)
    twin = getattr(torch.nn, f"Conv{dims}d")(*args, **options)
    own = {k: v for k, v in mine.state_dict().items() if not k.startswith("activation")}
    twin.load_state_dict(own, strict=True)
    return mine, twin


def _images(dims, channels=4, size=9, dtype=torch.float32, batch=(2,), last=False):
    x = torch.randn(*batch, channels, *[size + i for i in range(dims)], dtype=dtype)
    return x.contiguous(memory_format=CHANNELS_LAST[dims]) if last and dims > 1 else x


# ---- options -----------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"stride": 2},
    {"padding": 1},
    {"padding": "same"},
    {"padding": "valid"},
    {"padding": "same", "dilation": 2},
    {"stride": 3, "padding": 2, "dilation": 2},
    {"groups": 2, "padding": 1},
    {"groups": 4, "padding": 1, "bias": False},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": 2, "padding_mode": "replicate", "stride": 2},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": "same", "padding_mode": "circular", "dilation": 2},
    {"padding": "valid", "padding_mode": "reflect"},
]


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@by_dims
def test_options(dims, options, kernel):
    for last, batch in itertools.product((False, True), ((2,), (), (0,))):
        layer, twin = _pair(dims, 4, 8, kernel, activation="relu", **options)
        x = _images(dims, batch=batch, last=last and bool(batch))
        if last:
            layer, twin = (
                m.to(memory_format=CHANNELS_LAST.get(dims, torch.contiguous_format))
                for m in (layer, twin)
            )
        try:
            expected = twin(x).relu()
        except (RuntimeError, ValueError) as error:
            with pytest.raises(type(error)):
                layer(x)
            continue
        y = layer(x)
        torch.testing.assert_close(y, expected, **TOLERANCES[torch.float32])
        if dims < 3:  # PyTorch's strides in three dimensions depend on who computes
            assert y.stride() == expected.stride()


@by_dims
def test_a_kernel_size_for_each_dimension(dims):
    kernel, padding = (3, 2, 1)[:dims], (1, 0, 2)[:dims]
    layer, twin = _pair(dims, 4, 6, kernel, padding=padding, activation="silu")
    x = _images(dims)
    torch.testing.assert_close(layer(x), F.silu(twin(x)), **TOLERANCES[torch.float32])


@by_dims
def test_is_torch_nns(dims):
    """Constructor, initialisation, repr, state_dict in both directions."""
    for options in ({}, {"bias": False}, {"padding": 1, "padding_mode": "circular", "groups": 2}):
        layers = []
        for module in (nn, torch.nn):
            torch.manual_seed(3)
            layers.append(getattr(module, f"Conv{dims}d")(4, 6, 3, **options))
        mine, twin = layers
        assert isinstance(mine, type(twin))
        assert repr(mine) == repr(twin)
        assert mine.state_dict().keys() == twin.state_dict().keys()
        for one, other in zip(mine.parameters(), twin.parameters(), strict=True):
            assert torch.equal(one, other)
        x = _images(dims)
        torch.testing.assert_close(mine(x), twin(x), **TOLERANCES[torch.float32])


@pytest.mark.parametrize(
    "options",
    [{"groups": 3}, {"padding": "full"}, {"stride": 2, "padding": "same"}, {"padding_mode": "no"}],
    ids=str,
)
@by_dims
def test_options_that_torch_nn_refuses(dims, options):
    with pytest.raises(ValueError):
        getattr(torch.nn, f"Conv{dims}d")(4, 6, 3, **options)
    with pytest.raises(ValueError):
        getattr(nn, f"Conv{dims}d")(4, 6, 3, activation="relu", **options)


# ---- activations -------------------------------------------------------------------------------


def _parameters(fused):
    """All of the activation's, in the order of the operators' schemas."""
    if fused.name is None:
        return {}
    along = {"dim": 1} if fused.name in ("softmax", "log_softmax") else {}
    known = fastact.activations.REGISTRY[fused.name].parameters
    return {name: (fused.parameters | along).get(name, known[name]) for name in known}


@pytest.mark.parametrize("channels", [6, 20])
@pytest.mark.parametrize("fused", [f for f in FUSED_CASES if not f.learnable], ids=str)
def test_activations_by_name(fused, channels):
    params = _parameters(fused)
    layer, twin = _pair(2, 16, channels, 3, activation=fused.name, params=params)
    x = _images(2, 16)
    expected = twin(x)
    if fused.name is not None:
        row = fastact.activations.REGISTRY[fused.name]
        expected = row.operator(expected, *params.values())
    torch.testing.assert_close(layer(x), expected, **TOLERANCES[torch.float32])
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    "kind, keywords",
    [
        (torch.nn.ReLU, {}),
        (torch.nn.LeakyReLU, {"negative_slope": 0.3}),
        (torch.nn.GELU, {"approximate": "tanh"}),
        (torch.nn.SiLU, {"inplace": True}),
        (torch.nn.Softmax, {"dim": 1}),
        (nn.Mish, {}),
    ],
)
@by_dims
def test_activations_as_modules(dims, kind, keywords):
    x = _images(dims)
    for activation, params in ((kind, keywords), (kind(**keywords), {})):
        layer, twin = _pair(dims, 4, 6, 3, activation=activation, params=params)
        expected = kind(**keywords)(twin(x))
        torch.testing.assert_close(layer(x), expected, **TOLERANCES[torch.float32])
        assert isinstance(layer.activation, kind)


@pytest.mark.parametrize("count", [1, 6])
@by_dims
def test_prelu_trains(dims, count):
    layer, twin = _pair(
        dims, 4, 6, 3, activation="prelu", params={"num_parameters": count, "init": 0.4}
    )
    assert list(layer.state_dict()) == ["weight", "bias", "activation.weight"]
    twin = torch.nn.Sequential(twin, torch.nn.PReLU(count, init=0.4))
    x = _images(dims)
    for model in (layer, twin):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for one, other in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, **TOLERANCES[torch.float32])
    assert not torch.equal(layer.activation.weight, torch.full((count,), 0.4))


def test_settings_and_hooks_of_an_activation_are_followed():
    activation = torch.nn.LeakyReLU(0.1)
    layer, twin = _pair(2, 4, 6, 3, activation=activation)
    x = _images(2)
    activation.negative_slope = 0.7
    torch.testing.assert_close(layer(x), F.leaky_relu(twin(x), 0.7), **TOLERANCES[torch.float32])
    seen = []
    activation.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(layer(x), F.leaky_relu(twin(x), 0.7), **TOLERANCES[torch.float32])
    assert seen == [1]


def test_softmax_needs_a_dimension():
    for name in ("softmax", "log_softmax"):
        with pytest.raises(TypeError, match=r"^fastact.nn.Conv2d\(\): dim: expected"):
            nn.Conv2d(4, 6, 3, activation=name)
        with pytest.raises(TypeError, match=r"^fastact.conv2d\(\): dim: expected"):
            functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), activation=name)


def test_activations_that_are_refused():
    for activation, error in (
        ("glu", ValueError),
        ("rrelu", ValueError),
        ("relv", ValueError),
        (torch.nn.GLU, ValueError),
    ):
        with pytest.raises(error, match=r"fastact.nn.Conv2d\(\): activation: "):
            nn.Conv2d(4, 6, 3, activation=activation)
    with pytest.raises(TypeError, match=r"negative_slope"):
        nn.Conv2d(4, 6, 3, activation="relu", negative_slope=0.1)
    with pytest.raises(TypeError, match=r"negative_slope"):
        nn.Conv2d(4, 6, 3, negative_slope=0.1)


# ---- training, dtypes --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("fused", [f for f in FUSED_OF_EACH_KIND if not f.learnable], ids=str)
@by_dims
def test_gradients(dims, fused, last, dtype):
    params = _parameters(fused)
    for options in ({"padding": 1}, {"stride": 2, "padding": 1, "padding_mode": "circular"}):
        layer, twin = _pair(
            dims, 16, 16, 3, activation=fused.name, params=params, dtype=dtype, **options
        )
        results = []
        x = _images(dims, 16, 6, dtype, last=last)
        for module in (layer, twin):
            leaf = x.detach().clone().requires_grad_()
            y = module(leaf)
            if module is twin and fused.name is not None:
                row = fastact.activations.REGISTRY[fused.name]
                along = row.along_dimension  # of PyTorch's parameters only the dimension is there
                y = row.reference(y, *([params["dim"]] if along else params.values()))
            y.square().mean().backward()
            results.append([leaf.grad, *(p.grad for p in module.parameters())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, **TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@by_dims
def test_dtypes(dims, dtype):
    layer, twin = _pair(dims, 16, 20, 3, padding=1, activation="silu", dtype=dtype)
    x = _images(dims, 16, dtype=dtype)
    exact = F.silu(copy.deepcopy(twin).double()(x.double()))
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact, **TOLERANCES[dtype], check_dtype=False)


def test_autocast():
    layer, twin = _pair(2, 4, 6, 3, activation="relu")
    x = _images(2)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = layer(x), F.relu(twin(x))
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, **TOLERANCES[torch.bfloat16])


# ---- as a module -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "torch.save"])
@by_dims
def test_copies(dims, how, tmp_path):
    kind = getattr(nn, f"Conv{dims}d")
    options = {"padding": 1, "activation": "prelu", "num_parameters": 6}
    layer = kind(4, 6, 3, **options)
    torch.nn.init.uniform_(layer.activation.weight)
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    elif how == "deepcopy":
        twin = copy.deepcopy(layer)
    else:
        torch.save(layer.state_dict(), tmp_path / "state")
        twin = kind(4, 6, 3, **options)
        twin.load_state_dict(torch.load(tmp_path / "state", weights_only=True), strict=True)
    x = _images(dims)
    assert repr(twin) == repr(layer)
    assert torch.equal(twin(x), layer(x))


def test_repr_rebuilds_the_layer():
    layer = nn.Conv2d(4, 6, 3, bias=False, activation="leaky_relu", negative_slope=0.3)
    again = eval(repr(layer), {"Conv2d": nn.Conv2d})
    assert repr(again) == repr(layer)
    assert "activation='leaky_relu', negative_slope=0.3" in repr(layer)


def test_a_parametrized_weight():
    layer, twin = _pair(2, 4, 6, 3, activation="relu")
    for module in (layer, twin):
        torch.nn.utils.parametrizations.weight_norm(module)
    x = _images(2)
    torch.testing.assert_close(layer(x), twin(x).relu(), **TOLERANCES[torch.float32])


def test_a_forward_that_calls_conv_forward():
    """Classes derived from torch.nn's convolutions do, with a weight of their own."""

    class Doubled(nn.Conv2d):
        def forward(self, input):
            return self._conv_forward(input, 2 * self.weight, self.bias)

    layer = Doubled(4, 6, 3, activation="relu")
    x = _images(2)
    expected = F.conv2d(x, 2 * layer.weight, layer.bias).relu()
    torch.testing.assert_close(layer(x), expected, **TOLERANCES[torch.float32])


def test_on_meta():
    layer = nn.Conv2d(4, 6, 3, activation="prelu", device="meta")
    assert layer.activation.weight.is_meta
    assert layer(_images(2).to("meta")).shape == (2, 6, 7, 8)


@by_dims
def test_compiled(dims):
    layer, twin = _pair(dims, 4, 6, 4, padding="same", activation="silu")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = _images(dims)
    torch.testing.assert_close(compiled(x), F.silu(twin(x)), **TOLERANCES[torch.float32])


# ---- functions ---------------------------------------------------------------------------------


def _functions(dims):
    return getattr(functional, f"conv{dims}d"), getattr(F, f"conv{dims}d")


@by_dims
def test_arguments_as_pytorch_takes_them(dims):
    np = pytest.importorskip("numpy")
    mine, twin = _functions(dims)
    x, w, b = _images(dims), torch.randn(6, 2, *[3] * dims), torch.randn(6)
    for stride, padding, dilation in (
        (2, 1, 1),
        ([2], [1], [1]),
        ((1,) * dims, (2,) * dims, (2,) * dims),
        ([2] * dims, "valid", [1] * dims),
        (1, "same", (2,)),
        (np.int64(2), np.int32(1), 1),
    ):
        given = (x, w, b, stride, padding, dilation, 2)
        torch.testing.assert_close(mine(*given), twin(*given), **TOLERANCES[torch.float32])
    keywords = {"weight": w, "groups": 2, "padding": 1, "input": x}
    torch.testing.assert_close(mine(**keywords), twin(**keywords), **TOLERANCES[torch.float32])


@by_dims
def test_what_pytorch_refuses(dims):
    mine, twin = _functions(dims)
    x, w = _images(dims), torch.randn(6, 4, *[3] * dims)
    for args, keywords in (
        ((x, w[..., 0]), {}),
        ((x, w[..., None]), {}),
        ((x[None, None], w), {}),
        ((x, w, torch.ones(5)), {}),
        ((x, w), {"stride": 2, "padding": "same"}),
        ((x, w), {"padding": "full"}),
        ((x, w), {"padding": -1}),
        ((x, w), {"stride": [1] * (dims + 1)}),
        ((x, w), {"groups": 3}),
        ((x, w), {"stride": 1.5}),
        ((x, w), {"stride": "1"}),
        ((3, w), {}),
        ((x, None), {}),
        ((x.double(), w), {}),
    ):
        with pytest.raises((RuntimeError, TypeError, ValueError)) as theirs:
            twin(*args, **keywords)
        with pytest.raises(theirs.type):
            mine(*args, **keywords)


@pytest.mark.parametrize("activation", [None, "relu", "prelu"])
@by_dims
def test_residual(dims, activation):
    mine, twin = _functions(dims)
    x, w, b = _images(dims, 16), torch.randn(16, 16, *[3] * dims), torch.randn(16)
    z = twin(x, w, b, padding=1)
    slope = torch.rand(16) if activation == "prelu" else None
    for residual in (x, x[:1], torch.randn(16, *[1] * dims)):
        expected = z + residual
        if activation is not None:
            expected = expected.relu() if slope is None else F.prelu(expected, slope)
        y = mine(x, w, b, padding=1, activation=activation, slope=slope, residual=residual)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=2e-4)


def test_classes_that_override_functions():
    class Logged(torch.Tensor):
        calls = []  # noqa: RUF012

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            cls.calls.append(function.__name__)
            return super().__torch_function__(function, types, args, kwargs or {})

    x, w = _images(2), torch.randn(6, 4, 3, 3)
    y = functional.conv2d(x.as_subclass(Logged), w, activation="relu")
    assert isinstance(y, Logged)
    assert "conv2d" in Logged.calls
    torch.testing.assert_close(y.as_subclass(torch.Tensor), F.conv2d(x, w).relu())


# ---- the setting, and what computes ------------------------------------------------------------


def test_set_winograd():
    """In float64 it decides between three algorithms."""
    x, w = _images(2, 32, 34).double(), torch.randn(32, 32, 3, 3, dtype=torch.float64)
    exact = F.conv2d(x, w)
    errors = {}
    try:
        for setting in ("off", "safe", "fast"):
            fastact.set_winograd(setting)
            errors[setting] = (functional.conv2d(x, w) - exact).abs().max().item()
        with pytest.raises(ValueError, match="expected 'off', 'safe' or 'fast', got 'quick'"):
            fastact.set_winograd("quick")
    finally:
        fastact.set_winograd("safe")
    assert 0 == errors["off"] < errors["safe"] < errors["fast"] < 1e-12


@pytest.mark.parametrize(
    "layer, size, words",
    [
        (lambda: nn.Conv2d(32, 32, 3, activation="relu"), 16, "winograd2: Winograd's F(2x2, 3x3)"),
        (lambda: nn.Conv2d(32, 32, 3, groups=32, activation="relu"), 16, "depthwise: "),
        (lambda: nn.Conv2d(32, 32, 1, activation="relu"), 16, "pointwise: "),
    ],
)
def test_explained(layer, size, words):
    with torch.no_grad():
        (row,) = fastact.explain(layer(), _images(2, 32, size)).rows
    assert row.operation == "fastact.conv"
    assert row.engine == "fastact"
    assert words in row.reason and "relu on its tiles" in row.reason


def test_explained_where_pytorch_computes():
    with torch.no_grad():
        rows = fastact.explain(nn.Conv2d(3, 8, 3, activation="relu"), _images(2, 3)).rows
    assert any("PyTorch's convolution is as fast for this shape" in row.reason for row in rows)
