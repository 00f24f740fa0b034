"""What the tests of the output block cache share."""

import functools
import os
import subprocess
import sys

import torch

from fastact import functional, memory

MIB = 2**20
# Around the smallest size that is cached, around that of huge pages, and no multiple of anything.
SIZES = [MIB, MIB + 4, 2 * MIB - 4, 3 * MIB + 20, 4 * MIB - 4, 4 * MIB, 4 * MIB + 4, 9 * MIB + 404]


@functools.cache
def ones(nbytes):
    return torch.ones(nbytes // 4)


def output(nbytes=2 * MIB, value=1.0):
    """A tensor from the cache, full of one value."""
    return functional.threshold(ones(nbytes), 2.0, value)


def cached():
    return memory.stats()["cached_bytes"]


class Count:
    """What the statistics have grown by since it was made."""

    def __init__(self):
        self.before = memory.stats()

    def __getattr__(self, name):
        return memory.stats()[name] - self.before[name]


def python(program):
    """What it prints; nothing may go wrong, and nothing be said about it."""
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={key: value for key, value in os.environ.items() if key != "FASTACT_CACHE_LIMIT"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stderr
    return finished.stdout
