"""Are tensors of the output block cache like any other, and the cache within its limit?"""

import copy
import ctypes
import functools
import gc
import io
import itertools
import os
import pickle
import queue
import random
import subprocess
import sys
import threading

import pytest
import torch

import fastact
from fastact import functional, memory
from fastact.testing.cases import DEFAULT_CASES, enabled

pytestmark = pytest.mark.skipif(not enabled(), reason="FASTACT_DISABLE=1 turns the cache off")

MIB = 2**20
# Around the smallest size that is cached, around that of huge pages, and no multiple of anything.
SIZES = [MIB, MIB + 4, 2 * MIB - 4, 3 * MIB + 20, 4 * MIB - 4, 4 * MIB, 4 * MIB + 4, 9 * MIB + 404]


@pytest.fixture(autouse=True, scope="module")
def no_garbage():
    """Tensors of earlier tests in reference cycles would die in the middle of these."""
    gc.collect()


@pytest.fixture(autouse=True)
def empty_cache():
    """Nothing cached before and after; the same limit on every machine, then the one there was."""
    limit = memory.stats()["limit_bytes"]
    memory.set_limit(2**30)
    memory.empty_cache()
    yield
    memory.enable()
    memory.set_limit(limit)
    memory.empty_cache()


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


# ---- like any other tensor ---------------------------------------------------------------------


