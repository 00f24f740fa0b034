"""The CUDA kernels on the host: builds tests/cuda's libraries and runs what is in them.

A library holds one family of kernels (csrc/cuda/kernels) and the emulator, which watches every
access; see tests/cuda/emulator.h. ``Session`` hands tensors to a kernel and tells what was noticed.

``build_operators`` goes a level up: csrc/ops/*/cuda.cpp and csrc/cuda/*.cu as they are, in a
library that takes the place of fastact's CPU kernels in a process that loads it. Accesses are not
watched there: what tests see are results.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "tests" / "cuda"
CPU = Path("/proc/cpuinfo")
FOLDER = ROOT / "build" / "cuda-emulator"

COMMON = ["-std=c++20", "-g", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"]
# The compiler places the calls that emulator.cpp answers; nothing of a sanitizer is linked.
KERNELS = ["-O1", "-ffp-contract=off", "-fno-math-errno", "-DFASTACT_ISA=cuda"]
KERNELS += ["-mfma"] if " fma " in CPU.read_text() else []  # as the device: math/scalar.h
KERNELS += ["-fsanitize=thread,alignment,bounds"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # by number in the libraries
SEEDS = range(8)


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def _run(command: Sequence[object]) -> None:
    finished = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))}\n{finished.stderr}")


def _once(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The file that ``make`` writes, made anew where the key is another. Of several processes that
    ask, one makes it."""
    path = FOLDER / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if path.exists():
        return path
    FOLDER.mkdir(parents=True, exist_ok=True)
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
                made = Path(folder, "made")
                make(made)
                os.replace(made, path)
    return path


def _text(paths: Sequence[Path]) -> str:
    return "\0".join(path.read_text() for path in paths)


def _emulator() -> Path:
    source = SOURCES / "emulator.cpp"
    command = [*_compiler(), *COMMON, "-O2", f"-I{SOURCES}", "-c", source, "-o"]
    key = shlex.join(map(str, command)) + _text([source, SOURCES / "emulator.h"])
    return _once("emulator", key, lambda made: _run([*command, made]))


@dataclass(frozen=True)
class Fault:
    """A mistake put into a header: what stands there, and what shall."""

    header: str
    old: str
    new: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.old.strip()} -> {self.new.strip()}"


def build(family: str, fault: Fault | None = None, few: bool = False) -> Library:
    """The library of tests/cuda/<family>.cpp; with a fault, of the kernels with that mistake."""
    headers = sorted((ROOT / "csrc").glob("cuda/kernels/*.h")) + sorted(ROOT.glob("csrc/math/*.h"))
    source = SOURCES / f"{family}.cpp"
    flags = [*COMMON, *KERNELS, *(["-DFASTACT_TEST_FEW"] if few else [])]
    key = shlex.join([*_compiler(), *flags]) + repr(fault) + _emulator().name
    key += _text([*headers, source, SOURCES / "library.h", SOURCES / "emulator.h"])

    def make(made: Path) -> None:
        includes = [f"-I{SOURCES}"]
        if fault:
            text = (ROOT / "csrc/cuda/kernels" / fault.header).read_text()
            if text.count(fault.old) != fault.count:
                found = text.count(fault.old)
                raise ValueError(f"{fault.header} holds {fault.old!r} {found} times")
            copy = made.parent / "cuda" / "kernels" / fault.header
            copy.parent.mkdir(parents=True)
            copy.write_text(text.replace(fault.old, fault.new))
            includes.append(f"-I{made.parent}")
        obj = made.parent / "kernels.o"
        _run([*_compiler(), *flags, *includes, f"-I{ROOT / 'csrc'}", "-c", source, "-o", obj])
        _run([*_compiler(), "-shared", obj, _emulator(), "-o", made])

    return Library(_once(family, key, make))


# The names that csrc/math has for DTYPES, as setup.py hands them to nvcc.
TYPES = ("float", "double", "BFloat16", "Half")


def _object(source: Path, flags: Sequence[str], fault: Fault | None) -> Path:
    """A source of the product, compiled for the emulator, with its mistake if it has one."""
    name = str(source.relative_to(ROOT / "csrc"))
    text = source.read_text()
    if fault and fault.header == name:
        if text.count(fault.old) != fault.count:
            raise ValueError(f"{name} holds {fault.old!r} {text.count(fault.old)} times")
        text = text.replace(fault.old, fault.new)
    command = [*_compiler(), *COMMON, "-O1", "-fno-math-errno", "-ffp-contract=off", *flags]
    command += [f"-I{SOURCES}", f"-I{ROOT / 'csrc'}"]
    headers = sorted((ROOT / "csrc").rglob("*.h"))
    key = shlex.join(command) + text + _text([*headers, SOURCES / "emulator.h"])

    def make(made: Path) -> None:
        copy = made.parent / source.name
        copy.write_text(text)
        _run([*command, "-c", "-x", "c++", copy, "-o", made])

    return _once(f"{name.replace('/', '-')}.o", key, make)


