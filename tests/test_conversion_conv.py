"""Are convolutions of converted models fused with what follows, and is nothing else changed?"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastact
from fastact.conversion import packing, site
from fastact.testing.conversion import MODES, fused, gradients, pair, with_forward

DIMS = (1, 2, 3)
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
by_mode = pytest.mark.parametrize("mode", MODES)
by_dims = pytest.mark.parametrize("dims", DIMS)


def _conv(dims, *args, **options):
    return getattr(nn, f"Conv{dims}d")(*args, **options)


def _norm(dims, channels):
    norm = getattr(nn, f"BatchNorm{dims}d")(channels)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def _images(dims, channels=16, size=8, last=False):
    x = torch.randn(2, channels, *[size + i for i in range(dims)])
    return x.contiguous(memory_format=CHANNELS_LAST[dims]) if last and dims > 1 else x


def _same(model, converted, x):
    """Values, strides and gradients; what its sites fused."""
    results = []
    for one in (model, converted):
        leaf = x.detach().requires_grad_(any(p.requires_grad for p in one.parameters()))
        y = one(leaf)
        results.append((y, gradients(y, [leaf, *one.parameters()]) if y.requires_grad else []))
    (expected, theirs), (y, mine) = results
    assert y.stride() == expected.stride()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    return fused(lambda: converted(x))


class Block(nn.Module):
    """ResNet's, with three ways to write a sum."""

    def __init__(self, dims, with_norm=True):
        super().__init__()
        self.conv1 = _conv(dims, 16, 16, 3, padding=1, bias=not with_norm)
        self.conv2 = _conv(dims, 16, 16, 3, padding=1, bias=not with_norm)
        self.conv3 = _conv(dims, 16, 16, 1)
        self.norm1, self.norm2 = (_norm(dims, 16) if with_norm else nn.Identity() for _ in range(2))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.act(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        out = self.act(out)
        return F.leaky_relu(torch.add(x, self.conv3(out)), 0.2)


@by_mode
@pytest.mark.parametrize("last", [False, True])
@by_dims
def test_residual_blocks(dims, last, mode):
    for with_norm in (False, True):
        model, converted = pair(lambda w=with_norm: Block(dims, w), mode)
        found = _same(model, converted, _images(dims, last=last))
        if dims == 3 and last:
            assert found == []  # PyTorch's result lies otherwise
        elif with_norm:
            assert found[0] == {"inference": "norm relu", "training": ""}[mode]
            assert found[2] == "residual leaky_relu"
        else:
            assert found == ["dropout relu", "dropout residual relu", "residual leaky_relu"]


@by_mode
@by_dims
def test_sequences(dims, mode):
    model, converted = pair(
        lambda: nn.Sequential(
            _conv(dims, 16, 20, 3),
            _norm(dims, 20),
            nn.SiLU(),
            _conv(dims, 20, 20, 3, groups=20, padding="same"),
            nn.PReLU(20),
            nn.Dropout(0.0),
            _conv(dims, 20, 8, 1, bias=False),
            nn.Softmax(1),
        ),
        mode,
    )
    found = _same(model, converted, _images(dims))
    first = {"inference": "norm silu", "training": ""}[mode]
    dropout = {"inference": "prelu dropout", "training": "prelu"}[mode]
    assert found == [first, dropout, ""]


OPTIONS = [
    {"stride": 2, "padding": 1},
    {"dilation": 2, "padding": "same"},
    {"padding": "valid", "groups": 2},
    {"groups": 16},
]


@by_mode
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@by_dims
def test_options(dims, options, mode):
    model, converted = pair(
        lambda: with_forward("return F.gelu(self.conv(x))", conv=_conv(dims, 16, 32, 3, **options)),
        mode,
    )
    assert _same(model, converted, _images(dims)) == ["gelu"]


def reflecting(model):
    model.conv = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")


def uneven(model):
    model.conv = nn.Conv2d(16, 16, 2, padding="same")


def hooked(model):
    model.conv.register_forward_hook(lambda module, args, output: 2 * output)


def patched_helper(model):
    own = model.conv._conv_forward
    model.conv._conv_forward = lambda *args: own(*args) * 2


def derived(model):
    class Scaled(nn.Conv2d):
        def _conv_forward(self, input, weight, bias):
            return super()._conv_forward(input, 2 * weight, bias)

    model.conv.__class__ = Scaled


def parametrized(model):
    nn.utils.parametrizations.weight_norm(model.conv)


LEFT = [reflecting, uneven, hooked, patched_helper, derived, parametrized]


@by_mode
@pytest.mark.parametrize("edit", LEFT)
def test_what_is_called_as_written(edit, mode):
    def make():
        model = with_forward("return F.relu(self.conv(x))", conv=nn.Conv2d(16, 16, 3, padding=1))
        edit(model)
        return model

    model = make().train(mode == "training")
    converted = fastact.convert(copy.deepcopy(model), mode=mode)
    x = _images(2)
    assert fused(lambda: converted(x)) == []
    torch.testing.assert_close(converted(x), model(x))


@by_mode
def test_edits_after_conversion_are_followed(mode):
    model, converted = pair(
        lambda: nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1)), mode
    )
    x = _images(2)
    for edit in (
        lambda m: setattr(m[0], "stride", (2, 1)),
        lambda m: setattr(m[0], "padding", "same") or setattr(m[0], "stride", (1, 1)),
        lambda m: m[0].weight.data.copy_(torch.flip(m[0].weight.data, (0,))),
        lambda m: torch.no_grad()(m[0].weight.mul_)(0.5),
        lambda m: setattr(m[0], "padding_mode", "circular"),
        lambda m: setattr(m[0], "padding_mode", "zeros") or setattr(m[0], "padding", (0, 1)),
        lambda m: m[0].register_forward_hook(lambda *args: args[-1] + 1),
    ):
        edit(model)
        edit(converted)
        if mode == "inference":
            packing.forget_all()  # a write through .data leaves no trace
        torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-4)


