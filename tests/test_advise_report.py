"""What does a finding of advise say, and what does advise refuse?"""

import dataclasses
import re
from pathlib import Path

import advised_models
import pytest
import torch
import torch.nn.functional as F
from advised_models import IMAGE, ONE_HOT, Forward, Named, X, names, with_bias
from torch import nn

import fastact


def test_a_finding_has_a_place(monkeypatch):
    file = Path(advised_models.__file__)
    monkeypatch.chdir(file.parent)
    [advice] = fastact.advise(Named(), X)
    assert (advice.module, advice.module_class, advice.file) == ("first", "Linear", str(file))
    lines = file.read_text().splitlines()
    assert lines[advice.line - 1].strip() == "hidden = self.first(x)"
    assert advice.evidence == {
        "first": "first",
        "second": ["second"],
        "between": [],
        "merging": "exact",
    }
    assert advice.place == f"first (Linear), {file.name}:{advice.line}"
    assert dataclasses.asdict(advice) == advice.as_dict()
    assert str(advice).startswith(
        "warning: collapsing-linear-maps: first (Linear), advised_models.py:"
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
