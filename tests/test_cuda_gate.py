"""Does the inspection of compiled CUDA kernels (tools/cuda_gate.py) notice what it looks for?"""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

from tools import cuda_gate
from tools.cuda_gate import Kernel


def faults(name: str, **accesses: int) -> list[str]:
    counted = Counter({key.replace("_", " "): count for key, count in accesses.items()})
    return list(Kernel(name, 32, counted).faults())


def test_widths_of_accesses():
    loop = "for_each<float, Forward<Relu, float> >"
    assert not faults(loop, LDG_128=1, STG_128=1, LDG_narrow=1, STG_narrow=1)
    assert faults(loop, LDG_narrow=5, STG_128=1) == ["no load of 16 bytes"]
    assert faults(loop, LDG_128=1, STG_narrow=5) == ["no store of 16 bytes"]
    assert faults(loop, LDG_128=1, STG_64=2) == ["no store of 16 bytes"]
    gates = "for_each<float, GruStep<float> >"
    assert faults(gates, LDG_128=7, STG_128=1, STG_narrow=21)  # four of them not vectorised


def test_kernels_of_single_elements_are_narrow():
    assert not faults("softmax_rows<float, 1, 32, 8>", LDG_narrow=8, STG_narrow=8)
    assert faults("softmax_rows<float, 4, 32, 2>", LDG_narrow=8, STG_narrow=8)
    assert faults("softmax_columns<Half, 8, 2>", LDG_128=2, STG_128=2, STG_narrow=1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
def test_double_precision_is_noticed(monkeypatch):
    cuda_gate.FOLDER.mkdir(parents=True, exist_ok=True)
    _, objections = cuda_gate.compile_kernels("recurrent", "double", "sm_90", may_be_double=False)
    assert "ouble" in objections
