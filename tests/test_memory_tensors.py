"""Are tensors of the output block cache like any other?"""

import copy
import gc
import io
import pickle

import pytest
import torch
from cached_outputs import MIB, Count, cached, output

from fastact.testing.cases import enabled

pytestmark = [
    pytest.mark.usefixtures("output_cache"),
    pytest.mark.skipif(not enabled(), reason="FASTACT_DISABLE=1 turns the cache off"),
]


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
