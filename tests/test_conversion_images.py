"""Do images of a model converted for inference lie channels last between convolutions and before
max pools, where nobody sees it, and nowhere else?"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastact
from fastact.conversion import site
from fastact.testing.cases import assert_same_bits
from fastact.testing.conversion import MODES, fused, pair, with_forward

CHANNELS_LAST = torch.channels_last
by_mode = pytest.mark.parametrize("mode", MODES)
by_layout = pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])


def _images(*shape, last=False, dtype=torch.float32):
    x = torch.randn(shape, dtype=dtype)
    return x.contiguous(memory_format=CHANNELS_LAST) if last else x


def _conv(channels=16, out=16, kernel=3, **options):
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, **options)


class _Layouts(TorchDispatchMode):
    """Of the images that convolutions are called with: "last", or "planes"."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.fastact.conv_packed.default:
            last = args[0].is_contiguous(memory_format=CHANNELS_LAST)
            self.found.append("last" if last else "planes")
        return function(*args, **(kwargs or {}))


def _layouts(function):
    with site.observing(lambda *told: None), _Layouts() as mode:
        function()
    return mode.found


def _same(model, converted, x):
    """Values and strides; the same bits where Python decides. What the sites fused."""
    expected, y = model(x), converted(x)
    assert y.shape == expected.shape
    for size, mine, theirs in zip(y.shape, y.stride(), expected.stride(), strict=True):
        # PyTorch's activations choose the stride of a dimension of one element anew.
        assert mine == theirs or (size == 1 and not x.is_contiguous())
    tolerance = 2e-2 if x.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    observed = []
    found = fused(lambda: observed.append(converted(x)))
    assert_same_bits(observed[0], y, "decided by Python")
    return found


POOLS = [
    "F.max_pool2d(y, 2)",
    "F.max_pool2d(y, (3, 2), 2, 1)",
    "F.max_pool2d(y, 3, (2, 1), padding=(1, 0), dilation=2, ceil_mode=True)",
    "F.max_pool2d(y, kernel_size=3, stride=None)",
    "F.max_pool2d(y, 2, return_indices=False)",
    "torch.max_pool2d(y, [3, 3][0], 2)",
    "self.pool(y)",
]


@by_mode
@by_layout
@pytest.mark.parametrize("pool", POOLS)
def test_pools(pool, last, mode):
    for form in (
        f"return {pool.replace('y', 'F.relu(self.conv(x))', 1)}",
        f"y = self.conv(x)\ny = F.relu(y)\ny = {pool}\nreturn y",
        f"return {pool.replace('y', 'self.conv(x)', 1)}",
    ):
        model, converted = pair(
            lambda form=form: with_forward(
                form, conv=_conv(), pool=nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
            ),
            mode,
        )
        (found,) = _same(model, converted, _images(2, 16, 13, 12, last=last))
        is_taken = mode == "inference" and not last and "[" not in pool
        assert ("max_pool2d" in found) == is_taken


NOT_TAKEN = {
    "indices": "return F.max_pool2d(self.conv(x), 2, return_indices=True)[0]",
    "a number that is none": "return F.max_pool2d(self.conv(x), torch.tensor(2))",
    "of lines": "return F.max_pool1d(self.conv(x)[0], 2)",
    "called with more": "return self.pool(self.conv(x), *())",
}


@pytest.mark.parametrize("form", NOT_TAKEN)
def test_what_is_no_pool_of_ours(form):
    model, converted = pair(
        lambda: with_forward(NOT_TAKEN[form], conv=_conv(), pool=nn.MaxPool2d(2)), "inference"
    )
    _same(model, converted, _images(2, 16, 12, 12))


