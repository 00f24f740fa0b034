"""What every test starts from: one thread, known random numbers, and no compiler cache."""

import gc
import logging

import pytest
import torch

# Set for every test, so that a run of several workers does not start a pool of threads each; a test
# about threads sets its own number.
THREADS = 1


# Thousands of empty records in the report of a failed test.
logging.getLogger("torch.__trace").propagate = False


def pytest_configure(config):
    # A missing vmap rule makes functorch call the operator once for each element, and warn.
    config.addinivalue_line(
        "filterwarnings", "error:There is a performance drop because we have not yet implemented"
    )


@pytest.fixture(autouse=True)
def known_state():
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)


@pytest.fixture
def dynamo():
    """torch.compile that remembers nothing of earlier tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def inductor(dynamo):
    """Inductor that finds nothing of earlier runs on the disk, and leaves nothing."""
    from torch._inductor.utils import fresh_cache

    with fresh_cache(), torch._inductor.config.patch(force_disable_caches=True, compile_threads=1):
        yield


@pytest.fixture(scope="module")
def no_garbage():
    """Tensors of earlier tests in reference cycles would die in the middle of these."""
    gc.collect()


@pytest.fixture
def output_cache(no_garbage):
    """Nothing cached before and after; the same limit on every machine, then the one there was."""
    from fastact import memory

    limit = memory.stats()["limit_bytes"]
    memory.set_limit(2**30)
    memory.empty_cache()
    yield
    memory.enable()
    memory.set_limit(limit)
    memory.empty_cache()
