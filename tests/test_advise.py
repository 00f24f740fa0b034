"""Does advise find what it is to find, stay silent elsewhere, and leave everything as it was?"""

import collections
import copy
import dataclasses
import gc
import json
import random
import re
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastact
from fastact.advice.rules import RULES, SEVERITIES


def found(model, *inputs, **options):
    return [(a.rule, a.module) for a in fastact.advise(model, *inputs, **options)]


def names(model, *inputs, **options):
    return {a.rule for a in fastact.advise(model, *inputs, **options)}


class Forward(nn.Module):
    """Layers by name, and a forward that calls them."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.call = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self.call(self, *inputs)


def stack(activation, depth, width=8, between=None):
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), *([between(width)] if between else []), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def with_bias(layer, value, part=1.0):
    with torch.no_grad():
        layer.bias[: int(part * len(layer.bias))] = value
    return layer


def with_weight(layer, factor):
    with torch.no_grad():
        layer.weight *= factor
    return layer


X, IMAGE = torch.randn(64, 8), torch.randn(4, 3, 8, 8)
ONE_HOT = F.one_hot(torch.arange(64) % 4).float()

# Rule: models that it must find, each with inputs, a loss and the modules it names.
BAD = {
    "collapsing-linear-maps": [
        (nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), X, None, ["0"]),
        (nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 8)), X, None, ["0"]),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)), IMAGE, None, ["0"]),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4)), IMAGE, None, ["0"]),
        (
            nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
            ),
            IMAGE,
            None,
            ["0"],
        ),
        (
            Forward(
                lambda m, x: m.b(2 * m.a(x).view(64, 4, 2).transpose(1, 2).reshape(64, 8) + 1),
                a=nn.Linear(8, 8),
                b=nn.Linear(8, 8),
            ),
            X,
            None,
            ["a"],
        ),
        (
            Forward(
                lambda m, x: m.b(h := m.a(x)) * m.c(h),
                a=nn.Linear(8, 8),
                b=nn.Linear(8, 8),
                c=nn.Linear(8, 8),
            ),
            X,
            None,
            ["a"],
        ),
        (stack(nn.Identity, 2), X, None, ["0", "2"]),
        (
            Forward(
                lambda m, x: F.linear(x, m.w) @ m.w,
                w=nn.Parameter(torch.ones(8, 8)),
            ),
            X,
            None,
            [""],
        ),
        (fastact.convert(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))), X, None, ["0"]),
    ],
    "activation-on-regression-output": [
        (nn.Sequential(nn.Linear(8, 1), nn.ReLU(inplace=True)), X, nn.MSELoss(), ["1"]),
        (nn.Sequential(nn.Linear(8, 1), nn.ReLU()), X, nn.MSELoss(), ["1"]),
        (nn.Sequential(nn.Linear(8, 1), nn.Sigmoid(), nn.Flatten(0)), X, nn.L1Loss(), ["1"]),
        (nn.Sequential(nn.Linear(8, 1), nn.Tanh()), X, F.huber_loss, ["1"]),
        (
            nn.Sequential(nn.Linear(8, 1), nn.ReLU()),
            X,
            lambda y: F.smooth_l1_loss(y, X[:, :1]),
            ["1"],
        ),
        (nn.Sequential(nn.Linear(8, 1), nn.ReLU()), X, lambda y: nn.MSELoss()(y, X[:, :1]), ["1"]),
    ],
    "softmax-before-cross-entropy": [
        (nn.Sequential(nn.Linear(8, 4), nn.Softmax(-1)), X, nn.CrossEntropyLoss(), ["1"]),
        (nn.Sequential(nn.Linear(8, 4), nn.LogSoftmax(-1)), X, F.cross_entropy, ["1"]),
        (
            Forward(lambda m, x: {"logits": m.fc(x).softmax(-1)}, fc=nn.Linear(8, 4)),
            X,
            nn.CrossEntropyLoss,
            [""],
        ),
        (
            Forward(
                lambda m, x: F.cross_entropy(torch.softmax(m.fc(x), -1), ONE_HOT),
                fc=nn.Linear(8, 4),
            ),
            X,
            None,
            [""],
        ),
    ],
    "sigmoid-before-bce-with-logits": [
        (nn.Sequential(nn.Linear(8, 4), nn.Sigmoid()), X, nn.BCEWithLogitsLoss(), ["1"]),
        (nn.Sequential(nn.Linear(8, 4), nn.Softmax(-1)), X, nn.BCEWithLogitsLoss(), ["1"]),
    ],
    "missing-sigmoid": [
        (nn.Linear(8, 4), X, nn.BCELoss(), [""]),
        (nn.Sequential(nn.Linear(8, 4), nn.Tanh()), X, nn.BCELoss(), ["1"]),
    ],
    "missing-log-softmax": [
        (nn.Linear(8, 4), X, nn.NLLLoss(), [""]),
        (nn.Sequential(nn.Linear(8, 4), nn.Softmax(-1)), X, nn.NLLLoss(), ["1"]),
        (nn.Linear(8, 4), X, lambda y: F.nll_loss(y, torch.zeros(64).long()), [""]),
    ],
    "sigmoid-on-exclusive-classes": [
        (nn.Sequential(nn.Linear(8, 4), nn.Sigmoid()), X, nn.CrossEntropyLoss(), ["1"]),
        (
            Forward(lambda m, x: torch.log(torch.sigmoid(m.fc(x))), fc=nn.Linear(8, 4)),
            X,
            nn.NLLLoss(),
            [""],
        ),
        (
            nn.Sequential(nn.Linear(8, 4), nn.Sigmoid()),
            X,
            lambda y: F.binary_cross_entropy(y, ONE_HOT),
            ["1"],
        ),
    ],
    "softmax-over-one-element": [
        (nn.Sequential(nn.Linear(8, 1), nn.Softmax(1)), X, None, ["1"]),
        (nn.Sequential(nn.Linear(8, 1), nn.LogSoftmax(-1)), X, None, ["1"]),
        (nn.Sequential(nn.Linear(8, 4), nn.Softmax(1)), X[:, None], None, ["1"]),
        (lambda x: x.softmax(1) * 2, X[:, :1], None, [""]),
    ],
    "softmax-over-batch": [
        (nn.Sequential(nn.Linear(8, 4), nn.Softmax(0)), X, None, ["1"]),
        (lambda x: F.log_softmax(x, dim=-2), X, None, [""]),
        (lambda x: x[:, None].softmax(0), X, None, [""]),
    ],
    "deep-saturating-stack": [
        (stack(nn.Sigmoid, 3), X, None, ["5"]),
        (stack(nn.Tanh, 8), X, None, ["15"]),
        (
            Forward(
                lambda m, x: m.a(m.a(m.a(x).sigmoid_()).sigmoid_()).sigmoid_(),
                a=nn.Linear(8, 8),
            ),
            X,
            None,
            [""],
        ),
    ],
    "dead-relu": [
        (nn.Sequential(with_bias(nn.Linear(8, 32), -100.0, 0.5), nn.ReLU()), X, None, ["1"]),
        (
            nn.Sequential(with_bias(nn.Conv2d(3, 32, 3), -100.0, 0.5), nn.ReLU(inplace=True)),
            IMAGE,
            None,
            ["1"],
        ),
    ],
    "saturated-units": [
        (
            nn.Sequential(with_weight(nn.Linear(8, 16), 100), nn.Tanh(), nn.Linear(16, 2)),
            X,
            None,
            ["1"],
        ),
        (
            nn.Sequential(with_bias(nn.Linear(8, 16), 20.0, 0.3), nn.Sigmoid(), nn.Linear(16, 2)),
            X,
            None,
            ["1"],
        ),
    ],
    "batch-norm-without-activation": [
        (nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)), X, None, ["1"]),
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)),
            IMAGE,
            None,
            ["1"],
        ),
    ],
    "activation-before-batch-norm": [
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(8)),
            IMAGE,
            None,
            ["2"],
        ),
        (
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 4)),
            X,
            None,
            ["2"],
        ),
    ],
    "bias-before-batch-norm": [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), IMAGE, None, ["0"]),
    ],
    "activation-on-code": [
        (
            nn.Sequential(
                *(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU()),
                *(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 8)),
            ),
            X,
            nn.MSELoss(),
            ["3"],
        ),
        (
            nn.Sequential(
                *(nn.Conv2d(3, 2, 4, stride=4), nn.ReLU()),
                *(nn.ConvTranspose2d(2, 3, 4, stride=4),),
            ),
            IMAGE,
            None,
            ["1"],
        ),
    ],
    "inplace-on-shared-value": [
        (
            Forward(lambda m, x: m.act(h := m.fc(x)) + h, fc=nn.Linear(8, 8), act=nn.ReLU(True)),
            X,
            None,
            ["act"],
        ),
        (
            Forward(
                lambda m, x: m.block(h := m.fc(x)) + h,
                fc=nn.Linear(8, 8),
                block=nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)),
            ),
            X,
            None,
            ["block.0"],
        ),
        (
            Forward(
                lambda m, x: (h := m.fc(x), F.silu(h.view(-1), inplace=True)), fc=nn.Linear(8, 8)
            ),
            X,
            None,
            [""],
        ),
    ],
}


def cases(table):
    return [
        pytest.param(rule, *row, id=f"{rule}-{i}")
        for rule, rows in table.items()
        for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("rule, model, input, loss, modules", cases(BAD))
def test_finds(rule, model, input, loss, modules, grad):
    with torch.set_grad_enabled(grad):
        advice = [a for a in fastact.advise(model, input, loss=loss) if a.rule == rule]
    assert [a.module for a in advice] == modules
    for one in advice:
        assert one.severity == RULES[rule].severity in SEVERITIES
        assert one.message and one.evidence and one.remedy == RULES[rule].remedy
        json.dumps(one.as_dict())
    assert rule not in names(model, input, loss=loss, ignore=[rule])


def test_every_rule_is_tested():
    assert list(BAD) == list(RULES)
    for rule in RULES.values():
        assert rule.severity in SEVERITIES
        assert rule.reason.endswith(".") and not rule.remedy.endswith(".")


# ---- what is well-formed -----------------------------------------------------------------------


def block(channels):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def lora(m, x):
    return m.base(x) + 0.5 * m.up(m.down(x))


def preactivation_without_activation(m, x):
    return m.b(m.norm(h := m.a(x))) + h


GOOD = {
    "mlp": (stack(nn.ReLU, 4), X, nn.CrossEntropyLoss()),
    "regression": (nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)), X, nn.MSELoss()),
    "binary": (nn.Sequential(nn.Linear(8, 1), nn.Sigmoid()), X, nn.BCELoss()),
    "multi-label": (nn.Linear(8, 4), X, nn.BCEWithLogitsLoss()),
    "nll": (nn.Sequential(nn.Linear(8, 4), nn.LogSoftmax(-1)), X, nn.NLLLoss()),
    "log of softmax": (lambda x: x.softmax(-1).log(), X, nn.NLLLoss()),
    "labels": (
        nn.Linear(8, 4),
        X,
        lambda y: F.binary_cross_entropy_with_logits(y, (X[:, :4] > 0).float()),
    ),
    "convolutions": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), block(8), block(8)), IMAGE, None),
    "separable": (
        nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 8, 1), nn.ReLU()),
        IMAGE,
        None,
    ),
    "one axis, then the other": (
        nn.Sequential(nn.Conv2d(3, 3, (1, 5)), nn.Conv2d(3, 3, (5, 1)), nn.ReLU()),
        IMAGE,
        None,
    ),
    "bottleneck": (nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8), nn.ReLU()), X, None),
    "linear code": (
        nn.Sequential(
            nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2), nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 8)
        ),
        X,
        nn.MSELoss(),
    ),
    "lora": (
        Forward(lora, base=nn.Linear(8, 8), up=nn.Linear(2, 8), down=nn.Linear(8, 2)),
        X,
        None,
    ),
    "inverted residual": (
        nn.Sequential(
            *(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)),
            *(nn.Conv2d(4, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
        ),
        torch.randn(4, 8, 6, 6),
        None,
    ),
    "residual": (
        Forward(lambda m, x: m.b(m.a(x) + x), a=nn.Linear(8, 8), b=nn.Linear(8, 8)),
        X,
        None,
    ),
    "a value of two uses": (
        Forward(lambda m, x: (m.b(h := m.a(x)), h), a=nn.Linear(8, 8), b=nn.Linear(8, 8)),
        X,
        None,
    ),
    "batch norm with a residual": (
        Forward(
            preactivation_without_activation,
            a=nn.Linear(8, 8, bias=False),
            norm=nn.BatchNorm1d(8),
            b=nn.Linear(8, 8),
        ),
        X,
        None,
    ),
    "attention": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), X[None], None),
    "attention over one position": (
        lambda x: ((x @ x.mT) / 8).masked_fill(torch.zeros(1, 1).bool(), -1.0).softmax(-1) @ x,
        X[:, None],
        None,
    ),
    "attention by hand": (
        Forward(
            lambda m, x: m.o((m.q(x) @ m.k(x).mT).softmax(-1) @ m.v(x)),
            **{name: nn.Linear(8, 8) for name in "qkvo"},
        ),
        torch.randn(2, 5, 8),
        None,
    ),
    "normalised sigmoids": (stack(nn.Sigmoid, 6, between=nn.LayerNorm), X, None),
    "gates": (
        Forward(
            lambda m, x: torch.sigmoid(m.a(x)) * torch.tanh(m.b(x)),
            a=nn.Linear(8, 8),
            b=nn.Linear(8, 8),
        ),
        X,
        None,
    ),
    "recurrent": (nn.LSTM(8, 8, num_layers=2), torch.randn(5, 4, 8), None),
    "sparse output": (nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()), 1000 * X, nn.BCELoss()),
    "learned mixture": (
        Forward(lambda m, x: (m.w.softmax(0)[:, None] * x).sum(0), w=nn.Parameter(torch.ones(64))),
        X,
        None,
    ),
    "attention over one of many positions": (
        Forward(
            lambda m, x: (p := m.fc(x).split([1, 8], -1))[0].softmax(1) * p[1],
            fc=nn.Linear(8, 9),
        ),
        X[:, None],
        None,
    ),
    "a fixed transform": (
        Forward(lambda m, x: m.fc(x @ torch.ones(8, 8)), fc=nn.Linear(8, 4)),
        X,
        None,
    ),
    "an image without a batch": (
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.Softmax(0)),
        IMAGE[0],
        None,
    ),
    "weights of a bag": (
        Forward(lambda m, x: (m.score(x).softmax(0) * x).sum(0), score=nn.Linear(8, 1)),
        X,
        None,
    ),
    "one vector": (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), X[0], None),
    "in place, discarded": (
        Forward(lambda m, x: m.run(x), fc=nn.Linear(8, 8)),
        X,
        None,
    ),
    "in place, rebound": (
        nn.Sequential(
            nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.SiLU(inplace=True)
        ),
        X,
        None,
    ),
    "in place on half": (
        Forward(
            lambda m, x: F.silu((h := m.fc(x))[:, :4], inplace=True) * h[:, 4:], fc=nn.Linear(8, 8)
        ),
        X,
        None,
    ),
}


def run_in_place(x):
    h = GOOD["in place, discarded"][0].fc(x)
    h.relu_()
    return h * h


GOOD["in place, discarded"][0].run = run_in_place


@pytest.mark.parametrize("mode", ["training", "evaluation"])
@pytest.mark.parametrize("model, input, loss", GOOD.values(), ids=GOOD)
def test_says_nothing(model, input, loss, mode):
    if isinstance(model, nn.Module):
        model.train(mode == "training")
    advice = fastact.advise(model, input, loss=loss)
    assert advice == []
    assert advice.operations > 0
    assert str(advice) == f"nothing to advise ({advice.operations} operations watched)"


@pytest.mark.parametrize("examples", [1, 2, 64])
def test_random_layers_are_not_dead(examples):
    # Alike examples: about half of the units are off for all of them, and half always on.
    x = torch.randn(1, 32) + 0.01 * torch.randn(examples, 32)
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(
            *[layer for _ in range(6) for layer in (nn.Linear(32, 32), nn.ReLU())]
        )
        assert "dead-relu" not in names(model, x)


# ---- what a finding says -----------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        hidden = self.first(x)
        return self.second(hidden)


def test_a_finding_has_a_place(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    [advice] = fastact.advise(Named(), X)
    assert (advice.module, advice.module_class, advice.file) == ("first", "Linear", __file__)
    lines = Path(__file__).read_text().splitlines()
    assert lines[advice.line - 1].strip() == "hidden = self.first(x)"
    assert advice.evidence == {
        "first": "first",
        "second": ["second"],
        "between": [],
        "merging": "exact",
    }
    assert advice.place == f"first (Linear), {Path(__file__).name}:{advice.line}"
    assert dataclasses.asdict(advice) == advice.as_dict()
    assert str(advice).startswith(
        "warning: collapsing-linear-maps: first (Linear), test_advise.py:"
    )


def test_measured_shares():
    model = nn.Sequential(with_bias(nn.Linear(8, 20), -100.0, 0.5), nn.ReLU())
    [advice] = fastact.advise(model, X)
    assert advice.evidence["dead"] == 10 and advice.evidence["units"] == 20
    assert advice.evidence["examples"] == 64
    assert "10 of 20 units are 0" in advice.message and "(50%)" in advice.message


def test_units_of_a_convolution_are_its_channels():
    model = nn.Sequential(with_bias(nn.Conv2d(3, 16, 3), -100.0, 0.75), nn.ReLU())
    [advice] = fastact.advise(model, IMAGE)
    assert advice.evidence["dead"] == 12 and advice.evidence["examples"] == 4 * 36


def test_prints_a_table():
    model = nn.Sequential(Named(), nn.Softmax(-1))
    lines = str(fastact.advise(model, X, loss=nn.CrossEntropyLoss())).splitlines()
    assert lines[0].split() == ["severity", "rule", "where", "what"]
    assert lines[1].startswith("error     softmax-before-cross-entropy  1 (Softmax)")
    assert lines[2].startswith("warning   collapsing-linear-maps")
    assert lines[4] == "What to do"
    assert lines[-1] == "1 error, 1 warning (4 operations watched)"


def test_alike_findings_share_a_row():
    layers = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(5)]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    advice = fastact.advise(Forward(forward, layers=nn.ModuleList(layers)), IMAGE)
    assert [a.module for a in advice] == [f"layers.{i}.0" for i in range(5)]
    table = str(advice)
    assert "(and 4 more like it)" in table and table.count("bias-before-batch-norm") == 2


# ---- what advise leaves as it was --------------------------------------------------------------


class Busy(nn.Module):
    """Changes whatever a forward can change."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.embedding = nn.Embedding(4, 8, max_norm=0.1)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("late", None)
        self.count, self.seen, self.cache, self.last = 0, [], {}, collections.deque()

    def forward(self, x, fail=False):
        self.count += 1
        self.seen.append(x.mean())
        self.last.append(1)
        self.cache["x"] = x
        self.calls += 1
        self.late = torch.ones(3)
        self.new = x
        random.random()
        y = self.norm(self.fc(x)) + self.embedding(torch.arange(4).repeat(16))
        y.sum().backward()
        with torch.no_grad():
            self.fc.weight.clamp_(-0.01, 0.01)
            self.fc.bias.data.zero_()
            self.norm.weight.data = torch.full((8,), 7.0)
            self.norm.weight.data.mul_(2)
        x.mul_(2)
        x.requires_grad_().sum().backward()
        self.fc.requires_grad_(False)
        if fail:
            raise KeyError("the model's own")
        return F.dropout(y)


