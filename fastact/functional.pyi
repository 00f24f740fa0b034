# Made by tools/write_stubs.py from the imported module. Do not edit.

from typing import Any

import torch

__all__ = [  # noqa: RUF022
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "silu",
    "mish",
    "sigmoid",
    "logsigmoid",
    "tanh",
    "hardtanh",
    "hardsigmoid",
    "hardswish",
    "softplus",
    "softsign",
    "tanhshrink",
    "softshrink",
    "hardshrink",
    "threshold",
    "glu",
    "swiglu",
    "geglu",
    "reglu",
    "conv1d",
    "conv2d",
    "conv3d",
    "gelu",
    "linear",
    "log_softmax",
    "masked_softmax",
    "prelu",
    "rrelu",
    "softmax",
    "softmin",
]

def relu(
    input: torch.Tensor,
    inplace: bool = False,
) -> torch.Tensor: ...
def relu6(
    input: torch.Tensor,
    inplace: bool = False,
) -> torch.Tensor: ...
def leaky_relu(
    input: torch.Tensor,
    negative_slope: float = 0.01,
    inplace: bool = False,
) -> torch.Tensor: ...
def elu(
    input: torch.Tensor,
    alpha: float = 1.0,
    inplace: bool = False,
) -> torch.Tensor: ...
def selu(
    input: torch.Tensor,
    inplace: bool = False,
) -> torch.Tensor: ...
def celu(
    input: torch.Tensor,
    alpha: float = 1.0,
    inplace: bool = False,
) -> torch.Tensor: ...
def silu(
    input: torch.Tensor,
    inplace: bool = False,
) -> torch.Tensor: ...
def mish(
    input: torch.Tensor,
    inplace: bool = False,
) -> torch.Tensor: ...
def sigmoid(
    input: torch.Tensor,
) -> torch.Tensor: ...
def logsigmoid(
    input: torch.Tensor,
) -> torch.Tensor: ...
def tanh(
    input: torch.Tensor,
) -> torch.Tensor: ...
def hardtanh(
    input: torch.Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> torch.Tensor: ...
def hardsigmoid(
    input: torch.Tensor,
    inplace: bool = False,
) -> torch.Tensor: ...
def hardswish(
    input: torch.Tensor,
    inplace: bool = False,
) -> torch.Tensor: ...
def softplus(
    input: torch.Tensor,
    beta: float = 1.0,
    threshold: float = 20.0,
) -> torch.Tensor: ...
def softsign(
    input: torch.Tensor,
) -> torch.Tensor: ...
def tanhshrink(
    input: torch.Tensor,
) -> torch.Tensor: ...
def softshrink(
    input: torch.Tensor,
    lambd: float = 0.5,
) -> torch.Tensor: ...
def hardshrink(
    input: torch.Tensor,
    lambd: float = 0.5,
) -> torch.Tensor: ...
def threshold(
    input: torch.Tensor,
    threshold: float,
    value: float,
    inplace: bool = False,
) -> torch.Tensor: ...
def glu(
    input: torch.Tensor,
    dim: int = -1,
) -> torch.Tensor: ...
def swiglu(
    input: torch.Tensor,
    dim: int = -1,
) -> torch.Tensor: ...
def geglu(
    input: torch.Tensor,
    dim: int = -1,
) -> torch.Tensor: ...
def reglu(
    input: torch.Tensor,
    dim: int = -1,
) -> torch.Tensor: ...
def conv1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    activation: str | None = None,
    *,
    slope: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    **params: Any,
) -> torch.Tensor: ...
def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    activation: str | None = None,
    *,
    slope: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    **params: Any,
) -> torch.Tensor: ...
def conv3d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    activation: str | None = None,
    *,
    slope: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    **params: Any,
) -> torch.Tensor: ...
def gelu(
    input: torch.Tensor,
    approximate: str = "none",
) -> torch.Tensor: ...
def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    *,
    slope: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    **params: Any,
) -> torch.Tensor: ...
def log_softmax(
    input: torch.Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> torch.Tensor: ...
def masked_softmax(
    input: torch.Tensor,
    mask: torch.Tensor | None = None,
    dim: int = -1,
    scale: float = 1.0,
    is_causal: bool = False,
) -> torch.Tensor: ...
def prelu(
    input: torch.Tensor,
    weight: torch.Tensor,
) -> torch.Tensor: ...
def rrelu(
    input: torch.Tensor,
    lower: float = 0.125,
    upper: float = 0.3333333333333333,
    training: bool = False,
    inplace: bool = False,
) -> torch.Tensor: ...
def softmax(
    input: torch.Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> torch.Tensor: ...
def softmin(
    input: torch.Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> torch.Tensor: ...
