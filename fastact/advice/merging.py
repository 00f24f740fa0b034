"""One layer in place of two linear maps that follow each other, for inference."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastact.convolution import same_padding
from fastact.nn import Linear

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = (nn.Linear, Linear, *_CONVOLUTIONS)
# They do nothing in evaluation mode.
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def merge_linear(*modules: nn.Module) -> nn.Module:
    """Linear maps that follow each other as one layer, for inference.

    Two torch.nn.Linear become one; so do two convolutions of the same rank, grouped or not, with
    any stride and dilation, where nothing is padded between them or the first is 1x1 without bias.
    Products are formed in float64, so the result differs from the modules' by rounding alone.

    What does not merge: a convolution and a Linear; convolutions with padding between them, where
    the border of the first one's result is 0 rather than what the merged one would compute;
    transposed convolutions; layers with hooks, parametrizations or an activation.

    Args:
        modules: layers in the order in which they are called, between which dropout and Identity
            may stand; or a single model, of which each torch.nn.Sequential is looked through. Give
            the layers one by one where the model's forward calls them so, past their Sequential.

    Returns:
        Of layers, the one that stands for all. Of a model, a copy in evaluation mode without
        gradients, in which the first layer of each pair is the merged one and the second an
        Identity, so that ``model[i]`` keeps its place. The modules given are not touched.

    Raises:
        TypeError: no module is given, or something else.
        ValueError: nothing merges; says why.

    Example:
        >>> first, second = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)
        >>> merged = fastact.merge_linear(first, second)
        >>> merged
        Linear(in_features=4, out_features=3, bias=True)
        >>> x = torch.randn(2, 4)
        >>> torch.allclose(merged(x), second(first(x)), atol=1e-6)
        True
    """
    if not modules:
        raise TypeError("fastact.merge_linear(): modules: expected layers or a model, got none")
    for module in modules:
        if not isinstance(module, nn.Module):
            raise TypeError(
                "fastact.merge_linear(): modules: expected torch.nn.Module, "
                f"got {type(module).__name__}"
            )
    if len(modules) > 1:
        return _merged_layers(modules)
    model = copy.deepcopy(modules[0]).eval().requires_grad_(False)
    obstacles: list[str] = []
    merged = [
        pair
        for name, module in model.named_modules()
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
        for pair in _merge_neighbours(module, name, obstacles)
    ]
    if not merged:
        why = "; ".join(obstacles) or "no torch.nn.Sequential has two next to each other"
        raise ValueError(
            f"fastact.merge_linear(): modules: expected linear maps that merge, got none: {why}"
        )
    return model


def _merged_layers(modules: tuple[nn.Module, ...]) -> nn.Module:
    layers = [module for module in modules if not isinstance(module, _IDENTITIES)]
    merged: nn.Module | None = None
    for i, layer in enumerate(layers):
        before = layers[0] if merged is None else merged
        if i > 0:
            reason = obstacle(before, layer)
            if reason is not None:
                raise ValueError(
                    "fastact.merge_linear(): modules: expected linear maps that merge, "
                    f"got {before} and {layer}: {reason}"
                )
            merged = _merge(before, layer)
    if merged is None:
        raise ValueError(
            "fastact.merge_linear(): modules: expected two linear maps or more, "
            f"got {len(layers)} beside dropout and Identity"
        )
    return merged


def _merge_neighbours(
    sequential: nn.Sequential, name: str, obstacles: list[str]
) -> Iterator[tuple[str, str]]:
    place: str | None = None  # of the last linear map
    for key, layer in list(sequential._modules.items()):
        if isinstance(layer, _IDENTITIES):
            continue
        if not isinstance(layer, _LAYERS):
            place = None
            continue
        if place is not None:
            first = sequential._modules[place]
            reason = obstacle(first, layer)
            if reason is None:
                sequential._modules[place] = _merge(first, layer)
                sequential._modules[key] = nn.Identity()
                yield place, key
                continue
            prefix = f"{name}." if name else ""
            obstacles.append(f"{prefix}{place} and {prefix}{key}: {reason}")
        place = key


# ---- whether two layers merge ------------------------------------------------------------------
# (PyTorch types each attribute of a module as Tensor | Module: layers are Any from here on.)


def obstacle(first: Any, second: Any) -> str | None:
    """Why the two, one called on the other's result, do not merge; None where they do."""
    for layer in (first, second):
        if type(layer) not in _LAYERS:
            return f"{type(layer).__name__} is not one of torch.nn's Linear and Conv1d to Conv3d"
        if isinstance(layer, Linear) and layer.fused.name is not None:
            return f"{type(layer).__name__} has an activation"
        if layer._forward_hooks or layer._forward_pre_hooks:
            return f"{type(layer).__name__} has hooks"
        if not isinstance(layer.weight, nn.Parameter) or not layer.weight.is_floating_point():
            return f"{type(layer).__name__} has no plain floating-point weight"
    one, other = first.weight, second.weight
    if one.dtype != other.dtype or one.device != other.device:
        return f"their weights are {one.dtype} on {one.device} and {other.dtype} on {other.device}"
    if isinstance(first, _CONVOLUTIONS) != isinstance(second, _CONVOLUTIONS):
        return "a convolution and a Linear are one Linear only with a weight for each pixel"
    if one.dim() != other.dim():
        return "convolutions of different ranks"
    inputs = second.in_channels if isinstance(second, _CONVOLUTIONS) else second.in_features
    if one.shape[0] != inputs:
        return f"the first returns {one.shape[0]} features, and the second takes {inputs}"
    if isinstance(first, _CONVOLUTIONS):
        return _obstacle_of_padding(first, second)
    return None


