"""Does the output block cache give blocks again, within its limit?"""

import itertools
import os
import random

import pytest
import torch
from cached_outputs import MIB, SIZES, Count, cached, output, python

import fastact
from fastact import functional, memory
from fastact.testing.cases import DEFAULT_CASES, enabled

pytestmark = [
    pytest.mark.usefixtures("output_cache"),
    pytest.mark.skipif(not enabled(), reason="FASTACT_DISABLE=1 turns the cache off"),
]

# ---- blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
def test_hits_after_the_first_call(case):
    """Forward and backward; both outputs are alive at a time."""
    x = torch.randn(8, 64, 1024, requires_grad=True)
    tensors = case.tensors(x)

    def step():
        y = case.function(x, *tensors)
        torch.autograd.grad(y, x, torch.ones_like(y))

    count = Count()
    step()
    assert (count.misses, count.hits) == (2, 0)
    for i in range(3):
        step()
        assert (count.misses, count.hits) == (2, 2 * i + 2)


def test_layouts_come_from_the_cache():
    """A dense output has its input's strides; an input with gaps is no dense one."""
    base = torch.randn(8, 64, 32, 32)
    count = Count()
    for x in (base.to(memory_format=torch.channels_last), base.permute(1, 0, 3, 2)):
        y = functional.relu(x)
        assert y.stride() == x.stride()
        assert torch.equal(y, x.relu())
    assert count.misses == 2


def test_small_outputs_are_left_to_malloc():
    count = Count()
    for nbytes in (0, 4, MIB - 4):
        output(nbytes)
    assert (count.misses, count.hits, count.in_use_bytes) == (0, 0, 0)
    output(MIB)
    assert count.misses == 1


@pytest.mark.parametrize("nbytes", SIZES)
def test_size_and_alignment(nbytes):
    count = Count()
    kept = [output(nbytes) for _ in range(3)]
    assert all(y.untyped_storage().nbytes() == y.nbytes == nbytes for y in kept)
    alignment = 2 * MIB if nbytes >= 4 * MIB else 64
    assert all(y.data_ptr() % alignment == 0 for y in kept)
    assert 3 * nbytes <= count.in_use_bytes <= 3 * nbytes * 9 / 8
    assert cached() == 0
    in_use = count.in_use_bytes
    kept.clear()
    assert (count.in_use_bytes, cached(), count.cached_blocks) == (0, in_use, 3)


