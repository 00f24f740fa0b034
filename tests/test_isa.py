"""Does every instruction set compute within the same bounds, and does FASTACT_ISA choose it?"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastact

TOOL = Path(__file__).parent.parent / "tools" / "write_accuracy.py"

# A process chooses once: each program here runs in one of its own.
SETS = fastact.info()["instruction_sets"]
SUPPORTED = {
    "baseline": True,
    "avx2": torch.cpu._is_avx2_supported(),
    "avx512": torch.cpu._is_avx512_supported(),
    "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
}

# Everything that has a public name, once; then a hash of the bits that must not depend on the set.
SMOKE = """
import hashlib
import torch, fastact
from fastact import functional, nn
from fastact.testing import accuracy
from fastact.testing.cases import FUSED_CASES
from fastact.testing.inputs import LAYOUTS, random_tensor, special_values

digest = hashlib.sha256()

def add(tensor):
    tensor = torch.where(tensor.isnan(), torch.nan, tensor.detach())  # all NaN are alike
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())

def check(actual, expected, case):
    tolerance = 1e-5 if actual.dtype in (torch.float32, torch.float64) else 2e-2
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance,
                               msg=lambda text: f"{case}: {text}")

torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    inputs = [random_tensor([n], dtype) for n in (1, 37, 4099)]
    inputs += [LAYOUTS[name](lambda shape: random_tensor(shape, dtype)) for name in
               ("channels last", "steps", "expanded")]
    for case in accuracy.ELEMENTWISE:
        for x in inputs:
            leaf, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
            y, expected = (f(t, *case.tensors(t)) for f, t in
                           ((case.function, leaf), (case.twin, twin)))
            grad = random_tensor(x.shape, dtype)
            y.backward(grad)
            expected.backward(grad)
            check(y, expected, case)
            assert torch.equal(leaf.grad.isfinite(), twin.grad.isfinite()), case
            if case.row.ulp == 0:
                add(y)
                add(leaf.grad)
        if case.row.ulp == 0:
            special = special_values(dtype)
            add(case.function(special, *case.tensors(special)))

    for operator in accuracy.ALONG_DIMENSION:
        for dim in (0, 1):
            x = random_tensor((34, 38), dtype)
            y = operator.forward(x, dim)
            twin = getattr(torch.nn.functional, operator.name, None)
            if twin:
                check(y, twin(x, dim=dim), operator)
            grad = random_tensor(y.shape, dtype)
            dx = operator.backward(grad, y if operator.reads_output else x, dim)
            assert dx.isfinite().all(), operator

x, weight, bias = torch.randn(5, 33), torch.randn(17, 33), torch.randn(17)
z = torch.nn.functional.linear(x, weight, bias)
for case in FUSED_CASES:
    slope = torch.linspace(-1, 1, 17) if case.learnable else None
    y = functional.linear(x, weight, bias, case.name, slope=slope, **case.parameters)
    check(y, case.twin(z, slope) if case.learnable else case.twin(z), case)
for name in nn.__all__:
    assert issubclass(getattr(nn, name), getattr(torch.nn, name))
print(fastact.info()["instruction_set"], digest.hexdigest())
"""


def start(isa, *command):
    return subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | {"FASTACT_ISA": isa, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def need(isa):
    if not SUPPORTED[isa]:
        pytest.skip(f"this processor has no {isa}")


@pytest.mark.parametrize("isa", SETS)
def test_bounds_hold(isa):
    need(isa)
    code, output, errors = finish(start(isa, str(TOOL), "--stride", "4099", "--no-write"))
    assert code == 0, errors
    assert f"\n{isa}, one float32 input in 4099" in output


def test_exact_family_has_the_same_bits_in_every_set():
    available = [isa for isa in SETS if SUPPORTED[isa]]
    digests = {}
    for some in (available[:2], available[2:]):  # two at a time
        for process in [start(isa, "-c", SMOKE) for isa in some]:
            code, output, errors = finish(process)
            assert code == 0, errors
            isa, digest = output.split()
            digests[isa] = digest
    assert list(digests) == available
    assert len(set(digests.values())) == 1, digests


BFLOAT16 = """
import hashlib
import torch, fastact
from fastact.testing.cases import UNARY_CASES
digest = hashlib.sha256()
x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
for case in UNARY_CASES:
    digest.update(case.function(x).view(torch.int16).numpy().tobytes())
grad = x.flip(0).contiguous()
rows = x.view(256, 256)
for y in (torch.ops.fastact.softmax(rows, -1), torch.ops.fastact.relu_backward(grad, x)):
    digest.update(y.contiguous().view(torch.int16).numpy().tobytes())
print(fastact.info()["instruction_set"], digest.hexdigest())
"""


def test_bfloat16_is_rounded_alike_with_its_instruction_and_without():
    need("avx512_bf16")
    found = [finish(start(isa, "-c", BFLOAT16)) for isa in ("avx512", "avx512_bf16")]
    assert all(code == 0 for code, _, _ in found), found
    (first, bits), (second, others) = (output.split() for _, output, _ in found)
    assert (first, second) == ("avx512", "avx512_bf16")
    assert bits == others


def test_the_widest_is_chosen():
    widest = [isa for isa in SETS if SUPPORTED[isa]][-1]
    code, output, errors = finish(
        start("", "-c", "import fastact; print(fastact.info()['instruction_set'])")
    )
    assert (code, output.strip()) == (0, widest), errors


@pytest.mark.parametrize(
    "call", ["fastact.functional.relu(torch.ones(3))", "fastact.nn.Tanh()(torch.ones(3))"]
)
def test_unknown_set_is_an_error(call):
    code, _, errors = finish(start("sse9", "-c", f"import torch, fastact; {call}"))
    last = errors.strip().splitlines()[-1]
    assert code == 1, errors  # an exception, not a signal
    assert last.startswith("ValueError: fastact: FASTACT_ISA: expected one of")
    assert all(isa in last for isa in SETS if SUPPORTED[isa])
    assert "got sse9" in last
