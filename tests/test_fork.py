"""Does every operator work in a forked child, where the threads of PyTorch's pool are gone?"""

import subprocess
import sys

import pytest

# The parent starts PyTorch's threads and computes every result; the child computes each one again,
# 100 times, with fastact's operators alone: eager PyTorch hangs there, so the child compares bytes.
PROGRAM = """
import faulthandler, functools, os, sys, time
import torch
from fastact.testing import accuracy
from fastact.testing.inputs import random_tensor

repetitions, layout = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(4)
torch.manual_seed(0)
shape = (4, 8, 65, 67)  # 139,360 elements: several pieces of work for every operator

def new():
    x = random_tensor(shape)
    if layout == "channels last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "permuted":
        return x.permute(3, 1, 0, 2)
    if layout == "strided":
        return random_tensor((*shape[:3], 2 * shape[3]))[..., ::2]
    return x

def calls():
    channels = [case for case in accuracy.ELEMENTWISE if case.label == "channels"]
    for case in [*accuracy.MEASURED, *channels]:
        x, grad = new(), new()
        y = accuracy.forward(case, x)
        saved = y if accuracy.saves_output(case) else x
        yield f"{case} forward", functools.partial(accuracy.forward, case, x)
        yield f"{case} backward", functools.partial(accuracy.backward, case, grad, saved)
        if case.row.family == "unary":
            operator = getattr(torch.ops.fastact, case.row.name + "_")
            # On a buffer of its own, which the child fills by NumPy: copy_ may be parallel.
            source, target = x.numpy().copy(), x.clone(memory_format=torch.preserve_format)
            def in_place(operator=operator, case=case, source=source, target=target):
                target.numpy()[...] = source
                return operator(target, *case.values)
            yield f"{case} in place", in_place
        else:
            weight = case.tensors(x)[0]
            yield f"{case} slopes", lambda grad=grad, x=x, weight=weight: (
                torch.ops.fastact.prelu_backward(grad, x, weight)[1])

    for operator in accuracy.ALONG_DIMENSION:
        for dim in (1, 2, -1) if operator.reads_output else (1,):  # the gated ones halve it
            x = new()
            y = operator.forward(x, dim)
            saved = y if operator.reads_output else x
            grad = new().narrow(dim, 0, y.shape[dim])
            grad = grad.contiguous() if layout == "contiguous" else grad
            yield f"{operator} {dim} forward", functools.partial(operator.forward, x, dim)
            yield f"{operator} {dim} backward", functools.partial(
                operator.backward, grad, saved, dim)

def bits(tensor):
    return tensor.numpy().tobytes()

work = [(name, call, bits(call())) for name, call in calls()]
torch.tanh(torch.randn(1 << 20)).sum()  # PyTorch's own threads have run, too

pid = os.fork()
if pid == 0:
    faulthandler.dump_traceback_later(30, exit=True)  # where it hangs
    start, wrong = time.monotonic(), 0
    for name, call, expected in work:
        print(name, flush=True)  # the last one is the one that hangs
        for _ in range(repetitions):
            if bits(call()) != expected:
                print("differs:", name, flush=True)
                wrong += 1
    print(f"{len(work)} calls, {repetitions} times: {time.monotonic() - start:.1f} s", flush=True)
    os._exit(1 if wrong else 0)
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(
    "layout, repetitions",
    [("contiguous", 100), ("channels last", 10), ("permuted", 10), ("strided", 10)],
)
def test_forked_child(layout, repetitions):
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(repetitions), layout],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f" calls, {repetitions} times" in finished.stdout


def test_grandchild():
    """A child of a child, as DataLoader workers of a forked server are."""
    program = """
import os, sys, torch, fastact
torch.set_num_threads(2)
x = torch.linspace(-5, 5, 300_000)
expected = fastact.functional.tanh(x).numpy().tobytes()
for generation in range(2):
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status))
os._exit(0 if fastact.functional.tanh(x).numpy().tobytes() == expected else 1)
"""
    finished = subprocess.run([sys.executable, "-c", program], timeout=60)
    assert finished.returncode == 0


def test_parent_goes_on():
    """After a fork the parent still computes, in parallel."""
    program = """
import os, torch, fastact
torch.set_num_threads(2)
x = torch.linspace(-5, 5, 300_000)
expected = fastact.functional.tanh(x)
pid = os.fork()
if pid == 0:
    fastact.functional.tanh(x)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert torch.equal(fastact.functional.tanh(x), expected)
"""
    finished = subprocess.run([sys.executable, "-c", program], timeout=60)
    assert finished.returncode == 0
