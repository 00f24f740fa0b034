"""The run for readers: tables for the terminal and the same ones in Markdown."""

from dataclasses import dataclass
from typing import NamedTuple

import rich.table
from rich.console import Console
from rich.text import Text

from .outcome import finished, geometric_mean

PLAIN_WIDTH = 240  # of a console that is not a terminal


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


def share_cell(value, limit=""):
    return NONE if value is None else Cell(f"{value:.0%} {limit or ''}".rstrip())


def error_cell(*errors):
    """The error, or several side by side; None where it was not measured."""
    texts = ["-" if error is None else f"{error:.1e}" for error in errors]
    return NONE if {*texts} == {"-"} else Cell(" / ".join(texts))


def figures_header(outcome, peer=""):
    """The columns that a case and a geometric mean have in common."""
    gradients = [f"gradient error{peer}"] if outcome.train else []
    return [f"over {outcome.baseline}", "over best peer", f"error{peer}", *gradients, "of limit"]


def error_kinds(outcome):
    return ("error", "gradient_error") if outcome.train else ("error",)


def suite_table(outcome, suite):
    """A row for each case and each contender that the report is about."""
    found = [(case, results) for case, results in outcome.results if case.suite == suite]
    present = [name for name in outcome.contenders if any(name in results for _, results in found)]
    subjects = [name for name in present if name in outcome.subjects] or present[-1:]
    others = [name for name in present if name not in subjects]
    header = ["case", *(f"{name} µs" for name in others), "contender", "µs"]
    header += figures_header(outcome, f" / {outcome.baseline}'s")
    rows = []
    for case, results in found:
        for name in filter(results.__contains__, subjects):
            row = [
                Cell(case.name.removeprefix(f"{suite}/")),
                *(time_cell(results.get(other)) for other in others),
                Cell(name),
                time_cell(results[name]),
            ]
            if results[name].failure:
                row += [NONE] * (len(header) - len(row))
            else:
                row += case_figures(outcome, case, results, name)
            rows.append(row)
    return Table(f"Suite {suite}", header, rows)


def case_figures(outcome, case, results, name):
    found = outcome.compare(case, results, name)
    pair = [results[name], results.get(outcome.baseline)]
    return [
        ratio_cell(found.over_baseline),
        ratio_cell(found.over_best_peer, found.best_peer or ""),
        *(
            error_cell(*(getattr(each, kind, None) for each in pair))
            for kind in error_kinds(outcome)
        ),
        share_cell(found.limit_share, found.limit),
    ]


def mean_row(outcome, title, name, others, selected):
    """Geometric means over the selected results that the contender finished, each other
    contender's over those that it finished itself. None if the contender finished none."""
    found = outcome.comparisons(name, selected)
    if not found:
        return None

    def over_baseline(which):
        return [each.over_baseline for each in outcome.comparisons(which, selected)]

    def largest(kind):
        return max(getattr(results[name], kind) for _, results in finished(name, selected))

    ratios = [each.over_baseline for each in found if each.over_baseline]
    over_best = [each.over_best_peer for each in found if each.over_best_peer]
    return [
        Cell(title),
        *(ratio_cell(geometric_mean(over_baseline(other))) for other in others),
        Cell(name),
        Cell(str(len(found))),
        ratio_cell(geometric_mean(ratios)),
        ratio_cell(min(ratios, default=None)),
        ratio_cell(geometric_mean(over_best)),
        ratio_cell(min(over_best, default=None)),
        *(error_cell(largest(kind)) for kind in error_kinds(outcome)),
        share_cell(geometric_mean(each.limit_share for each in found)),
    ]


def selections(outcome):
    """(title, results) of the rows of means: the classes of each suite, the suite, everything. Of
    rows with the same cases one is kept, under its narrowest class."""
    cases = [case for case, _ in outcome.results]
    found = {}
    for suite in dict.fromkeys(case.suite for case in cases):
        mine = [index for index, case in enumerate(cases) if case.suite == suite]
        for title in dict.fromkeys(title for index in mine for title in cases[index].classes):
            found[tuple(index for index in mine if title in cases[index].classes)] = title
        found.setdefault(tuple(mine), f"suite {suite}")
    found.setdefault(tuple(range(len(cases))), "all")
    return [
        (title, [outcome.results[index] for index in chosen]) for chosen, title in found.items()
    ]


def means_table(outcome):
    others = [
        name
        for name in outcome.contenders
        if name not in outcome.subjects and name != outcome.baseline
    ]
    header = [
        "class",
        *(f"{name} over {outcome.baseline}" for name in others),
        "contender",
        "cases",
    ]
    over_baseline, over_best, *rest = figures_header(outcome)
    header += [over_baseline, "least", over_best, "least", *rest]
    rows = [
        mean_row(outcome, title, name, others, selected)
        for title, selected in selections(outcome)
        for name in outcome.subjects
    ]
    return Table("Geometric means; errors are the largest", header, [row for row in rows if row])


def cycles_table(limits):
    """What the arithmetic alone takes, of our own kernels."""
    kinds = ("usual", "with outliers")
    rows = [
        [
            Cell(name.removeprefix("limits/")),
            *(Cell(f"{16 * found[kind] * limits.clock:.1f}") for kind in kinds),
        ]
        for name, found in limits.arithmetic.items()
    ]
    title = "Cycles per 16 elements of data in the first-level cache, one core"
    return Table(title, ["kernel", *kinds], rows)


def limits_table(limits):
    rows = [[Cell("clock"), Cell(f"{limits.clock / 1e9:.2f} GHz")]]
    for name, rate in limits.flops.items():
        rows.append([Cell(name), Cell(f"{rate / 1e9:,.0f} GFLOP/s")])
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
    if outcome.absent:
        reasons = (f"{name} ({reason})" for name, reason in outcome.absent.items())
        lines.append(f"absent: {', '.join(reasons)}")
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
        if outcome.limits.arithmetic:
            yield cycles_table(outcome.limits)
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
