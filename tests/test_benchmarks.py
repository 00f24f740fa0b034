"""Does `python -m benchmarks` run end to end in each suite and mode, and report what it found?

Whether a figure is good is not asked here: nothing about time is asserted.
"""

import csv
import importlib
import json
from pathlib import Path

import pytest

import fastact

pytest.importorskip("rich")

# The cheapest case of each suite, and one that is converted.
CASES = [
    "overhead/relu/64/fp32",
    "activations/gelu/64/fp32",
    "linear/linear+prelu/module/32x64x10/fp32",
    "networks/network_residual+relu/module/1x10x50/fp32",
    "softmax/softmax/2048x512/fp32",
    "conv/conv_channels_last+relu/module/4x120x28x120x5x2x120/fp32",
    "rnn/gru/module/5x3x10x20x2/fp32",
    "models/mobilenet_v3_small/module/1x224/fp32",
]
if hasattr(fastact.functional, "masked_softmax"):
    CASES.append("softmax/causal_softmax/4x8x256x256/fp32")
CONTENDERS = ["eager", "fastact", "fastact_converted"]


@pytest.fixture
def benchmarks(monkeypatch, tmp_path):
    """Imports a module of the package, which belongs to the checkout and is not installed."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)

    def load(name):
        return importlib.import_module(f"benchmarks.{name}")

    monkeypatch.setattr(load("__main__"), "RESULTS", tmp_path)
    monkeypatch.setattr(load("limits"), "TABLE_BYTES", (1 << 14, 1 << 16))
    return load


@pytest.mark.parametrize(
    ("mode", "least", "status"), [("infer", "1e-9", 0), ("train", "1e9", 1)], ids=["infer", "train"]
)
def test_every_suite(benchmarks, tmp_path, capsys, mode, least, status):
    found = tmp_path / "found.json"
    arguments = ["--mode", mode, "--threads", "1", "--rounds", "1", "--name", "run"]
    arguments += ["--contenders", ",".join(CONTENDERS), "--fail-below", least]
    arguments += ["--json", str(found), "--csv", str(tmp_path / "found.csv")]
    for case in CASES:
        arguments += ["--only", case]
    assert benchmarks("__main__").main(arguments) == status

    printed = capsys.readouterr()
    for case in CASES:
        ours = "fastact_converted" if case.startswith("models/") else "fastact"
        assert (f"below {float(least)}: {case} {ours}: " in printed.err) == (status == 1)
    report = (tmp_path / "latest.md").read_text()
    for title in ("Limits of this machine", *(f"Suite {case.split('/')[0]}" for case in CASES)):
        assert title in printed.out and f"## {title}\n" in report
    assert ("gradient error" in report) == (mode == "train")

    content = json.loads(found.read_text())
    assert json.loads((tmp_path / "run.json").read_text()) == content
    assert (content["machine"]["mode"], content["baseline"]) == (mode, "eager")
    assert content["absent"] == {}
    with (tmp_path / "found.csv").open() as file:
        assert [row["case"] for row in csv.DictReader(file)] == [
            record["case"] for record in content["records"]
        ]
    times = [record for record in content["records"] if record["metric"] == "time"]
    assert {(record["case"], record["contender"]) for record in times} == {
        (case, name)
        for case in CASES
        for name in CONTENDERS
        if name != "fastact_converted"
        or case.split("/")[0] in ("linear", "networks", "conv", "rnn", "models")
        if name != "fastact" or case.split("/")[0] != "models"
    }
    for record in times:
        assert record["failure"] is None and record["median"] > 0 and record["ratio"] > 0, record
        assert 0 <= record["error"] < 1e-5, record
        if mode == "train":
            assert 0 <= record["gradient_error"] < 1e-5, record
        else:
            assert record["gradient_error"] is None
        if record["suite"] == "softmax":
            assert record["limit_share"] > 0 and record["limit"] in ("copy", "arithmetic")
    cycles = {row["case"] for row in content["records"] if row["metric"] == "cycles"}
    assert ("gelu/3K/fp32 with outliers" in {name.split("/", 1)[1] for name in cycles}) == (
        mode == "infer"
    )


def outcome(benchmarks, **contenders):
    """An outcome of one case: each contender's seconds, or the reason of its failure."""
    Result = benchmarks("measure").Result
    case = next(benchmarks("suites").cases(["linear"]))
    results = {
        name: Result(failure=value)
        if isinstance(value, str)
        else Result(rounds=[value], samples=[value], error=0.0, bytes=1)
        for name, value in contenders.items()
    }
    machine = benchmarks("machine").facts(1, "infer", 0.0, {})
    absent = {"openvino": "No module named 'openvino'", "zentorch": "too old"}
    return case, benchmarks("outcome").Outcome(
        machine, "eager", list(contenders), absent, None, "no compiler", [(case, results)]
    )


def test_fail_below_takes_failures_for_slowness(benchmarks):
    case, found = outcome(benchmarks, eager=2.0, fastact=1.0, fastact_converted="no memory")
    assert found.below(1.5) == [(f"{case.name} fastact_converted", "no memory")]
    assert (f"{case.name} fastact", "2.000x") in found.below(2.5)
    case, found = outcome(benchmarks, eager="no memory", fastact=1.0)
    assert found.below(0.1) == [(f"{case.name} fastact", "eager failed")]


def test_absent_contenders_are_named_in_one_line(benchmarks):
    case, found = outcome(benchmarks, eager=2.0, fastact="no memory")
    notes = benchmarks("report").notes(found)
    assert "absent: openvino (No module named 'openvino'), zentorch (too old)" in notes
    assert "limits: not measured (no compiler)" in notes
    assert f"{case.name}: fastact failed: no memory" in notes


def test_cases_have_names_of_their_own_and_quick_ones(benchmarks):
    suites = benchmarks("suites")
    for suite in suites.SUITES:
        cases = list(suites.cases([suite]))
        names = [case.name for case in cases]
        assert len(set(names)) == len(names)
        assert any(case.quick for case in cases)
        assert suites.Case.from_json(json.loads(json.dumps(cases[-1].to_json()))) == cases[-1]


def test_means_keep_one_row_for_the_same_cases(benchmarks):
    _, found = outcome(benchmarks, eager=2.0, fastact=1.0)
    results = found.results[0][1]
    found.results = [(case, results) for case in benchmarks("suites").cases(["linear"])]
    titles = [title for title, _ in benchmarks("report").selections(found)]
    wide = "linear M >= 32 fp32"
    assert {wide, f"{wide}: M <= 128", f"{wide}: M > 128", "suite linear"} < {*titles}
    found.results = [pair for pair in found.results if pair[0].label == f"{wide}: M > 128"]
    assert [title for title, _ in benchmarks("report").selections(found)] == [f"{wide}: M > 128"]