@by_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_strides_and_values(dtype, last):
    """Where a dimension has one element, too; NaN and infinities as PyTorch's pool has them."""
    for shape, options in (
        ((2, 16, 8, 8), {"kernel_size": 8}),
        ((1, 16, 6, 6), {"kernel_size": 2}),
        ((2, 16, 2, 9), {"kernel_size": 2}),
        ((0, 16, 8, 8), {"kernel_size": 2}),
    ):
        for out in (1, 16):
            model, converted = pair(
                lambda out=out, options=options: nn.Sequential(
                    _conv(out=out), nn.LeakyReLU(), nn.MaxPool2d(**options)
                ).to(dtype),
                "inference",
            )
            x = _images(*shape, last=last, dtype=dtype)
            _same(model, converted, x)
            if x.numel() and dtype == torch.float32:
                for value in (torch.nan, torch.inf, -torch.inf):
                    x[0, 3, 1, 1] = value
                    _same(model, converted, x)


def test_errors_are_pytorchs():
    for pool in (nn.MaxPool2d(2, padding=2), nn.MaxPool2d(40), nn.MaxPool2d(2, stride=-1)):
        model, converted = pair(lambda pool=pool: nn.Sequential(_conv(), pool), "inference")
        words = []
        for one in (model, converted):
            with pytest.raises(RuntimeError) as error:
                one(_images(2, 16, 8, 8))
            words.append(str(error.value))
        assert words[0] == words[1]


def _network():
    return nn.Sequential(
        _conv(3, 16, 7, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        _conv(),
        nn.SiLU(),
        _conv(groups=16),
        nn.Dropout(),
        _conv(16, 24, 1),
        nn.PReLU(24),
        nn.AvgPool2d(2),
        _conv(24, 8),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 5),
        nn.Softmax(1),
    )


@by_mode
@by_layout
def test_networks(last, mode):
    model, converted = pair(_network, mode)
    model.eval(), converted.eval()
    x = _images(2, 3, 50, 50, last=last)
    found = _same(model, converted, x)
    if mode == "inference" and not last:
        assert found == [
            "norm relu max_pool2d", "silu", "dropout", "prelu", "max_pool2d", "softmax",
        ]  # fmt: skip
        # The last one's operand is what a foreign pool has returned, put channels last.
        assert _layouts(lambda: converted(x)) == ["last"] * 5
    if mode == "training":
        assert _layouts(lambda: converted(x)) == []


def test_one_convolution_keeps_its_layout():
    """To turn its images would cost more than it gains."""
    for others in ([], [nn.ReLU()], [nn.AvgPool2d(2), _conv()], [nn.ReLU(), nn.MaxPool3d(1)]):
        _, converted = pair(lambda others=others: nn.Sequential(_conv(), *others), "inference")
        x = _images(2, 16, 12, 12)
        assert set(_layouts(lambda c=converted, x=x: c(x))) == {"planes"}


def test_what_others_see():
    """Hooks, and modules of theirs, get images as the program as written gives them."""
    strides = []

    class Theirs(nn.Module):
        def forward(self, x):
            strides.append(x.stride())
            return x.view(x.shape[0], -1).view_as(x)

    def note(module, args, result):
        strides.append((args[0].stride(), result.stride()))

    def add_hook(m):
        m[3].register_forward_hook(note)

    def patch(m):
        m[3].forward = lambda x: Theirs()(x)

    def replace(m):
        m[3] = Theirs()

    def watch(m):
        m[2].padding_mode = "reflect"
        m[2]._reversed_padding_repeated_twice = [1, 1, 1, 1]
        m[2].register_forward_pre_hook(lambda module, args: strides.append(args[0].stride()))

    for edit in (add_hook, patch, replace, watch):
        model, converted = pair(
            lambda: nn.Sequential(_conv(), nn.ReLU(), _conv(), nn.MaxPool2d(2), nn.ReLU()),
            "inference",
        )
        x = _images(2, 16, 12, 12)
        converted(x)
        edit(model)
        edit(converted)
        strides.clear()
        expected, theirs = model(x), list(strides)
        strides.clear()
        y = converted(x)
        assert strides == theirs and strides
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        assert y.stride() == expected.stride()


