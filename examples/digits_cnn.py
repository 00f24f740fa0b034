"""Trains a small convolutional network on handwritten digits with torch.nn and with fastact.nn.

As digits.py, whose images, training and tables it uses: both networks start from the same
parameters and see the same batches, and torch.nn's is converted for inference at the end.

    python examples/digits_cnn.py [--activation prelu] [--epochs 10]
"""

from __future__ import annotations

import argparse
import itertools

import torch
from digits import Training, report, train_both

import fastact

# The activation's name in torch.nn, and the keyword arguments of fastact.nn.Conv2d.
ACTIVATIONS = {
    "relu": ("ReLU", {"activation": "relu"}),
    "prelu": ("PReLU", {"activation": "prelu"}),
    "tanh": ("Tanh", {"activation": "tanh"}),
}
CHANNELS = (1, 16, 32, 32)


def torch_network(activation: str) -> torch.nn.Sequential:
    nn, module = torch.nn, getattr(torch.nn, ACTIVATIONS[activation][0])
    first, second, third = (
        [nn.Conv2d(inner, outer, 3, padding=1), module()]
        for inner, outer in itertools.pairwise(CHANNELS)
    )
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(*first, *second, nn.MaxPool2d(2), *third),
        *(nn.Flatten(), nn.Linear(CHANNELS[-1] * 16, 10)),
    )


def fastact_network(activation: str) -> torch.nn.Sequential:
    nn, fused = fastact.nn, ACTIVATIONS[activation][1]
    first, second, third = (
        nn.Conv2d(inner, outer, 3, padding=1, **fused)
        for inner, outer in itertools.pairwise(CHANNELS)
    )
    return torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8, 8)),
        *(first, second, torch.nn.MaxPool2d(2), third),
        *(torch.nn.Flatten(), nn.Linear(CHANNELS[-1] * 16, 10)),
    )


def train(activation: str, epochs: int) -> dict[str, Training]:
    torch.manual_seed(0)
    return train_both(torch_network(activation), fastact_network(activation), epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--activation", choices=ACTIVATIONS, default="relu")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    report(train(arguments.activation, arguments.epochs))


if __name__ == "__main__":
    main()
