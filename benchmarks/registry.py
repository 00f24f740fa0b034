"""The activations to measure: what fastact's registry knows, in terms of torch alone.

Peers are timed in processes that never load fastact's shared objects. The registry is therefore
read in a process of its own (`python -m benchmarks.registry` prints it) and travels as data.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch


@dataclass(frozen=True)
class Activation:
    name: str
    function: str  # of torch.nn.functional
    module: str | None  # of torch.nn
    takes_slope: bool = False
    fixed: dict = field(default_factory=dict)  # arguments: gelu_tanh is gelu, approximate="tanh"
    parameters: dict = field(default_factory=dict)  # defaults by name

    @classmethod
    def from_torch(cls, name):
        """An activation that has torch's name for it."""
        classes = {name.lower(): name for name in dir(torch.nn)}
        takes_slope = name == "prelu"
        return cls(name, name, classes.get(name.replace("_", "")), takes_slope)

    @classmethod
    def from_registry(cls, row):
        """A row of fastact's registry; None where torch has no such function."""
        if not hasattr(torch.nn.functional, row.function):
            return None
        fixed = {} if row.name == row.function else dict(row.form)
        parameters = dict(row.parameters)
        return cls(row.name, row.function, row.module, row.takes_slope, fixed, parameters)


def print_registry():
    from fastact.activations import FUSIBLE

    rows = filter(None, map(Activation.from_registry, FUSIBLE.values()))
    print(json.dumps([asdict(row) for row in rows]))


def load():
    """The registry's activations by name; none where fastact cannot be imported."""
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.registry"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        return {}
    return {fields["name"]: Activation(**fields) for fields in json.loads(process.stdout)}


if __name__ == "__main__":
    print_registry()
