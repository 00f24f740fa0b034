"""Does this installation compute what PyTorch computes? ``python -m fastact selftest``.

Every activation with every setting of the case table, every activation behind linear, and a
converted model, forward and gradient, in every dtype, on the CPU or on a CUDA device. It needs
nothing but PyTorch and the installed package, so that it can be run where fastact is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

import fastact
from fastact import functional
from fastact.testing.cases import CASES, DTYPES, FUSED_CASES, FusedCase
from fastact.testing.inputs import special_values

SHAPE = (6, 34)  # whole vectors and a tail, in both dimensions; even, for gated units


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: what was compared.
        dtype: in which dtype.
        passed: whether it agreed.
        detail: where it did not, what differed.
    """

    name: str
    dtype: str
    passed: bool
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def selftest(device: str = "cpu") -> list[Check]:
    """Runs every check on a device.

    Args:
        device: "cpu" or "cuda", with or without an index.

    Raises:
        ValueError: another kind of device.
        RuntimeError: PyTorch finds no CUDA device.

    Example:
        >>> from fastact.selftest import selftest
        >>> all(check.passed for check in selftest("cpu"))
        True
    """
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"fastact.selftest(): device: expected 'cpu' or 'cuda', got {device!r}")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "fastact.selftest(): device: expected a CUDA device for 'cuda', PyTorch finds none"
        )
    found = []
    with torch.random.fork_rng([place] if place.type == "cuda" else []):
        torch.manual_seed(0)
        for name, dtype, compare in _comparisons(place):
            try:
                compare()
            except Exception as error:  # the report is for the one who runs it
                text = " ".join(str(error).split())[:300]
                found.append(Check(name, dtype, False, f"{type(error).__name__}: {text}"))
            else:
                found.append(Check(name, dtype, True))
    return found


def _comparisons(device: torch.device) -> Iterator[tuple[str, str, Callable[[], None]]]:
    for dtype in DTYPES:
        text = str(dtype).removeprefix("torch.")
        for case in CASES:
            yield f"{case}", text, functools.partial(_compare_values, case, dtype, device)
            yield (
                f"{case} gradient",
                text,
                functools.partial(_compare_gradients, case, dtype, device),
            )
        for fused in FUSED_CASES:
            yield f"linear {fused}", text, functools.partial(_compare_linear, fused, dtype, device)
    yield "convert", "float32", lambda: _compare_converted(device)


def _compare_values(case: Any, dtype: torch.dtype, device: torch.device) -> None:
    case.assert_like_twin((3 * torch.randn(SHAPE)).to(device, dtype))
    if case.row.family == "unary":
        case.assert_like_twin(special_values(dtype).to(device))


def _compare_gradients(case: Any, dtype: torch.dtype, device: torch.device) -> None:
    values = case.smooth(*SHAPE, dtype=dtype).to(device)
    incoming = torch.randn(SHAPE).to(device, dtype)
    gradients = []
    for function in (case.function, case.twin):
        inputs = [values.clone(), *(t.clone() for t in case.tensors(values))]
        for tensor in inputs:
            tensor.requires_grad_()
        y = function(*inputs)
        gradients.append(torch.autograd.grad(y, inputs, incoming[..., : y.shape[-1]][: len(y)]))
    for mine, twins in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, twins, **_tolerances(dtype))


def _compare_linear(fused: FusedCase, dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias = (torch.randn(s).to(device, dtype) for s in ((5, 34), (20, 34), (20,)))
    slope = (torch.rand(20).to(device, dtype),) if fused.learnable else ()
    keywords: dict[str, Any] = {"activation": fused.name, **fused.parameters}
    keywords |= {"slope": slope[0]} if slope else {}
    results = []
    for ours in (True, False):
        inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
        if ours:
            y = functional.linear(inputs[0], inputs[1], inputs[2], **keywords)
        else:
            y = fused.twin(torch.nn.functional.linear(*inputs), *slope)
        results.append([y, *torch.autograd.grad(y.float().square().sum(), inputs)])
    for mine, twins in zip(*results, strict=True):
        torch.testing.assert_close(mine, twins, **_tolerances(dtype, linear=True))


def _compare_converted(device: torch.device) -> None:
    nn = torch.nn
    model = nn.Sequential(nn.Linear(34, 64), nn.GELU(), nn.Linear(64, 7), nn.Softmax(-1))
    model = model.to(device).eval()
    x = torch.randn(9, 34, device=device)
    torch.testing.assert_close(fastact.convert(model)(x), model(x).detach(), rtol=1e-4, atol=1e-5)


def _tolerances(dtype: torch.dtype, linear: bool = False) -> dict[str, Any]:
    # Sums of products are formed in another order, and what they cancel to is compared.
    scale = {torch.float64: 1e-7, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
    return {"rtol": scale[dtype], "atol": scale[dtype] * (10 if linear else 1)}
