"""fastact: fused activations, and the layers they follow, for PyTorch.

>>> import torch, fastact
>>> from fastact import functional as FF, nn as fnn
>>> FF.leaky_relu(torch.tensor([-1.0, 2.0]), 0.1)
tensor([-0.1000,  2.0000])
>>> fnn.Linear(4, 3, activation="relu")
Linear(in_features=4, out_features=3, bias=True, activation='relu')
"""

from fastact._loader import load_operators

load_operators()

from fastact import flops, functional, memory, nn, vmap  # noqa: E402, F401  (the operators must be there first)
from fastact._version import __version__  # noqa: E402
from fastact.conversion import convert, revert  # noqa: E402
from fastact.environment import info  # noqa: E402
from fastact.explanation import Report, explain  # noqa: E402

__all__ = [
    "Report",
    "__version__",
    "convert",
    "explain",
    "functional",
    "info",
    "memory",
    "nn",
    "revert",
]
