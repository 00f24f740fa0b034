"""The error of a result in units in the last place (ULP) of its own dtype.

    ulp(t) = 2^(max(e, least) - digits + 1)  with 2^e <= |t| < 2^(e + 1)

is the distance of the dtype's numbers in the binade of the truth t: at least that of its subnormal
numbers (`least` is the exponent of the smallest normal number), at most that of its largest. The
error is |result - t| / ulp(t). A correctly rounded result has an error of at most 0.5; next to a
power of two a neighbouring number may be half or a whole ulp away.

Where something is not finite:

- NaN for NaN is an error of 0, NaN for a number or a number for NaN an infinite one;
- infinity is right where the truth is infinite or rounds to infinity; elsewhere it counts as
  2^(greatest exponent + 1), the number that would follow the largest one;
- a finite result for an infinite truth is infinitely wrong.

The sign of zero does not count.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Format(NamedTuple):
    """A binary floating-point format."""

    digits: int  # of the significand, the implicit one counted
    least: int  # exponent of the smallest normal number
    greatest: int  # exponent of the largest number


FORMATS = {
    torch.float64: Format(53, -1022, 1023),
    torch.float32: Format(24, -126, 127),
    torch.bfloat16: Format(8, -126, 127),
    torch.float16: Format(11, -14, 15),
}

_EXPONENT_BITS = 0x7FF << 52  # of a float64


def ulp_of(truth: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """ulp(truth) on the grid of ``dtype``.

    Args:
        truth: float64, any shape.
        dtype: float64, float32, bfloat16 or float16.

    Returns:
        A float64 tensor of truth's shape.

    Example:
        >>> ulp_of(torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64), torch.float16)
        tensor([9.7656e-04, 1.9531e-03, 5.9605e-08], dtype=torch.float64)
    """
    digits, least, greatest = FORMATS[dtype]
    # Without sign and significand a float64 is the power of two at the bottom of its binade.
    power = truth.contiguous().view(torch.int64).bitwise_and(_EXPONENT_BITS).view(torch.float64)
    return power.clamp_(2.0**least, 2.0**greatest).mul_(2.0 ** (1 - digits))


def ulp_error(result: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The error of each element of ``result``, in ULP of its dtype.

    Args:
        result: float64, float32, bfloat16 or float16.
        truth: float64, of result's shape: the exact value, rounded to float64 at most. For a
            float64 result that rounding adds up to half an ULP.

    Returns:
        A float64 tensor of result's shape: 0 is right, infinity is not comparable at all.

    Example:
        >>> truth = torch.tensor([1.0, 2.0 + 2**-23], dtype=torch.float64)
        >>> ulp_error(torch.tensor([1.0, 2.0]), truth)
        tensor([0.0000, 0.5000], dtype=torch.float64)
    """
    if truth.dtype != torch.float64 or truth.shape != result.shape:
        raise TypeError(
            f"ulp_error(): truth: expected float64 of shape {tuple(result.shape)}, "
            f"got {truth.dtype} of shape {tuple(truth.shape)}"
        )
    wide = result.double()
    error = (wide - truth).abs_().div_(ulp_of(truth, result.dtype))
    # One pass tells whether anything needs a closer look: almost never.
    if not torch.isfinite(error.sum()):
        odd = error.isfinite().logical_not_()
        error[odd] = _not_finite(wide[odd], truth[odd], result.dtype)
    return error


def _not_finite(result: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The error where result or truth is infinite or NaN."""
    digits, _, greatest = FORMATS[dtype]
    overflow = 2.0**greatest * (2 - 2.0**-digits)  # what rounds to infinity, for float64 infinity
    to_infinity = truth.sign() * truth.abs().ge(overflow) * torch.inf  # else NaN
    right = (result == truth) | (result == to_infinity) | (result.isnan() & truth.isnan())
    # Everything halved: the number that would follow the largest float64 is infinite.
    next_number = torch.full_like(result, 2.0**greatest).copysign(result)
    half = torch.where(result.isinf(), next_number, result / 2)
    error = (half - truth / 2).abs() / (ulp_of(truth, dtype) / 2)
    return error.masked_fill(error.isnan(), torch.inf).masked_fill(right, 0.0)
