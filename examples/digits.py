"""Trains a network on handwritten digits with torch.nn and with fastact.nn, and converts it.

It is trained twice, once with each library.

The 1,797 images of 8x8 pixels come with scikit-learn (pip install scikit-learn). Both networks
start from the same parameters and see the same batches; their epochs alternate, so that whatever
else the machine does hits both. Printed are the losses, which agree step by step, the accuracy on
images held back, and the median time of an epoch.

Then torch.nn's trained network is converted for inference in one line. Printed beside the original
are its accuracy and the time for all images held back, and whether their predictions are equal.

    python examples/digits.py [--activation prelu] [--epochs 20]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor

import fastact

# The activation's name in torch.nn, and the keyword arguments of fastact.nn.Linear.
ACTIVATIONS = {
    "leaky_relu": ("LeakyReLU", {"activation": "leaky_relu", "negative_slope": 0.01}),
    "prelu": ("PReLU", {"activation": "prelu"}),
    "tanh": ("Tanh", {"activation": "tanh"}),
}
HIDDEN = 256
BATCH = 64
INFERENCE_ROUNDS = 200


def load_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images [N, 64] in 0..1 and labels [N]; then every fifth one, held back."""
    from sklearn import datasets

    data = datasets.load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    held_back = torch.arange(len(labels)) % 5 == 0
    return images[~held_back], labels[~held_back], images[held_back], labels[held_back]


def torch_network(activation: str) -> torch.nn.Sequential:
    nn, module = torch.nn, getattr(torch.nn, ACTIVATIONS[activation][0])
    return nn.Sequential(
        nn.Linear(64, HIDDEN), module(), nn.Linear(HIDDEN, HIDDEN), module(), nn.Linear(HIDDEN, 10)
    )


def fastact_network(activation: str) -> torch.nn.Sequential:
    nn, fused = fastact.nn, ACTIVATIONS[activation][1]
    return torch.nn.Sequential(
        nn.Linear(64, HIDDEN, **fused), nn.Linear(HIDDEN, HIDDEN, **fused), nn.Linear(HIDDEN, 10)
    )


def copy_parameters(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Layer by layer: both hold the same tensors in the same order."""
    with torch.no_grad():
        for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
            mine.copy_(theirs)


def batches(images: Tensor, labels: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
    for chosen in order.split(BATCH):
        yield images[chosen], labels[chosen]


class Training:
    """One network on its way."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def run_epoch(self, images: Tensor, labels: Tensor, epoch: int) -> None:
        start = time.perf_counter()
        for x, target in batches(images, labels, epoch):
            loss = torch.nn.functional.cross_entropy(self.network(x), target)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        return (self.network(images).argmax(1) == labels).float().mean().item()


def train_both(
    reference: torch.nn.Module, mine: torch.nn.Module, epochs: int
) -> dict[str, Training]:
    """Both networks after training from the reference's parameters, by the name of the library."""
    images, labels, _, _ = load_digits()
    copy_parameters(reference, mine)
    trainings = {"torch.nn": Training(reference), "fastact.nn": Training(mine)}
    for epoch in range(epochs):
        for training in trainings.values():
            training.run_epoch(images, labels, epoch)
    return trainings


def train(activation: str, epochs: int) -> dict[str, Training]:
    torch.manual_seed(0)
    return train_both(torch_network(activation), fastact_network(activation), epochs)


@torch.no_grad()
def seconds_of_inference(networks: list[torch.nn.Module], images: Tensor) -> list[list[float]]:
    """Of each network, in rounds, so that whatever else the machine does hits all."""
    seconds: list[list[float]] = [[] for _ in networks]
    for _ in range(INFERENCE_ROUNDS):
        for network, own in zip(networks, seconds, strict=True):
            start = time.perf_counter()
            network(images)
            own.append(time.perf_counter() - start)
    return seconds


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


@torch.no_grad()
def compare_inference(network: torch.nn.Module, images: Tensor, labels: Tensor) -> None:
    """Prints the network and its conversion side by side."""
    network.eval()
    networks = {"torch.nn": network, "converted": fastact.convert(network, mode="inference")}
    seconds = seconds_of_inference(list(networks.values()), images)
    predictions = [one(images).argmax(1) for one in networks.values()]
    print(f"{'':12} {'accuracy':>9} {f'{len(images)} images':>11}")
    for name, own, predicted in zip(networks, seconds, predictions, strict=True):
        accuracy = (predicted == labels).float().mean().item()
        print(f"{name:12} {accuracy:9.2%} {1e3 * statistics.median(own):8.3f} ms")
    differ = int((predictions[0] != predictions[1]).sum())
    print(f"{differ} predictions differ; {median_ratio(*seconds):.2f} times as fast")


def report(trainings: dict[str, Training]) -> None:
    """Prints how both trained, and the reference beside its conversion."""
    _, _, images, labels = load_digits()
    print(f"{'':12} {'first loss':>11} {'last loss':>11} {'accuracy':>9} {'epoch':>10}")
    for name, training in trainings.items():
        print(
            f"{name:12} {training.losses[0]:11.6f} {training.losses[-1]:11.6f} "
            f"{training.accuracy(images, labels):9.2%} "
            f"{1e3 * statistics.median(training.seconds):7.2f} ms"
        )
    both = [torch.tensor(training.losses) for training in trainings.values()]
    difference = (both[0] - both[1]).abs().max().item()
    ratio = median_ratio(trainings["torch.nn"].seconds, trainings["fastact.nn"].seconds)
    print(f"losses differ by {difference:.1e} at most; {ratio:.2f} times as fast")
    print()
    compare_inference(trainings["torch.nn"].network, images, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--activation", choices=ACTIVATIONS, default="leaky_relu")
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    report(train(arguments.activation, arguments.epochs))


if __name__ == "__main__":
    main()
