"""The run for readers: tables for the terminal and the same ones in Markdown."""

from dataclasses import dataclass
from typing import NamedTuple

import rich.table
from rich.console import Console
from rich.text import Text

from .outcome import geometric_mean

PLAIN_WIDTH = 200  # of a console that is not a terminal


class Cell(NamedTuple):
    text: str
    style: str = ""


@dataclass(frozen=True)
class Table:
    title: str
    header: list[str]
    rows: list[list[Cell]]


NONE = Cell("-", "dim")


def time_cell(result):
    if result is None:
        return NONE
    if result.failure:
        return Cell("failed", "red")
    microseconds = result.seconds * 1e6
    digits = 2 if microseconds < 10 else 1 if microseconds < 1000 else 0
    return Cell(f"{microseconds:,.{digits}f}")


def ratio_cell(value, peer=""):
    if value is None:
        return NONE
    return Cell(f"{value:.2f}x {peer}".rstrip(), "red" if value < 1 else "green")


def share_cell(value):
    return NONE if value is None else Cell(f"{value:.0%}")


def error_cell(results, name, baseline):
    def text(which):
        result = results.get(which)
        return "-" if result is None or result.failure else f"{result.error:.1e}"

    return Cell(f"{text(name)} / {text(baseline)}")


def suite_table(outcome, suite):
    header = ["case", *(f"{name} µs" for name in outcome.contenders)]
    for name in outcome.subjects:
        header += [
            f"{name} over {outcome.baseline}",
            "over best peer",
            f"error {name} / {outcome.baseline}",
            "of limit",
        ]
    rows = []
    for case, results in outcome.results:
        if case.suite != suite:
            continue
        row = [
            Cell(case.name.removeprefix(f"{suite}/")),
            *(time_cell(results.get(name)) for name in outcome.contenders),
        ]
        for name in outcome.subjects:
            if name not in results or results[name].failure:
                row += [NONE] * 4
                continue
            found = outcome.compare(case, results, name)
            row += [
                ratio_cell(found.over_baseline),
                ratio_cell(found.over_best_peer, found.best_peer or ""),
                error_cell(results, name, outcome.baseline),
                share_cell(found.limit_share),
            ]
        rows.append(row)
    return Table(f"Suite {suite}", header, rows)


def mean_row(outcome, title, selected):
    """Geometric means over the selected cases, each over those that the contender finished."""
    row = [Cell(title), Cell(str(sum(selected(case) for case, _ in outcome.results)))]
    for name in outcome.contenders:
        if name != outcome.baseline:
            found = outcome.comparisons(name, selected)
            row.append(ratio_cell(geometric_mean(each.over_baseline for each in found)))
    for name in outcome.subjects:
        found = outcome.comparisons(name, selected)
        over_best = [each.over_best_peer for each in found if each.over_best_peer]
        errors = [
            results[name].error
            for case, results in outcome.results
            if selected(case) and name in results and not results[name].failure
        ]
        row += [
            ratio_cell(geometric_mean(over_best)),
            ratio_cell(min(over_best, default=None)),
            Cell(f"{max(errors):.1e}") if errors else NONE,
            share_cell(geometric_mean(each.limit_share for each in found)),
        ]
    return row


def means_table(outcome):
    header = ["class", "cases"]
    header += [
        f"{name} over {outcome.baseline}" for name in outcome.contenders if name != outcome.baseline
    ]
    for name in outcome.subjects:
        header += [f"{name} over best peer", "least", "largest error", "of limit"]
    cases = [case for case, _ in outcome.results]
    rows = []
    for suite in dict.fromkeys(case.suite for case in cases):
        for label in dict.fromkeys(case.label for case in cases if case.suite == suite):
            rows.append(
                mean_row(
                    outcome,
                    label,
                    lambda case, suite=suite, label=label: (
                        (case.suite, case.label) == (suite, label)
                    ),
                )
            )
        rows.append(
            mean_row(outcome, f"suite {suite}", lambda case, suite=suite: case.suite == suite)
        )
    rows.append(mean_row(outcome, "all", lambda case: True))
    return Table("Geometric means", header, rows)


def limits_table(limits):
    rows = [[Cell(name), Cell(f"{rate / 1e9:,.0f} GFLOP/s")] for name, rate in limits.flops.items()]
    for row in limits.bandwidth:
        kib = row["bytes"] / 1024
        size = f"{kib / 1024:.4g} MiB" if kib >= 1024 else f"{kib:.4g} KiB"
        rates = f"{row['read'] / 1e9:,.0f} / {row['copy'] / 1e9:,.0f} GB/s"
        rows.append([Cell(f"read / copy of {size}"), Cell(rates)])
    for name, seconds in limits.calls.items():
        rows.append([Cell(f"call: {name}"), Cell(f"{seconds * 1e6:.3f} µs")])
    return Table("Limits of this machine", ["what", "at most"], rows)


def notes(outcome):
    """Everything that is not a table: the machine on top, what is missing below it."""
    machine = outcome.machine
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; "
        f"torch {machine['torch']}, Python {machine['python']}; mode {machine['mode']}; "
        f"load before the run {machine['load']}; revision {machine['revision']}; {machine['date']}",
    ]
    for name, facts in machine["contenders"].items():
        lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
    lines += [f"{name}: absent ({reason})" for name, reason in outcome.absent.items()]
    if outcome.limits is None:
        lines.append(f"limits: not measured ({outcome.no_limits})")
    for case, results in outcome.results:
        for name, result in results.items():
            if result.failure:
                lines.append(f"{case.name}: {name} failed: {result.failure}")
    return lines


def tables(outcome):
    if outcome.limits is not None:
        yield limits_table(outcome.limits)
    for suite in dict.fromkeys(case.suite for case, _ in outcome.results):
        yield suite_table(outcome, suite)
    if outcome.results:
        yield means_table(outcome)


def show(outcome, file=None):
    console = Console(file=file)
    if not console.is_terminal:
        console = Console(file=file, width=PLAIN_WIDTH)
    for line in notes(outcome):
        console.print(Text(line))
    for table in tables(outcome):
        drawn = rich.table.Table(title=table.title, title_justify="left")
        for index, name in enumerate(table.header):
            drawn.add_column(name, justify="right" if index else "left", no_wrap=not index)
        for row in table.rows:
            drawn.add_row(*(Text(cell.text, cell.style) for cell in row))
        console.print(drawn)


def markdown(outcome):
    lines = ["# Benchmark report", ""]
    lines += [f"- {line}" for line in notes(outcome)]
    for table in tables(outcome):
        lines += ["", f"## {table.title}", ""]
        lines.append("| " + " | ".join(table.header) + " |")
        lines.append("|---" + "|---:" * (len(table.header) - 1) + "|")
        lines += ["| " + " | ".join(cell.text for cell in row) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"
