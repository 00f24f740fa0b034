"""Do pictures show what the activations are, and do wrong arguments say what is wrong?"""

import math
import os
import re
import subprocess
import sys

import pytest
import torch

import fastact
from fastact.activations import REGISTRY
from fastact.curves import PLOTTED, Bars, Curve, cases_of, curve, curve_or_bars
from fastact.testing.cases import enabled

mpl = pytest.importorskip("matplotlib")

ELEMENTWISE = [name for name, row in PLOTTED.items() if row.elementwise]


def curve_of(name, domain=(-10.0, 10.0), **parameters):
    [case] = cases_of("plot", [name], parameters)
    return curve(case, domain)


# ---- the facts ---------------------------------------------------------------------------------

# name: infimum, supremum, value at 0, and the ends of what is saturated within -10 ... 10.
FACTS = {
    "relu": (0, math.inf, 0, [(-10, 0)]),
    "relu6": (0, 6, 0, [(-10, 0), (6, 10)]),
    "leaky_relu": (-math.inf, math.inf, 0, []),
    "elu": (-1, math.inf, 0, [(-10, -6.91)]),
    "selu": (-1.7581, math.inf, 0, [(-10, -7.47)]),
    "sigmoid": (0, 1, 0.5, [(-10, -6.91), (6.91, 10)]),
    "tanh": (-1, 1, 0, [(-10, -4.15), (4.15, 10)]),
    "hardsigmoid": (0, 1, 0.5, [(-10, -3), (3, 10)]),
    "logsigmoid": (-math.inf, 0, -math.log(2), [(6.91, 10)]),
    "softplus": (0, math.inf, math.log(2), [(-10, -6.91)]),
    "softsign": (-1, 1, 0, []),
    "silu": (-0.2785, math.inf, 0, [(-10, -8.99)]),
    "gelu": (-0.17, math.inf, 0, [(-10, -3.83)]),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts(name):
    infimum, supremum, at_zero, saturated = FACTS[name]
    found = curve_of(name)
    assert found.infimum == pytest.approx(infimum, abs=1e-4)
    assert found.supremum == pytest.approx(supremum, abs=1e-4)
    assert found.at_zero == pytest.approx(at_zero, abs=1e-12)
    assert len(found.saturated) == len(saturated)
    for (start, end), (low, high) in zip(found.saturated, saturated, strict=True):
        assert (start, end) == pytest.approx((low, high), abs=0.03)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_curves_are_the_function_and_its_derivative(name):
    found = curve_of(name)
    [case] = cases_of("plot", name, {})
    x = found.x.requires_grad_()
    y = case.twin(x, *case.tensors(x))
    torch.testing.assert_close(found.y, y.detach(), rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(found.derivative, slope, rtol=1e-6, atol=1e-6)
    assert found.error.shape == found.twins_error.shape == found.error_x.shape
    if enabled():
        assert 0 <= found.error.max() <= max(REGISTRY[name].ulp, 1.0)  # 1: a constant is rounded
    if REGISTRY[name].ulp == 0:
        assert torch.equal(found.error, found.twins_error)


def test_measured_errors_are_those_of_the_accuracy_report():
    # PyTorch's exact GELU loses all digits in the tail.
    found = curve_of("gelu")
    assert found.twins_error.max() > 1e6
    assert found.error.max() < 2 or not enabled()


def test_parameters():
    found = curve_of("leaky_relu", negative_slope=0.25)
    assert found.name == "leaky_relu(negative_slope=0.25)"
    assert found.y[0].item() == -2.5
    assert curve_of("prelu", weight=0.5).y[0].item() == -5
    assert curve_of("gelu", approximate="tanh").name == "gelu_tanh"
    names = [one.row.name for one in cases_of("plot", "all", {})]
    assert names == list(PLOTTED)


def test_bars_are_softmax_over_the_logits():
    [case] = cases_of("plot", ["softmax"], {})
    bars = curve_or_bars(case, logits=(1.0, 2.0, 3.0))
    assert isinstance(bars, Bars)
    assert bars.results == pytest.approx(torch.tensor([1.0, 2.0, 3.0]).softmax(0).tolist())


# ---- the pictures ------------------------------------------------------------------------------

SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("ending", SIGNATURES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_files(ending, theme, tmp_path):
    out = tmp_path / f"picture{ending}"
    figure = fastact.plot(["silu", "softmax"], out, theme=theme)
    assert out.read_bytes().startswith(SIGNATURES[ending])
    assert len(figure.axes) == 3  # a curve, its errors, bars


def contrast(one, other):
    """By WCAG 2: 1 to 21."""

    def luminance(colour):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_and_text_stand_out(theme):
    figure = fastact.plot(["tanh", "softmax"], theme=theme)
    rgb = mpl.colors.to_rgb
    background = figure.get_facecolor()
    for axes in figure.axes:
        assert contrast(rgb(axes.title.get_color()), background) > 7
        assert contrast(rgb(axes.xaxis.label.get_color()), background) > 7
        for line in [line for line in axes.lines if not line.get_label().startswith("_")]:
            assert contrast(rgb(line.get_color()), background) > 2.9
    # The two lines of an axes differ in more than colour.
    curve_axes, error_axes = figure.axes[0], figure.axes[2]
    labelled = [line for line in curve_axes.lines if not line.get_label().startswith("_")]
    assert len({line.get_linestyle() for line in labelled}) == 2
    labelled = [line for line in error_axes.lines if not line.get_label().startswith("_")]
    assert len({line.get_linewidth() for line in labelled}) == 2


def draw(figure):
    """Lays it out, so that what is in it has a place."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


@pytest.mark.parametrize("name", list(PLOTTED))
def test_legends_hide_no_data(name):
    figure = fastact.plot([name])
    renderer = draw(figure)
    for axes in figure.axes:
        legend = axes.get_legend()
        box = legend.get_window_extent(renderer)
        for line in axes.lines:
            if line.get_label().startswith("_"):
                continue
            points = axes.transData.transform(line.get_xydata())
            inside = axes.get_window_extent(renderer)
            for x, y in points[~torch.tensor(points).isnan().any(1).numpy()]:
                assert not (box.contains(x, y) and inside.contains(x, y)), (name, x, y)
        for patch in axes.patches:
            if name in ("softmax", "log_softmax"):
                assert not box.overlaps(patch.get_window_extent(renderer))


def test_texts_do_not_overlap():
    figure = fastact.plot(["hardtanh", "threshold", "softplus", "softmax"], min_val=-0.5, beta=2.0)
    renderer = draw(figure)
    boxes = []
    for axes in figure.axes:
        texts = [axes.title, axes._left_title, *axes.texts, axes.xaxis.label, axes.yaxis.label]
        texts += [*axes.get_legend().get_texts(), *axes.get_yticklabels(), *axes.get_xticklabels()]
        shown = [t for t in texts if t.get_visible() and t.get_text()]
        boxes += [(t.get_text(), t.get_window_extent(renderer)) for t in shown]
    for i, (text, box) in enumerate(boxes):
        for other_text, other in boxes[:i]:
            assert not box.overlaps(other), (text, other_text)
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 + 1, text


def test_every_axes_has_labels_with_units():
    figure = fastact.plot(["elu", "log_softmax"])
    assert [axes.get_ylabel() for axes in figure.axes] == ["f(x), f′(x)", "value", "error (ULP)"]
    assert figure.axes[2].get_xlabel() == "x"


# ---- wrong arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, options, text",
    [
        (["gelo"], {}, "names: expected 'all' or names of relu, .*, got 'gelo'; nearest: gelu"),
        ([], {}, "names: expected an activation or more, got none"),
        (["swiglu"], {}, "names: expected activations of one value, got 'swiglu'"),
        (["relu"], {"alpha": 1}, "alpha: expected a parameter of .*: relu takes none"),
        (["relu"], {"theme": "blue"}, "theme: expected one of light, dark, got 'blue'"),
        (["relu"], {"domain": (1, -1)}, "domain: expected two numbers, the smaller first"),
        (["softmax"], {"logits": [1.0]}, "logits: expected two or more"),
        (["relu"], {"out": "x.gif"}, r"out: expected a name ending in \.png, \.svg, \.pdf"),
    ],
)
def test_wrong_arguments(names, options, text):
    with pytest.raises(ValueError, match=rf"^fastact\.plot\(\): {text}"):
        fastact.plot(names, **options)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        fastact.plot("relu", tmp_path / "none" / "x.png")


WITHOUT_MATPLOTLIB = """
import sys
sys.modules["matplotlib"] = None
import fastact
try:
    fastact.plot("relu")
except ImportError as error:
    print(error)
"""


def test_without_matplotlib():
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_MATPLOTLIB], capture_output=True, text=True, timeout=120
    )
    assert re.search(
        r"matplotlib, which is not installed; pip install 'fastact\[plot\]'", finished.stdout
    )


IMPORTED_LATER = """
import sys, torch
before = set(sys.modules)
import fastact
new = set(sys.modules) - before
heavy = ("matplotlib", "fastact.advice", "fastact.drawing", "fastact.curves", "fastact.testing")
print(sorted(n for n in new if n.startswith(heavy)))
print({"advise", "plot", "merge_linear", "Advice"} <= set(dir(fastact)))
"""


def test_import_brings_none_of_it():
    finished = subprocess.run(
        [sys.executable, "-c", IMPORTED_LATER],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ,
    )
    assert finished.stdout.split("\n")[:2] == ["[]", "True"], finished.stderr
    assert isinstance(curve_of("relu"), Curve)
