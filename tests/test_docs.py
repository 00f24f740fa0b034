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
from tools import write_accuracy

ROOT = Path(__file__).parent.parent
README, GUIDE = ROOT / "README.md", ROOT / "docs" / "adding-an-activation.md"
OPERATOR_GUIDE = ROOT / "docs" / "adding-an-operator.md"
# Whose programs have tests of their own: here, and in test_guide.py.
TESTED_ELSEWHERE = (GUIDE, OPERATOR_GUIDE, ROOT / "docs" / "activations.md")
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


def each(found):
    """A case for each thing that is found in a document."""
    return [
        pytest.param(document, thing, id=f"{document.name}-{i}")
        for document in DOCUMENTS
        for i, thing in enumerate(found(document))
    ]


def prose(document):
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S)


PROGRAMS = each(lambda d: blocks(d, "python") if d not in TESTED_ELSEWHERE else ())
LINKS = each(lambda d: [t for t in re.findall(r"\]\(([^)#]+)", prose(d)) if "://" not in t])


@pytest.mark.parametrize("document, program", PROGRAMS)
def test_programs_run(document, program):
    python(program, ROOT)


@pytest.mark.parametrize("document, target", LINKS)
def test_links_lead_somewhere(document, target):
    assert (document.parent / target).exists()


def test_the_readme_shows_programs_and_links():
    for found in (PROGRAMS, LINKS):
        assert README in [case.values[0] for case in found]


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
    return write_accuracy.Table("Outputs (ULP)", list(row), [list(row.values())])


def test_accuracy_document_keeps_other_sections(tmp_path):
    document = tmp_path / "accuracy.md"
    write_accuracy.write_section(
        document, "avx2", write_accuracy.section_of([table(float32="0.7")], "one")
    )
    write_accuracy.write_section(document, "baseline", write_accuracy.section_of([table()], "two"))
    write_accuracy.write_section(
        document, "baseline", write_accuracy.section_of([table(float32="0.6")], "3")
    )
    sections = write_accuracy.read_sections(document)
    assert list(sections) == ["avx2", "baseline"]
    assert "`one`" in sections["avx2"]
    assert "`two`" not in sections["baseline"]
    figures = write_accuracy.figures_in(sections["baseline"])
    assert figures["Outputs (ULP)", "tanh", "float32"] == 0.6
    assert ("Outputs (ULP)", "tanh", "bound") not in figures


def test_accuracy_check_notices_what_has_grown():
    committed = "\n".join(write_accuracy.section_of([table()], "-").splitlines())
    assert not write_accuracy.grown([table()], committed)
    assert not write_accuracy.grown([table(float32="0.504")], committed)
    assert write_accuracy.grown([table(float32="0.506")], committed)
    assert write_accuracy.grown([table(bfloat16="differs")], committed)
    assert not write_accuracy.grown([table(bfloat16="equal")], committed)
    assert not write_accuracy.grown([table(bound="9.0")], committed)


