"""CUDA devices: each operator beside PyTorch's, and beside what the device can do at most.

Events time a call; before each one the L2 cache is overwritten, so that operands come from memory.
A case moves a number of bytes at least (operands once, results once), or computes a number of
operations; its share is that of the bandwidth of a large copy, or of the rate of a large product,
measured in the same run.
"""

import fnmatch
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

COPIED_BYTES = 1 << 29
PRODUCT = 8192  # rows, columns and depth of the product that is the ceiling
WARM_UPS = 3
CALLS = 20  # a round's median is of these

ELEMENTS = (4096, 8192)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """`make(dtype)` returns fastact's call, PyTorch's, bytes and operations (0: by bytes)."""

    name: str
    make: Callable


@dataclass(frozen=True)
class Ceilings:
    bytes_per_second: float
    operations_per_second: dict  # by dtype


def _elementwise(name, passes, twin):
    def make(dtype):
        x = torch.randn(ELEMENTS, device="cuda", dtype=dtype)
        operator = getattr(torch.ops.fastact, name)
        return lambda: operator(x), lambda: twin(x), passes * x.nbytes, 0

    return Case(name, make)


def _gradient(name, twin):
    def make(dtype):
        x = torch.randn(ELEMENTS, device="cuda", dtype=dtype)
        operator = getattr(torch.ops.fastact, f"{name}_backward")
        return lambda: operator(x, x), lambda: twin(x, x), 3 * x.nbytes, 0

    return Case(f"{name} gradient", make)


def _along(name, dim, twin):
    def make(dtype):
        x = torch.randn(ELEMENTS, device="cuda", dtype=dtype)
        return (
            lambda: torch.ops.fastact.softmax(x, dim, 1.0),
            lambda: twin(x, dim),
            2 * x.nbytes,
            0,
        )

    return Case(f"{name} dim={dim}", make)


def _swiglu(dtype):
    x = torch.randn(ELEMENTS, device="cuda", dtype=dtype)

    def twin():
        a, b = x.chunk(2, -1)
        return F.silu(a) * b

    return lambda: torch.ops.fastact.swiglu(x, -1), twin, x.nbytes * 3 // 2, 0


def _linear(dtype):
    m, k, n = 4096, 4096, 4096
    x, w, residual = (torch.randn(s, device="cuda", dtype=dtype) for s in ((m, k), (n, k), (m, n)))
    b = torch.randn(n, device="cuda", dtype=dtype)
    return (
        lambda: torch.ops.fastact.linear(x, w, b, "silu", [], None, residual, True),
        lambda: F.silu(F.linear(x, w, b) + residual),
        0,
        2 * m * k * n,
    )


CASES = [
    _elementwise("relu", 2, torch.relu),
    _elementwise("gelu", 2, F.gelu),
    _elementwise("mish", 2, F.mish),
    _gradient("gelu", torch.ops.aten.gelu_backward),
    Case("swiglu", _swiglu),
    _along("softmax", -1, torch.softmax),
    _along("softmax", 0, torch.softmax),
    Case("linear+silu+residual", _linear),
]


# ---- measuring ---------------------------------------------------------------------------------


class Timer:
    """Seconds of a call, with cold caches."""

    def __init__(self):
        # Twice the cache: what is written first is gone at the end.
        size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.empty(max(size, 1 << 20), dtype=torch.uint8, device="cuda")

    def median(self, call):
        for _ in range(WARM_UPS):
            call()
        pairs = []
        for _ in range(CALLS):
            self.flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3


def measure_ceilings(timer):
    x = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    rates = {}
    for name, dtype in DTYPES.items():
        a, b = (torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=dtype) for _ in range(2))
        rates[name] = 2 * PRODUCT**3 / timer.median(lambda a=a, b=b: a @ b)
    return Ceilings(2 * COPIED_BYTES / timer.median(lambda: y.copy_(x)), rates)


# ---- the report --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """Of one case: the rate (in GB/s or TFLOP/s), its share of the ceiling, and the ratio to
    PyTorch's time."""

    rate: float
    unit: str
    share: float
    ratio: float


def figures(ours, theirs, moved, operations, ceilings, dtype):
    """Of medians in seconds, a pair a round."""
    seconds = statistics.median(ours)
    ratio = statistics.median(t / o for o, t in zip(ours, theirs, strict=True))
    if operations:
        rate = operations / seconds
        return Figures(rate / 1e12, "TFLOP/s", rate / ceilings.operations_per_second[dtype], ratio)
    rate = moved / seconds
    return Figures(rate / 1e9, "GB/s", rate / ceilings.bytes_per_second, ratio)


def row(name, found):
    return (
        f"{name:36} {found.rate:8.0f} {found.unit:8} {found.share:5.0%} of the ceiling   "
        f"{found.ratio:5.2f} times as fast as PyTorch"
    )


def main(only, rounds, list_alone):
    """The exit status: 2 where nothing could be measured."""
    chosen = [
        (f"{case.name}/{dtype}", case, dtype)
        for case in CASES
        for dtype in DTYPES
        if not only or any(fnmatch.fnmatch(f"{case.name}/{dtype}", f"*{p}*") for p in only)
    ]
    if list_alone:
        print("\n".join(name for name, _, _ in chosen))
        return 0
    if not chosen:
        print("no case matches", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("--device cuda: PyTorch finds no CUDA device", file=sys.stderr)
        return 2
    import fastact
    from fastact import _build

    if not _build.CUDA:
        print("--device cuda: this fastact is built without CUDA", file=sys.stderr)
        return 2
    timer = Timer()
    ceilings = measure_ceilings(timer)
    versions = f"PyTorch {torch.__version__}, fastact {fastact.__version__}"
    print(f"{torch.cuda.get_device_name()}, {versions}")
    print(f"copy {ceilings.bytes_per_second / 1e9:.0f} GB/s")
    for dtype, rate in ceilings.operations_per_second.items():
        print(f"product {dtype} {rate / 1e12:.0f} TFLOP/s")
    with torch.no_grad():
        for name, case, dtype in chosen:
            ours, theirs, moved, operations = case.make(DTYPES[dtype])
            times = [(timer.median(ours), timer.median(theirs)) for _ in range(rounds)]
            mine, other = zip(*times, strict=True)
            print(row(name, figures(mine, other, moved, operations, ceilings, dtype)), flush=True)
    return 0