def build_operators(fault: Fault | None = None) -> Path:
    """The library of every operator's CUDA side, linked with the objects of the CPU build.

    ``torch.ops.load_library`` of it, after ``import fastact``, makes CPU tensors go through
    csrc/ops/*/cuda.cpp. ``fault.header`` is a path below csrc.

    Raises:
        FileNotFoundError: this checkout has not been built.
    """
    folder = ROOT / "build" / f"torch-{torch.__version__}-{sys.implementation.cache_tag}"
    built = sorted(folder.rglob("csrc/**/*.cpp.o"))
    # Schemas are defined once; what is emulated is compiled here.
    left_out = re.compile(r"/csrc/(schemas|bindings/.*|ops/[^/]*/cuda)\.cpp\.o$")
    built = [path for path in built if not left_out.search(path.as_posix())]
    if not built:
        raise FileNotFoundError(f"no objects in {folder}: build fastact in this checkout first")
    torch_flags = [f"-isystem{path}" for path in cpp_extension.include_paths("cpu")]
    torch_flags += ["-DFASTACT_EMULATED", "-DNDEBUG"]
    kernels = ["-DFASTACT_ISA=cuda", *(["-mfma"] if " fma " in CPU.read_text() else [])]
    sources = [(path, torch_flags) for path in sorted((ROOT / "csrc").glob("ops/*/cuda.cpp"))]
    sources += [
        (path, [*kernels, f"-DFASTACT_TYPE={name}"])
        for path in sorted((ROOT / "csrc").glob("cuda/*.cu"))
        for name in TYPES
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda unit: _object(*unit, fault), sources)
        objects = [_emulator(), *made]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths("cpu")]
    libraries += ["-lc10", "-ltorch_cpu", "-ltorch"]
    # A later object's kernel replaces an earlier one's of the same operator.
    command = [*_compiler(), "-shared", *built, *objects, *libraries]
    key = shlex.join(map(str, command)) + repr([path.stat().st_mtime_ns for path in built])
    return _once("operators", key, lambda made: _run([*command, "-o", made]))


class Library:
    """A loaded library of kernels."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dll = ctypes.CDLL(str(path))
        self.dll.emulator_reports.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: object) -> None:
        function = getattr(self.dll, name)
        function.restype = ctypes.c_bool
        converted: list[object] = []
        for argument in arguments:
            if isinstance(argument, bool):
                converted.append(ctypes.c_bool(argument))
            elif isinstance(argument, int):
                converted.append(ctypes.c_int64(argument))
            elif isinstance(argument, float):
                converted.append(ctypes.c_double(argument))
            elif isinstance(argument, str):
                converted.append(argument.encode())
            elif isinstance(argument, Tensor):
                converted.append(ctypes.c_void_p(argument.data_ptr()))
            elif argument is None:
                converted.append(ctypes.c_void_p())
            else:
                values = [float(value) for value in argument]  # type: ignore[attr-defined]
                converted.append((ctypes.c_double * max(len(values), 1))(*values))
        if not function(*converted):
            raise ValueError(f"{name} knows no {arguments[:2]}")

    def locate(self, text: str) -> str:
        """<address> in a report as file and line."""

        def line(match: re.Match[str]) -> str:
            command = ["addr2line", "-s", "-e", str(self.path), hex(int(match[1], 16) - 1)]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()

        return re.sub("<([0-9a-f]+)>", line, text)


@dataclass
class Session:
    """One run of kernels under one schedule, on copies of tensors with room around them.

    ``offset`` elements lie between an address that is aligned to 256 bytes and each tensor.
    """

    library: Library
    seed: int
    offset: int = 0
    buffers: list[tuple[str, Tensor, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.library.dll.emulator_begin(ctypes.c_uint(self.seed))

    def input(self, name: str, tensor: Tensor) -> Tensor:
        return self._add(name, tensor, 0)

    def output(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self._add(name, torch.full(tuple(shape), torch.nan, dtype=dtype), 1)

    def both(self, name: str, tensor: Tensor) -> Tensor:
        return self._add(name, tensor, 2)

    def _add(self, name: str, tensor: Tensor, mode: int) -> Tensor:
        size, room = tensor.element_size(), 4096
        memory = torch.full((tensor.numel() * size + 2 * room + 256,), 0xFF, dtype=torch.uint8)
        first = room - memory.data_ptr() % 256 + 256 + self.offset * size
        copy = memory[first : first + tensor.numel() * size].view(tensor.dtype).view(tensor.shape)
        copy.copy_(tensor)
        self.library.dll.emulator_buffer(
            name.encode(),
            ctypes.c_void_p(copy.data_ptr()),
            ctypes.c_uint64(copy.numel() * size),
            ctypes.c_uint(size),
            mode,
        )
        self.buffers.append((name, copy, ("input", "output", "both")[mode]))
        return copy

    def traffic(self) -> dict[str, tuple[float, float]]:
        """Of each buffer: how often an element was read and written, on the average."""
        return {
            name: (read / max(t.nbytes, 1), written / max(t.nbytes, 1))
            for (name, t, _), (read, written, _) in zip(self.buffers, self._counts(), strict=True)
        }

    def _counts(self) -> list[tuple[int, int, int]]:
        found = []
        for index in range(len(self.buffers)):
            counts = (ctypes.c_uint64 * 3)()
            self.library.dll.emulator_traffic(index, counts)
            found.append((counts[0], counts[1], counts[2]))
        return found

    def reports(self) -> str:
        """What was noticed, a line each; empty where all is well."""
        text = self.library.locate(self.library.dll.emulator_reports().decode())
        for (name, _, mode), (_, _, unwritten) in zip(self.buffers, self._counts(), strict=True):
            if mode == "output" and unwritten:
                text += f"not written: {unwritten} elements of {name}\n"
        return text
