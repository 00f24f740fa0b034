"""Does what the documents say still work: their programs, links, edits and figures?"""

import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastact
from fastact.testing import accuracy, operators

ROOT = Path(__file__).parent.parent
README, GUIDE = ROOT / "README.md", ROOT / "docs" / "adding-an-activation.md"
# Whose programs have tests of their own: here, and in test_guide.py.
TESTED_ELSEWHERE = (GUIDE, ROOT / "docs" / "activations.md")
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTED = [
    "",
    ".conversion.convert",
    ".environment",
    ".explanation.watching",
    ".functional",
    ".memory",
]
DOCUMENTED += [".nn.linear", ".testing.ulp", ".advice", ".advice.merging", ".drawing"]
DOCUMENTED += [".selftest"]


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.M | re.S)


def python(program, folder):
    """Runs it in a folder, whose fastact it imports."""
    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


# ---- programs and links ------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_programs_run(document):
    programs = blocks(document, "python")
    if document == README:
        assert programs, "the README shows no program"
    for program in programs if document not in TESTED_ELSEWHERE else ():
        python(program, ROOT)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("name", DOCUMENTED)
def test_examples_in_docstrings(name):
    if name == ".drawing":
        pytest.importorskip("matplotlib")
    module = importlib.import_module(f"fastact{name}")
    known = {"torch": torch, "fastact": fastact, "FF": fastact.functional, "fnn": fastact.nn}
    outcome = doctest.testmod(module, extraglobs=known)
    assert outcome.attempted > 0
    assert outcome.failed == 0


# ---- docs/accuracy.md --------------------------------------------------------------------------


def table(**cells):
    row = {"activation": "tanh", "float32": "0.505", "bound": "1.0", "bfloat16": "0.499"} | cells
    return accuracy.Table("Outputs (ULP)", list(row), [list(row.values())])


def test_accuracy_document_keeps_other_sections(tmp_path):
    document = tmp_path / "accuracy.md"
    accuracy.write_section(document, "avx2", accuracy.section_of([table(float32="0.7")], "one"))
    accuracy.write_section(document, "baseline", accuracy.section_of([table()], "two"))
    accuracy.write_section(document, "baseline", accuracy.section_of([table(float32="0.6")], "3"))
    sections = accuracy.read_sections(document)
    assert list(sections) == ["avx2", "baseline"]
    assert "`one`" in sections["avx2"]
    assert "`two`" not in sections["baseline"]
    figures = accuracy.figures_in(sections["baseline"])
    assert figures["Outputs (ULP)", "tanh", "float32"] == 0.6
    assert ("Outputs (ULP)", "tanh", "bound") not in figures


def test_accuracy_check_notices_what_has_grown():
    committed = "\n".join(accuracy.section_of([table()], "-").splitlines())
    assert not accuracy.grown([table()], committed)
    assert not accuracy.grown([table(float32="0.504")], committed)
    assert accuracy.grown([table(float32="0.506")], committed)
    assert accuracy.grown([table(bfloat16="differs")], committed)
    assert not accuracy.grown([table(bfloat16="equal")], committed)
    assert not accuracy.grown([table(bound="9.0")], committed)


def test_committed_accuracy_is_complete_and_has_not_grown(capsys):
    sections = accuracy.read_sections(accuracy.DOCUMENT)
    strides = {
        isa: int((re.search(r"--stride (\d+)", text.partition("###")[0]) or [0, 1])[1])
        for isa, text in sections.items()
    }
    assert strides["avx512"] == 1  # every input
    isa = accuracy.own_section()
    if isa not in sections:
        pytest.skip(f"docs/accuracy.md was not measured with {isa}")
    measured = {name for _, name, _ in accuracy.figures_in(sections[isa])}
    assert measured == {case.row.name for case in accuracy.MEASURED}
    assert "FAIL" not in sections[isa]
    # Inputs that the section has measured, too: of every section, and of what is compared with
    # PyTorch, which takes one in STRIDE_OF_PYTORCH.
    stride = strides[isa] * accuracy.STRIDE_OF_PYTORCH
    stride *= max(1, 65537 // stride)
    assert accuracy.main(["--stride", str(stride), "--check"]) == 0, capsys.readouterr().err


# ---- docs/operators.md -------------------------------------------------------------------------


def test_operators_document_is_up_to_date(capsys):
    if f"PyTorch here is {operators.TORCH}." not in operators.DOCUMENT.read_text():
        pytest.skip(f"docs/operators.md was not made with PyTorch {operators.TORCH}")
    assert operators.main(["--check"]) == 0, capsys.readouterr().err


# ---- docs/adding-an-activation.md --------------------------------------------------------------


def copy_of_the_repository(folder):
    """The sources, and what was built of them, so that only what the edits touch is built again."""
    for name in ("csrc", "fastact", "build_backend", "setup.py", "pyproject.toml", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    built = Path("build", f"torch-{torch.__version__}-{sys.implementation.cache_tag}")
    if not (ROOT / built / "build.ninja").exists():
        pytest.skip("no build folder beside the tests")
    shutil.copytree(ROOT / built, folder / built)
    # The kernels are compiled without optimisation: half the time.
    setup = folder / "setup.py"
    text = setup.read_text()
    assert '"-O3", "-ffp-contract=off"' in text
    setup.write_text(text.replace('"-O3", "-ffp-contract=off"', '"-O0", "-ffp-contract=off"'))


def run(folder, *command, **options):
    finished = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=900, **options
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


# What the guide promises to follow from its edits, beside its own program.
FOLLOWS = """
import torch, fastact
from fastact import functional as FF
from fastact.testing import accuracy

assert fastact.__file__.startswith({folder!r}), fastact.__file__
[case] = [case for case in accuracy.MEASURED if case.row.name == "squared_relu"]
for dtype in accuracy.DTYPES:
    errors = accuracy.sweep(accuracy.errors_of, case, dtype, stride=65537)
    assert not accuracy.violations(case, dtype, errors)
x = torch.randn(3, 50, dtype=torch.float64, requires_grad=True)
assert torch.autograd.gradcheck(FF.squared_relu, x)
assert torch.autograd.gradgradcheck(FF.squared_relu, x)
torch.library.opcheck(torch.ops.fastact.squared_relu, (x, 0.5))
torch.testing.assert_close(
    torch.func.vmap(FF.squared_relu)(x), torch.relu(x) ** 2)
y = torch.ops.fastact.squared_relu_(x.detach().clone(), 3.0)
torch.testing.assert_close(y, 3 * torch.relu(x.detach()) ** 2)
try:
    FF.linear(x, x, activation="squared_relu", slop=1)
except TypeError as error:
    assert "takes scale" in str(error)
print("all of it")
"""


def test_adding_an_activation(tmp_path):
    patches = blocks(GUIDE, "diff")
    assert len(patches) == 3
    copy_of_the_repository(tmp_path)
    for patch in patches:
        run(tmp_path, "git", "apply", "--recount", "-", input=patch)
    run(tmp_path, sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    [program] = blocks(GUIDE, "python")
    python(program, tmp_path)
    assert python(FOLLOWS.format(folder=str(tmp_path)), tmp_path).strip() == "all of it"
