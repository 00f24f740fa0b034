"""Pictures of activations, drawn with matplotlib (``pip install fastact[plot]``)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fastact.activations import REGISTRY
from fastact.curves import DOMAIN, LOGITS, Bars, Curve, cases_of, curve_or_bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

FORMATS = (".png", ".svg", ".pdf")

# Okabe and Ito's colours, which differ for the colour-blind too, as bright as each background asks;
# lines also differ in dashes.
THEMES: dict[str, dict[str, str]] = {
    "light": {
        "background": "#ffffff",
        "text": "#1a1a1a",
        "grid": "#d8d8d8",
        "curve": "#0072b2",
        "derivative": "#d55e00",
        "saturated": "#e9e9e9",
        "fastact": "#0072b2",
        "PyTorch": "#d55e00",
    },
    "dark": {
        "background": "#0d1117",
        "text": "#e6edf3",
        "grid": "#30363d",
        "curve": "#56b4e9",
        "derivative": "#e69f00",
        "saturated": "#21262d",
        "fastact": "#56b4e9",
        "PyTorch": "#e69f00",
    },
}
_COLUMNS = 3  # of a sheet
_WIDTH, _HEIGHT = 5.0, 4.6  # of one activation, in inches


def plot(
    names: str | Iterable[str],
    out: str | os.PathLike[str] | None = None,
    *,
    theme: str = "light",
    domain: tuple[float, float] = DOMAIN,
    logits: Sequence[float] = LOGITS,
    **parameters: Any,
) -> Figure:
    """Draws activations, all on one sheet.

    Of each: the curve and its derivative, the range, the value at 0, in grey where it saturates
    (the derivative is at most 0.001 in size); below, the error of float32 results of fastact and of
    PyTorch in ULP, the largest of 256 inputs in each of 200 bins, measured when this is called. Of
    softmax and log_softmax: what they make of a few logits, as bars.

    Args:
        names: registry names, or "all".
        out: a file to write: PNG, SVG or PDF by its ending.
        theme: "light" or "dark".
        domain: the inputs drawn, from and to.
        logits: what softmax is applied to.
        parameters: of the activations, by PyTorch's names (``negative_slope=0.1``; PReLU's is
            ``weight``), each for those that have it.

    Returns:
        The matplotlib Figure.

    Raises:
        ValueError: an unknown name, theme, ending or parameter.
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.

    Example:
        >>> figure = fastact.plot(["gelu", "leaky_relu"], negative_slope=0.1)
        >>> [axes.get_title(loc="left") for axes in figure.axes[:2]]
        ['gelu', 'leaky_relu(negative_slope=0.1)']
    """
    if theme not in THEMES:
        raise ValueError(
            f"fastact.plot(): theme: expected one of {', '.join(THEMES)}, got {theme!r}"
        )
    if not (len(domain) == 2 and all(map(math.isfinite, domain)) and domain[0] < domain[1]):
        raise ValueError(
            f"fastact.plot(): domain: expected two numbers, the smaller first, got {domain!r}"
        )
    if len(logits) < 2:
        raise ValueError(f"fastact.plot(): logits: expected two or more, got {list(logits)}")
    if out is not None and os.path.splitext(out)[1].lower() not in FORMATS:
        raise ValueError(
            f"fastact.plot(): out: expected a name ending in {', '.join(FORMATS)}, "
            f"got {os.fspath(out)!r}"
        )
    cases = cases_of("plot", names, parameters)
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "fastact.plot(): expected matplotlib, which is not installed; "
            "pip install 'fastact[plot]'"
        ) from error
    drawn = [curve_or_bars(case, domain, logits) for case in cases]
    # Not pyplot, which keeps figures and may open windows.
    with mpl.rc_context(_style(THEMES[theme])):
        figure = _sheet(drawn, THEMES[theme], Figure)
        if out is not None:
            figure.savefig(out)
    return figure


def _style(colours: dict[str, str]) -> Any:
    return {
        "font.size": 9,
        "axes.titlesize": 11,
        "axes.facecolor": colours["background"],
        "figure.facecolor": colours["background"],
        "savefig.facecolor": colours["background"],
        "savefig.dpi": 150,
        "svg.fonttype": "none",
        "svg.hashsalt": "fastact",  # the same bytes each time
        "axes.edgecolor": colours["grid"],
        "axes.labelcolor": colours["text"],
        "axes.titlecolor": colours["text"],
        "text.color": colours["text"],
        "xtick.color": colours["text"],
        "ytick.color": colours["text"],
        "grid.color": colours["grid"],
        "grid.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }


def _sheet(drawn: list[Curve | Bars], colours: dict[str, str], kind: type[Figure]) -> Figure:
    columns = 2 if len(drawn) == 4 else min(_COLUMNS, len(drawn))  # a full sheet
    rows = math.ceil(len(drawn) / columns)
    figure = kind(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[3, 1.6] * rows)
    places = [divmod(i, columns) for i in range(len(drawn))]
    upper = [
        figure.add_subplot(grid[2 * row : 2 * row + (1 if isinstance(one, Curve) else 2), column])
        for one, (row, column) in zip(drawn, places, strict=True)
    ]
    for one, axes, (row, column) in zip(drawn, upper, places, strict=True):
        if isinstance(one, Bars):
            _draw_bars(axes, one, colours)
            continue
        _draw_curve(axes, one, colours)
        _draw_errors(figure.add_subplot(grid[2 * row + 1, column], sharex=axes), one, colours)
    return figure


def _draw_curve(axes: Axes, curve: Curve, colours: dict[str, str]) -> None:
    for start, end in curve.saturated:
        axes.axvspan(start, end, color=colours["saturated"], linewidth=0, zorder=0)
    axes.axhline(0, color=colours["grid"], linewidth=1)
    axes.axvline(0, color=colours["grid"], linewidth=1)
    axes.plot(*_broken(curve.x, curve.y), color=colours["curve"], linewidth=2, label="f(x)")
    axes.plot(
        *_broken(curve.x, curve.derivative),
        color=colours["derivative"],
        linewidth=1.6,
        linestyle=(0, (4, 1.5)),
        label="f′(x)",
    )
    if curve.x[0] <= 0 <= curve.x[-1]:
        axes.plot([0], [curve.at_zero], "o", color=colours["curve"], markersize=4.5, label="_zero")
    low = min(curve.y.min().item(), curve.derivative.min().item())
    high = max(curve.y.max().item(), curve.derivative.max().item())
    # What is unbounded is cut off where the bounded part can still be seen.
    low, high = max(low, -4.0), min(high, 4.0)
    margin = 0.06 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(curve.x[0].item(), curve.x[-1].item())
    _entitle(axes, curve.name, _range(curve))
    axes.set_ylabel("f(x), f′(x)")
    axes.tick_params(labelbottom=False)
    handles, labels = axes.get_legend_handles_labels()
    if curve.saturated:
        from matplotlib.patches import Patch

        handles.append(Patch(facecolor=colours["saturated"], edgecolor=colours["grid"]))
        labels.append("saturated: |f′| ≤ 0.001")
    # Below the axes, where no curve runs.
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(0, 0), fontsize=8, ncols=3)


def _entitle(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold", pad=18)
    axes.annotate(
        subtitle, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=8.5
    )


def _broken(x: Tensor, y: Tensor) -> tuple[list[float], list[float]]:
    """A line with gaps where it jumps."""
    xs, ys = x.tolist(), y.tolist()
    out_x, out_y = xs[:1], ys[:1]
    for place, value, before in zip(xs[1:], ys[1:], ys[:-1], strict=True):
        if abs(value - before) > 0.15:
            out_x.append(place)
            out_y.append(math.nan)
        out_x.append(place)
        out_y.append(value)
    return out_x, out_y


def _range(curve: Curve) -> str:
    bounds = [
        f"{bound:.4g}" if math.isfinite(bound) else ("∞" if bound > 0 else "−∞")
        for bound in (curve.infimum, curve.supremum)
    ]
    return f"range {bounds[0]} … {bounds[1]},  f(0) = {curve.at_zero:.4g}".replace("-", "−")


def _draw_errors(axes: Axes, curve: Curve, colours: dict[str, str]) -> None:
    axes.axhline(0.5, color=colours["text"], linewidth=0.8, linestyle=(0, (1, 2)))
    # The wider line shows on both sides of the narrow one where they agree.
    for label, errors, width in (
        ("PyTorch", curve.twins_error, 3.2),
        ("fastact", curve.error, 1.2),
    ):
        axes.plot(
            curve.error_x,
            errors,
            color=colours[label],
            linewidth=width,
            drawstyle="steps-mid",
            label=f"{label}: at most {_short(errors.max().item())}",
        )
    # Linear up to 1, where 0 and 0.5 differ, and logarithmic above, for errors of all digits.
    axes.set_yscale("symlog", linthresh=1.0, linscale=1.0)
    largest = max(curve.error.max().item(), curve.twins_error.max().item())
    top = 6.0 if largest < 2 else 200 * largest  # room for the legend
    axes.set_ylim(-0.05, top)
    ticks = [
        0,
        *([0.5] if top < 10 else []),
        1,
        *(10.0**k for k in range(2, 13, 2) if 10.0**k < 8 * largest),
    ]
    axes.set_yticks(
        ticks, [f"{tick:g}" if tick < 100 else f"1e{math.log10(tick):.0f}" for tick in ticks]
    )
    axes.minorticks_off()
    axes.set_xlabel("x")
    axes.set_ylabel("error (ULP)")
    axes.legend(loc="upper right", fontsize=8, ncols=2, borderaxespad=0.1)


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.1e}"


def _draw_bars(axes: Axes, bars: Bars, colours: dict[str, str]) -> None:
    places = range(len(bars.logits))
    for offset, values, label, colour, hatch in (
        (-0.2, bars.logits, "logits", colours["derivative"], "///"),
        (0.2, bars.results, bars.name, colours["curve"], None),
    ):
        drawn = axes.bar(
            [place + offset for place in places],
            values,
            0.38,
            label=label,
            facecolor=colours["background"] if hatch else colour,
            edgecolor=colour,
            hatch=hatch,
        )
        axes.bar_label(drawn, [f"{value:.2g}" for value in values], padding=2, fontsize=8)
    axes.axhline(0, color=colours["text"], linewidth=0.8)
    probabilities = REGISTRY[bars.name].results == "probabilities"
    sum_of = f"sum of results {sum(bars.results):.4g}" if probabilities else ""
    _entitle(axes, bars.name, sum_of)
    axes.margins(y=0.12)
    axes.set_xticks(list(places), [str(place) for place in places])
    axes.set_xlabel("class")
    axes.set_ylabel("value")
    axes.grid(False, axis="x")
    axes.legend(loc="best", fontsize=8)


__all__ = ["plot"]
