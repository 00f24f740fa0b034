"""The cache of output memory.

The outputs of fastact's CPU operators from 1 MiB up come from a bounded cache of blocks, because a
fresh block costs more in page faults than most activations in arithmetic. Tensors made so behave as
any other; their memory returns to the cache when they die. The limit is the smaller of 1 GiB and a
tenth of the memory, or FASTACT_CACHE_LIMIT in bytes.

>>> import fastact
>>> fastact.memory.set_limit(256 * 2**20)
>>> fastact.memory.stats()["limit_bytes"]
268435456
"""

from __future__ import annotations

import torch

_FIELDS = ("cached_bytes", "cached_blocks", "in_use_bytes", "hits", "misses", "limit_bytes")


def stats() -> dict[str, int]:
    """Bytes and blocks that wait for a new owner (``cached_bytes``, ``cached_blocks``), bytes that
    tensors hold (``in_use_bytes``), outputs that found a block or did not (``hits``, ``misses``),
    and ``limit_bytes``, which ``cached_bytes`` never exceeds."""
    return dict(zip(_FIELDS, torch.ops.fastact.memory_stats(), strict=True))


def empty_cache() -> None:
    """Gives every cached block back to the system."""
    torch.ops.fastact.memory_empty_cache()


def set_limit(bytes: int) -> None:
    """Sets the most bytes that wait in the cache, and frees what exceeds it.

    Raises:
        TypeError: bytes is no int.
        ValueError: bytes is negative.
    """
    if not isinstance(bytes, int):
        raise TypeError(
            "fastact.memory.set_limit(): bytes: expected an int, "
            f"got {type(bytes).__name__} {bytes!r}"
        )
    torch.ops.fastact.memory_set_limit(min(bytes, 2**63 - 1))


def enable() -> None:
    """Turns the cache on, as it is at the start."""
    torch.ops.fastact.memory_enable(True)


def disable() -> None:
    """Turns the cache off and empties it."""
    torch.ops.fastact.memory_enable(False)
