"""The command line: choose cases and contenders, measure, write the report.

python -m benchmarks --quick
python -m benchmarks --suite linear --only relu --contenders eager,fastact --fail-below 1.0
"""

import argparse
import fnmatch
import sys
import time
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import cuda, limits, machine, measure, records, report
from .contenders import CONTENDERS, DEFAULT_CONTENDERS
from .operations import DTYPES, resident
from .outcome import Outcome
from .processes import Absent, Worker
from .suites import SUITE_NAMES, cases

RESULTS = Path(__file__).parents[1] / "results"
CACHE = RESULTS / ".cache"
ROUNDS, QUICK_ROUNDS = 9, 5
INTERRUPTED = 130  # the shell's exit status after Ctrl-C


def names_from(table):
    """An argument type: comma-separated names of a table, or "all"."""

    def parse(text):
        names = list(table) if text == "all" else text.split(",")
        for name in names:
            if name not in table:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(table)}")
        return names

    return parse


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add(
        "--suite",
        type=names_from(SUITE_NAMES),
        default=list(SUITE_NAMES),
        metavar="NAMES",
        help=f"comma-separated: {', '.join(SUITE_NAMES)} (default: all)",
    )
    add(
        "--only",
        action="append",
        metavar="PATTERN",
        help="cases whose name contains this text or matches this glob; repeatable",
    )
    add("--dtype", type=names_from(DTYPES), metavar="NAMES", help=f"of {', '.join(DTYPES)}")
    add("--threads", type=int, default=machine.cores(), help="default: all cores, here %(default)s")
    add("--mode", choices=("infer", "train"), default="infer", help="train: forward and backward")
    add(
        "--contenders",
        type=names_from(CONTENDERS),
        default=list(DEFAULT_CONTENDERS),
        metavar="NAMES",
        help=f"of {', '.join(CONTENDERS)}, or all (default: {','.join(DEFAULT_CONTENDERS)})",
    )
    add("--baseline", choices=CONTENDERS, default="eager", help="of the ratios (default: eager)")
    add("--quick", action="store_true", help="a representative subset, in a few minutes")
    add("--rounds", type=int, help=f"default: {ROUNDS}, or {QUICK_ROUNDS} with --quick")
    add("--name", help="of the files in results/ (default: date and time)")
    add("--json", type=Path, metavar="FILE", help="write the JSON there too")
    add("--csv", type=Path, metavar="FILE", help="write the CSV there too")
    add(
        "--fail-below",
        type=float,
        metavar="RATIO",
        help="exit with 1 if a case of fastact fails or is below this ratio to the baseline",
    )
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: the table of benchmarks/cuda.py, of which --only and --rounds choose",
    )
    add("--list", action="store_true", help="print the chosen cases and stop")
    options = parser.parse_args(arguments)
    if options.baseline not in options.contenders:
        options.contenders.insert(0, options.baseline)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    options.name = options.name or datetime.now().strftime("%Y-%m-%d-%H%M%S")
    return options


def chosen_cases(options):
    def chosen(case):
        return (
            (not options.quick or case.quick)
            and (not options.dtype or case.dtype in options.dtype)
            and (
                not options.only
                or any(fnmatch.fnmatch(case.name, f"*{pattern}*") for pattern in options.only)
            )
        )

    return [case for case in cases(options.suite) if chosen(case)]


def start_workers(options, workers):
    """Adds those that start to workers, by contender; returns the reasons of the others."""
    absent = {}
    for name in options.contenders:
        if options.mode not in CONTENDERS[name].modes:
            absent[name] = f"it does not do --mode {options.mode}"
            continue
        workers[name] = Worker(name, options.mode, options.threads)
        try:
            workers[name].start()
        except Absent as reason:
            del workers[name]
            absent[name] = str(reason)
    return absent


def measure_limits(options, selected, workers):
    """The limits, or None and the reason."""
    sizes = [limits.operand_bytes(case) for case in selected]
    if "limits" in options.suite:
        sizes += limits.TABLE_BYTES
    try:
        costs = workers["eager"].ask("call_costs") if "eager" in workers else {}
        found = limits.measure(options.threads, sizes, CACHE, costs)
        if "fastact" in workers and options.mode == "infer":
            for case in {each.name: each for each in map(resident, selected) if each}.values():
                workers["fastact"].new_case()
                answer = workers["fastact"].ask("arithmetic", case=case.to_json())
                found.arithmetic[case.name] = answer
        return found, ""
    except (limits.Unavailable, measure.Failed) as reason:
        return None, str(reason)


def measure_cases(options, selected, workers, found):
    """Appends to found, which keeps what was measured if the user interrupts."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(selected))
        for case in selected:
            progress.update(task, description=case.name)
            covering = {
                name: worker
                for name, worker in workers.items()
                if CONTENDERS[name].covers(case, options.mode)
            }
            found.append((case, measure.run_case(case, covering, options.rounds)))
            progress.advance(task)


def write(options, outcome):
    RESULTS.mkdir(exist_ok=True)
    for path in filter(None, (RESULTS / f"{options.name}.json", options.json)):
        records.write_json(path, outcome)
    for path in filter(None, (RESULTS / f"{options.name}.csv", options.csv)):
        records.write_csv(path, outcome)
    (RESULTS / "latest.md").write_text(report.markdown(outcome))


def verdict(options, outcome):
    """The exit status that --fail-below asks for."""
    if options.fail_below is None:
        return 0
    failures = outcome.below(options.fail_below)
    for name, reason in outcome.absent.items():
        if CONTENDERS[name].ours and options.mode in CONTENDERS[name].modes:
            failures.append((name, reason))
    for name, reason in failures:
        print(f"below {options.fail_below}: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def run(options, selected):
    """The outcome, and whether the user interrupted it half-way."""
    load = machine.load()
    workers, found, interrupted = {}, [], False
    try:
        absent = start_workers(options, workers)
        measured_limits, no_limits = measure_limits(options, selected, workers)
        try:
            measure_cases(options, selected, workers, found)
        except KeyboardInterrupt:
            interrupted = True
            if not found:
                raise
    finally:
        for worker in workers.values():
            worker.close()
    facts = {name: worker.facts for name, worker in workers.items()}
    outcome = Outcome(
        machine=machine.facts(options.threads, options.mode, load, facts),
        baseline=options.baseline,
        contenders=list(workers),
        absent=absent,
        limits=measured_limits,
        no_limits=no_limits,
        results=found,
    )
    return outcome, interrupted


def main(arguments=None):
    options = parse(arguments)
    if options.device == "cuda":
        return cuda.main(options.only, options.rounds, options.list)
    selected = chosen_cases(options)
    if options.list:
        print("\n".join(case.name for case in selected))
        return 0
    if not selected and options.suite != ["limits"]:
        print("no case matches", file=sys.stderr)
        return 2
    begin = time.monotonic()
    outcome, interrupted = run(options, selected)
    report.show(outcome)
    write(options, outcome)
    print(
        f"{len(outcome.results)} cases in {time.monotonic() - begin:.0f} s; "
        f"report in {RESULTS / 'latest.md'}, data in {RESULTS / options.name}.json and .csv"
    )
    return INTERRUPTED if interrupted else verdict(options, outcome)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before there was anything to report
        sys.exit(INTERRUPTED)
