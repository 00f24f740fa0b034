"""Recurrent layers as cases: shape (T, B, I, H, layers), from zeros as first states."""

import math
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

GATES = {"rnn_tanh": 1, "lstm": 4, "gru": 3}
CLASSES = {"rnn_tanh": "RNN", "lstm": "LSTM", "gru": "GRU"}


@dataclass(frozen=True)
class Form:
    """What distinguishes an operation from others of its mode."""

    mode: str  # of GATES, and the function of torch
    bidirectional: bool = False
    ragged: bool = False

    @property
    def directions(self):
        return 2 if self.bidirectional else 1


FORMS = {
    mode + suffix: Form(mode, **more)
    for mode in GATES
    for suffix, more in {
        "": {},
        "_bidirectional": {"bidirectional": True},
        "_ragged": {"ragged": True},
    }.items()
}


def form(case):
    return FORMS[case.operation]


def lengths(case):
    """From a fifth of the steps to all of them, in no order: as batches of sentences come."""
    steps, batch, *_ = case.shape
    generator = torch.Generator().manual_seed(batch)
    drawn = torch.randint(max(1, steps // 5), steps + 1, (batch,), generator=generator)
    drawn[batch // 2] = steps
    return drawn


class Recurrent(torch.nn.Module):
    """The layer without its last states, which exporters would have to name; `nn` is torch.nn or
    fastact.nn."""

    def __init__(self, case, nn):
        super().__init__()
        _, _, inputs, hidden, layers = case.shape
        one = form(case)
        layer = getattr(nn, CLASSES[one.mode])
        self.layer = layer(inputs, hidden, layers, bidirectional=one.bidirectional)
        self.lengths = lengths(case) if one.ragged else None
        self.steps = case.shape[0]
        self.packs = nn is torch.nn

    def forward(self, x):
        if self.lengths is None:
            return self.layer(x)[0]
        if not self.packs:
            return self.layer(x, lengths=self.lengths)[0]
        packed = pack_padded_sequence(x, self.lengths, enforce_sorted=False)
        return pad_packed_sequence(self.layer(packed)[0], total_length=self.steps)[0]


def weight_shapes(case):
    """Layer by layer and direction by direction, as torch.nn orders them."""
    _, _, inputs, hidden, layers = case.shape
    one = form(case)
    rows = GATES[one.mode] * hidden
    for layer in range(layers):
        columns = inputs if layer == 0 else hidden * one.directions
        for _ in range(one.directions):
            yield from ((rows, columns), (rows, hidden), (rows,), (rows,))


def tensors(case, normal):
    steps, batch, inputs, hidden, _ = case.shape
    weights = [normal(*shape) / math.sqrt(hidden) for shape in weight_shapes(case)]
    named = {f"w{index}": weight for index, weight in enumerate(weights)}
    return {"x": normal(steps, batch, inputs), **named}


def text(case, library):
    """torch's function; F.torch is torch. What does not count of a ragged batch is masked, which
    outputs before it cannot tell from a packed one, forwards in time."""
    steps, batch, _, hidden, layers = case.shape
    one = form(case)
    weights = ", ".join(f"w{index}" for index, _ in enumerate(weight_shapes(case)))
    state = f"x.new_zeros({layers * one.directions}, {batch}, {hidden})"
    states = f"({state}, {state})" if one.mode == "lstm" else state
    call = (
        f"F.torch.{one.mode}(x, {states}, [{weights}], True, {layers}, 0.0, False, "
        f"{one.bidirectional}, False)[0]"
    )
    if one.ragged:
        ends = lengths(case).tolist()
        call += f" * (F.torch.arange({steps}).unsqueeze(1) < F.torch.tensor({ends})).unsqueeze(-1)"
    return call


def flops(case):
    matrices = sum(math.prod(shape) for shape in weight_shapes(case) if len(shape) == 2)
    steps, batch, *_ = case.shape
    count = int(lengths(case).sum()) if form(case).ragged else steps * batch
    return 2 * count * matrices


def operand(case):
    """The recurrent weight: each step reads it anew."""
    return GATES[form(case).mode] * case.shape[3] ** 2


def reread(case):
    steps, *_, layers = case.shape
    return (steps - 1) * layers * form(case).directions * operand(case)
