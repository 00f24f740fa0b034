"""What the tests of emulated CUDA kernels share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from torch import Tensor

from tools.cuda_emulator import DTYPES, Fault

each_dtype = pytest.mark.parametrize("index", range(len(DTYPES)), ids=[str(d) for d in DTYPES])
few_dtypes = pytest.mark.parametrize("index", [0, 2], ids=[str(DTYPES[i]) for i in (0, 2)])


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    return x.to(dtype)


def each_fault(faults: Sequence[Fault]) -> pytest.MarkDecorator:
    """Compiling with a mistake takes seconds: one of a family in every run, the rest are slow."""
    marks = [[], *([pytest.mark.slow] for _ in faults[1:])]
    parameters = [pytest.param(f, marks=m) for f, m in zip(faults, marks, strict=True)]
    return pytest.mark.parametrize("fault", parameters, ids=str)


def complaints(checks: Iterable[Callable[[], object]]) -> str:
    """What checks that fail say; empty where all pass."""
    said = ""
    for check in checks:
        try:
            check()
        except AssertionError as error:
            said += f"{error}\n"
    return said
