"""``python tools/write_accuracy.py`` measures the error of every activation and its gradient.

Without options the figures go into docs/accuracy.md, one section an instruction set; ``--check``
fails when one of them has grown. What is measured, and how, says fastact/testing/accuracy.py.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fastact.testing.accuracy import (  # noqa: E402
    DTYPES,
    MEASURED,
    STRIDE_OF_PYTORCH,
    Errors,
    Maximum,
    bounds_of,
    compared_bitwise,
    end_to_end_errors_of,
    errors_of,
    errors_of_twin,
    name_of,
    saves_output,
    sweep,
    violations,
)
from fastact.testing.cases import Case  # noqa: E402

# ---- tables ------------------------------------------------------------------------------------


@dataclass
class Table:
    """Text in rows and columns; the first column names the activation."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join([f"### {self.title}", "", *(f"| {' | '.join(x)} |" for x in lines), ""])

    def print(self) -> None:
        try:
            from rich.console import Console
            from rich.table import Table as RichTable
        except ModuleNotFoundError:
            print(self.markdown())
            return
        table = RichTable(title=self.title)
        for name in self.header:
            table.add_column(name, justify="left" if name == self.header[0] else "right")
        for row in self.rows:
            table.add_row(*row)
        # Wide enough for every column where the output is a file.
        console = Console()
        (console if console.is_terminal else Console(width=200)).print(table)


# The columns with fastact's own figures: what --check compares.
_OURS = (*map(name_of, DTYPES), "fastact")


@dataclass
class Result:
    """What was measured of one case: fastact in each dtype, PyTorch in float32."""

    case: Case
    errors: dict[torch.dtype, Errors] = field(default_factory=dict)
    of_pytorch: Errors | None = None

    def violations(self) -> list[str]:
        return [
            line
            for dtype, errors in self.errors.items()
            for line in violations(self.case, dtype, errors, self.of_pytorch)
        ]


def tables_of(results: Iterable[Result]) -> list[Table]:
    """The figures as three tables: outputs, gradients, gradients end to end."""
    figures = ["float32", "at x =", "bound", "PyTorch", "at x =", "bfloat16", "float16"]
    outputs = Table("Outputs (ULP)", ["activation", *figures, "result"])
    gradients = Table("Gradients (ULP)", ["activation", "reads", *figures, "result"])
    ends = Table(
        "Gradients as functions of the input, where backward reads the output (ulps of 1, float32)",
        ["activation", "fastact", "at x =", "PyTorch", "at x ="],
    )
    for result in results:
        case, name = result.case, result.case.row.name
        verdict = "FAIL" if result.violations() else "pass"
        reads = "output" if saves_output(case) else "input"
        outputs.rows.append([name, *_figures(result, "forward"), verdict])
        gradients.rows.append([name, reads, *_figures(result, "gradient"), verdict])
        mine, theirs = result.errors.get(torch.float32), result.of_pytorch
        if mine and theirs and theirs.end_to_end.error:
            ends.rows.append([name, *_shown(mine.end_to_end), *_shown(theirs.end_to_end)])
    return [table for table in (outputs, gradients, ends) if table.rows]


def _figures(result: Result, kind: str) -> list[str]:
    case, theirs = result.case, result.of_pytorch
    cells = {
        dtype: _shown(getattr(errors, kind), compared_bitwise(case, dtype))
        for dtype, errors in result.errors.items()
    }
    bound = bounds_of(case, torch.float32)[kind == "gradient"]
    comparable = theirs and not (kind == "gradient" and saves_output(case))
    return [
        *cells.get(torch.float32, ["", ""]),
        f"{bound:.1f}" if bound else "equal",
        *(_shown(getattr(theirs, kind)) if comparable else ["", ""]),
        cells.get(torch.bfloat16, [""])[0],
        cells.get(torch.float16, [""])[0],
    ]


def _shown(found: Maximum, bitwise: bool = False) -> list[str]:
    """An error, rounded up so that no smaller one than measured is stated, and its input."""
    at = f"{found.at:.9g}" if found.error else ""
    if bitwise:
        return ["differs" if found.error else "equal", at]
    if found.error < 1000:
        return [f"{math.ceil(found.error * 1000) / 1000:.3f}", at]
    return [f"{found.error:.1e}", at]


