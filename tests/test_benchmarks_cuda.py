"""Without a device: does `python -m benchmarks --device cuda` choose, refuse, reckon as it says?"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    return importlib.import_module("benchmarks.cuda")


def test_cases_are_listed(cuda, capsys):
    assert importlib.import_module("benchmarks.__main__").main(["--device", "cuda", "--list"]) == 0
    names = capsys.readouterr().out.split("\n")
    assert "gelu gradient/bf16" in names
    assert cuda.main(["swiglu"], 1, True) == 0
    assert capsys.readouterr().out.split() == ["swiglu/fp32", "swiglu/bf16"]
    assert cuda.main(["no such case"], 1, False) == 2
    assert "no case matches" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_missing_device_is_told(cuda, capsys):
    assert cuda.main(None, 1, False) == 2
    assert "PyTorch finds no CUDA device" in capsys.readouterr().err


def test_figures(cuda):
    ceilings = cuda.Ceilings(4e12, {"bf16": 1e15})
    # 2 GB in 1 ms of 4 TB/s; in three rounds PyTorch takes 1, 2 and 3 times as long.
    found = cuda.figures([1e-3] * 3, [1e-3, 2e-3, 3e-3], 2e9, 0, ceilings, "fp32")
    assert (found.rate, found.unit, found.share, found.ratio) == (2000, "GB/s", 0.5, 2)
    found = cuda.figures([2e-3], [1e-3], 0, 5e11, ceilings, "bf16")
    assert found.unit == "TFLOP/s"
    assert found.rate == pytest.approx(250)
    assert found.share == pytest.approx(0.25)
    assert found.ratio == 0.5
    assert "  250 TFLOP/s    25% of the ceiling" in cuda.row("linear/bf16", found)
