"""Does advise find what it is to find, and stay silent elsewhere?"""

import json

import pytest
import torch
import torch.nn.functional as F
from advised_models import IMAGE, ONE_HOT, Forward, X, names, stack, with_bias, with_weight
from torch import nn

import fastact
from fastact.advice.rules import RULES, SEVERITIES

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


def test_under_a_default_device():
    [case] = [c for c in BAD["inplace-on-shared-value"] if c[3] == [""]]
    with torch.device("meta"):
        assert names(case[0], X) == {"inplace-on-shared-value"}


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