def state_of(model):
    return {
        name: (type(module), dict(vars(module)), list(module._parameters), list(module._buffers))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("fail", [False, True])
def test_leaves_everything_as_it_was(fail):
    model, x = Busy(), torch.randn(64, 8)
    model.fc.weight.grad = gradient = torch.ones(8, 8)
    before, state = copy.deepcopy(model), state_of(model)
    address = model.norm.weight.data_ptr()
    x_before, random_before = x.clone(), random.getstate()
    torch_before = torch.get_rng_state()
    hooks = [
        dict(getattr(nn.modules.module, f"_global_forward{kind}_hooks")) for kind in ("", "_pre")
    ]
    if fail:
        with pytest.raises(KeyError, match="the model's own"):
            fastact.advise(model, x, fail)
    else:
        fastact.advise(model, x, fail)
    assert state_of(model).keys() == state.keys()
    for name, module in model.named_modules():
        assert vars(module).keys() == state[name][1].keys()
    assert (model.count, model.seen, model.cache, model.late) == (0, [], {}, None)
    assert not model.last
    assert model.fc.weight.grad is gradient and (gradient == 1).all()
    assert model.norm.weight.grad is None
    for (name, one), other in zip(
        model.state_dict().items(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert torch.equal(x, x_before) and x.grad is None and not x.requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.norm.weight.data_ptr() == address
    assert random.getstate() == random_before
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert hooks == [
        dict(getattr(nn.modules.module, f"_global_forward{kind}_hooks")) for kind in ("", "_pre")
    ]
    assert torch.overrides._get_current_function_mode() is None


def test_a_model_in_a_function_is_left_as_it_was():
    model, x = Busy(), torch.randn(64, 8)
    before = copy.deepcopy(model.state_dict())
    fastact.advise(lambda x: model(x), x)
    assert model.count == 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_runs_as_without_being_watched():
    model, x = Busy(), torch.randn(64, 8)
    results = []
    model.register_forward_hook(lambda module, args, output: results.append(output.detach()))
    torch.manual_seed(3)
    fastact.advise(model, x)
    torch.manual_seed(3)
    model(x)
    assert torch.equal(*results)


# ---- all kinds of Python -----------------------------------------------------------------------


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    more: dict


def generator(self, batch):
    for x in batch.more["parts"]:
        yield self.b(self.a(x))


STRANGE = {
    "no parameters": (lambda x: x.relu(), (X,), set()),
    "dict": (
        Forward(lambda m, d: m.b(m.a(d["x"])), a=nn.Linear(8, 8), b=nn.Linear(8, 8)),
        ({"x": X},),
        {"collapsing-linear-maps"},
    ),
    "dataclass and generator": (
        Forward(generator, a=nn.Linear(8, 8), b=nn.Linear(8, 8)),
        (Batch(X, {"parts": [X, X]}),),
        {"collapsing-linear-maps"},
    ),
    "shared weights": (
        Forward(lambda m, x: m.a(m.a(x)), a=nn.Linear(8, 8)),
        (X,),
        {"collapsing-linear-maps"},
    ),
    "several outputs": (
        Forward(
            lambda m, x: (m.a(x), [m.b(x)], None, "text"), a=nn.Linear(8, 8), b=nn.Linear(8, 2)
        ),
        (X,),
        set(),
    ),
    "complex": (lambda x: (x + 1j * x).abs().relu(), (X,), set()),
    "integers": (lambda x: F.one_hot(x).float().softmax(-1), (torch.arange(4),), set()),
    "bool": (lambda x: torch.where(x > 0, x, -x)[x[:, 0] > 0].relu(), (X,), set()),
    "no_grad inside": (
        Forward(
            lambda m, x: torch.no_grad()(lambda: m.act(m.fc(x)))() + 1,
            fc=nn.Linear(8, 8),
            act=nn.ReLU(inplace=True),
        ),
        (X,),
        set(),
    ),
    "inference_mode inside": (
        Forward(
            lambda m, x: torch.inference_mode()(lambda: m.b(m.act(m.a(x))))(),
            a=nn.Linear(8, 8),
            act=nn.ReLU(inplace=True),
            b=nn.Linear(8, 8),
        ),
        (X,),
        set(),
    ),
    "vmap": (lambda x: torch.vmap(lambda row: F.relu(row).sum())(x), (X,), set()),
    "func.grad": (lambda x: torch.func.grad(lambda y: torch.tanh(y).sum())(x), (X,), set()),
    "checkpoint": (
        Forward(
            lambda m, x: torch.utils.checkpoint.checkpoint(
                lambda y: m.b(m.a(y)), x, use_reentrant=False
            ),
            a=nn.Linear(8, 8),
            b=nn.Linear(8, 8),
        ),
        (X,),
        {"collapsing-linear-maps"},
    ),
    "numpy": (lambda x: torch.from_numpy(x.numpy() * 2).relu(), (X,), set()),
    "numbers": (lambda x, n, s: x.sum() * n, (X, 3, "text"), set()),
    "no tensor": (lambda: torch.ones(3).relu(), (), set()),
    "packed sequence": (
        nn.GRU(8, 4),
        (nn.utils.rnn.pack_sequence([X[:3], X[:2]]),),
        set(),
    ),
    "sparse": (lambda x: (x.to_sparse() @ torch.ones(8, 2)).relu(), (X,), set()),
    "nested": (
        lambda x: torch.nested.nested_tensor([x[:2], x[:3]], layout=torch.jagged).relu(),
        (X,),
        set(),
    ),
    "meta": (nn.Sequential(nn.Linear(8, 8, device="meta"), nn.ReLU()), (X.to("meta"),), set()),
    "empty": (
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2), nn.Tanh()),
        (X[:0],),
        set(),
    ),
    "empty, in place": (lambda x: (y := x * 2).relu_() + y[1:].sum() + y.T.sum(), (X[:0],), set()),
    "sparse, in place": (lambda x: (x * 1).to_sparse().relu_().to_dense(), (X,), set()),
    "scalar": (lambda x: x.sum().tanh().relu(), (X,), set()),
    "autograd.grad inside": (
        lambda x: torch.autograd.grad(torch.tanh(x.requires_grad_()).sum(), x)[0],
        (X.clone(),),
        set(),
    ),
    "functional call": (
        lambda x: torch.func.functional_call(
            nn.Linear(2, 2), {"weight": torch.ones(2, 2), "bias": torch.ones(2)}, (x[:, :2],)
        ),
        (X,),
        set(),
    ),
    "parametrization": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8)),
        (X,),
        {"collapsing-linear-maps"},
    ),
    "converted for training": (
        fastact.convert(
            nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU()), mode="training"
        ),
        (X,),
        {"collapsing-linear-maps"},
    ),
    "fused and in place": (
        nn.Sequential(fastact.nn.Linear(8, 8, activation="relu"), fastact.nn.ReLU(inplace=True)),
        (X,),
        set(),
    ),
    "slices written": (
        Forward(lambda m, x: _write(m.a(x)), a=nn.Linear(8, 8)),
        (X,),
        set(),
    ),
}


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


