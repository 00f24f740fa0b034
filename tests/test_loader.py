"""Does an installation that cannot work say so, and how to fix it, instead of crashing?"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastact
from fastact import _build, _loader

PACKAGE = Path(fastact.__file__).parent
RUNNING = torch.__version__


def import_error(program, cwd=None):
    """The message of the ImportError with which a program ends."""
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 1, finished.stderr  # an exception, neither success nor a signal
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: "), finished.stderr
    return last.removeprefix("ImportError: ")


def command_in(message):
    """The command that fixes it, which must be one that pip and the shell know."""
    found = re.search(r"pip install [^,;()]+$", message)
    assert found, message
    assert re.search(r"--no-build-isolation\b", found[0])
    return found[0]


@pytest.mark.parametrize("running", ["2.12.1", "2.99.0", "3.13.0", "2.1.3+cu118", "2.130.0"])
def test_another_pytorch(running):
    """The real import, of a PyTorch that says it were another version."""
    message = import_error(f"import torch; torch.__version__ = {running!r}; import fastact")
    assert f"built against PyTorch {_build.TORCH_VERSION}" in message
    assert f"this is PyTorch {running}" in message
    command_in(message)


def test_another_pytorch_is_found_out_before_the_library_is_loaded():
    program = """
import torch
torch.__version__ = "2.99.0"
try:
    import fastact
except ImportError:
    pass
assert "_ops.so" not in open("/proc/self/maps").read()
"""
    finished = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert finished.returncode == 0, finished.stderr


MINOR = ".".join(RUNNING.split(".")[:2])


@pytest.mark.parametrize("built", [f"{MINOR}.0", f"{MINOR}.99", f"{MINOR}.1+cu130", f"{MINOR}.0a0"])
def test_the_same_minor_version_fits(built):
    _loader.check_torch_version(built, RUNNING)


# An editable installation would find in the checkout what the copy lacks.
IMPORT_COPY = """
import sys
sys.meta_path = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
import fastact
"""


def copy_without(folder, *names):
    shutil.copytree(
        PACKAGE, folder / "fastact", ignore=shutil.ignore_patterns("__pycache__", *names)
    )


def test_checkout_that_was_not_built(tmp_path):
    copy_without(tmp_path, "*.so", "_build.py")
    message = import_error(IMPORT_COPY, cwd=tmp_path)
    assert "has not been built" in message
    command_in(message)


@pytest.mark.parametrize("missing", ["_ops.so", "_C.*.so"])
def test_library_that_is_missing(tmp_path, missing):
    copy_without(tmp_path, missing)
    message = import_error(IMPORT_COPY, cwd=tmp_path)
    assert missing.partition(".")[0] in message
    command_in(message)


def test_library_that_is_empty(tmp_path):
    """An interrupted copy or a full disk."""
    copy_without(tmp_path)
    (tmp_path / "fastact" / "_ops.so").write_bytes(b"")
    message = import_error(IMPORT_COPY, cwd=tmp_path)
    assert "_ops.so" in message
    command_in(message)


def test_library_of_another_pytorch(tmp_path):
    """A symbol that this PyTorch does not have, behind a stamp that says otherwise."""
    copy_without(tmp_path)
    library = tmp_path / "fastact" / "_ops.so"
    content = library.read_bytes()
    name = b"_ZN3c1010Dispatcher13realSingletonEv"
    if name not in content:
        pytest.skip("the symbol to break is no longer there")
    library.write_bytes(content.replace(name, name[:-2] + b"_v"))
    message = import_error(IMPORT_COPY, cwd=tmp_path)
    assert "_ops.so" in message
    command_in(message)


def test_repeated_import():
    program = """
import sys, torch, fastact
first = fastact.functional.relu(torch.tensor([-1.0, 2.0]))
for name in [name for name in sys.modules if name.split(".")[0] == "fastact"]:
    del sys.modules[name]
import fastact as again
assert torch.equal(again.functional.relu(torch.tensor([-1.0, 2.0])), first)
"""
    finished = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert finished.returncode == 0, finished.stderr


def test_import_is_light():
    """Nothing heavy is imported before it is needed."""
    program = """
import sys, torch
before = set(sys.modules)
import fastact
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    new = set(finished.stdout.split())
    assert "fastact" in new
    heavy = {"matplotlib", "pandas", "rich", "triton", "numpy", "pytest", "hypothesis", "sklearn"}
    assert not new & heavy
    assert "torch._dynamo" not in finished.stdout
