"""``python tools/check_cuda_build.py`` asks an installed CUDA build what it can tell without a GPU.

Is it built with CUDA, does it load, does it compute on CPU tensors, and is every operator with a
cuda.cpp registered for CUDA? ``make test-cuda-build`` runs it.
"""

from __future__ import annotations

import sys

import torch

import fastact
from fastact import _build
from fastact.activations import REGISTRY

# Operators with kernels for CUDA beside every unary activation's three.
GATED = ("glu", "swiglu", "geglu", "reglu")
OTHERS = ("prelu", "softmax", "log_softmax", "masked_softmax", "linear", "conv")
RECURRENT = ("rnn", "gru", "lstm")


def expected() -> set[str]:
    """The names that the CUDA key must hold."""
    names = {row.name for row in REGISTRY.values() if row.family == "unary"}
    names |= {f"{name}_" for name in names}
    names |= {*GATED, *OTHERS, *RECURRENT}
    names |= {f"{name}_backward" for name in names if not name.endswith("_")}
    names |= {f"{name}_training" for name in RECURRENT}
    return {f"fastact::{name}" for name in names}


def faults() -> list[str]:
    """What is wrong with this build, a line each."""
    found = []
    if not _build.CUDA:
        found.append(f"built without CUDA, against PyTorch {_build.TORCH_VERSION}")
    registered = set(torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"))
    found += [f"not registered for CUDA: {name}" for name in sorted(expected() - registered)]
    x = torch.linspace(-3, 3, 100)
    if not torch.allclose(fastact.functional.gelu(x), torch.nn.functional.gelu(x), atol=1e-6):
        found.append("gelu on the CPU differs from PyTorch's")
    return found


def main() -> int:
    found = faults()
    for line in found:
        print(line, file=sys.stderr)
    print(f"CUDA {_build.CUDA}, {len(expected())} operators, {len(found)} faults")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
