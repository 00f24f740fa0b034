"""RNN, GRU, LSTM and their cells: torch.nn's, on fastact's operators of recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._VF import _pack_padded_sequence, _pad_packed_sequence
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import has_torch_function

from fastact import _C, dynamo
from fastact.overrides import overrides_functions

Module = torch.nn.Module

_ops = torch.ops.fastact
_DIRECT = {"RNN": _C.rnn, "GRU": _C.gru, "LSTM": _C.lstm}
_TRACED = {"RNN": _ops.rnn.default, "GRU": _ops.gru.default, "LSTM": _ops.lstm.default}
_RNN_CELL, _GRU_CELL, _LSTM_CELL = (
    _ops.rnn_cell.default,
    _ops.gru_cell.default,
    _ops.lstm_cell.default,
)
_ENABLED = _ops.enabled()
_PLAIN = {Tensor, torch.nn.Parameter}
_NONLINEARITIES = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}


# ---- what all of them share --------------------------------------------------------------------


def _is_for_torch(operands: Sequence[Any]) -> bool:
    """Whether torch.nn's own forward is to run: where the operators would only compose what
    PyTorch has a kernel for, and on classes that override PyTorch's functions."""
    input = operands[0]
    if not _ENABLED or not (input.is_cpu or input.is_meta):
        return True
    if is_dynamo_compiling():
        return has_torch_function(tuple(operands))
    return not _PLAIN.issuperset(map(type, operands)) and any(map(overrides_functions, operands))


def _check_input(layer: torch.nn.RNNBase, kind: str, input: Tensor, weight: Tensor) -> None:
    if input.size(-1) != layer.input_size:
        raise RuntimeError(
            f"fastact.nn.{kind}: input: expected {layer.input_size} as the last size, "
            f"got shape {list(input.shape)}"
        )
    if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"fastact.nn.{kind}: input: expected the dtype of the weights, {weight.dtype}, "
            f"got {input.dtype}"
        )


# ---- dropout -----------------------------------------------------------------------------------


def _dropout_noise(
    layer: torch.nn.RNNBase, input: Tensor, lengths: Tensor | None, is_sorted: bool
) -> Tensor | None:
    """What the inputs of the upper layers are multiplied by, [layers - 1, T, B, width].

    Drawn as torch.nn's layers draw it: for one layer after the other, of padded sequences for the
    steps that count, in the order of a PackedSequence.
    """
    if not layer.training or layer.dropout == 0 or layer.num_layers == 1:
        return None
    width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
    steps, batch = input.shape[:2]
    if lengths is None or not _is_known(lengths):
        shape = (steps, batch, width)
        of_layers = [
            F.dropout(input.new_ones(shape), layer.dropout, True)
            for _ in range(layer.num_layers - 1)
        ]
        return torch.stack(of_layers)
    order = None
    if not is_sorted:
        lengths, order = torch.sort(lengths, descending=True)  # as pack_padded_sequence does
    runs = torch.arange(steps).unsqueeze(1) < lengths
    noise = input.new_zeros((layer.num_layers - 1, steps, batch, width))
    count = int(runs.sum())
    for one in noise:
        one[runs] = F.dropout(input.new_ones((count, width)), layer.dropout, True)
    return noise if order is None else noise.index_select(2, torch.argsort(order))


def _is_known(lengths: Tensor) -> bool:
    """Whether Python may ask for their values."""
    return (
        type(lengths) is Tensor
        and not is_compiling()
        and not lengths.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(lengths)
    )


# ---- layers ------------------------------------------------------------------------------------


def _flat_weights(layer: Any) -> list[Tensor]:
    """As they are now, in the order of the operators. (nn.Module.__getattr__ costs 0.2 us each; a
    parametrized weight is not among the parameters.)"""
    own: dict[str, Any] = layer._parameters
    found: list[Any] = [
        own[name] if name in own else getattr(layer, name, None)
        for name in layer._flat_weights_names
    ]
    return found


