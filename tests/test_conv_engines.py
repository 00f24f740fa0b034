"""Are the engines behind conv exact, wherever a pixel lies and however many threads compute?"""

import os
import random
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import fastact
from fastact.testing.cases import assert_same_bits

ops = torch.ops.fastact
CHANNELS_LAST = torch.channels_last

# Operands of conv for which each algorithm is chosen: (shape of input, shape of weight, keywords).
ENGINES = {
    "winograd2": ((1, 260, 16, 16), (256, 260, 3, 3), {"padding": [1]}),
    "winograd4": ((1, 32, 32, 33), (40, 32, 3, 3), {"padding": [1]}),
    "depthwise": ((2, 24, 18, 19), (24, 1, 3, 3), {"padding": [1], "groups": 24}),
    "depthwise 5x5": (
        (2, 24, 18, 19),
        (24, 1, 5, 5),
        {"padding": [2], "stride": [2], "groups": 24},
    ),
    "depthwise of any shape": (
        (2, 11, 18, 19),
        (11, 1, 3, 5),
        {"padding": [1, 2], "dilation": [2, 1], "groups": 11},
    ),
    "pointwise": ((2, 32, 18, 19), (40, 32, 1, 1), {"padding": [0]}),
    "pointwise stride 2": ((2, 32, 18, 19), (40, 32, 1, 1), {"stride": [2]}),
    "1-D depthwise": ((2, 24, 37), (24, 1, 3), {"padding": [1], "groups": 24}),
    "1-D pointwise": ((2, 24, 37), (8, 24, 1), {}),
}
LAYOUTS = ("contiguous", "channels last")
by_engine = pytest.mark.parametrize("engine", ENGINES)
by_layout = pytest.mark.parametrize("layout", LAYOUTS)


def _in_layout(t, layout):
    last = layout == "channels last" and t.dim() == 4
    return t.contiguous(memory_format=CHANNELS_LAST) if last else t.contiguous()


def _operands(engine, layout="contiguous", dtype=torch.float32):
    input_shape, weight_shape, keywords = ENGINES[engine]
    x = _in_layout(torch.randn(input_shape).to(dtype), layout)
    w = _in_layout(torch.randn(weight_shape).to(dtype), layout)
    return x, w, torch.randn(weight_shape[0]).to(dtype), keywords


def _torch(x, w, b=None, **keywords):
    return (F.conv1d if w.dim() == 3 else F.conv2d)(x, w, b, **keywords)


def _error(y, exact):
    """Root mean square, relative to that of the exact values."""
    scale = exact.square().mean().sqrt().item()
    return ((y.double() - exact).square().mean().sqrt() / (scale or 1)).item()


@by_layout
@by_engine
def test_which_algorithm(engine, layout):
    x, w, _, keywords = _operands(engine, layout)
    name = engine.split()[1 if engine.startswith("1-D") else 0]
    assert ops.conv_algorithm(x, w, **keywords) == name
    for dtype in (torch.complex64, torch.int64):
        assert ops.conv_algorithm(x.to(dtype), w.to(dtype), **keywords) == "aten"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_setting(dtype):
    """It decides for plain calls, and what is packed."""
    x, w, _, keywords = _operands("winograd4", dtype=dtype)
    safe = "winograd2" if dtype == torch.float64 else "winograd4"
    points = {"aten": 0, "winograd2": 16, "winograd4": 36}
    try:
        for setting, name in (("off", "aten"), ("safe", safe), ("fast", "winograd4")):
            ops.set_winograd(setting)
            assert ops.conv_algorithm(x, w, **keywords) == name
            packed = ops.pack_conv(w, **keywords)
            assert packed.numel() == points[name] * 32 * 64 * dtype.itemsize
    finally:
        ops.set_winograd("safe")


def test_which_tiles():
    """F(4x4) where its larger transformed weight pays."""
    few, many = torch.randn(1, 64, 30, 30), torch.randn(2, 64, 30, 30)
    small, large = torch.randn(64, 64, 3, 3), torch.randn(1032, 64, 3, 3)
    for w in (small, large):
        assert ops.conv_algorithm(few, w, padding=[1]) == "winograd2"
        assert ops.conv_algorithm(many, w, padding=[1]) == "winograd4"
    assert ops.conv_algorithm(few, small, padding=[1], packed=True) == "winograd4"
    assert ops.conv_algorithm(many, large, padding=[1], packed=True) == "winograd2"


