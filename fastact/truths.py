"""Well-conditioned float64 forms, where PyTorch's own lose digits to cancellation or overflow."""

from __future__ import annotations

import torch


def gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * torch.special.erfc(x * -(0.5**0.5))


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    # (1 + tanh u) / 2 = sigmoid(2u)
    u = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    return x * torch.sigmoid(2 * u)


def mish(x: torch.Tensor) -> torch.Tensor:
    # tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2), e = exp(x)
    e = torch.exp(x.clamp(max=40))
    n = e * (e + 2)
    return torch.where(x > 40, x, x * (n / (n + 2)))


# x - tanh(x) = x^3/3 - 2x^5/15 + ...: 11 terms hold to 2^-53 for |x| < 0.2.
_TANHSHRINK_SERIES = (
    1 / 3,
    -2 / 15,
    17 / 315,
    -62 / 2835,
    1382 / 155925,
    -21844 / 6081075,
    929569 / 638512875,
    -6404582 / 10854718875,
    443861162 / 1856156927625,
    -18888466084 / 194896477400625,
    113927491862 / 2900518163668125,
)


def tanhshrink(x: torch.Tensor) -> torch.Tensor:
    square = x * x
    series = torch.zeros_like(x)
    for coefficient in reversed(_TANHSHRINK_SERIES):
        series = series * square + coefficient
    return torch.where(x.abs() < 0.2, x * square * series, x - torch.tanh(x))
