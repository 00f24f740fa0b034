"""Do vectors and kernels compute what plain loops compute, in every instruction set, and touch no
memory but their own? The programs of tests/cpp, without PyTorch."""

import subprocess
from pathlib import Path

import pytest

from tools import cpp_tests

ROOT = Path(__file__).parent.parent
if not (ROOT / cpp_tests.BUILT).exists():
    pytest.skip("no build folder beside the tests", allow_module_level=True)


@pytest.fixture(scope="module")
def built():
    cpp_tests.build()


@pytest.mark.parametrize("run", cpp_tests.runs(), ids=str)
def test_program(run, built):
    finished = subprocess.run(run.command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " tests passed" in finished.stdout


# A program whose tests must fail, one by one: what else would the others be worth?
FAILING = """
#include "check.h"

using fastact_test::Place;
using fastact_test::Walled;

FASTACT_TEST(condition) { CHECK(1 + 1 == 3); }
FASTACT_TEST(bits) { CHECK_SAME(-0.0, 0.0); }
FASTACT_TEST(distance) { CHECK_NEAR(1.0, 1.5, 0.25); }
FASTACT_TEST(nan) { CHECK_NEAR(NAN, 1.0, 1e300); }
FASTACT_TEST(nothing) {}
FASTACT_TEST(bytes_beside) {
  Walled<char> memory(10);
  memory.data()[-1] = 0;
}
FASTACT_TEST(passes) { CHECK_SAME(double(NAN), -double(NAN)); }
FASTACT_TEST(wall) {
  Walled<int> memory(10, Place::kBeforeTheWall);
  volatile int* const p = memory.data();
  p[10] = 1;
}

int main(int count, char** names) { return fastact_test::run_tests(count - 1, names + 1); }
"""


def test_failures_are_told(tmp_path):
    source, program = tmp_path / "failing.cpp", tmp_path / "failing"
    source.write_text(FAILING)
    command = [*cpp_tests.compiler(), "-std=c++20", "-w", f"-I{ROOT / cpp_tests.SOURCES}"]
    subprocess.run([*command, source, "-o", program], check=True)

    def run(*names):
        return subprocess.run([program, *names], capture_output=True, text=True)

    for name in ("condition", "bits", "distance", "nan", "nothing", "bytes_beside"):
        assert run(name).returncode == 1, name
        assert f": {name}: " in run(name).stdout
    assert run("passes").returncode == 0
    assert run("no such test").returncode == 1
    assert run("wall").returncode == 126
    assert "wall: : ended by signal 11" in run("wall").stdout
