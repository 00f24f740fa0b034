"""Cases of recurrent layers, and a module's call by its operator."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ops = torch.ops.fastact

# The operator and the module of each kind of layer.
LAYERS: dict[str, tuple[str, Callable[..., nn.RNNBase], dict[str, Any]]] = {
    "tanh": ("rnn", nn.RNN, {"nonlinearity": "tanh"}),
    "relu": ("rnn", nn.RNN, {"nonlinearity": "relu"}),
    "gru": ("gru", nn.GRU, {}),
    "lstm": ("lstm", nn.LSTM, {}),
    "projecting lstm": ("lstm", nn.LSTM, {"proj_size": 3}),
}


@dataclasses.dataclass(frozen=True)
class RecurrentCase:
    """A layer of LAYERS with its options and sizes."""

    layer: str
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    steps: int = 5
    batch: int = 3
    inputs: int = 4
    hidden: int = 7
    ragged: bool = False

    def __str__(self) -> str:
        marks = [self.layer, f"{self.steps}/{self.batch}/{self.inputs}/{self.hidden}"]
        marks += [f"x{self.num_layers}"] if self.num_layers > 1 else []
        marks += [name for name in ("bidirectional", "ragged") if getattr(self, name)]
        return " ".join([*marks, *([] if self.bias else ["no bias"])])

    @property
    def is_lstm(self) -> bool:
        return LAYERS[self.layer][0] == "lstm"

    def module(self, dtype: torch.dtype = torch.float32) -> nn.RNNBase:
        """PyTorch's."""
        _, kind, options = LAYERS[self.layer]
        return kind(
            self.inputs,
            self.hidden,
            self.num_layers,
            bias=self.bias,
            bidirectional=self.bidirectional,
            **options,
        ).to(dtype)

    def arguments(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """Random input, hx and, for an LSTM, cx."""
        directions = 2 if self.bidirectional else 1
        states = self.num_layers * directions
        state = LAYERS[self.layer][2].get("proj_size", self.hidden)
        shapes = [(self.steps, self.batch, self.inputs), (states, self.batch, state)]
        shapes += [(states, self.batch, self.hidden)] if self.is_lstm else []
        return tuple(torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)

    def lengths(self) -> Tensor | None:
        """Of whole sequences None; else in no order, the longest and the shortest among them."""
        if not self.ragged:
            return None
        lengths = torch.arange(self.batch) * 3 % self.steps + 1
        lengths[0] = self.steps
        return lengths.flip(0)


def call(
    layer: str,
    arguments: tuple[Tensor, ...],
    module: nn.RNNBase,
    lengths: Tensor | None = None,
    noise: Tensor | None = None,
    weights: list[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """The operator's results with a module's weights and options."""
    operator, _, options = LAYERS[layer]
    weights = [w for w in module._flat_weights if w is not None] if weights is None else weights
    more = [options["nonlinearity"]] if "nonlinearity" in options else []
    flags = (module.bias, module.bidirectional, *more)
    return getattr(ops, operator)(*arguments, weights, lengths, noise, *flags)


def twin(
    arguments: tuple[Tensor, ...], module: nn.RNNBase, lengths: Tensor | None = None
) -> tuple[Tensor, ...]:
    """What PyTorch's module returns, with a packed sequence where there are lengths."""
    x, *states = arguments
    hx = tuple(states) if len(states) > 1 else states[0]
    if lengths is None:
        output, last = module(x, hx)
    else:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, last = module(packed, hx)
        output, _ = nn.utils.rnn.pad_packed_sequence(output, total_length=x.shape[0])
    return (output, *(last if isinstance(last, tuple) else (last,)))


# Every combination of options, at two shapes each: many rows of few units, and one row.
OPTION_CASES = [
    RecurrentCase(layer, num_layers, bidirectional, bias, *shape)
    for layer in LAYERS
    for num_layers, bidirectional, bias in itertools.product((1, 2), (False, True), (True, False))
    for shape in ((5, 6, 4, 7, False), (5, 6, 4, 7, True), (3, 1, 6, 20, False))
]
# Around the edges of panels, tiles and registers.
EDGE_CASES = [
    RecurrentCase(layer, steps=3, batch=batch, inputs=inputs, hidden=hidden)
    for layer in ("tanh", "gru", "lstm")
    for hidden in (1, 15, 16, 17, 20, 64, 100)
    for batch, inputs in ((1, 5), (3, 17), (4, 1), (9, 130), (33, 8))
    if hidden > 1 or layer != "tanh"
]
# One step, many steps in chunks, more rows than a tile, long sums, three layers.
_SHAPES: tuple[dict[str, Any], ...] = (
    {"steps": 1, "batch": 2},
    {"steps": 1, "batch": 40, "hidden": 33},
    {"steps": 3, "batch": 200, "hidden": 20, "bidirectional": True},
    {"steps": 40, "batch": 64, "hidden": 48, "ragged": True, "bidirectional": True},
    {"steps": 4, "batch": 5, "hidden": 300, "inputs": 2},
    {"steps": 4, "batch": 2, "num_layers": 4, "bidirectional": True, "ragged": True},
)
SHAPE_CASES = [
    RecurrentCase(layer, **sizes)
    for layer in ("relu", "gru", "lstm", "projecting lstm")
    for sizes in _SHAPES
]
