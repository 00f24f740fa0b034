"""Loads the operator library, after checking that it fits the running PyTorch."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

_FIX = "pip install --no-build-isolation --force-reinstall --no-deps fastact"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def check_torch_version(built: str, running: str) -> None:
    """Raises ImportError unless both PyTorch versions have the same major and minor number.

    PyTorch's C++ interface changes between minor versions; a library built against another one
    crashes, or reads the wrong fields.
    """
    if _minor(built) != _minor(running):
        raise ImportError(
            f"fastact was built against PyTorch {built}, and this is PyTorch {running}. "
            f"Build it for this one: {_FIX}"
        )


def load_operators() -> None:
    """Makes torch.ops.fastact available.

    Raises:
        ImportError: the package was not built, or was built against another PyTorch.
    """
    try:
        build = importlib.import_module("fastact._build")
    except ImportError:
        raise ImportError(
            "fastact has not been built: the package holds no compiled library. "
            "In a checkout run: pip install --no-build-isolation -e ."
        ) from None
    check_torch_version(build.TORCH_VERSION, torch.__version__)
    try:
        torch.ops.load_library(Path(__file__).with_name("_ops.so"))
        importlib.import_module("fastact._C")
    except (OSError, ImportError) as error:
        raise ImportError(
            f"fastact's compiled libraries do not load: {error}. They were built against PyTorch "
            f"{build.TORCH_VERSION}; this is PyTorch {torch.__version__}. Build them anew: {_FIX}"
        ) from None