def test_resize():
    y = output(2 * MIB, 3.0)
    count = len(y)
    for size in (count // 2, count, 3 * count, 10, 5 * count):
        kept = min(size, y.numel())
        y.resize_(size)
        assert y.shape == (size,)
        assert (y[:kept] == 3).all()
        y.fill_(3.0)
        assert y.untyped_storage().nbytes() >= 4 * size


@pytest.mark.parametrize("nbytes", [0, 4, 100, MIB, 5 * MIB + 12])
def test_resize_of_the_storage(nbytes):
    """As FSDP frees and restores parameters."""
    count = Count()
    y = output(2 * MIB, 3.0)
    storage = y.untyped_storage()
    kept = min(nbytes // 4, len(y))
    storage.resize_(nbytes)
    assert storage.nbytes() == nbytes
    assert count.in_use_bytes <= max(9 * nbytes // 8, MIB)
    storage.resize_(2 * MIB)
    assert (y[:kept] == 3).all()
    y.fill_(4.0)
    other = output(2 * MIB, 5.0)
    assert (y == 4).all() and (other == 5).all()
    del y, storage, other
    assert count.in_use_bytes == 0


def test_set():
    y, other = output(2 * MIB, 3.0), output(4 * MIB, 4.0)
    y.set_(other)
    assert y.data_ptr() == other.data_ptr()
    view = torch.empty(0).set_(y.untyped_storage(), 10, (100,), (2,))
    del y, other
    assert (view == 4).all()
    again = output(4 * MIB, 6.0)
    assert (view == 4).all() and (again == 6).all()
    view.data = again
    assert view.data_ptr() == again.data_ptr()


OUTLIVING = {
    "view": lambda y: y[5:-5],
    "storage": lambda y: torch.empty(0).set_(y.untyped_storage()),
    "numpy": lambda y: y.numpy(),
    "dlpack": lambda y: torch.from_dlpack(torch.utils.dlpack.to_dlpack(y)),
    "from_dlpack": torch.from_dlpack,
    "memoryview": lambda y: torch.frombuffer(memoryview(y.numpy()), dtype=torch.float32),
    "autograd": lambda y: (y.requires_grad_() * y).grad_fn._saved_self,
}


@pytest.mark.parametrize("how", OUTLIVING)
def test_memory_outlives_its_tensor(how):
    if how in ("numpy", "memoryview"):
        pytest.importorskip("numpy")
    count = Count()
    y = output(2 * MIB, 3.0)
    other = OUTLIVING[how](y)
    del y
    gc.collect()
    assert (count.in_use_bytes, cached()) == (2 * MIB, 0)
    again = output(2 * MIB, 4.0)
    assert (other == 3).all()
    del other
    gc.collect()
    assert (count.in_use_bytes, cached()) == (2 * MIB, 2 * MIB)
    assert (again == 4).all()


def _torch_save(y):
    buffer = io.BytesIO()
    torch.save(y, buffer)
    assert buffer.tell() < y.nbytes + 4096
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


COPIES = {
    "pickle": lambda y: pickle.loads(pickle.dumps(y)),
    "torch.save": _torch_save,
    "deepcopy": copy.deepcopy,
    "clone": torch.clone,
    "storage": lambda y: torch.empty(0).set_(y.untyped_storage().clone()),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies(how):
    y = output(2 * MIB + 404, 3.0)
    other = COPIES[how](y)
    y.fill_(4.0)
    assert (other == 3).all()
    assert other.untyped_storage().nbytes() == y.untyped_storage().nbytes() == y.nbytes
    del y
    again = output(2 * MIB + 404, 5.0)
    assert (other == 3).all() and (again == 5).all()


def test_shared_memory():
    count = Count()
    y = output(2 * MIB, 3.0)
    y.share_memory_()
    assert y.is_shared()
    assert (y == 3).all()
    # The values have moved, so the block is free.
    assert (count.in_use_bytes, cached()) == (0, 2 * MIB)
    output(2 * MIB, 4.0)
    assert (y == 3).all()


def test_profiler():
    """The size of the tensor rather than of its block, for a block from the cache too."""
    for _ in range(2):
        with torch.profiler.profile(profile_memory=True) as profile:
            y = output(2 * MIB + 404)
            del y
        usage = {event.name: event.cpu_memory_usage for event in profile.events()}
        assert usage["fastact::threshold"] == 2 * MIB + 404
        assert usage["[memory]"] == -(2 * MIB + 404)


# ---- threads and processes ---------------------------------------------------------------------


def test_threads():
    """Eight allocate, check and release, also what another allocated; one works the controls."""
    limits = (0, 3 * MIB, 64 * MIB)
    memory.set_limit(max(limits))
    count = Count()
    passed = queue.SimpleQueue()
    problems = []
    stop = threading.Event()

    def check(y, value):
        assert y[0] == y[-1] == value and (y == value).all(), value

    def work(number):
        choose = random.Random(number)
        alive = []
        for step in range(60):
            value = 1000 * number + step
            alive.append((output(choose.choice(SIZES), value), value))
            if step % 3 == 0:
                passed.put(alive.pop(choose.randrange(len(alive))))
            if step % 4 == 0:
                check(*passed.get())
            if len(alive) > 3:
                check(*alive.pop(choose.randrange(len(alive))))
        for y, value in alive:
            check(y, value)

    def control():
        choose = random.Random(0)
        while not stop.is_set():
            choose.choice([memory.empty_cache, memory.disable, memory.enable])()
            memory.set_limit(choose.choice(limits))
            stats = memory.stats()
            assert 0 <= stats["cached_bytes"] <= stats["limit_bytes"]
            stop.wait(0.001)

    def caught(function, *arguments):
        try:
            function(*arguments)
        except BaseException as problem:
            problems.append(problem)

    workers = [threading.Thread(target=caught, args=(work, i)) for i in range(1, 9)]
    controller = threading.Thread(target=caught, args=(control,))
    for thread in (*workers, controller):
        thread.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    stop.set()
    controller.join(60)
    assert not problems
    while not passed.empty():
        check(*passed.get())
    assert count.in_use_bytes == 0


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


# Forks while four threads allocate and release: a child must not inherit a lock that is held.
FORKS = """
import faulthandler, os, sys, threading
import torch
from fastact import functional, memory

torch.set_num_threads(1)
x = torch.ones(1 << 18)
kept = functional.threshold(x, 2, 5.0)
stop = threading.Event()

def work():
    while not stop.is_set():
        functional.relu(x)
        memory.stats()

workers = [threading.Thread(target=work) for _ in range(4)]
for worker in workers:
    worker.start()
for i in range(25):
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(20, exit=True)
        ys = [functional.threshold(x, 2, float(j)) for j in range(6)]
        right = all(y[0] == y[-1] == j for j, y in enumerate(ys)) and kept[0] == kept[-1] == 5
        kept.fill_(7.0)  # its own copy
        del ys
        memory.empty_cache()
        right = right and memory.stats()["cached_bytes"] == 0
        os._exit(0 if right else 1)
    if os.waitpid(pid, 0)[1]:
        sys.exit("a child failed")
stop.set()
for worker in workers:
    worker.join()
assert (kept == 5).all()
stats = memory.stats()
assert stats["in_use_bytes"] == kept.nbytes, stats
print("done")
"""


def test_fork():
    assert python(FORKS) == "done\n"


# Outputs go through queues in both directions; a child writes into one; workers return them.
PROCESSES = """
import sys
import torch
import torch.multiprocessing as mp
from torch.utils.data import DataLoader, Dataset
from fastact import functional, memory

torch.set_num_threads(1)
x = torch.ones(1 << 19)

def output(value):
    return functional.threshold(x, 2.0, value)

class Outputs(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        return output(float(i)) if i % 2 else functional.softmax(x.view(512, 1024) * i, -1).view(-1)

def child(inbox, outbox):
    for _ in range(4):
        y = inbox.get()
        outbox.put(functional.leaky_relu(y, 0.5))
        y.fill_(9.0)
    outbox.put(memory.stats()["hits"])
    inbox.get()  # until the parent has read

if __name__ == "__main__":
    context = mp.get_context("fork")
    inbox, outbox = context.Queue(), context.Queue()
    process = context.Process(target=child, args=(inbox, outbox))
    process.start()
    sent = []
    for i in range(4):
        sent.append(output(-float(i) - 1))
        inbox.put(sent[-1])
        received = outbox.get(timeout=60)
        assert (received == -(i + 1) / 2).all(), i
        assert sent[-1].is_shared()
        output(3.0)  # takes the block that the sent tensor left
    outbox.get(timeout=60)
    inbox.put(None)
    process.join(60)
    assert process.exitcode == 0, process.exitcode
    assert all((y == 9).all() for y in sent)
    assert memory.stats()["in_use_bytes"] == 0

    loader = DataLoader(Outputs(), batch_size=2, num_workers=2, multiprocessing_context="fork")
    for i, batch in enumerate(list(loader)):
        assert (batch[0] == 1 / 1024).all() and (batch[1] == 2 * i + 1).all(), i
    print("done")
"""


def test_processes():
    assert python(PROCESSES) == "done\n"


# Tensors in globals, a cycle, a thread's locals, an exit handler and a module that goes last.
SHUTDOWN = """
import atexit, sys, threading, time
import numpy
import torch
from fastact import functional, memory

x = torch.ones(1 << 20, requires_grad=True)
y = functional.silu(x)
array = functional.relu(x.detach()).numpy()
cycle = [functional.tanh(x)]
cycle.append(cycle)
sys.modules["zzz"] = type(sys)("zzz")
sys.modules["zzz"].y = functional.relu(x)
torch.kept = functional.relu(x)
held = threading.Event()

def hold():
    local = functional.relu(x)
    held.set()
    time.sleep(600)

threading.Thread(target=hold, daemon=True).start()
held.wait()

class Last:
    def __del__(self):
        self.y = self.relu(self.x)

last = Last()
last.relu, last.x = torch.ops.fastact.relu, x.detach()
atexit.register(lambda: functional.relu(y).sum().backward())
functional.gelu(x)
print(memory.stats()["in_use_bytes"] > 0, memory.stats()["cached_bytes"] > 0)
"""


def test_shutdown_with_live_tensors():
    pytest.importorskip("numpy")
    assert python(SHUTDOWN) == "True True\n"


# ---- leaks -------------------------------------------------------------------------------------


def resident():
    """Counted page by page: statm leaves out what each processor has not reported yet, which was
    14 of 64 MiB here."""
    with open("/proc/self/smaps_rollup") as rollup:
        [kilobytes] = [int(line.split()[1]) for line in rollup if line.startswith("Rss:")]
    return kilobytes * 1024


def _evicted():
    """Two sizes that do not fit into the limit together."""
    memory.set_limit(2 * MIB)
    output(MIB)
    output(2 * MIB)


def _uncached():
    memory.set_limit(0)
    output(MIB)


def _resized():
    y = output(MIB)
    y.untyped_storage().resize_(0)
    y.untyped_storage().resize_(MIB)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("call", [output, _evicted, _uncached, _resized], ids=lambda f: f.__name__)
def test_leaks(call):
    """Neither a block nor the 48 bytes that describe one."""
    for _ in range(500):
        call()
    growth = []
    for _ in range(3):  # a leak shows in every round, the allocator's wandering does not
        before = resident()
        for _ in range(4000):
            call()
        growth.append(resident() - before)
    assert min(growth) <= MIB // 8, growth


def test_memory_goes_back_to_the_system():
    """Of 64 MiB in blocks, which are emptied, and of a tensor that never came back."""
    before = resident()
    kept = [output(16 * MIB) for _ in range(4)]
    assert resident() - before >= 60 * MIB
    kept.clear()
    assert cached() == 64 * MIB
    memory.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)
    assert resident() - before <= 4 * MIB


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
