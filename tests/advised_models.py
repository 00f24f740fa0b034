"""What the tests of advise share: models, inputs, and what advise finds of them."""

import torch
import torch.nn.functional as F
from torch import nn

import fastact


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


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        hidden = self.first(x)
        return self.second(hidden)
