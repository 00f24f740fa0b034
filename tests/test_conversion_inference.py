"""Does a converted model follow its weights and modules when they change?"""

import copy
import gc
import warnings

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

import fastact
from fastact.conversion import packing
from fastact.testing.conversion import MODES, fused
from fastact.testing.programs import Parts

X = torch.linspace(-2, 2, 18).reshape(3, 6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, 6), nn.LeakyReLU(), nn.Linear(6, 4)
        self.norm = None

    def forward(self, x):
        x = self.first(x)
        x = self.act(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.log_softmax(self.last(x), -1)


class Named(nn.Sequential):
    """The same by names, in a Sequential."""

    def __init__(self):
        super().__init__()
        for name in ("first", "act", "last"):
            self.add_module(name, getattr(Net(), name))


class Lora(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + x.sum(-1, keepdim=True)


def patched(layer):
    own = layer.forward
    layer.forward = lambda x: own(x) * 2


EDITS = {
    "hook": lambda m: m.first.register_forward_hook(lambda mod, args, out: out + 100),
    "hook with keywords": lambda m: m.first.register_forward_hook(
        lambda mod, args, kwargs, out: out + 100, with_kwargs=True
    ),
    "pre-hook": lambda m: m.first.register_forward_pre_hook(lambda mod, args: (args[0] * 2,)),
    "hook of the activation": lambda m: m.act.register_forward_hook(lambda mod, args, out: out * 3),
    "forward": lambda m: patched(m.first),
    "forward of the activation": lambda m: patched(m.act),
    "setting": lambda m: setattr(m.act, "negative_slope", 0.7),
    "setting that is no number": lambda m: setattr(m.act, "negative_slope", True),
    "written": lambda m: nn.init.ones_(m.first.weight),
    "written through a view": lambda m: m.first.weight[0].mul_(5),
    "new weight": lambda m: setattr(m.first, "weight", parameter(torch.full((6, 6), 0.5))),
    "of the same memory": lambda m: (
        setattr(m.first, "weight", parameter(m.first.weight.data)),
        m.first.weight.mul_(2),
    ),
    "new data": lambda m: setattr(m.first.weight, "data", torch.full((6, 6), 0.5)),
    "new data at the old place": lambda m: [
        setattr(m.first.weight, "data", m.first.weight.data * 2) for _ in range(4)
    ],
    "transposed": lambda m: setattr(m.first, "weight", parameter(m.first.weight.t())),
    "no bias": lambda m: setattr(m.first, "bias", None),
    "deleted bias": lambda m: delattr(m.first, "bias"),
    "weight beside the parameters": lambda m: vars(m.first).update(weight=torch.ones(6, 6)),
    "pruned": lambda m: nn.utils.prune.l1_unstructured(m.first, "weight", 0.5),
    "weight_norm": lambda m: nn.utils.parametrizations.weight_norm(m.first),
    "old weight_norm": lambda m: nn.utils.weight_norm(m.first),
    "spectral_norm": lambda m: nn.utils.parametrizations.spectral_norm(m.first).eval(),
    "double and back": lambda m: m.double().float(),
    "bfloat16 and back": lambda m: m.bfloat16().float(),
    "to_empty": lambda m: [m.to_empty(device="cpu"), [nn.init.ones_(p) for p in m.parameters()]],
    "load_state_dict": lambda m: m.load_state_dict(
        {key: value.cos() for key, value in m.state_dict().items()}
    ),
    "load_state_dict by assignment": lambda m: m.load_state_dict(
        {key: value.cos() for key, value in m.state_dict().items()}, assign=True
    ),
    "new head": lambda m: setattr(m, "last", linear(6, 2)),
    "no head": lambda m: setattr(m, "last", nn.Identity()),
    "wider": lambda m: (setattr(m, "first", linear(6, 9)), setattr(m, "last", linear(9, 4))),
    "other activation": lambda m: setattr(m, "act", nn.Tanh()),
    "activation left out": lambda m: setattr(m, "act", nn.Identity()),
    "another kind of layer": lambda m: setattr(m, "first", nn.Bilinear(6, 6, 6)),
    "wrapped layer": lambda m: setattr(m, "first", Lora(m.first)),
    "class of the layer": lambda m: setattr(m.first, "__class__", Scaled),
    "requires_grad": lambda m: m.requires_grad_(),
    "train": lambda m: m.train(),
    "children swapped": lambda m: m._modules.update(first=m._modules["first"], act=linear(6, 6)),
}


class Scaled(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


def parameter(tensor):
    return nn.Parameter(tensor, requires_grad=False)


def linear(*sizes):
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(*sizes).requires_grad_(False).eval()
    for tensor in layer.parameters():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return layer


def answer(model):
    """A value or an error."""
    try:
        return model(X)
    except Exception as error:
        return type(error), str(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [Net, Named])
@pytest.mark.parametrize("edit", EDITS)
def test_edits_after_the_conversion(edit, make, mode):
    model = make().eval()
    converted = fastact.convert(copy.deepcopy(model), mode=mode)
    model.requires_grad_(False)
    converted.requires_grad_(False)
    torch.testing.assert_close(converted(X), model(X))
    assert len(fused(lambda: converted(X))) == 2
    with torch.no_grad():
        for one in (model, converted):
            torch.manual_seed(5)
            EDITS[edit](one)
    expected, actual = answer(model), answer(converted)
    if isinstance(expected, tuple):
        assert actual == expected
    else:
        torch.testing.assert_close(actual, expected)
        assert actual.requires_grad == expected.requires_grad


@pytest.mark.parametrize("make", [Net, Named])
def test_edits_of_the_layers_around(make):
    model = make().eval()
    if make is Named:  # its children go by numbers
        model = nn.Sequential(*model.children())
    converted = fastact.convert(copy.deepcopy(model), mode="training")
    if make is Net:
        for norm in (nn.LayerNorm(6), nn.BatchNorm1d(6).eval(), None):
            model.norm = converted.norm = norm
            torch.testing.assert_close(converted(X), model(X))
    else:
        for edit in (
            lambda m: m.append(nn.Hardtanh()),
            lambda m: m.insert(1, nn.LayerNorm(6)),
            lambda m: m.pop(2),
            lambda m: m.__setitem__(0, linear(6, 6)),
            lambda m: m.extend([linear(4, 4), nn.Sigmoid()]),
            lambda m: m.__delitem__(slice(1, None)),
        ):
            edit(model), edit(converted)
            torch.testing.assert_close(converted(X), model(X))


# ---- weights given for one call ----------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [Net, Named])
def test_functional_call(make, mode):
    model = make().eval()
    converted = fastact.convert(model, mode=mode)
    for _ in range(3):
        new = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
        expected = functional_call(model, new, (X,))
        torch.testing.assert_close(functional_call(converted, new, (X,)), expected)
        torch.testing.assert_close(converted(X), model(X))


def test_averaged_models():
    source = Net().eval()
    averages = AveragedModel(copy.deepcopy(source)), AveragedModel(fastact.convert(source))
    for _ in range(3):
        with torch.no_grad():
            for tensor in source.parameters():
                tensor.add_(torch.randn_like(tensor))
        for average in averages:
            average.update_parameters(source)
        torch.testing.assert_close(averages[1](X), averages[0](X).detach())


def test_inference_tensors_as_weights():
    """They have no version."""
    with torch.inference_mode():
        model = Net().eval()
        converted = fastact.convert(model)
        torch.testing.assert_close(converted(X), model(X))
        for one in (model, converted):
            one.first.weight.mul_(2)
        torch.testing.assert_close(converted(X), model(X))


def test_what_leaves_no_trace_is_not_seen():
    """As docs/conversion.md says."""
    converted = fastact.convert(Net())
    before = converted(X)
    converted.first.weight.data.mul_(2)
    torch.testing.assert_close(converted(X), before, rtol=0, atol=0)
    converted.first.weight.mul_(1)
    assert not torch.allclose(converted(X), before)


def test_gradients_of_the_input():
    model = Net().eval().requires_grad_(False)
    converted = fastact.convert(model)
    inputs = [X.clone().requires_grad_() for _ in range(2)]
    for one, x in zip((model, converted), inputs, strict=True):
        one(x).square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)


def test_the_same_bits_for_a_row_in_any_batch():
    model = nn.Sequential(nn.Linear(100, 70), nn.Tanh())
    converted, x = fastact.convert(model), torch.randn(40, 100)
    all_rows = converted(x)
    for rows in (1, 7, 8, 9, 33):
        assert torch.equal(converted(x[:rows]), all_rows[:rows])


@pytest.mark.parametrize("size", [6, 300])
def test_another_dtype(size):
    model = nn.Sequential(nn.Linear(size, size), nn.ReLU())
    x = torch.randn(64, size, dtype=torch.float64)
    converted = fastact.convert(model)
    converted(x.float())
    converted.double()
    assert converted[0].weight.dtype is torch.float64
    torch.testing.assert_close(converted(x), model.double()(x))


# ---- memory ------------------------------------------------------------------------------------


def test_packed_weights_go_with_their_model():
    gc.collect()
    before = len(packing._kept)
    converted = fastact.convert(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()))
    other = fastact.convert(Net())
    converted(X), other(X)
    assert len(packing._kept) == before + 3
    for _ in range(5):
        with torch.no_grad():
            other.first.weight.mul_(1.1)
        other(X)
        functional_call(other, {k: v.clone() for k, v in other.state_dict().items()}, (X,))
    gc.collect()
    assert len(packing._kept) == before + 3
    del converted, other
    gc.collect()
    assert len(packing._kept) == before


def test_layers_alone_are_not_disturbed():
    """Read one by one, every layer has its own output."""

    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))

        def forward(self, x):
            kept = [self.body(x)]
            for layer in self.body:
                x = layer(x)
                kept.append(x)
            return kept

    model = Features().eval()
    for mode in MODES:
        converted = fastact.convert(model, mode=mode)
        torch.testing.assert_close(converted(X), model(X))


def test_threads():
    import threading

    model = Parts().eval()
    net = nn.Sequential(model.fc, nn.Tanh(), model.fc2, nn.ReLU())
    converted, failures = fastact.convert(net), []
    with torch.no_grad():
        expected = net(X)

    def work():
        for number in range(200):
            with torch.no_grad():
                if number % 10 == 0:
                    converted[0].weight.mul_(1)
                y = converted(X)
            if not torch.allclose(y, expected, atol=1e-6):
                failures.append(y)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastact.convert(Net())(X)