def _as_lengths(kind: str, lengths: Any) -> Tensor:
    if not isinstance(lengths, Tensor):
        lengths = torch.as_tensor(lengths)
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
        raise RuntimeError(f"fastact.nn.{kind}: lengths: expected integers, got {lengths.dtype}")
    return lengths.to("cpu", torch.int64) if not lengths.is_meta else lengths.to(torch.int64)


def forward(layer: Any, twins: Any, input: Any, hx: Any, lengths: Any = None) -> Any:
    """The forward of an RNN, GRU or LSTM of torch.nn's; twins(input, hx) is torch.nn's own."""
    kind = "RNN" if layer.mode in _NONLINEARITIES else layer.mode
    is_packed = isinstance(input, PackedSequence)
    if is_packed and lengths is not None:
        raise ValueError(
            f"fastact.nn.{kind}: lengths: expected None beside a PackedSequence, which has its own"
        )
    weights = _flat_weights(layer)
    states: tuple[Any, ...] = ()
    if hx is not None:
        states = (hx,)
        if kind == "LSTM":
            if isinstance(hx, Tensor) or len(hx) != 2:
                raise TypeError(f"fastact.nn.LSTM: hx: expected (h, c), got {type(hx).__name__}")
            states = (hx[0], hx[1])
    data = input.data if is_packed else input
    if lengths is None and (
        _is_for_torch((data, *states, *weights)) or (is_packed and is_dynamo_compiling())
    ):
        return twins(input, hx)
    if is_packed:
        return _of_packed(layer, kind, input, states, weights)

    dims = input.dim()
    if dims not in (2, 3):
        raise ValueError(f"fastact.nn.{kind}: input: expected 2 or 3 dimensions, got {dims}")
    _check_input(layer, kind, input, weights[0])
    for state in states:
        if state.dim() != dims:
            raise RuntimeError(
                f"fastact.nn.{kind}: hx: expected {dims} dimensions, as input has, "
                f"got {state.dim()}"
            )
    is_batched = dims == 3
    if lengths is not None:
        if not is_batched:
            raise ValueError(
                f"fastact.nn.{kind}: lengths: expected None for an input without a batch"
            )
        lengths = _as_lengths(kind, lengths)
    if not is_batched:
        input = input.unsqueeze(1)
        states = tuple([state.unsqueeze(1) for state in states])
    elif layer.batch_first:
        input = input.transpose(0, 1)
    output, last = _of_padded(layer, kind, input, states, weights, lengths, is_sorted=False)
    if not is_batched:
        output = output.squeeze(1)
        last = tuple([state.squeeze(1) for state in last])
    elif layer.batch_first:
        output = output.transpose(0, 1)
    return output, last if kind == "LSTM" else last[0]


def _of_packed(
    layer: Any, kind: str, input: PackedSequence, states: tuple[Tensor, ...], weights: list[Tensor]
) -> Any:
    data, batch_sizes, order, back = input
    if data.dim() != 2:
        raise RuntimeError(
            f"fastact.nn.{kind}: input: expected packed data of 2 dimensions, got {data.dim()}"
        )
    _check_input(layer, kind, data, weights[0])
    if order is not None:
        states = tuple([state.index_select(1, order) for state in states])
    padded, lengths = _pad_packed_sequence(data, batch_sizes, False, 0.0, -1)
    if kind == "LSTM" and torch.is_autocast_enabled("cpu"):
        # PyTorch's autocast knows lstm of padded sequences alone: of packed ones it casts the
        # products, and states and output keep their dtype.
        low = torch.get_autocast_dtype("cpu")
        dtype = low if data.dtype == low else torch.float32
        padded, states = padded.to(dtype), tuple([state.to(dtype) for state in states])
        with torch.autocast("cpu", enabled=False):
            own = [weight.to(dtype) for weight in weights]
            output, last = _of_padded(layer, kind, padded, states, own, lengths, True)
    else:
        output, last = _of_padded(layer, kind, padded, states, weights, lengths, is_sorted=True)
    if back is not None:
        last = tuple([state.index_select(1, back) for state in last])
    packed, _ = _pack_padded_sequence(output, lengths, False)
    result = PackedSequence(packed, batch_sizes, order, back)
    return result, last if kind == "LSTM" else last[0]


