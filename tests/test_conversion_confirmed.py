"""Does what csrc/bindings/site/ confirms agree with what Python decides?"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastact
from fastact.conversion import site
from fastact.testing import generated
from fastact.testing.conversion import MODES, fused, outcome, pair, with_forward
from fastact.testing.programs import PROGRAMS

X = torch.linspace(-2, 2, 18).reshape(3, 6)


def operators(function):
    """The products that ran, by name, as autograd's profiler sees them: it is no mode."""
    with torch.autograd.profiler.profile() as profile:
        function()
    names = ("fastact::linear", "fastact::linear_packed", "aten::linear")
    return [event.name for event in profile.function_events if event.name in names]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_operators(name, mode, monkeypatch):
    _, converted = pair(PROGRAMS[name].make, mode)
    call = PROGRAMS[name].calls[0]

    def run():
        args, kwargs = call()
        outcome(lambda: copy.deepcopy(converted)(*args, **kwargs))

    run()
    confirmed = operators(run)
    decided = operators(lambda: fused(run))
    assert sorted(confirmed) == sorted(decided)


def test_random_modules():
    for seed in range(12):
        for mode in MODES:
            converted = fastact.convert(generated.draw(seed).kind(), mode=mode)
            x = generated.small(3, generated.WIDTH, seed=seed)

            def run(model=converted, x=x):
                outcome(lambda: copy.deepcopy(model)(x))

            assert sorted(operators(run)) == sorted(operators(lambda run=run: fused(run)))


COMMON = {
    "function": "return F.relu(self.fc(x))",
    "function with arguments": "return F.leaky_relu(self.fc(x), 0.1)",
    "module": "return self.act(self.fc(x))",
    "method": "return self.fc(x).sigmoid()",
    "statements": "y = self.fc(x)\ny = self.act(y)\nreturn y",
    "residual": "y = self.fc(x)\ny += x\nreturn F.gelu(y)",
    "norm": "y = self.fc(x)\ny = self.norm(y)\nreturn self.act(y)",
    "dropout": "return F.dropout(self.fc(x), 0.5, self.training) + x",
    "alone": "return self.fc(x)",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", COMMON)
def test_common_forms_do_not_ask_python(form, mode, monkeypatch):
    parts = {"fc": nn.Linear(6, 6), "act": nn.LeakyReLU(), "norm": nn.BatchNorm1d(6)}
    model = with_forward(COMMON[form], **parts).eval()
    converted = fastact.convert(model, mode=mode)
    sequence = fastact.convert(nn.Sequential(*parts.values()).eval(), mode=mode)
    converted(X), sequence(X)

    def asked(*args):
        raise AssertionError("Python was asked")

    monkeypatch.setattr(site.Site, "__call__", asked)
    monkeypatch.setattr(site, "run_sequence", asked)
    with torch.no_grad():
        torch.testing.assert_close(converted(X), model(X))
        assert "aten::linear" not in operators(lambda: converted(X))
        sequence(X)


def test_as_written_has_no_frames_of_ours():
    """So that warnings and whoever asks for the calling frame find the caller."""
    import sys

    class Asks(nn.Linear):
        def __call__(self, x):
            self.caller = sys._getframe(1).f_code.co_name
            return F.linear(x, self.weight, self.bias)

    model = with_forward("return F.relu(self.fc(x))", fc=nn.Linear(6, 6))
    converted = fastact.convert(model)
    converted.fc = Asks(6, 6)
    converted(X)
    assert converted.fc.caller == "forward"
