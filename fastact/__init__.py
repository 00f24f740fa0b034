"""fastact: fused activations, and the layers they follow, for PyTorch.

>>> import torch, fastact
>>> from fastact import functional as FF, nn as fnn
>>> FF.leaky_relu(torch.tensor([-1.0, 2.0]), 0.1)
tensor([-0.1000,  2.0000])
>>> fnn.Linear(4, 3, activation="relu")
Linear(in_features=4, out_features=3, bias=True, activation='relu')
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fastact._loader import load_operators

load_operators()

from fastact import flops, functional, memory, nn, vmap  # noqa: E402, F401  (the operators must be there first)
from fastact._version import __version__  # noqa: E402
from fastact.conversion import convert, revert  # noqa: E402
from fastact.convolution import set_winograd  # noqa: E402
from fastact.environment import info  # noqa: E402
from fastact.explanation import Report, explain  # noqa: E402

if TYPE_CHECKING:
    from fastact.advice import Advice, advise, merge_linear
    from fastact.drawing import plot

# Imported when first asked for: `import fastact` has a budget, and these come with more.
_LAZY = {
    "Advice": "fastact.advice",
    "advise": "fastact.advice",
    "merge_linear": "fastact.advice",
    "plot": "fastact.drawing",
}

__all__ = [
    "Advice",
    "Report",
    "__version__",
    "advise",
    "convert",
    "explain",
    "functional",
    "info",
    "memory",
    "merge_linear",
    "nn",
    "plot",
    "revert",
    "set_winograd",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'fastact' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
