"""The run as data: one metric a record, in JSON and CSV. README.md describes the fields."""

import csv
import json

FIELDS = (
    "suite",
    "class",
    "case",
    "kernel",
    "dtype",
    "contender",
    "metric",
    "unit",
    "median",
    "p20",
    "p80",
    "rounds",
    "ratio",
    "error",
    "gradient_error",
    "limit_share",
    "limit",
    "failure",
)
MACHINE_COLUMNS = ("cpu", "cores", "threads", "mode", "load", "python", "torch", "revision", "date")


def record(**fields):
    return {**dict.fromkeys(FIELDS), **fields}


def limit_records(limits):
    def limit(kind, case, unit, value):
        return record(
            **{"suite": "limits", "class": kind, "case": f"limits/{case}", "contender": "machine"},
            metric=kind,
            unit=unit,
            median=value,
        )

    for name, rate in limits.flops.items():
        yield limit("arithmetic", name, "GFLOP/s", rate / 1e9)
    for row in limits.bandwidth:
        for kind in ("read", "copy"):
            yield limit("bandwidth", f"{kind} {row['bytes']} bytes", "GB/s", row[kind] / 1e9)
    for name, seconds in limits.calls.items():
        yield limit("call", name, "us", seconds * 1e6)
    for name, found in limits.arithmetic.items():
        for data, seconds in found.items():
            case = f"{name.removeprefix('limits/')} {data}"
            yield limit("cycles", case, "cycles/16", 16 * seconds * limits.clock)


def case_record(outcome, case, results, name):
    result = results[name]
    fields = {
        "suite": case.suite,
        "class": case.label,
        "case": case.name,
        "kernel": case.kernel,
        "dtype": case.dtype,
        "contender": name,
        "metric": "time",
        "unit": "us",
    }
    if result.failure:
        return record(**fields, failure=result.failure)
    comparison = outcome.compare(case, results, name)
    return record(
        **fields,
        median=result.seconds * 1e6,
        p20=result.percentile(20) * 1e6,
        p80=result.percentile(80) * 1e6,
        rounds=len(result.rounds),
        ratio=comparison.over_baseline,
        error=result.error,
        gradient_error=result.gradient_error,
        limit_share=comparison.limit_share,
        limit=comparison.limit,
    )


def records(outcome):
    rows = list(limit_records(outcome.limits)) if outcome.limits else []
    for case, results in outcome.results:
        rows.extend(case_record(outcome, case, results, name) for name in results)
    return rows


def write_json(path, outcome):
    content = {
        "machine": outcome.machine,
        "baseline": outcome.baseline,
        "absent": outcome.absent,
        "records": records(outcome),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def write_csv(path, outcome):
    machine = {name: outcome.machine[name] for name in MACHINE_COLUMNS}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*FIELDS, *MACHINE_COLUMNS])
        writer.writeheader()
        writer.writerows({**row, **machine} for row in records(outcome))
