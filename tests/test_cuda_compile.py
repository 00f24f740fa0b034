"""Do the formulas compile for the GPU as they stand, without spills and without stray doubles?"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fastact.activations import REGISTRY

ROOT = Path(__file__).parents[1]
NVCC = shutil.which("nvcc")
ARCHITECTURE = "sm_90"

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine")


def compile_formulas(*arguments: str) -> str:
    command = [NVCC, "-std=c++20", "--expt-relaxed-constexpr", f"-arch={ARCHITECTURE}"]
    command += ["-DFASTACT_ISA=cuda", "-I", str(ROOT / "csrc"), *arguments]
    command += [str(ROOT / "tests" / "cuda" / "formulas.cu")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


def test_no_kernel_spills(tmp_path: Path) -> None:
    log = compile_formulas("-cubin", "-o", str(tmp_path / "formulas.cubin"), "-Xptxas", "-v")
    stores = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    unary = [row for row in REGISTRY.values() if row.family == "unary"]
    assert len(stores) == 2 * len(unary), "a kernel for each activation in float and double"
    assert set(stores) == {("0", "0")}


def test_float_kernels_compute_no_double(tmp_path: Path) -> None:
    ptx = tmp_path / "formulas.ptx"
    compile_formulas("-ptx", "-o", str(ptx))
    kernels = re.findall(r"\.entry (\S+)\((.*?)\n}", ptx.read_text(), re.DOTALL)
    single = {name: body for name, body in kernels if "FormulaIfE" in name}
    assert len(single) * 2 == len(kernels)
    offenders = [name for name, body in single.items() if ".f64" in body]
    assert not offenders