def _value(text: str) -> float:
    """The inverse of _shown()."""
    words = {"equal": 0.0, "differs": math.inf}
    return words[text] if text in words else float(text)


# ---- the document ------------------------------------------------------------------------------

DOCUMENT = ROOT / "docs" / "accuracy.md"

_INTRODUCTION = """\
# Accuracy

Made by `python tools/write_accuracy.py` (`make accuracy`), which measures again and replaces
the section of its instruction set; `--check` fails when a figure has grown. Do not edit.

Every figure is a maximum over **all** 2^32 float32 inputs (one in N where the section's command
says `--stride N`), or all 65,536 bfloat16 or float16 inputs, infinities and subnormal numbers
included, at the default parameters (PReLU: weight 0.25), rounded up. The unit is the ULP, the
distance of the dtype's numbers at the exact value: a correctly rounded result has at most 0.5. The
exact value comes from float64. PyTorch's own figures are for float32, from every 997th finite
input, so that the true ones are at least as large.

- *equal*: the same bits as PyTorch's at every input (all NaN count as alike).
- bfloat16 and float16 outputs are bounded by 0.51 ULP, gradients by 4 ULP in every dtype.
- *Gradients* are functions of the incoming gradient (here random numbers) and of the tensor that
  backward reads: the input or, where that determines the derivative, the output. As functions of
  the input (the last table) those that read the output also carry the output's rounding error:
  where an output saturates, the derivative is a small difference of larger numbers. Its absolute
  error stays within one ulp of 1 of PyTorch's. Both come from every 997th input.
- At a NaN input outputs are NaN; gradients there are compared where they must equal PyTorch's.
- At an infinite input where PyTorch's formula is infinity times zero, and its result NaN, fastact
  gives the limit: `silu(-inf)` is 0.
- float64 is not swept: `tests/test_numerics.py` compares samples with 200-bit arithmetic.
"""


def read_sections(document: Path) -> dict[str, str]:
    """The sections of the document by instruction set."""
    if not document.exists():
        return {}
    parts = re.split(r"^## (.+)$", document.read_text(), flags=re.MULTILINE)[1:]
    return {title: text.strip("\n") for title, text in zip(parts[::2], parts[1::2], strict=True)}


def write_section(document: Path, title: str, text: str) -> None:
    sections = read_sections(document) | {title: text.strip("\n")}
    body = "\n".join(f"## {title}\n\n{text}\n" for title, text in sorted(sections.items()))
    document.write_text(f"{_INTRODUCTION}\n{body}")


def own_section() -> str:
    """The title of the section that this process measures. With AVX-512-BF16 the activations run on
    AVX-512's kernels."""
    return torch.ops.fastact.instruction_set().removesuffix("_bf16")


def section_of(tables: Iterable[Table], command: str) -> str:
    facts = f"{_processor()}, PyTorch {torch.__version__}, {date.today()}, `{command}`."
    return "\n".join([facts, "", *(table.markdown() for table in tables)])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.exists() and re.findall(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.M)
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def figures_in(section: str) -> dict[tuple[str, str, str], float]:
    """(table, activation, column) to figure, of fastact's own columns."""
    figures = {}
    title, header = "", []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("### "):
            title, header = line[4:], []
        elif not line.startswith("|") or set(line) <= set("|- "):
            continue
        elif not header:
            header = cells
        else:
            for name, cell in zip(header, cells, strict=True):
                if name in _OURS and cell:
                    figures[title, cells[0], name] = _value(cell)
    return figures


def grown(tables: Iterable[Table], section: str) -> list[str]:
    """What is larger in the tables than in the committed section, a line each."""
    committed = figures_in(section)
    measured = figures_in("\n".join(table.markdown() for table in tables))
    return [
        f"{name} ({title}, {column}): {value:g}, committed {committed[title, name, column]:g}"
        for (title, name, column), value in measured.items()
        if value > committed.get((title, name, column), math.inf)
    ]


# ---- the command -------------------------------------------------------------------------------


