"""Is rrelu PyTorch's: deterministic in evaluation, and of the same draws in training?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastact import functional as FF
from fastact import nn


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_same_values_from_one_seed(training: bool, inplace: bool) -> None:
    x = torch.randn(1000)
    results = []
    for function in (FF.rrelu, F.rrelu):
        torch.manual_seed(3)
        a = x.clone()
        y = function(a, 0.1, 0.5, training, inplace)
        assert (y is a) == inplace
        results.append(y)
    assert torch.equal(*results)


def test_module_follows_its_mode() -> None:
    x = torch.randn(64, requires_grad=True)
    module = nn.RReLU(0.2, 0.4).eval()
    torch.testing.assert_close(module(x), F.leaky_relu(x, 0.3))
    slopes = module.train()(x)[x < 0] / x[x < 0]
    assert slopes.min() >= 0.2 - 1e-6
    assert slopes.max() <= 0.4 + 1e-6
    assert slopes.std() > 0


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_of_the_module(training: bool, inplace: bool) -> None:
    x = torch.randn(4, 50)
    modules = [kind(0.1, 0.4, inplace).train(training) for kind in (nn.RReLU, torch.nn.RReLU)]
    assert repr(modules[0]) == repr(modules[1])
    results = []
    for module in modules:
        torch.manual_seed(5)
        leaf = x.clone().requires_grad_()
        module(leaf * 1).square().sum().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(*results)