STRANGE |= {
    "autograd.Function": (
        Forward(lambda m, x: m.b(Double.apply(m.a(x))), a=nn.Linear(8, 8), b=nn.Linear(8, 8)),
        (X,),
        {"collapsing-linear-maps"},
    ),
    "torch.fx": (
        torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))),
        (X,),
        {"collapsing-linear-maps"},
    ),
}


def _write(y):
    y[:, 0] = 0
    y += 1
    torch.relu(y, out=y) if False else None
    return y.clamp_(0)


def test_keeps_no_value_alive():
    def forward(m, x):
        y = m.fc(x)
        z = m.fc(y).softmax(-1)
        references = [weakref.ref(tensor) for tensor in (y, z)]
        out = z.sum()
        del y, z
        gc.collect()
        alive.extend(reference() is not None for reference in references)
        return out

    alive = []
    with torch.no_grad():
        fastact.advise(Forward(forward, fc=nn.Linear(8, 8)), X)
    assert alive == [False, False]


def test_under_a_default_device():
    [case] = [c for c in BAD["inplace-on-shared-value"] if c[3] == [""]]
    with torch.device("meta"):
        assert names(case[0], X) == {"inplace-on-shared-value"}


def test_code_that_was_written_by_fx_has_no_place():
    [advice] = fastact.advise(STRANGE["torch.fx"][0], X)
    assert (advice.module, advice.file) == ("0", None)