def measure_all(cases: Sequence[Case], dtypes: Sequence[torch.dtype], stride: int) -> list[Result]:
    """The errors of fastact, and those of PyTorch in float32."""
    results = []
    inputs = len(cases) * sum(1 << torch.finfo(dtype).bits for dtype in dtypes)
    threads = torch.get_num_threads()
    # One chunk a thread and nothing shared: a chunk's temporaries stay in that core's cache.
    torch.set_num_threads(1)
    try:
        with (
            ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            _progress(inputs) as done,
        ):
            for case in cases:
                result = Result(case)
                results.append(result)
                advance = functools.partial(done, case.row.name)
                for dtype in dtypes:
                    # Those of 16 bits are few enough to measure them all.
                    step = stride if dtype == torch.float32 else 1
                    result.errors[dtype] = sweep(errors_of, case, dtype, step, advance, pool)
                if torch.float32 in dtypes and not compared_bitwise(case, torch.float32):
                    step = max(stride, STRIDE_OF_PYTORCH)
                    mine = sweep(end_to_end_errors_of, case, torch.float32, step, pool=pool)
                    result.errors[torch.float32].join(mine)
                    result.of_pytorch = sweep(errors_of_twin, case, torch.float32, step, pool=pool)
    finally:
        torch.set_num_threads(threads)
    return results


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar, where there are a terminal and rich to draw it with."""
    try:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        yield lambda name, inputs: None
        return
    columns = (TextColumn("{task.description:12}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda name, inputs: progress.update(task, description=name, advance=inputs)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [case.row.name for case in MEASURED]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="these alone")
    parser.add_argument(
        "--dtype", nargs="+", choices=list(map(name_of, DTYPES)), help="these alone"
    )
    parser.add_argument("--stride", type=int, default=1, help="every n-th float32 input (1)")
    parser.add_argument("--isa", nargs="+", help="run once for each of these values of FASTACT_ISA")
    parser.add_argument("--check", action="store_true", help="fail where a figure has grown")
    parser.add_argument(
        "--write",
        action=argparse.BooleanOptionalAction,
        help="write the section of this instruction set (what a complete run does)",
    )
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="docs/accuracy.md")
    arguments = parser.parse_args(argv)
    complete = not (arguments.only or arguments.dtype)
    if arguments.write and not complete:
        parser.error("--write needs a run over all activations: without --only and --dtype")
    if arguments.write is None:
        every_input = complete and arguments.stride == 1
        arguments.write = every_input and not arguments.check and DOCUMENT.parent.is_dir()
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = _arguments(argv)
    if arguments.isa and arguments.isa != [os.environ.get("FASTACT_ISA")]:
        # The instruction set is chosen when the library is loaded. The last --isa counts.
        program = [sys.executable, str(Path(__file__))]
        return max(
            subprocess.run(
                [*program, *argv, "--isa", isa], env=os.environ | {"FASTACT_ISA": isa}
            ).returncode
            for isa in arguments.isa
        )
    if not torch.ops.fastact.enabled():
        sys.exit("FASTACT_DISABLE=1 leaves nothing to measure: unset it")

    wanted = arguments.only or [case.row.name for case in MEASURED]
    cases = [case for case in MEASURED if case.row.name in wanted]
    dtypes = [dtype for dtype in DTYPES if name_of(dtype) in (arguments.dtype or _OURS)]
    start = time.monotonic()
    results = measure_all(cases, dtypes, arguments.stride)

    isa, title = torch.ops.fastact.instruction_set(), own_section()
    tables = tables_of(results)
    for table in tables:
        table.print()
    every = "all inputs" if arguments.stride == 1 else f"one float32 input in {arguments.stride}"
    print(f"{isa}, {every}, {time.monotonic() - start:.0f} s")
    problems = [line for result in results for line in result.violations()]
    if arguments.check:
        section = read_sections(arguments.document).get(title)
        if section is None:
            problems.append(f"{arguments.document.name} has no section {title}")
        else:
            problems += [f"grown: {line}" for line in grown(tables, section)]
    if arguments.write:
        command = " ".join(["python tools/write_accuracy.py", *argv])
        write_section(arguments.document, title, section_of(tables, command))
        print(f"wrote {arguments.document}")
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
