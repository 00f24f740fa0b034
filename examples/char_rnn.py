"""Trains a language model of characters with torch.nn and with fastact.nn.

The text is the help on Python's own statements that CPython ships with (pydoc_data.topics). The
model, an embedding, a recurrent layer and a linear one, learns to say the next character. Both
models start from the same parameters and see the same stretches of text; their steps alternate, so
that whatever else the machine does hits both. Printed are the losses, which agree step by step, and
the median time of a step; then what the model of fastact.nn writes.

    python examples/char_rnn.py [--mode lstm] [--steps 60]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pydoc_data import topics

import torch
from torch import Tensor

import fastact

MODES = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}
HIDDEN = 128
LENGTH, BATCH = 48, 16  # characters of a stretch, stretches of a step


def load_text() -> tuple[Tensor, str]:
    """The characters as numbers, [N], and the alphabet that they count."""
    text = "\n".join(value for _, value in sorted(topics.topics.items()))
    alphabet = "".join(sorted(set(text)))
    index = {character: number for number, character in enumerate(alphabet)}
    return torch.tensor([index[character] for character in text]), alphabet


class Model(torch.nn.Module):
    """``nn`` is torch.nn or fastact.nn."""

    def __init__(self, nn: object, mode: str, characters: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(characters, 32)
        self.layer = getattr(nn, MODES[mode])(32, HIDDEN)
        self.head = torch.nn.Linear(HIDDEN, characters)

    def forward(self, numbers: Tensor, state: object = None) -> tuple[Tensor, object]:
        """Characters [T, B] to logits [T, B, characters], and the state after them."""
        output, state = self.layer(self.embedding(numbers), state)
        return self.head(output), state


class Training:
    """One model on its way."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, stretches: Tensor) -> None:
        start = time.perf_counter()
        logits, _ = self.model(stretches[:-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), stretches[1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss.item())


def train(mode: str, steps: int) -> dict[str, Training]:
    """Both models after training, by the name of the library."""
    text, alphabet = load_text()
    torch.manual_seed(0)
    reference = Model(torch.nn, mode, len(alphabet))
    mine = Model(fastact.nn, mode, len(alphabet))
    mine.load_state_dict(reference.state_dict())
    trainings = {"torch.nn": Training(reference), "fastact.nn": Training(mine)}
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        starts = torch.randint(len(text) - LENGTH, (BATCH,), generator=generator)
        stretches = torch.stack([text[start : start + LENGTH + 1] for start in starts], dim=1)
        for training in trainings.values():
            training.step(stretches)
    return trainings


@torch.no_grad()
def write(model: Model, alphabet: str, beginning: str, count: int) -> str:
    """So many characters more, each drawn as the model expects it."""
    generator = torch.Generator().manual_seed(2)
    numbers = torch.tensor([[alphabet.index(character)] for character in beginning])
    written, state = beginning, None
    for _ in range(count):
        logits, state = model(numbers, state)
        chosen = torch.multinomial(logits[-1, 0].softmax(0), 1, generator=generator)
        written += alphabet[int(chosen)]
        numbers = chosen.view(1, 1)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", choices=MODES, default="lstm")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()

    trainings = train(arguments.mode, arguments.steps)
    print(f"{'':12} {'first loss':>11} {'last loss':>11} {'step':>10}")
    for name, training in trainings.items():
        print(
            f"{name:12} {training.losses[0]:11.6f} {training.losses[-1]:11.6f} "
            f"{1e3 * statistics.median(training.seconds):7.2f} ms"
        )
    reference, mine = trainings.values()
    both = [torch.tensor(training.losses) for training in (reference, mine)]
    difference = (both[0] - both[1]).abs().max().item()
    ratio = statistics.median(a / b for a, b in zip(reference.seconds, mine.seconds, strict=True))
    print(f"losses differ by {difference:.1e} at most; {ratio:.2f} times as fast")
    print()
    print(write(mine.model, load_text()[1], "The ", 60))


if __name__ == "__main__":
    main()
