"""Is docs/activations.md what the registry, the rules and its own programs say?"""

import contextlib
import io
import math
import re
from pathlib import Path

import pytest
import torch

from fastact.activations import REGISTRY
from fastact.advice.rules import RULES
from fastact.curves import PLOTTED, cases_of, curve
from fastact.testing.cases import enabled
from tools import write_activations as guide

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "activations.md").read_text()


# ---- tables ------------------------------------------------------------------------------------


@pytest.mark.skipif(not enabled(), reason="FASTACT_DISABLE=1: backward keeps what PyTorch's does")
def test_tables_are_up_to_date(capsys):
    assert guide.main(["--check"]) == 0, capsys.readouterr().err


def test_the_check_notices(monkeypatch, tmp_path, capsys):
    document = tmp_path / "activations.md"
    document.write_text(TEXT.replace("| `gelu` | 7 |", "| `gelu` | 6 |"))
    monkeypatch.setattr(guide, "DOCUMENT", document)
    assert guide.main(["--check"]) == 1
    assert "`gelu`" in capsys.readouterr().err


def test_tables_are_complete():
    assert guide.DERIVATIVES.keys() <= PLOTTED.keys()
    assert sorted(n for names, _ in guide.sheets().values() for n in names) == sorted(PLOTTED)
    assert guide.cycles().keys() == {n for n, row in REGISTRY.items() if row.family == "unary"}
    for name in (*PLOTTED, *RULES):
        assert f"| `{name}` |" in TEXT


def evaluated(text, x, parameters):
    """A formula in words of Python, at a number."""
    text = re.sub(r"\|x\|", "abs(x)", text)
    formula, _, part = text.partition(", ")
    names = {
        "x": x,
        **{name: getattr(math, name) for name in ("exp", "sqrt", "tanh", "log1p", "expm1", "pi")},
        "sigmoid": lambda t: 1 / (1 + math.exp(-t)),
        "Phi": lambda t: math.erfc(-t / 2**0.5) / 2,
        "phi": lambda t: math.exp(-t * t / 2) / (2 * math.pi) ** 0.5,
        "weight": 0.25,
        "scale": 1.0507009873554805,
        "alpha": 1.6732632423543772,
        **parameters,
    }
    if part:
        name, _, value = part.partition(" = ")
        names[name] = eval(value, {}, names)
    return eval(formula, {}, names)


@pytest.mark.parametrize("name", [n for n in guide.DERIVATIVES if REGISTRY[n].elementwise])
def test_derivatives(name):
    [case] = cases_of("plot", name, {})
    found = curve(case, (-4.03, 4.05))  # not through the points where it jumps
    for x, derivative in zip(found.x[::20].tolist(), found.derivative[::20].tolist(), strict=True):
        value = evaluated(guide.DERIVATIVES[name], x, REGISTRY[name].parameters)
        assert value == pytest.approx(derivative, abs=1e-6), x


def test_derivatives_of_softmax():
    x = torch.randn(5, dtype=torch.float64)
    for name, function in (("softmax", torch.softmax), ("log_softmax", torch.log_softmax)):
        y = function(x, 0).tolist()
        jacobian = torch.autograd.functional.jacobian(lambda t, f=function: f(t, 0), x)
        for i in range(5):
            for j in range(5):
                names = {"y": y, "i": i, "j": j, "exp": math.exp}
                value = eval(guide.DERIVATIVES[name], {}, names)
                assert value == pytest.approx(jacobian[i, j].item())


# ---- programs and pictures ---------------------------------------------------------------------

PROGRAMS = re.findall(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", TEXT, re.M | re.S)


@pytest.mark.parametrize("program, output", PROGRAMS, ids=lambda text: "")
def test_programs(program, output):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "docs/activations.md", "exec"), {"__name__": "__main__"})
    # Numbers depend on the processor and on PyTorch; the programs assert what matters of them.
    number = r"\d+(?:\.\d+)?(?:e[-+]\d+)?"
    assert re.sub(number, "#", printed.getvalue()) == re.sub(number, "#", output)


def test_a_new_activation_needs_no_edit_here(monkeypatch):
    # As if tanh had just been added.
    monkeypatch.delitem(guide.DERIVATIVES, "tanh")
    names, words = guide.SHEETS["saturating"]
    monkeypatch.setitem(guide.SHEETS, "saturating", (tuple(n for n in names if n != "tanh"), words))
    assert guide.sheets()["others"][0] == ("tanh",)
    assert "| `tanh` | `tanh(x)` |  | −1 … 1 | 0 |" in "\n".join(guide.formulas())


def test_every_section_has_a_program():
    sections = re.split(r"^## ", TEXT, flags=re.M)
    without = [s.splitlines()[0] for s in sections[1:] if "```python" not in s]
    assert without == ["All of them"]
    assert len(PROGRAMS) >= 12


def test_pictures_are_there():
    names = re.findall(r'(?:src|srcset)="([^"]+)"', TEXT)
    assert len(names) == 2 * (1 + len(guide.sheets()))
    for name in names:
        assert (ROOT / "docs" / name).read_bytes().startswith(b"\x89PNG")


def test_links_within_the_document():
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", TEXT, flags=re.S), re.M)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    links = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert links and set(links) <= anchors


# ---- docs/advice.md ----------------------------------------------------------------------------


def test_advice_on_architectures():
    text = (ROOT / "docs" / "advice.md").read_text()
    rows = re.findall(
        r"^\| (?:torchvision|timm|transformers) \| (\w+) \| (\d+) \| (.*?) ?\|$", text, re.M
    )
    assert len(rows) >= 40
    assert all(int(operations) > 15 for _, operations, _ in rows)
    explained = set()
    for rule, names in re.findall(r"^- \*\*([\w-]+)\*\*, ([\w, ]+):", text, re.M):
        explained |= {(name, rule) for name in names.split(", ")}
    found = {(name, rule) for name, _, rules in rows for rule in re.findall(r"[a-z][a-z-]+", rules)}
    assert found == explained
    assert {rule for _, rule in found} <= RULES.keys()
