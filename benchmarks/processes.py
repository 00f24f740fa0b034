"""The parent's end of a worker: started on demand, running only while it is asked something."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
START_SECONDS = 120
CASE_SECONDS = 120


class Failed(Exception):
    """The worker could not answer; the text says why."""


class Absent(Failed):
    """The contender is not installed here, or does not start."""


class Worker:
    """A contender's process. Stopped between requests (SIGSTOP), because thread pools go on
    spinning after a call and would slow down whoever runs next."""

    def __init__(self, contender, mode, threads):
        self.contender = contender
        self.command = [sys.executable, "-m", "benchmarks.worker", contender, mode]
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of compiler processes to keep quiet
        }
        self.process = None
        self.facts = {}
        self.seconds_left = CASE_SECONDS

    def start(self):
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self.process = subprocess.Popen(
            self.command,
            cwd=CHECKOUT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            start_new_session=True,  # one process group: stopped and killed with its children
        )
        try:
            greeting = self.read(START_SECONDS)
        except Failed as problem:
            raise Absent(f"does not start: {problem}") from problem
        if "absent" in greeting:
            self.close()
            raise Absent(greeting["absent"])
        self.facts = greeting["ready"]
        self.signal(signal.SIGSTOP)

    def new_case(self):
        """Gives the worker its time for a case; all requests of the case share it."""
        self.seconds_left = CASE_SECONDS

    def ask(self, command, **fields):
        if self.process is None:
            self.start()
        self.signal(signal.SIGCONT)
        begin = time.monotonic()
        try:
            self.process.stdin.write(json.dumps({"command": command, **fields}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.crashed() from None
        answer = self.read(self.seconds_left)
        self.seconds_left -= time.monotonic() - begin
        self.signal(signal.SIGSTOP)
        if "failure" in answer:
            raise Failed(answer["failure"])
        return answer

    def read(self, seconds):
        """The next answer; a worker that is too slow or has died is closed, and starts afresh
        with the next request."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, seconds)):
                self.close()
                raise Failed(f"no answer within {CASE_SECONDS} s")
        line = self.process.stdout.readline()
        if not line:
            raise self.crashed()
        return json.loads(line)

    def crashed(self):
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return Failed(f"the process died, {how}: {lines[-1] if lines else 'it said nothing'}")

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):  # it has died: the next read says how
            os.killpg(self.process.pid, number)

    def close(self):
        if self.process is None:
            return
        self.signal(signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):  # an unread request
            self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()
        self.process = None
