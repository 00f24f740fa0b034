"""Which engine ran an operation, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from fastact import functional, layers
from fastact.activations import REGISTRY
from fastact.conversion.links import (
    LAYER_TYPES,
    RECURRENT,
    TWINS,
    layer_obstacle,
    recurrent_obstacle,
)
from fastact.conversion.shadow import base_of

# What torch.ops.fastact.linear_algorithm() and conv_algorithm() return.
ALGORITHMS = {
    "skinny": "a few rows of input, the weight read once as it lies",
    "transposed": "the input packed, the weight read as it lies",
    "in_place": "the weight's rows read as they lie",
    "pack_b": "the weight packed for this call",
    "packed_b": "the weight packed by fastact.convert",
    "aten": "PyTorch's matrix product",
    "winograd2": "Winograd's F(2x2, 3x3)",
    "winograd4": "Winograd's F(4x4, 3x3)",
    "depthwise": "one channel at a time, in the layout given",
    "pointwise": "a matrix product over channels",
}

# The fused layers, and what else decides on the algorithm.
_GEOMETRY = {row.name: row.geometry for row in layers.LAYERS.values()}

# ATen operators that are called otherwise than the function of fastact.functional.
_FUNCTIONS = {
    "_log_softmax": "log_softmax",
    "_prelu_kernel": "prelu",
    "_softmax": "softmax",
    "addmm": "linear",
    "convolution": "convolution",
    "log_sigmoid_forward": "logsigmoid",
    "mkldnn_convolution": "convolution",
    "mm": "linear",
    "rrelu_with_noise": "rrelu",
} | {name: name for name in functional.__all__}

# Operands that need not have a dtype that kernels compute.
_OF_OTHER_DTYPES = ("mask", "lengths", "reserve")

# What fastact computes in their place, and classes derived from it.
LAYERS: tuple[type[torch.nn.Module], ...] = tuple(LAYER_TYPES)
ACTIVATIONS = tuple(TWINS)
RECURRENT_LAYERS: tuple[type[torch.nn.Module], ...] = tuple(RECURRENT)


def of_own_operator(
    operator: str, named: Mapping[str, Any], packed: Tensor | None, inside: list[str], noted: str
) -> tuple[str, str]:
    """Engine and reason of an operator of ours, inside which these operators ran, and whose kernel
    noted why it did not take the operands, if so."""
    # A residual that does not fit the tiles is added to the kernels' product.
    residual = named.get("residual")
    added = residual is not None and "aten.add" in inside
    if any(
        not name.startswith("fastact.") for name in inside if not (added and name == "aten.add")
    ):
        return "PyTorch", f"{obstacle(named, noted)}: runs {', '.join(dict.fromkeys(inside))}"
    reasons = [f"{torch.ops.fastact.instruction_set()} kernel"]
    layer = operator.partition("_")[0]
    if operator in (layer, f"{layer}_training", f"{layer}_packed") and layer in _GEOMETRY:
        use_packed = packed is not None and packed.numel() > 0
        find = getattr(torch.ops.fastact, f"{layer}_algorithm")
        geometry = {name: named[name] for name in _GEOMETRY[layer] if name in named}
        algorithm = find(named["input"], named["weight"], **geometry, packed=use_packed)
        reasons.append(f"{algorithm}: {ALGORITHMS[algorithm]}")
        activation = named.get("activation")
        if residual is not None and not added:
            reasons.append("residual on its tiles")
        if activation is not None and not inside:
            by_rows = REGISTRY[activation].along_dimension
            reasons.append(f"{activation} on its {'rows' if by_rows else 'tiles'}")
    if inside:
        reasons.append(f"with {', '.join(inside)}")
    return "fastact", "; ".join(reasons)


def alternative(operator: str, module: Any, left: Mapping[int, str]) -> str:
    """What fastact has in place of an operator that nobody asked it for; ``left`` says of layers,
    by id, why their sites called them as written."""
    kind: type = type(module)
    public = getattr(torch.nn, kind.__name__, None) is kind
    name = f"torch.nn.{kind.__name__}" if public else kind.__qualname__
    if isinstance(module, LAYERS):
        if id(module) in left:
            return f"its site calls {name} as written: {left[id(module)]}"
        reason = layer_obstacle(module)
        if reason is None or "hooks" in reason:
            return f"fastact.convert replaces {name}"
        return f"fastact.convert leaves {name}: {reason}"
    if isinstance(module, RECURRENT_LAYERS):
        if base_of(module) is not None:
            return "torch.nn's forward is called: docs/recurrent.md says when"
        reason = recurrent_obstacle(module)
        if reason is None:
            return f"fastact.convert replaces {name}"
        return f"fastact.convert leaves {name}: {reason}"
    if isinstance(module, ACTIVATIONS) and public:
        return f"fastact.nn.{kind.__name__} computes it"
    if "_backward" in operator:
        return "a gradient of an operation that PyTorch runs, or of a higher order"
    function = _FUNCTIONS.get(operator, _FUNCTIONS.get(operator.removesuffix("_")))
    if function == "linear":
        return "fastact.functional.linear computes it where it is a linear layer"
    if function == "convolution":
        return "fastact.functional.conv1d, conv2d and conv3d compute it"
    if function is not None:
        return f"fastact.functional.{function} computes it"
    return "fastact has no kernel for it"


def obstacle(named: Mapping[str, Any], noted: str = "", caller: str = "") -> str:
    """Why a call of ours, by this module of the package, ran as a composition of PyTorch's: what
    the kernel noted, or what kernels have against its operands."""
    if noted:
        return noted
    if caller == "fastact.nn.recurrent":
        return "first states, dropout's noise or the form of a PackedSequence"
    for tensor in tree_leaves({k: v for k, v in named.items() if k not in _OF_OTHER_DTYPES}):
        if isinstance(tensor, Tensor) and (words := torch.ops.fastact.take_obstacle(tensor)):
            return str(words)
    if forward_ad._current_level >= 0:
        return "no kernel for forward-mode derivatives"
    if caller == "fastact.vmap":
        return "no kernel for this under torch.func.vmap"
    return "no kernel for these arguments"
