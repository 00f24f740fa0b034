"""``python tools/write_activations.py`` writes what docs/activations.md has of tables, pictures and
output.

The prose and the programs are edited in the document. Between its markers stand tables from the
registry, the rules of fastact.advise, the costs that csrc/math/activations.h states, the errors of
docs/accuracy.md and what backward is seen to keep; behind each program what it printed; and
pictures, drawn into docs/images. ``--check`` fails where a table is not what they say now.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fastact  # noqa: E402
from fastact.activations import REGISTRY  # noqa: E402
from fastact.advice.rules import RULES  # noqa: E402
from fastact.curves import PLOTTED, Curve, cases_of, curve  # noqa: E402
from fastact.testing import operators  # noqa: E402
from tools import write_accuracy  # noqa: E402

DOCUMENT = ROOT / "docs" / "activations.md"
IMAGES = ROOT / "docs" / "images"
HEADER = ROOT / "csrc" / "math" / "activations.h"

# In words of Python, as the registry's formulas; what follows a comma names a part. A new
# activation may do without: its picture shows its derivative.
DERIVATIVES = {
    "relu": "1 if x > 0 else 0",
    "relu6": "1 if 0 < x < 6 else 0",
    "leaky_relu": "1 if x > 0 else negative_slope",
    "prelu": "1 if x > 0 else weight",
    "elu": "1 if x > 0 else alpha * exp(x)",
    "selu": "scale * (1 if x > 0 else alpha * exp(x))",
    "celu": "1 if x > 0 else exp(x / alpha)",
    "gelu": "Phi(x) + x * phi(x)",
    "gelu_tanh": "s + 2 * x * s * (1 - s) * sqrt(2/pi) * (1 + 0.134145 * x**2), "
    "s = sigmoid(2 * sqrt(2/pi) * (x + 0.044715 * x**3))",
    "silu": "s * (1 + x * (1 - s)), s = sigmoid(x)",
    "mish": "t + x * sigmoid(x) * (1 - t**2), t = tanh(log1p(exp(x)))",
    "sigmoid": "s * (1 - s), s = sigmoid(x)",
    "logsigmoid": "1 - sigmoid(x)",
    "tanh": "1 - tanh(x)**2",
    "hardtanh": "1 if min_val < x < max_val else 0",
    "hardsigmoid": "1/6 if -3 < x < 3 else 0",
    "hardswish": "0 if x < -3 else 1 if x > 3 else (2 * x + 3) / 6",
    "softplus": "sigmoid(beta * x)",
    "softsign": "1 / (1 + |x|)**2",
    "tanhshrink": "tanh(x)**2",
    "softshrink": "1 if |x| > lambd else 0",
    "hardshrink": "1 if |x| > lambd else 0",
    "threshold": "1 if x > threshold else 0",
    "softmax": "y[i] * ((i == j) - y[j])",
    "log_softmax": "(i == j) - exp(y[j])",
}

# What a reader sees first.
COMMON = ("relu", "gelu", "sigmoid")
# A sheet each, with what it shows in words.
SHEETS = {
    "rectifiers": (
        ("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu"),
        "rectifiers: 0, or less steep, below 0",
    ),
    "smooth": (
        ("gelu", "gelu_tanh", "silu", "mish", "hardswish", "softplus"),
        "smooth relatives of ReLU",
    ),
    "saturating": (
        ("sigmoid", "tanh", "logsigmoid", "hardsigmoid", "hardtanh", "softsign"),
        "saturating activations, for gates and outputs",
    ),
    "shrinking": (
        ("tanhshrink", "softshrink", "hardshrink", "threshold"),
        "activations that set small values to 0",
    ),
    "softmax": (("softmax", "log_softmax"), "softmax and its logarithm, of five logits"),
}
THEMES = ("light", "dark")


def sheets() -> dict[str, tuple[tuple[str, ...], str]]:
    """The sheets; what is on none of them, on one more."""
    shown = {name for names, _ in SHEETS.values() for name in names}
    others = tuple(name for name in PLOTTED if name not in shown)
    return SHEETS | ({"others": (others, "others")} if others else {})


# ---- tables ------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines]


def rules() -> list[str]:
    """The rules of fastact.advise."""
    return _table(
        ("rule", "severity", "why", "what to do"),
        ((f"`{r.name}`", r.severity, r.reason, r.remedy) for r in RULES.values()),
    )


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _number(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.4g}".replace("-", "−")


def _rounded(x: float) -> str:
    return _number(round(x, 1 if abs(x) >= 0.1 else 2) + 0.0)  # no minus before 0


def _saturated(found: Curve) -> str:
    parts = []
    for start, end in found.saturated:
        if start == found.x[0]:
            parts.append(f"x ≤ {_rounded(end)}")
        elif end == found.x[-1]:
            parts.append(f"x ≥ {_rounded(start)}")
        else:
            parts.append(f"{_rounded(start)} ≤ x ≤ {_rounded(end)}")
    return ", ".join(parts)


def formulas() -> list[str]:
    """Formula, derivative, range, value at 0 and saturation."""
    rows = []
    for name, row in PLOTTED.items():
        cells = [f"`{name}`", f"`{row.formula}`", _code(DERIVATIVES.get(name, ""))]
        if row.along_dimension:
            cells += ["0 … 1" if row.results == "probabilities" else "−∞ … 0", "", ""]
        else:
            [case] = cases_of("plot", name, {})
            found = curve(case)
            cells.append(f"{_number(found.infimum)} … {_number(found.supremum)}")
            cells += [_number(found.at_zero), _saturated(found)]
        settings = ", ".join(f"{k}={v:g}" for k, v in row.parameters.items() if k != "scale")
        cells.append(_code(settings))
        rows.append(cells)
    header = ("name", "f(x)", "derivative", "range", "f(0)", "saturated", "parameters")
    return _table(header, rows)


def cycles() -> dict[str, int]:
    """What the C++ registry states."""
    text = HEADER.read_text()
    costs: dict[str, int] = {}
    for struct in re.split(r"^struct ", text, flags=re.M):
        name = re.search(r'const char\* name = "(\w+)"', struct)
        cost = re.search(r"int cost = (\d+)", struct)
        if name and cost:
            costs[name[1]] = int(cost[1])
    if not costs.keys() <= REGISTRY.keys() or len(costs) < 20:
        raise RuntimeError(f"{HEADER.name} is not written as expected")
    return costs


def costs() -> list[str]:
    """Cycles, what backward keeps, and errors."""
    sections = write_accuracy.read_sections(write_accuracy.DOCUMENT)
    errors = write_accuracy.figures_in(sections["avx512"])
    known = {o.name: o for family in operators.families() for o in family.operators}
    stated = cycles()
    rows = []
    for name in PLOTTED:
        operator = known[name]
        kept = operators.saved(operator, operator.function)
        twins = operators.saved(operator, operator.twin)
        rows.append(
            (
                f"`{name}`",
                str(stated.get(name, "")),
                kept,
                twins,
                _error(errors.get(("Outputs (ULP)", name, "float32"))),
                _twins_error(sections["avx512"], name),
            )
        )
    header = ("name", "cycles", "backward keeps", "PyTorch's", "error (ULP)", "PyTorch's")
    return _table(header, rows)


def _error(value: float | None) -> str:
    if value is None:
        return ""
    return "as PyTorch" if value == 0 else f"{value:.2f}"


def _twins_error(section: str, name: str) -> str:
    row = re.search(rf"^\| {name} \|(.*)$", section.partition("### Gradients")[0], re.M)
    if row is None:
        return ""
    figure = row[1].split("|")[3].strip()
    return f"{float(figure):.3g}" if figure else ""


def _picture(sheet: str, names: Sequence[str]) -> list[str]:
    return [
        "<picture>",
        f'<source media="(prefers-color-scheme: dark)" srcset="images/{sheet}-dark.png">',
        f'<img src="images/{sheet}-light.png" alt="{", ".join(names)}: curve, derivative and '
        'error">',
        "</picture>",
    ]


def common() -> list[str]:
    """The first picture."""
    return _picture("common", COMMON)


def pictures() -> list[str]:
    """The sheets, for light and dark pages."""
    lines = []
    for sheet, (names, words) in sheets().items():
        lines += [f"**{words[0].upper()}{words[1:]}**", "", *_picture(sheet, names), ""]
    return lines[:-1]


GENERATED: dict[str, Callable[[], list[str]]] = {
    "common": common,
    "rules": rules,
    "formulas": formulas,
    "costs": costs,
    "pictures": pictures,
}


# ---- the document ------------------------------------------------------------------------------


def with_tables(text: str) -> str:
    """The document with its tables written anew."""
    for name, lines in GENERATED.items():
        marker = f"<!-- {name}: written by tools/write_activations.py -->"
        before, found, rest = text.partition(marker)
        if not found:
            raise RuntimeError(f"{DOCUMENT.name} has no marker {marker}")
        after = rest.partition("<!-- end -->")[2]
        text = "\n".join([f"{before}{marker}", "", *lines(), "", f"<!-- end -->{after}"])
    return text


_PROGRAM = re.compile(r"(^```python\n(.*?)^```$)(\n\n```text\n.*?^```$)?", re.M | re.S)


def with_output(text: str) -> str:
    """The document with what its programs print behind each of them."""

    def run(match: re.Match[str]) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(match[2], DOCUMENT.name, "exec"), {"__name__": "__main__"})
        output = printed.getvalue()
        return match[1] + (f"\n\n```text\n{output}```" if output else "")

    return _PROGRAM.sub(run, text)


def draw() -> None:
    """The sheets into docs/images."""
    IMAGES.mkdir(exist_ok=True)
    drawn = {"common": COMMON, **{sheet: names for sheet, (names, _) in sheets().items()}}
    for sheet, names in drawn.items():
        for theme in THEMES:
            figure = fastact.plot(names, theme=theme)
            # Without the version of matplotlib: the same bytes each time.
            figure.savefig(IMAGES / f"{sheet}-{theme}.png", dpi=100, metadata={"Software": None})


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Writes tables and pictures of activations.md.")
    parser.add_argument("--check", action="store_true", help="fail where a table is out of date")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    text = DOCUMENT.read_text()
    if arguments.check:
        now = with_tables(text)
        changes = difflib.unified_diff(
            text.splitlines(), now.splitlines(), "committed", "now", n=0, lineterm=""
        )
        print(*changes, sep="\n", file=sys.stderr)
        return int(now != text)
    DOCUMENT.write_text(with_output(with_tables(text)))
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
