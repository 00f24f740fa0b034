"""The process of one contender: answers requests, one JSON object a line, over stdin and stdout.

    {"command": "prepare", "case": {...}}   -> {"bytes": of leaves and output, "error": against
                                               float64, "gradient_error": with train, or null}
    {"command": "round"}                    -> {"seconds": [per call, one for each batch]}
    {"command": "call_costs"}               -> {name: seconds}
    {"command": "arithmetic", "case": ...}  -> {"usual": seconds per element, "with outliers": ...}

A failure answers {"failure": reason}. The first line, unasked, is {"ready": facts} or
{"absent": reason}. Between requests the parent stops the whole process.
"""

import argparse
import ctypes
import json
import math
import os
import signal
import sys
import timeit
import traceback

import torch

from . import operations
from .contenders import CONTENDERS
from .suites import Case

BATCH_SECONDS = 100e-6  # several calls a sample, so that reading the clock does not count
ROUND_SECONDS = 15e-3
WARM_UP_SECONDS = 3e-3  # after SIGCONT: caches, page tables, the thread pool's wake-up
FEWEST_SAMPLES = 3
ARITHMETIC_ROUNDS, ARITHMETIC_CALLS = 150, 200
PR_SET_PDEATHSIG = 1


class Measurement:
    """A prepared case: its error against the truth, then rounds of timings."""

    def __init__(self, contender, case, train):
        problem = contender.build(case)
        incoming = None
        if train:
            for leaf in problem.leaves:
                leaf.requires_grad_()

            def incoming(output):
                return operations.incoming_gradient(output, output.dtype)

        found = operations.results(problem, incoming)
        moved = [*problem.leaves, found[0]]
        exact = operations.truth(case, train)
        self.facts = {
            "bytes": sum(tensor.numel() * tensor.element_size() for tensor in moved),
            "error": operations.error(found[:1], exact[:1]),
            "gradient_error": operations.error(found[1:], exact[1:]) if train else None,
        }

        statement, scope = problem.expression, {**problem.scope, **problem.tensors}
        if train:
            # As a training loop has it: autograd hands over fresh gradients, or copies those that
            # somebody else still holds.
            statement = f"({statement}).backward(incoming)\nfor leaf in leaves: leaf.grad = None"
            scope |= {"leaves": problem.leaves, "incoming": incoming(found[0])}
        self.timer = timeit.Timer(statement, globals=scope)
        self.calibrate()

    def calibrate(self):
        self.timer.timeit(1)
        self.batch = 1
        while (seconds := self.timer.timeit(self.batch)) < BATCH_SECONDS / 2:
            self.batch *= 2
        self.batch_seconds = min(seconds, self.timer.timeit(self.batch))

    def round(self):
        for _ in range(self.repetitions(WARM_UP_SECONDS, 1)):
            self.timer.timeit(self.batch)
        samples = range(self.repetitions(ROUND_SECONDS, FEWEST_SAMPLES))
        return [self.timer.timeit(self.batch) / self.batch for _ in samples]

    def repetitions(self, seconds, fewest):
        return max(fewest, math.ceil(seconds / self.batch_seconds))


def call_costs():
    """The floors of a Python call, in seconds: nothing that goes through them is faster."""
    expressions = {
        "Python function": "function(x)",
        "torch.nn.Identity": "identity(x)",
        "torch.empty_like, 64 elements": "empty_like(x)",
    }
    scope = {
        "function": lambda x: x,
        "identity": torch.nn.Identity(),
        "empty_like": torch.empty_like,
        "x": torch.zeros(64),
    }
    number = 10_000
    return {
        name: min(timeit.repeat(expression, globals=scope, number=number)) / number
        for name, expression in expressions.items()
    }


def arithmetic(contender, case):
    """Seconds per element of data in the first-level cache, on one core and without the call: the
    difference between two sizes."""
    sizes = operations.RESIDENT_ELEMENTS // 3, operations.RESIDENT_ELEMENTS
    found = {}
    for name, change in {"usual": lambda x: x, "with outliers": operations.with_outliers}.items():
        timers = []
        for elements in sizes:
            problem = contender.build(operations.resident(case, elements))
            problem.tensors["x"] = change(problem.tensors["x"])
            scope = {**problem.scope, **problem.tensors}
            timers.append(timeit.Timer(problem.expression, globals=scope))
        best = [math.inf, math.inf]
        for _ in range(ARITHMETIC_ROUNDS):
            for index, timer in enumerate(timers):
                best[index] = min(best[index], timer.timeit(ARITHMETIC_CALLS) / ARITHMETIC_CALLS)
        found[name] = max(0.0, best[1] - best[0]) / (sizes[1] - sizes[0])
    return found


class Server:
    def __init__(self, contender, mode):
        self.contender = contender
        self.train = mode == "train"
        self.measurement = None

    def answer(self, request):
        match request["command"]:
            case "prepare":
                self.measurement = None
                if "torch._dynamo" in sys.modules:  # to import it takes seconds
                    torch.compiler.reset()  # it keeps every function it has compiled
                case = Case.from_json(request["case"])
                self.measurement = Measurement(self.contender, case, self.train)
                return self.measurement.facts
            case "round":
                return {"seconds": self.measurement.round()}
            case "call_costs":
                return call_costs()
            case "arithmetic":
                return arithmetic(self.contender, Case.from_json(request["case"]))


def claim_stdout():
    """The real stdout for answers; whatever libraries print goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return channel


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("mode", choices=("infer", "train"))
    arguments = parser.parse_args()
    if sys.platform == "linux":  # a stopped worker would outlive a killed parent
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    channel = claim_stdout()
    contender = CONTENDERS[arguments.contender]
    try:
        facts = contender.setup()
    except ImportError as problem:
        print(json.dumps({"absent": str(problem)}), file=channel)
        return
    print(json.dumps({"ready": facts}), file=channel)

    server = Server(contender, arguments.mode)
    torch.set_grad_enabled(server.train)
    for line in sys.stdin:
        try:
            answer = server.answer(json.loads(line))
        except Exception as problem:  # reported, and the next case still runs
            traceback.print_exc()
            text = str(problem).strip() or "no message"
            answer = {"failure": f"{type(problem).__name__}: {text.splitlines()[0]}"}
        print(json.dumps(answer), file=channel)


if __name__ == "__main__":
    main()