@pytest.mark.parametrize("model, inputs, expected", STRANGE.values(), ids=STRANGE)
def test_any_python_works(model, inputs, expected):
    assert names(model, *inputs) == expected


def test_compiled_models_run_as_written(dynamo):
    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4), nn.ReLU())
    compiled = torch.compile(plain, backend="eager")
    compiled(X)
    assert names(compiled, X) == {"collapsing-linear-maps"}
    inner = Forward(lambda m, x: m.net(x), net=compiled)
    assert found(inner, X) == [("collapsing-linear-maps", "net.0")]
    assert torch.equal(compiled(X), plain(X))


def test_compiled_functions_run_as_written(dynamo):
    layers = nn.Linear(8, 8), nn.Linear(8, 8)
    function = torch.compile(lambda x: layers[1](layers[0](x)), backend="eager")
    function(X)
    assert names(function, X) == {"collapsing-linear-maps"}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_under_the_callers_grad_mode(mode):
    model, x = Busy(), torch.randn(64, 8)
    before = copy.deepcopy(model.state_dict())
    model.forward = lambda x: model.norm(model.fc(x).relu_()).mul_(model.calls.add_(1))
    with mode():
        assert names(model, x) == {"activation-before-batch-norm"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_autocast():
    with torch.autocast("cpu"):
        assert names(Named(), X) == {"collapsing-linear-maps"}


# ---- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, options, kind, text",
    [
        ((3, X), {}, TypeError, "model: expected a module or a function, got int"),
        ((nn.Linear(8, 8), X), {"loss": "mse"}, TypeError, "loss: expected a loss of torch.nn"),
        (
            (nn.LazyLinear(8), X),
            {},
            ValueError,
            "model: expected initialised parameters, got a lazy LazyLinear",
        ),
        (
            (nn.Linear(8, 8), X),
            {"ignore": ["dead_relu"]},
            ValueError,
            "ignore: expected names of rules, got 'dead_relu'; nearest: dead-relu",
        ),
    ],
)
def test_bad_input(arguments, options, kind, text):
    with pytest.raises(kind, match=r"^fastact\.advise\(\): " + re.escape(text)):
        fastact.advise(*arguments, **options)


