"""What fastact runs on."""

from __future__ import annotations

import torch


def info() -> dict[str, object]:
    """Facts about this installation.

    Returns:
        A dict with the keys ``version``; ``torch`` and ``torch_built_against``; ``cuda_built`` (the
        CUDA version, or None) and ``cuda_available``; ``triton`` (its version, or None);
        ``instruction_set`` (in use) and ``instruction_sets`` (built); ``threads``; and ``enabled``
        (False under ``FASTACT_DISABLE=1``).

    Example:
        >>> import fastact
        >>> fastact.info()["enabled"]
        True
    """
    from importlib import metadata

    from fastact import _build
    from fastact._version import __version__

    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = None
    return {
        "version": __version__,
        "torch": torch.__version__,
        "torch_built_against": _build.TORCH_VERSION,
        "cuda_built": _build.CUDA,
        "cuda_available": torch.cuda.is_available(),
        "triton": triton,
        "instruction_set": torch.ops.fastact.instruction_set(),
        "instruction_sets": torch.ops.fastact.instruction_sets(),
        "threads": torch.get_num_threads(),
        "enabled": torch.ops.fastact.enabled(),
    }