def _obstacle_of_padding(first: Any, second: Any) -> str | None:
    one, other = _padding(first), _padding(second)
    if one is None or other is None:
        return 'padding="same" of an even kernel is not symmetric'
    if not any(other):
        return None
    if first.padding_mode != "zeros" and any(one):
        return "both are padded, the first not with zeros"
    for kernel, before, after in zip(first.kernel_size, one, other, strict=True):
        if after and (kernel > 1 or before):
            return "the second pads the result of the first, which is not 1x1"
    if second.padding_mode != "zeros":
        return None if set(first.stride) == {1} else "the second pads what the first strides over"
    if first.bias is not None and first.bias.count_nonzero():
        return "the second pads with zeros what the first adds a bias to"
    return None


def _padding(conv: Any) -> tuple[int, ...] | None:
    """Of each dimension, on both ends; None where the ends differ."""
    if not isinstance(conv.padding, str):
        return tuple(conv.padding)
    if conv.padding == "valid":
        return (0,) * len(conv.kernel_size)
    sides, more = same_padding(conv.kernel_size, conv.dilation)
    return None if any(more) else tuple(sides)


# ---- one layer of two --------------------------------------------------------------------------


@torch.no_grad()
def _merge(first: Any, second: Any) -> nn.Module:
    """Both as one layer; they merge."""
    if isinstance(first, _CONVOLUTIONS):
        weight, settings = _merged_convolution(first, second)
        layer: Any = type(first)(weight.shape[1], weight.shape[0], device="meta", **settings)
    else:
        weight = second.weight.double() @ first.weight.double()
        layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    bias = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    if first.bias is not None:
        reach = _dense(second) if isinstance(second, _CONVOLUTIONS) else second.weight.double()
        reach = reach.reshape(*reach.shape[:2], -1).sum(2)
        bias += reach @ first.bias.double()
    if second.bias is not None:
        bias += second.bias.double()
    layer.weight = nn.Parameter(weight.to(first.weight.dtype), requires_grad=False)
    has_bias = first.bias is not None or second.bias is not None
    dtype = first.weight.dtype
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False) if has_bias else None
    return layer.eval()


def _dense(conv: Any) -> Tensor:
    """The weight as that of an ungrouped convolution, in float64."""
    weight = conv.weight.double()
    outputs, inputs = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    dense = weight.new_zeros(conv.out_channels, conv.in_channels, *conv.kernel_size)
    for group in range(conv.groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        dense[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return dense


def _pixels(conv: Any) -> Iterator[Any]:
    """Where the weights of its kernel lie."""
    return itertools.product(*map(range, conv.kernel_size))


def _merged_convolution(first: Any, second: Any) -> tuple[Tensor, dict[str, Any]]:
    # A pixel of the second's result reads the first's result at v * dilation2, each of which reads
    # the input at stride1 * v * dilation2 + u * dilation1.
    kernel: list[int] = []
    dilation: list[int] = []
    for k1, k2, s1, d1, d2 in zip(
        first.kernel_size,
        second.kernel_size,
        first.stride,
        first.dilation,
        second.dilation,
        strict=True,
    ):
        step = 1 if k1 > 1 and k2 > 1 else d1 if k2 == 1 else s1 * d2
        dilation.append(step)
        kernel.append(((k1 - 1) * d1 + (k2 - 1) * s1 * d2) // step + 1)
    one, other = _dense(first), _dense(second)
    merged = one.new_zeros(other.shape[0], one.shape[1], *kernel)
    for u in _pixels(first):
        for v in _pixels(second):
            place: Any = tuple(
                (i * d1 + j * s1 * d2) // step
                for i, j, s1, d1, d2, step in zip(
                    u, v, first.stride, first.dilation, second.dilation, dilation, strict=True
                )
            )
            merged[..., *place] += other[..., *v] @ one[..., *u]
    pads = [pad or () for pad in (_padding(first), _padding(second))]
    padded = any(pads[1])
    return merged, {
        "kernel_size": tuple(kernel),
        "stride": tuple(a * b for a, b in zip(first.stride, second.stride, strict=True)),
        "padding": tuple(p1 + s1 * p2 for p1, p2, s1 in zip(*pads, first.stride, strict=True)),
        "dilation": tuple(dilation),
        "padding_mode": (second if padded else first).padding_mode,
    }
