"""The sizes, layouts and values that kernels get wrong first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# Every tail of vectors of up to 64 elements, unrolled twice; primes; one above a block.
SIZES: tuple[int, ...] = (*range(2 * 64 + 2), 251, 257, 1021, 4099, 16411)

# Makes a tensor in a layout from a function that makes one of a shape.
Layout = Callable[[Callable[..., Tensor]], Tensor]
LAYOUTS: Mapping[str, Layout] = {
    "0-dim": lambda new: new(()),
    "one element": lambda new: new((1, 1, 1)),
    "contiguous": lambda new: new((5, 7, 6)),
    "offset": lambda new: new((83,))[3:],
    "transposed": lambda new: new((9, 67)).t(),
    "permuted": lambda new: new((4, 5, 2, 6)).permute(3, 0, 2, 1),
    "channels last": lambda new: new((2, 5, 3, 7)).to(memory_format=torch.channels_last),
    "channels last 3-D": lambda new: new((2, 3, 2, 3, 5)).to(memory_format=torch.channels_last_3d),
    "channels last slice": lambda new: new((2, 9, 3, 7)).to(memory_format=torch.channels_last)[
        :, 2:6
    ],
    "row slice": lambda new: new((8, 41))[2:6],
    "column slice": lambda new: new((8, 41))[:, 3:20],
    "step": lambda new: new((150,))[1::2],
    "steps": lambda new: new((9, 40, 5))[::2, 1::3, ::4],
    "transposed step": lambda new: new((40, 12))[::3, ::2].t(),
    "unit dimensions": lambda new: new((1, 5, 1, 13)).transpose(0, 1).transpose(1, 3),
    "expanded": lambda new: new((5, 1, 3)).expand(5, 6, 3),
    "expanded scalar": lambda new: new(()).expand(4, 33),
    "overlapping": lambda new: new((40,)).as_strided((7, 9), (3, 1), 1),
    "diagonal": lambda new: new((19, 19)).diagonal(),
    "empty": lambda new: new((0,)),
    "empty 3-D": lambda new: new((3, 0, 2)),
    "empty transposed": lambda new: new((0, 7)).t(),
    "6-D": lambda new: new((2, 3, 1, 2, 3, 2)),
    "more elements than a block": lambda new: new((129, 131)).t(),
}


def random_tensor(
    shape: Iterable[int], dtype: torch.dtype = torch.float32, device: Any = "cpu"
) -> Tensor:
    """Normally distributed with deviation 3: on both sides of every kink."""
    return (torch.randn(tuple(shape), device=device) * 3).to(dtype)


def special_values(dtype: torch.dtype) -> Tensor:
    """Both signs of: NaN, infinity, zero, subnormal, the smallest and largest normal numbers, where
    exponentials overflow or vanish, where activations bend; each also one step further and less."""
    info = torch.finfo(dtype)
    # No type is wider than float64 to tell the truth next to its overflow.
    largest = info.max / 8 if dtype == torch.float64 else info.max
    magnitudes = [0.0, info.smallest_normal, info.eps, largest, math.inf, math.nan]
    magnitudes += [0.5, 1.0, 1.25, 2.0, 3.0, 6.0, 8.0, 9.02, 10.0, 17.0, 20.0, 36.8, 60.0, 87.4]
    magnitudes += [88.73, 104.0, 700.0, 745.2, 1e4]
    x = torch.tensor(magnitudes, dtype=torch.float64).to(dtype)
    infinity = torch.tensor(math.inf, dtype=dtype)
    x = torch.cat([x, torch.nextafter(x, infinity), torch.nextafter(x, -infinity)])
    x = x[~(x.isfinite() & (x > largest))]
    return torch.cat([x, -x])
