"""``python tools/cuda_gate.py`` compiles every CUDA kernel and looks at what came of it. No GPU.

Each family (csrc/cuda/*.cu) is compiled for each dtype and architecture. It fails where a register
is spilled, where a kernel has local memory, or computes in double precision though its dtype is not
float64, and where a kernel of whole vectors does not access global memory by 16 bytes. Needs nvcc,
and nvdisasm: of the CUDA toolkit, or of an installed Triton.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc" / "cuda"
FOLDER = ROOT / "build" / "cuda-gate"

FAMILIES = ("elementwise", "prelu", "softmax", "epilogue", "recurrent")
TYPES = ("float", "double", "BFloat16", "Half")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-DFASTACT_ISA=cuda", "--expt-relaxed-constexpr"]
FLAGS += ["--fmad=false", "-cubin", f"-I{ROOT / 'csrc'}"]  # fma stands where it is meant

# Of operations that write nothing but sums, few and one by one.
SUMS_ALONE = ("SumColumns<",)


def find(name: str) -> str:
    """The path of one of CUDA's programs."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
    if spec := importlib.util.find_spec("triton"):
        folders.append(Path(spec.origin or "").parent / "backends" / "nvidia" / "bin")
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    if found := shutil.which(name, path=path):
        return found
    sys.exit(f"{name} is missing: install the CUDA toolkit, or Triton for nvdisasm alone")


@dataclass
class Kernel:
    """What the compiler made of one."""

    name: str
    registers: int = 0
    accesses: Counter[str] = field(default_factory=Counter)

    def is_wide(self) -> bool:
        """Whether whole vectors go through it: both kinds do, or the template says how many."""
        counts = re.search(r"(?:softmax\w*|for_each_column)<[^,]+, (\d+)", self.name)
        if counts:
            return int(counts[1]) > 1
        return "for_each<" in self.name or "prelu_pieces_backward<" in self.name

    def faults(self) -> Iterator[str]:
        if not self.is_wide():
            return
        if not self.accesses["LDG 128"]:
            yield "no load of 16 bytes"
        wide = self.accesses["STG 128"]
        narrow = self.accesses["STG 64"] + self.accesses["STG narrow"]
        if any(name in self.name for name in SUMS_ALONE):
            return
        if not wide:
            yield "no store of 16 bytes"
            return
        # A tail repeats the stores one by one, a copy for bias and residual, be they there or not.
        copies = 0 if "softmax" in self.name else 4
        if narrow > copies * wide and "for_each_column<" not in self.name:
            yield f"{narrow} narrow stores beside {wide} of 16 bytes"


def _demangled(text: str) -> str:
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True).stdout


def _short(name: str) -> str:
    """Without namespaces and arguments."""
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.sub(r"\b(?:fastact|cuda)::", "", name).partition("(")[0]


def compile_kernels(
    family: str, dtype: str, architecture: str, may_be_double: bool | None = None
) -> tuple[list[Kernel], str]:
    """The kernels, and what the compiler objects to: double precision, but for float64."""
    if may_be_double is None:
        may_be_double = dtype == "double"
    cubin = FOLDER / f"{family}-{dtype}-{architecture}.cubin"
    checks = "-v,-warn-spills,-warn-lmem-usage,-Werror"
    checks += "" if may_be_double else ",-warn-double-usage"
    command = [find("nvcc"), *FLAGS, f"-DFASTACT_TYPE={dtype}", f"-arch={architecture}"]
    command += ["-Xptxas", checks, "-o", str(cubin), str(SOURCES / f"{family}.cu")]
    compiled = subprocess.run(command, capture_output=True, text=True)
    if compiled.returncode:
        lines = _demangled(compiled.stderr).splitlines()
        return [], "\n".join(_short(line) for line in lines if "error" in line)
    pattern = r"Compiling entry function '(\S+)'.*?Used (\d+) registers"
    registers = dict(re.findall(pattern, compiled.stderr, re.DOTALL))
    sass = subprocess.run([find("nvdisasm"), "-c", cubin], capture_output=True, text=True)
    if sass.returncode:
        return [], sass.stderr
    kernels = []
    names = _demangled("\n".join(registers)).splitlines()
    bodies = dict(re.findall(r"^\.text\.(\S+):\n(.*?)(?=^\.text\.|\Z)", sass.stdout, re.M | re.S))
    for (mangled, used), name in zip(registers.items(), names, strict=True):
        kernel = Kernel(_short(name), int(used))
        for operation, width in re.findall(r"\b(LDG|STG)\.E\S*?(?:\.(64|128))?\s", bodies[mangled]):
            kernel.accesses[f"{operation} {width or 'narrow'}"] += 1
        kernels.append(kernel)
    return kernels, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--dtype", choices=TYPES, action="append")
    parser.add_argument("--architecture", action="append")
    parser.add_argument("--list", action="store_true", help="every kernel with its accesses")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    units = [
        (family, dtype, architecture)
        for family in arguments.family or FAMILIES
        for dtype in arguments.dtype or TYPES
        for architecture in arguments.architecture or ARCHITECTURES
    ]
    failures = total = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = pool.map(lambda unit: compile_kernels(*unit), units)
        for (family, dtype, architecture), (kernels, objections) in zip(
            units, results, strict=True
        ):
            title = f"{family} {dtype} {architecture}"
            faults = [f"{k.name}: {f}" for k in kernels for f in k.faults()]
            if objections or not kernels:
                faults.append(objections or "no kernel")
            else:
                used = [kernel.registers for kernel in kernels]
                print(
                    f"{title}: {len(kernels)} kernels, {min(used)} to {max(used)} registers",
                    flush=True,
                )
            for fault in faults:
                print(f"{title}: {fault}", file=sys.stderr)
            if arguments.list:
                for kernel in kernels:
                    print(f"  {kernel.registers:3} {dict(kernel.accesses)} {kernel.name}")
            failures += len(faults)
            total += len(kernels)
    print(f"{total} kernels, {failures} faults")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