@by_layout
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "winograd4"])
def test_small_integers_are_exact(engine, layout):
    """F(4x4) has irrational points."""
    input_shape, weight_shape, keywords = ENGINES[engine]
    x, w, b = (
        _in_layout(torch.randint(-3, 4, shape).float(), layout)
        for shape in (input_shape, weight_shape, weight_shape[:1])
    )
    exact = _torch(x.double(), w.double(), b.double(), **keywords)
    assert torch.equal(ops.conv(x, w, b, **keywords), exact.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@by_layout
@by_engine
def test_bits_of_any_number_of_threads(engine, layout, dtype):
    x, w, b, keywords = _operands(engine, layout, dtype)
    expected = None
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        y = ops.conv(x, w, b, **keywords, activation="silu")
        expected = y if expected is None else expected
        assert_same_bits(y, expected, f"{threads} threads")


@by_layout
@by_engine
def test_bits_of_any_place_in_a_batch(engine, layout):
    x, w, b, keywords = _operands(engine, layout)
    x = _in_layout(torch.cat([x] * 3), layout)
    together = ops.conv(x, w, b, **keywords)
    for i in range(len(x)):
        alone = ops.conv(x[i : i + 1], w, b, **keywords)
        assert_same_bits(together[i : i + 1], alone, f"image {i}")


@by_layout
@by_engine
def test_bits_of_packed_weights(engine, layout):
    x, w, b, keywords = _operands(engine, layout)
    packed = ops.pack_conv(w, **keywords)
    y = ops.conv_packed(x, packed, w, b, **keywords, activation="relu")
    assert_same_bits(y, ops.conv(x, w, b, **keywords, activation="relu"), engine)


@by_layout
@pytest.mark.parametrize("weights", ["any", "positive"])
@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4"])
@pytest.mark.parametrize("channels", [16, 64, 128, 256, 512])
def test_error_of_winograd(channels, algorithm, weights, layout):
    """At most twice PyTorch's + 1e-6 of the result, also where terms of one sign make sums large on
    the way, and cancel."""
    x = _in_layout(torch.randn(1, channels, 16, 16), layout)
    w = _in_layout(torch.randn(64, channels, 3, 3), layout)
    w = w.abs() if weights == "positive" else w
    exact = F.conv2d(x.double(), w.double(), padding=1)
    larger = algorithm == "winograd4"
    assert ops.conv_algorithm(x, w, padding=[1], packed=larger) == algorithm
    packed = ops.pack_conv(w, padding=[1]) if larger else torch.empty(0, dtype=torch.uint8)
    y = ops.conv_packed(x, packed, w, padding=[1])
    assert _error(y, exact) <= 2 * _error(F.conv2d(x, w, padding=1), exact) + 1e-6
    assert _error(y, exact) > 0  # the same algorithm in float64 would be no test


ACTIVATIONS = [(None, [], 0), ("relu", [], 0), ("gelu", [], 0), ("prelu", [], 1), ("prelu", [], 2)]


def _strides(t):
    """Where they say how a tensor lies."""
    return [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def _random_case(r):
    """Operands of conv, its keywords, and where the residual lies."""
    kind = r.choice(["3x3", "3x3", "depthwise", "depthwise", "1x1", "any"])
    n, size = r.choice([1, 1, 2, 3]), [r.choice([3, 5, 7, 8, 12, 17, 28]) for _ in range(2)]
    stride, padding, dilation, groups = [1], [r.choice([0, 1, 2])], [1], 1
    if kind == "3x3":
        groups = r.choice([1, 1, 2])
        c, k, kernel = groups * r.choice([16, 20, 33]), groups * r.choice([16, 24, 65]), [3, 3]
    elif kind == "depthwise":
        groups = c = r.choice([2, 5, 8, 16, 31, 40])
        k, kernel = c * r.choice([1, 1, 2]), r.choice([[3, 3], [5, 5], [1, 3], [3, 5], [7, 7]])
        stride, dilation = r.choice([[1], [2], [1, 2], [3]]), r.choice([[1], [1], [2]])
    elif kind == "1x1":
        c, k, kernel, padding = r.choice([1, 3, 16, 33]), r.choice([1, 5, 16, 65, 130]), [1, 1], [0]
        stride = r.choice([[1], [1], [2], [1, 3]])
    else:
        groups = r.choice([1, 2])
        c, k = groups * r.choice([1, 3, 8]), groups * r.choice([2, 7])
        kernel, stride, dilation = (
            r.choice([[3, 3], [2, 5]]),
            [r.choice([1, 2])],
            [r.choice([1, 2])],
        )
    for i in range(2):
        size[i] = max(size[i], dilation[-1] * (kernel[i] - 1) + 1)
    layouts = [r.choice(LAYOUTS) for _ in range(3)]
    x = _in_layout(torch.randn(n, c, *size), layouts[0])
    w = _in_layout(torch.randn(k, c // groups, *kernel) / (c // groups) ** 0.5, layouts[1])
    b = torch.randn(k) if r.random() < 0.7 else None
    keywords = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return x, w, b, keywords, layouts[2] if r.random() < 0.4 else None


def _check_random(seeds):
    for seed in seeds:
        r = random.Random(seed)
        torch.manual_seed(seed)
        x, w, b, keywords, residual_layout = _random_case(r)
        doubles = [None if t is None else t.double() for t in (x, w, b)]
        z = F.conv2d(*doubles, **keywords)
        eager = F.conv2d(x, w, b, **keywords)
        residual = None
        if residual_layout:
            residual = _in_layout(torch.randn(z.shape), residual_layout)
            z, eager = z + residual.double(), eager + residual
        name, parameters, slopes = r.choice(ACTIVATIONS)
        slope = torch.rand(1 if slopes < 2 else len(w)) if slopes else None
        exact = F.prelu(z, slope.double()) if slopes else getattr(F, name or "relu")(z)
        eager = F.prelu(eager, slope) if slopes else getattr(F, name or "relu")(eager)
        got = ops.conv(
            x, w, b, **keywords, activation=name or "relu", params=parameters, slope=slope,
            residual=residual,
        )  # fmt: skip
        assert _strides(got) == _strides(eager), f"seed {seed}"
        scale = exact.abs().max().item() or 1.0
        worst = (got.double() - exact).abs().max().item() / scale
        theirs = (eager.double() - exact).abs().max().item() / scale
        assert worst <= 2 * theirs + 2e-6, f"seed {seed}: {worst} against {theirs}"


def test_random_shapes():
    _check_random(range(80))


@pytest.mark.slow
def test_many_random_shapes():
    _check_random(range(80, 1000))


@by_layout
@by_engine
def test_gradients(engine, layout):
    """Against those of float64."""
    x, w, b, keywords = _operands(engine, layout)
    for activation in ("relu", "silu"):
        leaves = [t.detach().requires_grad_() for t in (x, w, b)]
        exact = [t.detach().double().requires_grad_() for t in (x, w, b)]
        y = ops.conv(*leaves, **keywords, activation=activation)
        grad = torch.randn_like(y)
        got = torch.autograd.grad(y, leaves, grad)
        twin = getattr(F, activation)(_torch(*exact, **keywords))
        for one, other in zip(got, torch.autograd.grad(twin, exact, grad.double()), strict=True):
            assert one.shape == other.shape
            assert _error(one, other) < 3e-6


@by_layout
@by_engine
def test_bits_of_gradients_of_any_number_of_threads(engine, layout):
    x, w, b, keywords = _operands(engine, layout)
    expected = None
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [t.detach().requires_grad_() for t in (x, w, b)]
        y = ops.conv(*leaves, **keywords, activation="relu")
        found = torch.autograd.grad(y.sum(), leaves[0])
        expected = expected or found
        assert_same_bits(found[0], expected[0], f"{threads} threads")


@pytest.mark.parametrize("name", fastact.info()["instruction_sets"])
def test_every_instruction_set(name):
    """A process chooses once."""
    supported = {
        "avx2": torch.cpu._is_avx2_supported,
        "avx512": torch.cpu._is_avx512_supported,
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported,
    }
    if not supported.get(name, lambda: True)():
        pytest.skip(f"this processor has no {name}")
    program = "import test_conv_engines as t; t._check_random(range(25))"
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"FASTACT_ISA": name},
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr


@by_layout
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 3e38])
@pytest.mark.parametrize("engine", ["winograd2", "winograd4", "depthwise", "pointwise"])
def test_what_is_not_finite(engine, value, layout):
    """As PyTorch's convolution has it: infinities, NaN, and sums that overflow on the way."""
    x, w, b, keywords = _operands(engine, layout)
    packed = ops.pack_conv(w, **keywords)
    x[0, 3, 8, 8] = value
    expected = _torch(x, w, b, **keywords)
    residual = torch.randn_like(expected)

    def close(got, exact):
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-4, equal_nan=True)

    # Where the largest stands, the others' share of a sum is below its error.
    near = (expected.abs() > 1e30) & expected.isfinite()
    close(ops.conv_packed(x, packed, w, b, **keywords)[~near], expected[~near])
    close(
        ops.conv_packed(x, packed, w, b, **keywords, activation="relu", residual=residual)[~near],
        F.relu(expected + residual)[~near],
    )
    found = ops.conv_training(x, w, b, [1], keywords["padding"], [1], keywords.get("groups", 1),
                              "silu", [], None)  # fmt: skip
    close(found[1][~near], expected[~near])
    close(found[0][~near], fastact.functional.silu(expected)[~near])


@pytest.mark.parametrize("engine", ["winograd2", "winograd4"])
def test_weight_that_is_not_finite(engine):
    x, w, b, keywords = _operands(engine)
    w[1, 2, 0, 0] = torch.inf
    torch.testing.assert_close(
        ops.conv(x, w, b, **keywords), _torch(x, w, b, **keywords),
        rtol=1e-4, atol=1e-4, equal_nan=True,
    )  # fmt: skip
