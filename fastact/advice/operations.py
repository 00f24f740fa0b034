"""What a call of PyTorch is to the rules: its kind, and the few facts of it that rules ask for.

A call is known by its name alone, so that ``F.relu(x)``, ``torch.relu(x)``, ``x.relu()``,
``x.relu_()``, ``torch.ops.aten.relu(x)`` and ``torch.ops.fastact.relu(x)`` are one. What is not
known is OTHER, about which no rule says anything.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastact.activations import FORMS, REGISTRY, Activation


class Kind(enum.StrEnum):
    """What becomes of the values."""

    LINEAR = "linear map"  # with weights: linear and convolution
    ACTIVATION = "activation"
    BATCH_NORM = "batch normalisation"
    NORMALIZATION = "normalisation"
    SHAPE = "shape"  # the same values, or some of them, in another order, shape or dtype
    DROPOUT = "dropout"
    SCALING = "scaling"  # elementwise by constants: linear
    RESAMPLING = "resampling"  # sums of values times constants that are not learned: linear
    MAX_POOLING = "maximum of neighbours"
    PRODUCT = "product of two values"  # matrix product of what both depend on the input
    LOSS = "loss"
    OTHER = "other"


class Loss(enum.StrEnum):
    """What the first argument of a loss ought to be."""

    LOGITS = "one logit for each class, of which one is right"
    INDEPENDENT_LOGITS = "one logit for each independent yes or no"
    PROBABILITIES = "probabilities"
    LOG_PROBABILITIES = "logarithms of probabilities"
    NUMBERS = "numbers"


# torch.nn's class and torch.nn.functional's function of each loss.
_LOSSES = (
    ("CrossEntropyLoss", "cross_entropy", Loss.LOGITS),
    ("MultiMarginLoss", "multi_margin_loss", Loss.LOGITS),
    ("NLLLoss", "nll_loss", Loss.LOG_PROBABILITIES),
    ("KLDivLoss", "kl_div", Loss.LOG_PROBABILITIES),
    ("BCELoss", "binary_cross_entropy", Loss.PROBABILITIES),
    ("BCEWithLogitsLoss", "binary_cross_entropy_with_logits", Loss.INDEPENDENT_LOGITS),
    ("MultiLabelSoftMarginLoss", "multilabel_soft_margin_loss", Loss.INDEPENDENT_LOGITS),
    ("SoftMarginLoss", "soft_margin_loss", Loss.INDEPENDENT_LOGITS),
    ("MSELoss", "mse_loss", Loss.NUMBERS),
    ("L1Loss", "l1_loss", Loss.NUMBERS),
    ("SmoothL1Loss", "smooth_l1_loss", Loss.NUMBERS),
    ("HuberLoss", "huber_loss", Loss.NUMBERS),
)
LOSSES: Mapping[str, Loss] = {function: expects for _, function, expects in _LOSSES}
LOSS_CLASSES: Mapping[type, str] = {
    getattr(torch.nn, name): function for name, function, _ in _LOSSES
}

# Functions that have no row of their own: one of the same kind.
_ROWS: Mapping[str, Activation] = {
    **REGISTRY,
    "masked_softmax": REGISTRY["softmax"],
    "rrelu": REGISTRY["leaky_relu"],
    "softmin": REGISTRY["softmax"],
}


def _activations(is_such: Callable[[Activation], bool]) -> frozenset[str]:
    return frozenset(name for name, row in _ROWS.items() if is_such(row))


# Of what range an activation's result is, where that says something of it as an output.
PROBABILITIES = _activations(lambda row: row.results == "probabilities")
LOG_PROBABILITIES = _activations(lambda row: row.results == "log-probabilities")
# Of classes that exclude each other, and of independent ones.
SOFTMAXES = _activations(lambda row: row.along_dimension) & (PROBABILITIES | LOG_PROBABILITIES)
SIGMOIDS = _activations(lambda row: row.elementwise) & PROBABILITIES
LOG_SIGMOIDS = _activations(lambda row: row.elementwise) & LOG_PROBABILITIES
# Those that take the dimension next to the input.
ALONG_DIMENSION = SOFTMAXES - {"masked_softmax"}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ACTIVATIONS = {
    **{name: name for name in _ROWS},
    "expit": "sigmoid",
    "log_sigmoid": "logsigmoid",
    "swish": "silu",
}
_SHAPE = _names(
    """
    view reshape view_as reshape_as flatten ravel unflatten permute transpose swapaxes swapdims
    movedim moveaxis t T mT H mH squeeze unsqueeze contiguous clone detach data alias identity
    to float double half bfloat16 type type_as cpu cuda expand expand_as broadcast_to repeat
    tile getitem narrow select chunk split tensor_split unbind index_select gather take roll
    flip rot90 pixel_shuffle pixel_unshuffle channel_shuffle unfold as_subclass requires_grad
    lift_fresh atleast_1d atleast_2d atleast_3d
    """
)
# Where these stand between two linear maps, the second may run along another dimension.
_REORDERING = _names("permute transpose swapaxes swapdims movedim moveaxis t T mT H mH")
_RESAMPLING = _names(
    """
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    mean sum cumsum interpolate upsample upsample_nearest upsample_bilinear pad constant_pad_nd
    """
)
_NORMALIZATIONS = _names(
    """
    layer_norm native_layer_norm group_norm instance_norm rms_norm local_response_norm
    """
)
_PRODUCTS = _names("matmul mm bmm baddbmm addbmm einsum tensordot dot mv inner outer")
# Operators of Python. Reversed, a quotient or difference has its operands exchanged.
_PYTHON = {"truediv": "div", "divide": "div", "multiply": "mul", "subtract": "sub"}
_PYTHON |= {f"i{name}": name for name in ("add", "sub", "mul", "div", "matmul")}
_PYTHON |= {"radd": "add", "rmul": "mul", "rsub": "rsub", "itruediv": "div", "negative": "neg"}

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups")
_SIGNATURES: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    **{f"conv{n}d": _CONV for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _CONV_TRANSPOSE for n in (1, 2, 3)},
    "convolution": (*_CONV[:6], "transposed", "output_padding", "groups"),
    "addmm": ("bias", "input", "weight"),
    "mm": ("input", "weight"),
    "matmul": ("input", "weight"),
    **dict.fromkeys(ALONG_DIMENSION, ("input", "dim")),
    **dict.fromkeys(LOSSES, ("input", "target")),
}


@dataclass(frozen=True)
class LinearMap:
    """The shape of a linear map with weights."""

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()  # empty: not a convolution
    groups: int = 1
    bias: Tensor | None = None


@dataclass(frozen=True)
class Call:
    """One step of a call; a fused operator is several.

    Attributes:
        name: canonical: of the activation, the loss, or the function.
        named: arguments by name, as far as the signature is known here.
        linear: of Kind.LINEAR.
    """

    name: str
    kind: Kind
    named: Mapping[str, Any]
    linear: LinearMap | None = None

    @property
    def reorders(self) -> bool:
        """Whether dimensions change places."""
        return self.name in _REORDERING


def name_of(func: Any) -> str:
    """The canonical name: without underscores around it, namespace and overload."""
    qualified = getattr(func, "_qualified_op_name", None)  # of an operator, all overloads
    if isinstance(func, torch._ops.OpOverload):
        qualified = func._schema.name
    if qualified is not None:
        name = qualified.rpartition("::")[2]
    else:
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute of a tensor
            name = getattr(func.__self__, "__name__", "")
    name = name.strip("_")
    return _PYTHON.get(name, name)


def is_of_fastact(func: Any) -> bool:
    """Whether it is an operator of this library."""
    packet = getattr(func, "overloadpacket", func)
    return getattr(packet, "_qualified_op_name", "").startswith("fastact::")


def steps(
    func: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    is_data: Callable[[Any], bool],
    is_learned: Callable[[Any], bool],
) -> list[Call]:
    """What the call does, in order; the result of one step is the input of the next.

    Args:
        is_data: whether an argument is a tensor that depends on the example inputs.
        is_learned: whether it depends on parameters alone.
    """
    name = name_of(func)
    if is_of_fastact(func):
        schema = getattr(func, "overloadpacket", func).default._schema
        given = {a.name: value for a, value in zip(schema.arguments, args, strict=False)}
        named = {**given, **kwargs}
        if "weight" in named and "activation" in named:
            return _fused(name, named)
    named = {**dict(zip(_SIGNATURES.get(name, ()), args, strict=False)), **kwargs}
    if "self" in named:
        named["input"] = named.pop("self")
    return [_single(name, named, (*args, *kwargs.values()), is_data, is_learned)]


def _fused(name: str, named: Mapping[str, Any]) -> list[Call]:
    found = [Call(name, Kind.LINEAR, named, _linear_map("linear", named))]
    if named["weight"].dim() > 2:
        found = [Call(name, Kind.LINEAR, named, _linear_map("convolution", named))]
    if named.get("residual") is not None:
        found.append(Call("add", Kind.OTHER, {"other": named["residual"]}))
    activation = named["activation"]
    if activation is not None:
        row = REGISTRY[activation]
        parameters = dict(zip(row.parameters, row.values(named.get("params") or ()), strict=True))
        found.append(Call(activation, Kind.ACTIVATION, parameters))
    return found


def _single(
    name: str,
    named: dict[str, Any],
    operands: tuple[Any, ...],
    is_data: Callable[[Any], bool],
    is_learned: Callable[[Any], bool],
) -> Call:
    if name in _ACTIVATIONS:
        activation = _ACTIVATIONS[name]
        if activation in FORMS:
            argument, names = FORMS[activation]
            activation = names.get(named.get(argument, ""), activation)
        return Call(activation, Kind.ACTIVATION, named)
    if name in LOSSES:
        return Call(name, Kind.LOSS, named)
    if name in ("batch_norm", "native_batch_norm"):
        return Call(name, Kind.BATCH_NORM, named)
    if name in _NORMALIZATIONS:
        return Call(name, Kind.NORMALIZATION, named)
    if name in _SHAPE:
        return Call(name, Kind.SHAPE, named)
    if "dropout" in name:
        return Call(name, Kind.DROPOUT, named)
    if name in _RESAMPLING:
        return Call(name, Kind.RESAMPLING, named)
    if name.startswith(("max_pool", "adaptive_max_pool")):
        return Call(name, Kind.MAX_POOLING, named)
    linear = _linear_map(name, named)
    if linear is not None and not is_data(named["weight"]) and is_data(named["input"]):
        if not is_learned(named["weight"]):  # a filter bank, a Fourier transform
            return Call(name, Kind.RESAMPLING, named)
        return Call(name, Kind.LINEAR, named, linear)
    if name in _PRODUCTS:
        several = sum(map(is_data, tensors_in(operands))) > 1
        return Call(name, Kind.PRODUCT if several else Kind.OTHER, named)
    if name in ("add", "sub", "rsub", "mul", "div", "neg"):
        data = [is_data(value) for value in operands]
        if sum(data) == 1 and (name != "div" or data[0]):
            return Call(name, Kind.SCALING, named)
    return Call(name, Kind.OTHER, named)


def _linear_map(name: str, named: Mapping[str, Any]) -> LinearMap | None:
    weight, bias = named.get("weight"), named.get("bias")
    if not isinstance(weight, Tensor) or not isinstance(named.get("input"), Tensor):
        return None
    bias = bias if isinstance(bias, Tensor) else None
    groups, rank = named.get("groups", 1), weight.dim()
    if name == "linear" and rank in (1, 2):
        return LinearMap(weight.shape[-1], weight.shape[0] if rank == 2 else 1, bias=bias)
    if name in ("mm", "matmul", "addmm") and rank == 2:
        return LinearMap(weight.shape[0], weight.shape[1], bias=bias)
    if name.startswith("conv") and rank > 2 and isinstance(groups, int):
        kernel = tuple(weight.shape[2:])
        if "transpose" in name or named.get("transposed"):
            return LinearMap(weight.shape[0], weight.shape[1] * groups, kernel, groups, bias)
        return LinearMap(weight.shape[1] * groups, weight.shape[0], kernel, groups, bias)
    return None


def softmax_dimension(named: Mapping[str, Any], rank: int) -> int | None:
    """The dimension along which softmax runs, from 0; PyTorch's guess where none is given."""
    dim = named.get("dim")
    if dim is None:
        return 0 if rank in (0, 1, 3) else 1
    return dim % max(rank, 1) if isinstance(dim, int) else None


def share(part: float, whole: float) -> float:
    """A share of what may be empty."""
    return part / whole if whole else math.nan


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors of arguments or results: also in containers, dataclasses and mappings."""
    found: list[Tensor] = []
    _collect(values, found, set())
    return found


def _collect(value: Any, found: list[Tensor], seen: set[int]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
        return
    if isinstance(value, (str, bytes, int, float, complex, type, type(None))) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        parts: Iterable[Any] = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = value
    elif hasattr(type(value), "__dataclass_fields__"):
        parts = [getattr(value, name, None) for name in type(value).__dataclass_fields__]
    else:
        return
    for part in parts:
        _collect(part, found, seen)
