"""Is csrc/math/tables.h what its generator prints, on any processor?"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MATH = Path(__file__).parent.parent / "csrc" / "math"
# What numpy has vector code for here, beyond what it needs: off, its functions round otherwise.
FEATURES = np._core._multiarray_umath.__cpu_features__
DISPATCHED = [f for f in np._core._multiarray_umath.__cpu_dispatch__ if FEATURES[f]]


def generate(disabled=()):
    finished = subprocess.run(
        [sys.executable, MATH / "generate_tables.py"],
        env=os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(disabled)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_tables_are_up_to_date():
    """15 s, nearly all of them arithmetic of 150 bits."""
    assert generate() == (MATH / "tables.h").read_text(), (
        "run python csrc/math/generate_tables.py > csrc/math/tables.h, then make accuracy"
    )


@pytest.mark.slow
def test_tables_do_not_depend_on_the_processor():
    assert DISPATCHED
    assert generate(DISPATCHED) == (MATH / "tables.h").read_text()
