"""Do csrc/ops/*/cuda.cpp hand the kernels what they need? test_gpu_operators.py, on the host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from emulated import each_fault

from tools.cuda_emulator import Fault, build_operators

TESTS = Path(__file__).with_name("test_gpu_operators.py")


def run(library: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FASTACT_EMULATED_OPERATORS": str(library)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)]
    return subprocess.run(
        [*command, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        cwd=TESTS.parents[1],
    )


def test_operators():
    ran = run(build_operators())
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed and int(passed[1]) > 200, ran.stdout


UNARY, GATED, PRELU, SOFTMAX, LINEAR, CONV, RECURRENT = (
    f"ops/{family}/cuda.cpp"
    for family in ("unary", "gated", "prelu", "softmax", "linear", "conv", "recurrent")
)
FAULTS = [
    Fault(UNARY, "with_layout_of(result, self), result", "self, result"),
    Fault(UNARY, "from.const_data_ptr(), to.mutable", "to.const_data_ptr(), to.mutable"),
    Fault(UNARY, "from.numel(), parameters", "from.numel() - 1, parameters"),
    Fault(
        UNARY, "g.const_data_ptr(), s.const_data_ptr()", "s.const_data_ptr(), g.const_data_ptr()"
    ),
    Fault(UNARY, "with_layout_of(result, grad)", "grad"),
    Fault(UNARY, "with_layout_of(result, saved)", "saved"),
    Fault(UNARY, "return self.copy_(dense);", "return self;"),
    Fault(UNARY, "if (self.is_non_overlapping_and_dense()) {", "if (true) {"),
    Fault(GATED, "sizes[halves.dim] /= 2", "sizes[0] /= 2"),
    Fault(GATED, "halves.order.apply(grad).contiguous()", "grad"),
    Fault(GATED, "order(dense), x(order.apply(dense))", "order(dense), x(dense)"),
    Fault(PRELU, "const Tensor w = weight.contiguous();", "const Tensor& w = weight;", 2),
    Fault(PRELU, "fits ? result : result.copy_(y)", "result"),
    Fault(PRELU, "with_layout_of(x, grad)", "grad"),
    Fault(SOFTMAX, "const Tensor g = grad.contiguous();", "const Tensor& g = grad;", 2),
    Fault(SOFTMAX, "mask->expand(own).contiguous()", "mask->expand(own)"),
    Fault(SOFTMAX, "expanded.size(-2 - d);", "expanded.size(-1 - d);"),
    Fault(SOFTMAX, "rows.mask_sizes[0] = t.size(-2);", "rows.mask_sizes[0] = t.size(-1);"),
    Fault(LINEAR, "residual->contiguous()", "*residual"),
    Fault(LINEAR, "is_defined(bias) ? bias->contiguous() : Tensor()", "Tensor()"),
    Fault(CONV, "with_layout_of(y, *residual)", "*residual"),
    Fault(RECURRENT, "i == 1 ? 0 : steps_ - 1", "steps_ - 1"),
    Fault(
        RECURRENT, "call_.hx[index(layer, direction)].contiguous()", "call_.hx[0].contiguous()", 2
    ),
    Fault(RECURRENT, "at += count;", "at += count - 1;"),
    Fault(
        RECURRENT,
        "gradients.narrow(2, 3 * hidden_, hidden_)",
        "gradients.narrow(2, 2 * hidden_, hidden_)",
    ),
    Fault(RECURRENT, "before(direction, first_h, own.h)", "own.h"),
]


@each_fault(FAULTS)
def test_faults_are_noticed(fault):
    ran = run(build_operators(fault), "-x")
    # A test fails, or the process dies of what was written where it must not be.
    assert ran.returncode == 1 or ran.returncode < 0, ran.stdout[-2000:] + ran.stderr
