"""Loads the operator library, after checking that it fits the running PyTorch."""

from __future__ import annotations

from pathlib import Path

import torch

_MEND = "pip install --no-build-isolation --force-reinstall --no-deps fastact"


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
            f"Build it for this one: {_MEND}"
        )


def load_operators() -> None:
    """Makes torch.ops.fastact available."""
    try:
        from fastact import _build
    except ModuleNotFoundError:
        raise ImportError(
            "fastact has not been built: the package holds no compiled library. "
            "In a checkout run: pip install --no-build-isolation -e ."
        ) from None
    check_torch_version(_build.TORCH_VERSION, torch.__version__)
    torch.ops.load_library(Path(__file__).with_name("_ops.so"))
