"""``python tools/cpp_tests.py`` builds and runs the C++ tests of vectors and kernels, in tests/cpp.

They include and link nothing of PyTorch. simd.cpp is compiled for each instruction set; each other
program is named after a family of kernels, whose objects it links. Those are setup.py's, so build
first; ``--sanitize`` compiles them anew, with AddressSanitizer and UndefinedBehaviorSanitizer, in
minutes. What follows ``--`` goes to the programs: a part of the names of the tests that are to run.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fastact  # noqa: E402

SOURCES = Path("tests/cpp")
FAMILIES = ("elementwise", "softmax", "gemm", "conv")
BUILT = Path("build", f"torch-{torch.__version__}-{sys.implementation.cache_tag}")

# Half the time of -O2, to compile; what is tested is compiled as setup.py does.
TEST_FLAGS = ["-O1", "-g0", f"-I{SOURCES}", "-UNDEBUG"]
SANITIZERS = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
SANITIZERS += ["-fsanitize=address,undefined"]

RULES = """
rule compile
  command = $cmd -MMD -MF $out.d -c $in -o $out
  description = compile $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cmd $in -o $out
  description = link $out
"""


@dataclass(frozen=True)
class Run:
    """A program that tests one instruction set."""

    program: str
    isa: str
    command: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.program}-{self.isa}"


def instruction_sets() -> list[str]:
    """Those that are built and that this processor has (or up to FASTACT_ISA), narrowest first."""
    facts = fastact.info()
    names = list(facts["instruction_sets"])
    return names[: names.index(facts["instruction_set"]) + 1]


def runs(sanitize: bool = False) -> list[Run]:
    """Every program with every set."""
    folder = _folder(sanitize)
    found = [Run("simd", isa, (str(folder / f"simd-{isa}"),)) for isa in instruction_sets()]
    for family in FAMILIES:
        program = str(folder / family)
        own = {isa for isa, source in _compilations() if Path(source).name.startswith(family)}
        found += [Run(family, isa, (program, isa)) for isa in instruction_sets() if isa in own]
    return found


def _folder(sanitize: bool) -> Path:
    return Path("build", "cpp-tests-sanitized" if sanitize else "cpp-tests")


def _compilations() -> dict[tuple[str, str], list[str]]:
    """(set, kernel file) to the command of setup.py, up to its input and output."""
    graph = ROOT / BUILT / "build.ninja"
    if not graph.exists():
        sys.exit(f"{graph.relative_to(ROOT)} is missing: python setup.py build_ext --inplace")
    found = {}
    pattern = r"^build \S+/(\w+)/(csrc/cpu/isa/\S+)\.o: compile .*\n  cmd = (.+)$"
    for isa, source, command in re.findall(pattern, graph.read_text(), re.MULTILINE):
        words = shlex.split(command.replace("$$", "$"))
        found[isa, source] = words[: words.index("-MMD")]
    return found


def compiler() -> list[str]:
    """What setup.py compiles with."""
    return _program(next(iter(_compilations().values())))


def _program(command: list[str]) -> list[str]:
    """What stands before the options: CXX may be "ccache g++"."""
    return list(itertools.takewhile(lambda word: not word.startswith("-"), command))


def build(sanitize: bool = False) -> None:
    """Compiles and links what has changed. One process at a time."""
    folder, extra = ROOT / _folder(sanitize), SANITIZERS if sanitize else []
    compilations, wanted = _compilations(), instruction_sets()
    lines = [f"builddir = {_folder(sanitize)}", RULES]
    link_flags = [*(SANITIZERS if sanitize else []), *shlex.split(os.environ.get("LDFLAGS", ""))]

    def compile_(output: str, source: object, words: list[str]) -> str:
        lines.append(f"build {output}: compile {source}\n  cmd = {shlex.join(words)}")
        return output

    def link(output: str, inputs: list[str], words: list[str]) -> None:
        lines.append(f"build {output}: link {' '.join(inputs)}\n  cmd = {shlex.join(words)}")

    for isa in wanted:
        # Any kernel file of the set has its flags.
        command = next(words for (name, _), words in compilations.items() if name == isa)
        output = f"{_folder(sanitize)}/simd-{isa}"
        flags = [*command, *TEST_FLAGS, *extra]
        link(
            output,
            [compile_(f"{output}.o", SOURCES / "simd.cpp", flags)],
            [*_program(command), *link_flags],
        )
    for family in FAMILIES:
        objects = []
        for (isa, source), words in compilations.items():
            if isa in wanted and Path(source).name.startswith(family):
                built = f"{BUILT}/{isa}/{source}.o"
                if sanitize:
                    own = f"{_folder(sanitize)}/{isa}/{source}.o"
                    built = compile_(own, source, [*words, *extra])
                objects.append(built)
        # It runs on every processor, and its own copy of the formulas bears another name.
        command = next(words for (name, _), words in compilations.items() if name == "baseline")
        command = [word for word in command if not word.startswith("-DFASTACT_ISA=")]
        output = f"{_folder(sanitize)}/{family}"
        flags = [*command, "-DFASTACT_ISA=test", *TEST_FLAGS, *extra]
        test = compile_(f"{output}.o", SOURCES / f"{family}.cpp", flags)
        link(output, [test, *objects], [*_program(command), *link_flags])

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        graph = folder / "build.ninja"
        graph.write_text("\n".join(lines) + "\n")
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        command = [sys.executable, "-m", "ninja", "--quiet", "-f", str(graph), *jobs]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"the C++ tests do not compile:\n{finished.stdout}{finished.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sanitize", action="store_true", help="with two sanitizers")
    parser.add_argument("tests", nargs="*", help="a part of the names of the tests to run")
    arguments = parser.parse_args()
    build(arguments.sanitize)
    failed = 0
    for run in runs(arguments.sanitize):
        print(f"{run}:", flush=True)
        failed += subprocess.run([*run.command, *arguments.tests], cwd=ROOT).returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
