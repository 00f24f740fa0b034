"""What tests of conversion share: two models, run side by side."""

from __future__ import annotations

import copy
import itertools
import math
import random
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

import fastact
from fastact.conversion import site
from fastact.exec_source import exec_source
from fastact.testing import programs

MODES = ("inference", "training")


def fused(function: Callable[[], Any]) -> list[str]:
    """What each call of a site with a layer fused while the function ran, in the order of the
    operators: "" for a layer alone."""
    found: list[str] = []

    def note(plan: Any, layer: Any, taken: list[str] | None, reason: str | None) -> None:
        if taken is not None:
            found.append(" ".join(taken))

    with site.observing(note):
        function()
    return found


def pair(make: Callable[[], torch.nn.Module], mode: str) -> tuple[Any, Any]:
    """A model, and the same converted: in evaluation without gradients, or in training."""
    torch.manual_seed(0)
    model = make().train(mode == "training")
    converted = fastact.convert(copy.deepcopy(model), mode=mode)
    if mode == "inference":
        model.requires_grad_(False)
    return model, converted


def outcome(function: Callable[[], Any]) -> dict[str, Any]:
    """All that a call does that can be seen: value or exception, warnings, log, random state."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    programs.LOG.clear()
    programs.COUNTS["calls"] = 0
    seen: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            seen["value"] = function()
        except Exception as error:
            seen["error"] = type(error), str(error)
            seen["lines"] = [
                (frame.name, frame.lineno)
                for frame in traceback.extract_tb(error.__traceback__)
                if frame.filename == programs.__file__
            ]
    seen["warnings"] = [(str(w.message), w.filename, w.lineno) for w in caught]
    seen["log"] = list(programs.LOG)
    seen["random"] = torch.rand(()).item(), random.random(), np.random.rand()
    return seen


def assert_same(actual: dict[str, Any], expected: dict[str, Any], **tolerances: Any) -> None:
    """Tensors agree within the tolerance of their dtype, everything else exactly."""
    mine, structure = tree_flatten(actual)
    theirs, expected_structure = tree_flatten(expected)
    assert structure == expected_structure, (actual, expected)
    for a, e in zip(mine, theirs, strict=True):
        if isinstance(e, Tensor):
            torch.testing.assert_close(a, e, equal_nan=True, **tolerances)
            assert type(a) is type(e) and a.requires_grad == e.requires_grad
        elif isinstance(e, float):
            assert math.isclose(a, e, rel_tol=1e-5) or (a != a and e != e), (actual, expected)
        else:
            assert type(a) is type(e) and repr(a) == repr(e), (actual, expected)


def gradients(value: Any, parameters: Iterable[Tensor]) -> list[Any]:
    """Of the sum of all that a call returned, or the kind of error that backward raises."""
    leaves = [
        leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.requires_grad
    ]
    try:
        if leaves:
            torch.stack([leaf.double().sum() for leaf in leaves]).sum().backward()
    except RuntimeError as error:
        return [type(error)]
    return [parameter.grad for parameter in parameters]


_texts = itertools.count()


def defined(text: str, **scope: Any) -> dict[str, Any]:
    """What a text defines, functions with source, beside what the scope holds."""
    exec_source(text, f"<fastact.testing {next(_texts)}>", scope)
    return scope


def with_forward(body: str, /, **parts: Any) -> torch.nn.Module:
    """A module of these parts, with the body of ``forward(self, x)``."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    names = {"torch": torch, "F": torch.nn.functional, "FF": fastact.functional}
    forward = defined(f"def forward(self, x):\n{lines}", **names)["forward"]
    module = type("Written", (torch.nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        setattr(module, name, part)
    return module