def test_torchscript_is_refused():
    with pytest.warns((DeprecationWarning, FutureWarning)):
        scripted = torch.jit.trace(nn.Linear(8, 8), X)
    with pytest.raises(TypeError, match="got TorchScript"):
        fastact.advise(scripted, X)


def test_inputs_that_do_not_fit_raise_the_models_own_error():
    model = nn.Sequential(nn.Linear(9, 8), nn.ReLU())
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        fastact.advise(model, X)
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        fastact.advise(model, X, X)


def test_a_loss_that_raises():
    def loss(y):
        return F.binary_cross_entropy(y, ONE_HOT)

    assert names(nn.Linear(8, 4), X, loss=loss) == {"missing-sigmoid"}
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        fastact.advise(nn.Linear(8, 4), X, loss=loss, ignore=["missing-sigmoid"])
    with pytest.raises(ZeroDivisionError):
        fastact.advise(nn.Linear(8, 4), X, loss=lambda y: 1 / 0)


# ---- merge_linear ------------------------------------------------------------------------------

MERGED = {
    "linear": (nn.Linear(8, 16), nn.Linear(16, 4)),
    "without a bias": (nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False)),
    "three": (nn.Linear(8, 4), nn.Dropout(), nn.Linear(4, 6, bias=False), nn.Linear(6, 3)),
    "fastact": (fastact.nn.Linear(8, 16), nn.Linear(16, 4)),
    "double": (nn.Linear(8, 16).double(), nn.Linear(16, 4).double()),
    "1x1 after 3x3": (nn.Conv2d(3, 8, 3, 2, 1, 2), nn.Conv2d(8, 4, 1, 2)),
    "3x3 after 1x1": (nn.Conv2d(3, 8, 1, 2), nn.Conv2d(8, 4, 3, 1, dilation=2)),
    "padded 3x3 after 1x1 without bias": (
        nn.Conv2d(3, 8, 1, 2, bias=False),
        nn.Conv2d(8, 4, 3, 2, padding=1),
    ),
    "3x3 after 3x3": (nn.Conv2d(3, 8, 3, 2, 1, 2), nn.Conv2d(8, 4, 3, 2, dilation=2)),
    "groups": (nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=4)),
    "one dimension": (nn.Conv1d(3, 8, 5, padding="same"), nn.Conv1d(8, 2, 3)),
    "three dimensions": (nn.Conv3d(2, 3, 2), nn.Conv3d(3, 2, 2)),
    "1xN and Nx1": (nn.Conv2d(3, 4, (1, 5)), nn.Conv2d(4, 2, (5, 1))),
    "reflected": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 2, 1)),
    "reflected later": (
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"),
    ),
}