def test_edits_are_followed(monkeypatch):
    model, converted = pair(lambda: nn.Sequential(_conv(), nn.MaxPool2d(2)), "inference")
    x = _images(2, 16, 13, 13)
    for edit in (
        lambda m: setattr(m[1], "kernel_size", 3),
        lambda m: setattr(m[1], "stride", (1, 2)),
        lambda m: setattr(m[1], "padding", 1),
        lambda m: setattr(m[1], "ceil_mode", True),
        lambda m: setattr(m[1], "dilation", 2),
    ):
        edit(model)
        edit(converted)
        assert _same(model, converted, x) == ["max_pool2d"]
    own = F.max_pool2d
    monkeypatch.setattr(F, "max_pool2d", lambda *args, **kwargs: own(*args, **kwargs) + 1)
    assert _same(model, converted, x) == [""]


def test_gradients_leave_images_as_they_are():
    """Whoever differentiates a model converted for inference gets PyTorch's pool."""
    model, converted = pair(lambda: nn.Sequential(_conv(), nn.MaxPool2d(2)), "inference")
    x = _images(2, 16, 12, 12).requires_grad_()
    gradients = []
    for one in (model, converted):
        y = one(x)
        gradients.append(torch.autograd.grad(y.square().sum(), x)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(converted(x), model(x), rtol=2e-2, atol=2e-2)
        assert converted(x).dtype == torch.bfloat16
    batched = torch.func.vmap(lambda t: converted(t[None])[0])(x.detach())
    torch.testing.assert_close(batched, model(x), rtol=1e-4, atol=1e-4)


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.fc = _conv(3), _network()[4:9], nn.Linear(24, 5)
        self.seen = []

    def forward(self, x, scale=1.0, *, more=None):
        x = F.relu(self.stem(x * scale))
        self.seen.append(x.stride(1))
        y = self.body(x)
        if more is not None:
            y = y + more["images"]
        return {"features": y, "classes": self.fc(y.mean((2, 3))), "count": 3}


@by_mode
def test_memory_format(mode):
    """Images lie channels last from end to end, and only within the model."""
    torch.manual_seed(0)
    model = _Net().train(mode == "training").eval()
    converted = fastact.convert(model, mode=mode, memory_format=CHANNELS_LAST)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(converted)))
    for one in (converted, copied):
        for last in (False, True):
            images = _images(2, 3, 9, 11, last=last)
            more = {"images": _images(2, 24, 9, 11, last=last)}
            expected, found = model(images, 0.5, more=more), one(images, 0.5, more=more)
            assert found.keys() == expected.keys() and found["count"] == 3
            for name in ("features", "classes"):
                assert found[name].is_contiguous() == (not last or name == "classes")
                torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
            assert one.seen.pop() == 1
    assert type(converted).__name__ == "_Net" and isinstance(converted, _Net)
    if mode == "training":
        assert fastact.revert(converted)(_images(2, 3, 9, 11))["classes"].shape == (2, 5)
        assert type(converted) is _Net and converted.seen.pop() != 1
    # A model without a site has edges too, and no other tensor is touched.
    identity = fastact.convert(nn.Identity(), mode=mode, memory_format=CHANNELS_LAST)
    for t in (torch.ones(2, 3), torch.ones(2, 3, 4, 5), torch.ones(2, 3, 4, 5, 6), None):
        result = identity(t)
        assert t is None or (torch.equal(result, t) and result.stride() == t.stride())
    edges = fastact.convert(nn.Sequential(_conv()), memory_format=CHANNELS_LAST)
    compiled = torch.compile(edges, fullgraph=True, backend="eager")
    assert compiled(_images(2, 16, 8, 8)).is_contiguous()
    with pytest.raises(ValueError, match=r"expected torch\.channels_last or None"):
        fastact.convert(model, mode=mode, memory_format=torch.preserve_format)