def test_no_block_in_use_twice():
    """Random sizes, lives and releases: what is alive neither overlaps nor changes."""
    choose = random.Random(0)
    alive = []
    count = Count()
    for value in range(400):
        alive.append((output(choose.choice(SIZES), value), value))
        if len(alive) > choose.randrange(12):
            choose.shuffle(alive)
            del alive[choose.randrange(len(alive)) :]
        ranges = sorted((y.data_ptr(), y.data_ptr() + y.nbytes) for y, _ in alive)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
        for y, expected in alive:
            assert y[0] == y[-1] == y[len(y) // 2] == expected
    for y, expected in alive:
        assert (y == expected).all()
    assert count.hits > 300


def test_similar_sizes_share_blocks():
    count = Count()
    for nbytes in (8 * MIB, 8 * MIB - 4, 8 * MIB - MIB // 4):
        output(nbytes)
    assert (count.misses, count.hits) == (1, 2)


# ---- limit -------------------------------------------------------------------------------------


def test_the_limit_holds_at_any_time():
    choose = random.Random(1)
    alive = []
    for step in range(600):
        if step % 50 == 0:
            memory.set_limit(choose.choice([0, MIB, 5 * MIB, 17 * MIB + 1, 40 * MIB]))
        if choose.random() < 0.5 and len(alive) < 8:
            alive.append(output(choose.choice(SIZES)))
        elif alive:
            alive.pop(choose.randrange(len(alive)))
        stats = memory.stats()
        assert 0 <= stats["cached_bytes"] <= stats["limit_bytes"]
        assert (stats["cached_blocks"] == 0) == (stats["cached_bytes"] == 0)


def test_a_smaller_limit_frees_what_waited_longest():
    kept = [output(nbytes) for nbytes in (MIB, 2 * MIB, 4 * MIB)]
    while kept:
        kept.pop(0)
    assert cached() == 7 * MIB
    memory.set_limit(6 * MIB)
    assert cached() == 6 * MIB
    memory.set_limit(6 * MIB - 1)
    assert cached() == 4 * MIB
    count = Count()
    output(4 * MIB)
    output(2 * MIB)
    assert (count.misses, count.hits) == (1, 1)


def test_a_release_makes_room():
    memory.set_limit(5 * MIB)
    first, second = output(4 * MIB), output(2 * MIB)
    del first
    assert cached() == 4 * MIB
    del second
    assert cached() == 2 * MIB


def test_a_block_above_the_limit_is_not_kept():
    memory.set_limit(3 * MIB)
    small = output(2 * MIB)
    del small
    output(4 * MIB)
    assert cached() == 2 * MIB
    memory.set_limit(0)
    output(2 * MIB)
    assert cached() == 0
    memory.set_limit(2**63 - 1)
    output(2 * MIB)
    assert cached() == 2 * MIB


def test_empty_cache():
    y = output(2 * MIB, 7.0)
    output(4 * MIB)
    memory.empty_cache()
    memory.empty_cache()
    stats = memory.stats()
    assert (stats["cached_bytes"], stats["cached_blocks"]) == (0, 0)
    assert (y == 7).all()
    del y
    assert cached() == 2 * MIB


def test_disable_and_enable():
    y = output(2 * MIB, 7.0)
    output(4 * MIB)
    memory.disable()
    assert cached() == 0
    count = Count()
    output(2 * MIB)
    assert (count.misses, count.hits) == (0, 0)
    assert (y == 7).all()
    del y  # its block has nowhere to go
    assert (cached(), count.in_use_bytes) == (0, -2 * MIB)
    memory.enable()
    output(2 * MIB)
    output(2 * MIB)
    assert (count.misses, count.hits) == (1, 1)


# One process, with a child for each value: the variable is read when the cache is first used.
ENVIRONMENT = """
import os, torch, fastact
x = torch.ones(1 << 19)
for value in (None, "0", "12345678", "-1", "1e6", "lots", "", "7 "):
    if os.fork() == 0:
        os.environ.pop("FASTACT_CACHE_LIMIT", None)
        if value is not None:
            os.environ["FASTACT_CACHE_LIMIT"] = value
        try:
            fastact.functional.relu(x)
            stats = fastact.memory.stats()
            print(f"{value}:", stats["limit_bytes"], stats["cached_bytes"], flush=True)
        except ValueError as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()
"""


def test_limit_from_the_environment():
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert python(ENVIRONMENT).splitlines() == [
        f"None: {min(2**30, memory_bytes // 10)} {2 * MIB}",
        "0: 0 0",
        f"12345678: 12345678 {2 * MIB}",
        *(
            f"fastact: FASTACT_CACHE_LIMIT: expected a number of bytes, got '{value}' "
            "(in fastact.relu())"
            for value in ("-1", "1e6", "lots", "", "7 ")
        ),
    ]


# ---- errors ------------------------------------------------------------------------------------


def test_a_negative_limit_is_refused():
    before = memory.stats()["limit_bytes"]
    message = r"fastact\.memory\.set_limit\(\): bytes: expected at least 0, got -1"
    with pytest.raises(ValueError, match=message):
        memory.set_limit(-1)
    assert memory.stats()["limit_bytes"] == before


@pytest.mark.parametrize("value", [1.5, "1", None, [1], torch.tensor(5)], ids=repr)
def test_a_limit_that_is_no_integer_is_refused(value):
    before = memory.stats()["limit_bytes"]
    message = r"fastact\.memory\.set_limit\(\): bytes: expected an int.*, got "
    with pytest.raises(TypeError, match=message):
        memory.set_limit(value)
    assert memory.stats()["limit_bytes"] == before


def test_arguments_are_counted():
    for call in (memory.set_limit, lambda: memory.empty_cache(1), lambda: memory.stats(1)):
        with pytest.raises(TypeError):
            call()


def test_statistics_are_integers():
    stats = memory.stats()
    assert list(stats) == [
        "cached_bytes",
        "cached_blocks",
        "in_use_bytes",
        "hits",
        "misses",
        "limit_bytes",
    ]
    assert all(type(value) is int and value >= 0 for value in stats.values())
    assert fastact.memory is memory