def test_committed_accuracy_is_complete_and_has_not_grown(capsys):
    sections = write_accuracy.read_sections(write_accuracy.DOCUMENT)
    strides = {
        isa: int((re.search(r"--stride (\d+)", text.partition("###")[0]) or [0, 1])[1])
        for isa, text in sections.items()
    }
    assert strides["avx512"] == 1  # every input
    isa = write_accuracy.own_section()
    if isa not in sections:
        pytest.skip(f"docs/accuracy.md was not measured with {isa}")
    measured = {name for _, name, _ in write_accuracy.figures_in(sections[isa])}
    assert measured == {case.row.name for case in accuracy.MEASURED}
    assert "FAIL" not in sections[isa]
    # Inputs that the section has measured, too: of every section, and of what is compared with
    # PyTorch, which takes one in STRIDE_OF_PYTORCH.
    stride = strides[isa] * accuracy.STRIDE_OF_PYTORCH
    stride *= max(1, 65537 // stride)
    assert write_accuracy.main(["--stride", str(stride), "--check"]) == 0, capsys.readouterr().err


# ---- docs/operators.md -------------------------------------------------------------------------


def test_operators_document_is_up_to_date(capsys):
    if f"PyTorch here is {operators.TORCH}." not in operators.DOCUMENT.read_text():
        pytest.skip(f"docs/operators.md was not made with PyTorch {operators.TORCH}")
    assert operators.main(["--check"]) == 0, capsys.readouterr().err


# ---- docs/adding-an-activation.md, docs/adding-an-operator.md ----------------------------------


def copy_sources(folder):
    folders = ("csrc", "fastact", "build_backend", "benchmarks", "tests")
    for name in (*folders, "setup.py", "pyproject.toml", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)


def copy_build(folder):
    """What was built of the sources, so that only what the edits touch is built again."""
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


# A file of the operator's guide, by its path.
NEW_FILES = re.compile(r"^`(\S+)`:\n\n```(?:cpp|python)\n(.*?)^```$", re.M | re.S)
MOST_EDITS = 9  # beside the family's own folder


def apply_guides(folder):
    """The edits of both guides."""
    patches = [*blocks(GUIDE, "diff"), *blocks(OPERATOR_GUIDE, "diff")]
    assert len(patches) == 3 + 8
    for patch in patches:
        # One line of context on each side has to be there: a neighbour's neighbour may change.
        run(folder, "git", "apply", "--recount", "-C1", "-", input=patch)
    for path, text in NEW_FILES.findall(OPERATOR_GUIDE.read_text()):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)


def test_the_guides_apply(tmp_path):
    copy_sources(tmp_path)
    apply_guides(tmp_path)
    assert "squared_relu" in (tmp_path / "fastact/activations.py").read_text()
    assert (tmp_path / "csrc/ops/linear_swiglu").is_dir()


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the repository with the edits of both guides, built: five minutes and more."""
    folder = tmp_path_factory.mktemp("extended")
    copy_sources(folder)
    copy_build(folder)
    apply_guides(folder)
    run(folder, sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
    return folder


@pytest.mark.slow
def test_adding_an_activation(extended):
    [program] = blocks(GUIDE, "python")
    python(program, extended)
    assert python(FOLLOWS.format(folder=str(extended)), extended).strip() == "all of it"


@pytest.mark.slow
def test_adding_an_operator(extended):
    environment = os.environ | {"PYTHONPATH": str(extended)}
    tests = ["tests/test_linear_swiglu.py", "tests/test_registry.py", "tests/test_opcheck.py"]
    run(extended, sys.executable, "-m", "pytest", "-q", *tests, env=environment)
    said = ["--suite", "linear_swiglu", "--list"]
    run(extended, sys.executable, "-m", "benchmarks", *said, env=environment)
    program = """
import torch, fastact
from torch.utils.flop_counter import FlopCounterMode
from fastact import functional as FF
x, weight = torch.randn(3, 5), torch.randn(8, 5)
with FlopCounterMode(display=False) as counter:
    FF.linear_swiglu(x, weight)
assert counter.get_total_flops() == 2 * 3 * 5 * 8
class Gated(torch.nn.Module):
    def forward(self, x):
        return FF.linear_swiglu(x, weight)
exported = torch.export.export(Gated(), (x,))
assert "fastact.linear_swiglu" in exported.graph_module.code
torch.testing.assert_close(exported.module()(x), FF.linear_swiglu(x, weight))
for row in fastact.explain(FF.linear_swiglu, x.bfloat16(), weight.bfloat16()).rows:
    print(row.engine, row.reason)
"""
    assert "no kernel for 16-bit numbers in linear_swiglu" in python(program, extended)


def test_an_operator_takes_few_edits():
    text = OPERATOR_GUIDE.read_text()
    edited = set(re.findall(r"^--- a/(\S+)", text, re.M))
    outside = {path for path, _ in NEW_FILES.findall(text) if not path.startswith("csrc/ops/")}
    assert len(edited) == 8 and len(edited | outside) <= MOST_EDITS
    assert "three files in a folder, and eight edits elsewhere" in " ".join(text.split())
