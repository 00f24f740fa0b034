"""The machine's own limits, measured in the same run, and the share of them that a time reaches."""

import hashlib
import json
import math
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from .operations import DTYPES, OPERATIONS, resident

SOURCE = Path(__file__).with_name("limits.cpp")
COMPILER = "g++"
# -O3 keeps the accumulators in registers; the last flag keeps copy loops from becoming memcpy.
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fno-tree-loop-distribute-patterns")
TABLE_BYTES = tuple(1 << power for power in (14, 16, 18, 20, 22, 24, 26, 28))
RUNS = 3  # of the program: a process that others slow down is slow from start to end
SMALLEST_LIMITED = 1 << 16  # bytes moved; below, a call costs more than its work


class Unavailable(Exception):
    """The limits cannot be measured here; the text says why."""


def program(cache):
    """The compiled limits.cpp, kept in the folder cache under a name that follows its source."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:12]
    binary = cache / f"limits-{digest}"
    if not binary.exists():
        if shutil.which(COMPILER) is None:
            raise Unavailable(f"{COMPILER} is not installed")
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = binary.with_suffix(f".{os.getpid()}")  # another run may be compiling it too
        run([COMPILER, *FLAGS, str(SOURCE), "-o", str(unfinished)])
        unfinished.replace(binary)
    return binary


def run(command):
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        raise Unavailable(f"{Path(command[0]).name}: {lines[-1]}")
    return process.stdout


@dataclass(frozen=True)
class Limits:
    """Cycles, flops and bytes per second, and the costs of calls in seconds."""

    clock: float
    flops: dict[str, float]  # by dtype and instruction set, as in "fp32 avx2"
    bandwidth: list[dict]  # {"bytes": of one buffer, "read": ..., "copy": read + written}
    calls: dict[str, float]
    # By the name of the case on data in the first-level cache, one core's seconds per element:
    # {"usual": ..., "with outliers": ...}.
    arithmetic: dict[str, dict[str, float]] = field(default_factory=dict)
    threads: int = 1

    def peak(self, dtype):
        """Without instructions of its own a dtype is converted to fp32 and computed there."""
        own = [rate for name, rate in self.flops.items() if name.startswith(dtype)]
        return max(own) if own else self.peak("fp32")

    def bytes_per_second(self, kind, size):
        nearest = min(self.bandwidth, key=lambda row: abs(math.log(row["bytes"] / size)))
        return nearest[kind]

    def least(self, case, moved, train):
        """The least seconds for a case whose tensors have this many bytes, and what binds it:
        "copy", "read", "arithmetic" or "peak"; None where calls dominate."""
        if moved < SMALLEST_LIMITED:
            return None
        operation = OPERATIONS[case.operation]
        work = operation.training if train else 1
        flops = operation.flops(case)
        kind = "read" if flops else "copy"
        moved += operation.reread(case) * DTYPES[case.dtype].itemsize
        by_bytes = work * moved / self.bytes_per_second(kind, operand_bytes(case)), kind
        return max(
            by_bytes,
            (work * flops / self.peak(case.dtype), "peak"),
            (0.0 if train else self.by_arithmetic(case), "arithmetic"),
        )

    def by_arithmetic(self, case):
        """Seconds that our own kernel takes on all cores where no data has to come from far."""
        small = resident(case)
        found = small and self.arithmetic.get(small.name)
        return found["usual"] * math.prod(case.shape) / self.threads if found else 0.0


def best(runs):
    """The limits of several runs of the program: the highest rate of each, the least time."""
    tables = zip(*(one["bandwidth"] for one in runs), strict=True)
    return {
        "clock": max(one["clock"] for one in runs),
        "flops": {name: max(one["flops"][name] for one in runs) for name in runs[0]["flops"]},
        "bandwidth": [{key: max(row[key] for row in rows) for key in rows[0]} for rows in tables],
        "parallel_region": min(one["parallel_region"] for one in runs),
    }


def operand_bytes(case):
    return OPERATIONS[case.operation].operand(case) * DTYPES[case.dtype].itemsize


def measure(threads, sizes, cache, call_costs):
    """call_costs: what the eager worker measured of Python's calls."""
    sizes = sorted({TABLE_BYTES[0], *(size for size in sizes if size > TABLE_BYTES[0])})
    command = [str(program(cache)), str(threads), *map(str, sizes)]
    found = best([json.loads(run(command)) for _ in range(RUNS)])
    region = {f"parallel region, {threads} threads": found["parallel_region"]}
    return Limits(
        found["clock"],
        found["flops"],
        found["bandwidth"],
        {**call_costs, **region},
        threads=threads,
    )