def input_of(layer):
    if isinstance(layer, nn.Linear):
        return torch.randn(5, layer.in_features, dtype=layer.weight.dtype)
    rank = layer.weight.dim() - 2
    return torch.randn(2, layer.in_channels, *(19, 17, 12)[:rank])


@pytest.mark.parametrize("layers", MERGED.values(), ids=MERGED)
def test_merges(layers):
    x = input_of(layers[0])
    merged = fastact.merge_linear(*layers)
    expected = nn.Sequential(*layers).eval()(x)
    torch.testing.assert_close(merged(x), expected, rtol=1e-4, atol=1e-5)
    assert merged.weight.dtype == layers[0].weight.dtype
    assert not any(p.requires_grad for p in merged.parameters()) and not merged.training
    assert all(p.requires_grad for layer in layers for p in layer.parameters())


def hooked(layer):
    layer.register_forward_hook(lambda *arguments: None)
    return layer


NOT_MERGED = {
    "a convolution and a Linear": (nn.Conv2d(3, 8, 1), nn.Linear(8, 4)),
    "an activation": (fastact.nn.Linear(8, 8, activation="relu"), nn.Linear(8, 8)),
    "not one of torch.nn's": (nn.ConvTranspose2d(3, 3, 2), nn.Conv2d(3, 3, 1)),
    "has hooks": (hooked(nn.Linear(8, 8)), nn.Linear(8, 8)),
    "which is not 1x1": (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, padding=1)),
    "adds a bias to": (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1)),
    "the first returns 8 features, and the second takes 9": (nn.Linear(8, 8), nn.Linear(9, 9)),
    "different ranks": (nn.Conv1d(3, 8, 1), nn.Conv2d(8, 4, 1)),
    "torch.float32 on cpu and torch.float64": (nn.Linear(8, 8), nn.Linear(8, 8).double()),
    "not symmetric": (nn.Conv1d(3, 3, 2, padding="same"), nn.Conv1d(3, 3, 1)),
    "strides over": (
        nn.Conv2d(3, 4, 1, 2),
        nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"),
    ),
    "got 1 beside dropout": (nn.Linear(8, 8), nn.Dropout()),
}