def _of_padded(
    layer: Any,
    kind: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: list[Tensor],
    lengths: Tensor | None,
    is_sorted: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and last states of sequences [T, B, I]."""
    if not states:
        # (The sizes one by one: as a tuple they take 2 us more.)
        count = layer.num_layers * (2 if layer.bidirectional else 1)
        batch, hidden, projected = input.size(1), layer.hidden_size, layer.proj_size
        h = input.new_zeros(count, batch, projected or hidden)
        if kind == "LSTM":
            states = (h, input.new_zeros(count, batch, hidden) if projected else h)
        else:
            states = (h,)
    noise = _dropout_noise(layer, input, lengths, is_sorted)
    rest = (weights, lengths, noise, layer.bias, layer.bidirectional)
    compute = (_TRACED if is_dynamo_compiling() else _DIRECT)[kind]
    if kind == "LSTM":
        output, h, c = compute(input, states[0], states[1], *rest)
        return output, (h, c)
    if kind == "GRU":
        output, h = compute(input, states[0], *rest)
    else:
        output, h = compute(input, states[0], *rest, _NONLINEARITIES[layer.mode])
    return output, (h,)


class RNN(torch.nn.RNN):
    """torch.nn.RNN: h = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu of it, over sequences.

    Same constructor, parameters and state_dict; float32, float64, bfloat16 and float16.

    Shape: input [T, B, I], or [B, T, I] with ``batch_first``, or [T, I], or a PackedSequence; hx
    [layers * directions, B, H] or None. Returns output, [T, B, directions * H] as the input lies,
    and the last states, shaped as hx. ``forward`` also takes ``lengths``, integers [B] in [0, T]:
    the steps past a sequence's end are skipped, the output there is 0, and the last states are
    those at its end, as of a PackedSequence; the sequences need not be sorted.

    Raises:
        ValueError: input's dimensions or dtype; lengths beside a PackedSequence or without a batch.
        RuntimeError: sizes that do not fit; lengths that are no integers, or out of range.

    Example:
        >>> import torch, fastact
        >>> layer = fastact.nn.RNN(10, 20, num_layers=2)
        >>> output, h = layer(torch.randn(5, 3, 10), lengths=torch.tensor([5, 2, 4]))
        >>> output.shape, h.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    __module__ = "fastact.nn"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        return forward(self, super().forward, input, hx, lengths)


class GRU(torch.nn.GRU):
    """torch.nn.GRU: r, z = sigmoid(...); n = tanh(W_in x + b_in + r * (W_hn h + b_hn));
    h = (1 - z) * n + z * h.

    Same constructor, parameters and state_dict; shapes, ``lengths`` and errors as in
    :class:`RNN`.

    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder,
    arXiv:1406.1078; the form with r on the product, as PyTorch's.

    Example:
        >>> import torch, fastact
        >>> layer = fastact.nn.GRU(10, 20, batch_first=True, bidirectional=True)
        >>> output, h = layer(torch.randn(3, 5, 10))
        >>> output.shape, h.shape
        (torch.Size([3, 5, 40]), torch.Size([2, 3, 20]))
    """

    __module__ = "fastact.nn"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        return forward(self, super().forward, input, hx, lengths)


class LSTM(torch.nn.LSTM):
    """torch.nn.LSTM: i, f, o = sigmoid(...); g = tanh(...); c = f * c + i * g; h = o * tanh(c),
    and W_hr h with ``proj_size``.

    Same constructor, parameters and state_dict; shapes, ``lengths`` and errors as in
    :class:`RNN`; hx is (h, c), and so are the last states. With ``proj_size=P`` h and output have P
    in place of H.

    Source: Hochreiter and Schmidhuber, Long Short-Term Memory, Neural Computation 9(8), 1997;
    with the forget gate of Gers et al., 2000.

    Example:
        >>> import torch, fastact
        >>> layer = fastact.nn.LSTM(10, 20)
        >>> output, (h, c) = layer(torch.randn(5, 3, 10))
        >>> output.shape, c.shape
        (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
    """

    __module__ = "fastact.nn"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        return forward(self, super().forward, input, hx, lengths)


dynamo.allow(RNN, GRU, LSTM)


# ---- cells -------------------------------------------------------------------------------------


def _cell_weights(cell: torch.nn.RNNCellBase) -> list[Any]:
    own = cell._parameters
    return [
        own[name] if name in own else getattr(cell, name)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]


def cell_forward(cell: Any, twins: Any, input: Tensor, hx: Any = None) -> Any:
    """The forward of a cell of torch.nn's; twins(input, hx) is torch.nn's own."""
    is_lstm = isinstance(cell, torch.nn.LSTMCell)
    weights = _cell_weights(cell)
    states: tuple[Any, ...] = () if hx is None else tuple(hx) if is_lstm else (hx,)
    if _is_for_torch([t for t in (input, *states, *weights) if t is not None]):
        return twins(input, hx)
    kind = "LSTMCell" if is_lstm else "GRUCell" if isinstance(cell, torch.nn.GRUCell) else "RNNCell"
    for name, tensor in (("input", input), *(("hx", state) for state in states)):
        if tensor.dim() not in (1, 2):
            raise ValueError(
                f"fastact.nn.{kind}: {name}: expected 1 or 2 dimensions, got {tensor.dim()}"
            )
    if is_lstm and len(states) not in (0, 2):
        raise TypeError(f"fastact.nn.LSTMCell: hx: expected (h, c), got {len(states)} tensors")
    is_batched = input.dim() == 2
    if not is_batched:
        input = input.unsqueeze(0)
        states = tuple([state.unsqueeze(0) for state in states])
    if not states:
        zeros = torch.zeros(input.size(0), cell.hidden_size, dtype=input.dtype, device=input.device)
        states = (zeros, zeros) if is_lstm else (zeros,)
    if is_lstm:
        h, c = _LSTM_CELL(input, *states, *weights)
        return (h, c) if is_batched else (h.squeeze(0), c.squeeze(0))
    if kind == "GRUCell":
        h = _GRU_CELL(input, *states, *weights)
    else:
        if cell.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(
                "fastact.nn.RNNCell: nonlinearity: expected 'tanh' or 'relu', "
                f"got {cell.nonlinearity!r}"
            )
        h = _RNN_CELL(input, *states, *weights, cell.nonlinearity)
    return h if is_batched else h.squeeze(0)


class RNNCell(torch.nn.RNNCell):
    """torch.nn.RNNCell: one step of :class:`RNN`.

    Shape: input [B, I] or [I]; hx [B, H] or [H], or None for zeros. Returns the new h.

    Raises:
        ValueError: input's or hx's dimensions.
        RuntimeError: sizes or dtypes that do not fit; an unknown nonlinearity.

    Example:
        >>> import torch, fastact
        >>> fastact.nn.RNNCell(10, 20)(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    __module__ = "fastact.nn"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return cell_forward(self, super().forward, input, hx)


class GRUCell(torch.nn.GRUCell):
    """torch.nn.GRUCell: one step of :class:`GRU`. Shapes and errors as in :class:`RNNCell`.

    Example:
        >>> import torch, fastact
        >>> fastact.nn.GRUCell(10, 20)(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    __module__ = "fastact.nn"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return cell_forward(self, super().forward, input, hx)


class LSTMCell(torch.nn.LSTMCell):
    """torch.nn.LSTMCell: one step of :class:`LSTM`; hx is (h, c), and so is the result. Shapes and
    errors as in :class:`RNNCell`.

    Example:
        >>> import torch, fastact
        >>> h, c = fastact.nn.LSTMCell(10, 20)(torch.randn(3, 10))
        >>> h.shape, c.shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    __module__ = "fastact.nn"

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        return cell_forward(self, super().forward, input, hx)


__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]