@by_mode
def test_functions_that_were_replaced(mode, monkeypatch):
    model, converted = pair(lambda: nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU()), mode)
    x, own = _images(2), F.conv2d
    converted(x)
    monkeypatch.setattr(F, "conv2d", lambda *args: own(*args) + 1)
    assert fused(lambda: converted(x)) == []
    torch.testing.assert_close(converted(x), model(x))


@by_mode
def test_a_helper_that_was_replaced(mode, monkeypatch):
    model, converted = pair(lambda: nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU()), mode)
    x, own = _images(2), nn.Conv2d._conv_forward
    converted(x)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, *args: own(self, *args) + 1)
    torch.testing.assert_close(converted(x), model(x))


@by_mode
def test_inputs_that_do_not_fit(mode):
    model, converted = pair(
        lambda: with_forward("return F.relu(self.conv(x))", conv=nn.Conv2d(16, 16, 3)), mode
    )
    unbatched = _images(2)[0]
    torch.testing.assert_close(converted(unbatched), model(unbatched))
    for x in (torch.ones(2, 16), torch.ones(2, 15, 8, 8), torch.ones(2, 16, 2, 2), 3):
        errors = []
        for one in (model, converted):
            with pytest.raises((RuntimeError, TypeError)) as error:
                one(x)
            errors.append((error.type, str(error.value)))
        assert errors[0] == errors[1]


@by_mode
def test_sums_that_lie_otherwise(mode):
    """A sum takes the strides of its first operand, and broadcasts."""
    model, converted = pair(
        lambda: with_forward("return torch.add(x[1], self.conv(x[0]))", conv=nn.Conv2d(16, 16, 1)),
        mode,
    )
    x = _images(2)
    last = x.contiguous(memory_format=torch.channels_last)
    for pair_ in ((x, x), (x, last), (last, x), (last, last), (x, x[:1]), (x, x[:, :, :1])):
        y, expected = converted(pair_), model(pair_)
        assert y.stride() == expected.stride()
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_lines_that_lie_otherwise():
    """Of transposed sequences, and of a weight that does."""
    model, converted = pair(
        lambda: with_forward("return F.relu(self.conv(x))", conv=nn.Conv1d(16, 16, 3)), "inference"
    )
    x = _images(1).transpose(1, 2).contiguous().transpose(1, 2)
    assert converted(x).stride() == model(x).stride()
    torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-4)
    for one in (model, converted):
        weight = one.conv.weight.detach()
        one.conv.weight = nn.Parameter(weight.transpose(1, 2).contiguous().transpose(1, 2), False)
    assert converted(x).stride() == model(x).stride()
    torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-4)


def test_the_setting_is_followed():
    """What was packed under another one is packed anew."""
    make = lambda: nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU()).double()  # noqa: E731
    model, converted = pair(make, "inference")
    x = _images(2, 64).double()
    errors = {}
    exact = model(x)
    try:
        for setting in ("off", "safe", "fast", "off"):
            fastact.set_winograd(setting)
            errors.setdefault(setting, []).append((converted(x) - exact).abs().max().item())
    finally:
        fastact.set_winograd("safe")
    assert len({*errors["off"]}) == 1
    assert len({error for found in errors.values() for error in found}) == 3


def test_a_setting_of_one_model():
    """It decides in place of the process's, in copies and pickles too; without one, that does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 8, 3))
    model = model.double().eval()
    x = _images(2, 64, 12).double()
    exact = model(x)
    error = {}
    for setting in (None, "off", "safe", "fast"):
        converted = fastact.convert(model, winograd=setting)
        copied = pickle.loads(pickle.dumps(copy.deepcopy(converted)))
        for process in ("safe", "off", "fast"):
            try:
                fastact.set_winograd(process)
                found = {(one(x) - exact).abs().max().item() for one in (converted, copied)}
                found |= {converted(x).sub(exact).abs().max().item() for _ in range(2)}
                with site.observing(lambda *told: None):  # Python decides
                    found.add((converted(x) - exact).abs().max().item())
            finally:
                fastact.set_winograd("safe")
            assert len(found) == 1
            error.setdefault(setting or process, set()).update(found)
        again = fastact.convert(converted, inplace=True)
        assert (again(x) - exact).abs().max().item() in error["safe"]
    assert all(len(found) == 1 for found in error.values())
    assert len(set.union(*error.values())) == 3 and max(set.union(*error.values())) < 1e-12
    for mode, setting, words in (
        ("inference", "quick", "expected 'off', 'safe', 'fast' or None, got 'quick'"),
        ("training", "off", "expected None where mode is 'training', got 'off'"),
    ):
        with pytest.raises(ValueError, match=words):
            fastact.convert(model, mode=mode, winograd=setting)


def test_one_weight_of_two_layers():
    """What is packed of it depends on how the layer moves."""

    def make():
        model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2))
        model[1].weight = model[0].weight
        return model

    model, converted = pair(make, "inference")
    for _ in range(2):
        assert _same(model, converted, _images(2)) == ["", ""]


def test_own_layers_with_an_activation():
    model, converted = pair(
        lambda: nn.Sequential(fastact.nn.Conv2d(16, 16, 3, activation="silu"), nn.Dropout()),
        "inference",
    )
    assert _same(model, converted, _images(2)) == ["dropout"]


@by_mode
def test_compiled(mode):
    model, converted = pair(lambda: Block(2), mode)
    x = _images(2)
    compiled = torch.compile(converted, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
