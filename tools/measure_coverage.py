"""``python tools/measure_coverage.py`` tells which lines of Python and of C++ the tests run.

It copies the checkout to build/coverage, builds it there with gcov's counters, runs the tests there
and prints both tables; build/coverage/html has every line. What is given goes to pytest: a part of
the tests alone, say.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "coverage"
TREE = FOLDER / "tree"
HTML = FOLDER / "html"

# Several threads count in one counter.
COUNTERS = "--coverage -fprofile-update=atomic"


def copy_checkout() -> None:
    """The files that git knows, and those it would add. What has not changed keeps its time, so
    that it is not compiled again."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    wanted = {Path(name) for name in names.split("\0") if name and (ROOT / name).is_file()}
    for folder in ("csrc", "fastact", "tests"):
        for path in (TREE / folder).rglob("*"):
            is_source = path.suffix in (".py", ".cpp", ".h", ".cu")
            if is_source and path.name != "_build.py" and path.relative_to(TREE) not in wanted:
                path.unlink()
    for name in wanted:
        source, to = ROOT / name, TREE / name
        if not to.exists() or source.read_bytes() != to.read_bytes():
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, to)


def main() -> int:
    copy_checkout()
    environment = dict(os.environ, CXXFLAGS=COUNTERS, LDFLAGS="--coverage", PYTHONPATH=str(TREE))

    def run(*command: str | Path) -> int:
        return subprocess.run([*map(str, command)], cwd=TREE, env=environment).returncode

    if run(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"):
        return 1
    for counted in TREE.rglob("*.gcda"):
        counted.unlink()  # of an earlier run
    # Threads wait asleep, as under `make test`.
    environment.update(OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive")
    tests = run(
        *(sys.executable, "-m", "pytest", "-q", *sys.argv[1:]),
        *("--cov=fastact", f"--cov-report=html:{HTML / 'python'}", "--cov-report=term"),
    )
    (HTML / "cpp").mkdir(parents=True, exist_ok=True)
    counted = run(
        *(sys.executable, "-m", "gcovr", "--root", TREE, "--filter", "csrc/", "--print-summary"),
        # A line of a template counts as run where one of its instances ran it.
        *("--merge-lines", "--exclude-unreachable-branches", "--exclude-throw-branches"),
        # PyTorch's headers go by another name than their file's.
        *("--gcov-ignore-errors=source_not_found", "--gcov-ignore-errors=no_working_dir_found"),
        *("--txt", "-", "--html-details", HTML / "cpp" / "index.html", TREE / "build"),
    )
    return tests or counted


if __name__ == "__main__":
    sys.exit(main())