@pytest.mark.parametrize("layers", NOT_MERGED.values(), ids=NOT_MERGED)
def test_does_not_merge(layers, request):
    reason = request.node.callspec.id
    with pytest.raises(ValueError, match=re.escape(reason)):
        fastact.merge_linear(*layers)


def test_merges_a_model():
    inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(), nn.Conv2d(8, 4, 1), nn.ReLU())
    model = nn.Sequential(inner, nn.Flatten(), nn.Linear(144, 8), nn.Linear(8, 4), nn.ReLU())
    merged = fastact.merge_linear(model)
    torch.testing.assert_close(merged(IMAGE), model.eval()(IMAGE), rtol=1e-4, atol=1e-5)
    assert isinstance(merged[3], nn.Identity) and isinstance(merged[0][2], nn.Identity)
    assert isinstance(model[3], nn.Linear)
    assert "collapsing-linear-maps" in names(model, IMAGE)
    assert names(merged, IMAGE) == set()


class Reversed(nn.Sequential):
    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


def test_merges_only_what_a_sequential_calls_in_order():
    layers = nn.Linear(8, 4), nn.Linear(4, 8)
    with pytest.raises(ValueError, match=r"no torch\.nn\.Sequential has two"):
        fastact.merge_linear(Reversed(*layers))
    shared = nn.Linear(8, 8)
    merged = fastact.merge_linear(nn.Sequential(shared, shared, shared))
    torch.testing.assert_close(merged(X), shared(shared(shared(X))), rtol=1e-4, atol=1e-5)


def test_merges_what_advise_names():
    model = Named()
    [advice] = fastact.advise(model, X)
    assert advice.evidence["merging"] == "exact"
    [second] = map(model.get_submodule, advice.evidence["second"])
    first = model.get_submodule(advice.evidence["first"])
    torch.testing.assert_close(fastact.merge_linear(first, second)(X), model(X))


def test_merge_linear_of_nothing():
    with pytest.raises(TypeError, match="expected layers or a model, got none"):
        fastact.merge_linear()
    with pytest.raises(TypeError, match=r"expected torch\.nn\.Module, got int"):
        fastact.merge_linear(nn.Linear(8, 8), 3)
    with pytest.raises(ValueError, match=r"no torch\.nn\.Sequential has two"):
        fastact.merge_linear(Named())
