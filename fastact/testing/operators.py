"""``python -m fastact.testing.operators`` writes docs/operators.md: what every operator is.

Names and formulas come from the registry, schemas from PyTorch, everything else from calls of the
operators. ``--check`` fails when the document is not what they say now.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import inspect
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import profiler_legacy

from fastact import functional, nn
from fastact.layers import RECURRENT_LAYERS, RecurrentLayer
from fastact.testing.cases import DEFAULT_CASES, FUSED_CASES, Case, FusedCase

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operators.md"
SHAPE = (64, 64)
TORCH = ".".join(torch.__version__.split(".")[:2])

_INTRODUCTION = f"""\
# Operators

Made by `python -m fastact.testing.operators` from the registry and from calls of the operators;
`--check` fails when it is out of date. Do not edit. PyTorch here is {TORCH}.

**Paths.** An operator runs its own kernel for strided tensors on the CPU of the dtypes that its
family states: those for which a forward and a backward call reach no ATen operator but to allocate
memory. Every other device, layout and dtype, and forward mode and higher orders, run as the ATen
composition of the same operator. `FASTACT_DISABLE=1` sends every call there.

**Saves.** What one call, f(x), keeps for backward until that has run, x being a float32 tensor
that another operation computed and that needs a gradient; beside it, what PyTorch's function
keeps, or its composition where it has none. The names are those of tensors that exist anyway:
*input*, *output*, learnable *weight*, *bias* and *slope*. A figure counts what is kept beside them:
the bytes of the distinct storages of all other saved tensors, by element of the input (of the
output for `linear`). The next layer mostly keeps this one's output, as its own input; so saving the
output costs nothing, where saving an input keeps alive what nobody else needs.

**Autocast.** The dtype in which a float32 input is computed under `torch.autocast("cpu")`: *as
given*, or *lower*, the one that autocast was given. Tests compare with PyTorch's.
"""


# ---- operators ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operator:
    """What the document states of one operator, or of one form of it.

    Attributes:
        name: the first column.
        computes: in words of Python.
        function: fastact's function of (x, *tensors).
        twin: PyTorch's.
        tensors: the learnable ones by name.
        source: where it comes from.
    """

    name: str
    computes: str
    function: Callable[..., Tensor]
    twin: Callable[..., Tensor]
    tensors: Mapping[str, Tensor]
    source: str = ""


@dataclass(frozen=True)
class Family:
    """Operators of one table.

    Attributes:
        title: the heading.
        text: what follows it.
        schemas: the names of its operators, each followed by what is derived from it.
        operators: the rows.
        has_kernel_dtypes: whether the dtypes of its kernels are the same on every processor.
    """

    title: str
    text: str
    schemas: list[str]
    operators: list[Operator]
    has_kernel_dtypes: bool = True


def _said(name: str) -> str:
    """The formula in the docstring of a function that has no row."""
    doc = inspect.getdoc(getattr(functional, name)) or ""
    return re.split(r"[;.](?:\s|$)", doc, maxsplit=1)[0]


def _activation(case: Case) -> Operator:
    row = case.row
    tensors = dict(zip(row.tensors, case.tensors(torch.zeros(SHAPE)), strict=True))
    return Operator(row.name, row.formula, case.function, case.twin, tensors, row.source)


def _fused(layer: str, fused: FusedCase) -> Operator:
    """A fused layer; a convolution's input has a line of SHAPE[1] pixels, of SHAPE[0] channels."""
    names = ["weight", "bias", *(["slope"] if fused.learnable else [])]
    shapes = {"weight": SHAPE, "bias": SHAPE[:1], "slope": SHAPE[:1]}
    if layer == "conv1d":
        shapes["weight"] = (SHAPE[0], SHAPE[0], 1)
    mine, theirs = getattr(functional, layer), getattr(F, layer)
    as_input = torch.Tensor.unsqueeze if layer == "conv1d" else lambda x, dim: x
    along = {"dim": 1} if layer == "conv1d" and fused.name in ("softmax", "log_softmax") else {}

    def function(x: Tensor, weight: Tensor, bias: Tensor, *slope: Tensor) -> Tensor:
        learnable = {"slope": slope[0]} if slope else {}
        more = {**fused.parameters, **learnable, **along}
        return mine(as_input(x, 0), weight, bias, activation=fused.name, **more)

    def twin(x: Tensor, weight: Tensor, bias: Tensor, *slope: Tensor) -> Tensor:
        return fused.twin(theirs(as_input(x, 0), weight, bias), *slope)

    tensors = {name: torch.rand(shapes[name]) for name in names}
    name = f'`activation="{fused.name}"`' if fused.name else "no activation"
    return Operator(name, _said(layer), function, twin, tensors)


def _recurrent(row: RecurrentLayer) -> Operator:
    """A layer of as many units as inputs, over SHAPE[0] steps of a sequence without a batch."""
    layers = [getattr(module, row.module)(SHAPE[1], SHAPE[1]) for module in (nn, torch.nn)]

    def call(layer: torch.nn.Module, x: Tensor, *weights: Tensor) -> Tensor:
        names = [name for name, _ in layer.named_parameters()]
        parameters = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(layer, parameters, (x,))[0]

    tensors = {
        name.removesuffix("_l0"): value.detach() for name, value in layers[0].named_parameters()
    }
    function, twin = (functools.partial(call, layer) for layer in layers)
    return Operator(row.name, row.formula, function, twin, tensors)


def _first_of_each(cases: Iterable[FusedCase]) -> list[FusedCase]:
    """At the defaults, which come first."""
    return list({case.name: case for case in reversed(list(cases))}.values())[::-1]


def families() -> list[Family]:
    def rows(family: str) -> list[Operator]:
        return [_activation(case) for case in DEFAULT_CASES if case.row.family == family]

    def family(title: str, text: str, name: str) -> Family:
        operators = rows(name)
        return Family(title, text, [operator.name for operator in operators], operators)

    linear, conv = (
        [_fused(layer, fused) for fused in _first_of_each(FUSED_CASES)]
        for layer in ("linear", "conv1d")
    )
    return [
        family(
            "Elementwise activations",
            "`NAME_`, in place, serves `inplace=True` in eager mode; call the function instead.",
            "unary",
        ),
        family("PReLU", "Here with a weight of one element.", "prelu"),
        family("Gated units", "a and b are the halves of the input along `dim`.", "gated"),
        family("Softmax", "`softmin` is `softmax` with `scale=-1`.", "softmax"),
        Family(
            "Linear",
            "Which matrix product runs depends on the processor, the dtype and the shape. The "
            "activations have the formulas of the families above, here at the defaults of their "
            "parameters.",
            ["linear"],
            linear,
            has_kernel_dtypes=False,
        ),
        Family(
            "Convolution",
            "In one, two or three dimensions. Which algorithm runs depends on the shape, the "
            "layout and the dtype: docs/conv.md. The activations are as for linear.",
            ["conv"],
            conv,
            has_kernel_dtypes=False,
        ),
        Family(
            "Recurrent layers",
            "What `nn.RNN`, `nn.GRU`, `nn.LSTM` and their cells call: docs/recurrent.md. Here one "
            f"layer of {SHAPE[1]} units over {SHAPE[0]} steps of one sequence, from first states "
            "of zeros.",
            [row.name for row in RECURRENT_LAYERS],
            [_recurrent(row) for row in RECURRENT_LAYERS],
            has_kernel_dtypes=False,
        ),
    ]


# ---- measurements ------------------------------------------------------------------------------


def _new(dtype: torch.dtype) -> Tensor:
    values = torch.linspace(-3, 3, SHAPE[0] * SHAPE[1]).view(SHAPE)
    return values.to(dtype)


def saved(operator: Operator, function: Callable[..., Tensor]) -> str:
    """Names of the tensors that its graph keeps, and bytes an element of what else it keeps."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # alive, so that no two have one address
        return tensor

    x = _new(torch.float32).requires_grad_() * 1
    tensors = {
        name: tensor.detach().clone().requires_grad_() for name, tensor in operator.tensors.items()
    }
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(x, *tensors.values())
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    names = [
        name
        for name, tensor in {"input": x, "output": y, **tensors}.items()
        if storages.pop(tensor.untyped_storage().data_ptr(), None) is not None
    ]
    elements = y.numel() if "bias" in tensors else x.numel()
    more = [f"{sum(storages.values()) / elements:.3g} B"] if storages else []
    return " + ".join([", ".join(names), *more] if names else more) or "nothing"


_ALLOCATE = {"aten::empty", "aten::zeros"}


def _computes_without_aten(operator: Operator, dtype: torch.dtype) -> bool:
    """Forward and backward."""
    try:
        x = _new(dtype).requires_grad_()
        tensors = [tensor.to(dtype) for tensor in operator.tensors.values()]
        grad = torch.ones_like(operator.function(x, *tensors))
        with profiler_legacy.profile() as profile:
            torch.autograd.grad(operator.function(x, *tensors), x, grad)
    except (RuntimeError, TypeError):  # not a dtype of gradients, or of this function
        return False
    names = [event.name for event in profile.function_events]
    called = {
        event.name
        for event in profile.function_events
        if event.cpu_parent and event.cpu_parent.name.startswith("fastact::")
    }
    # The engine's event has the name of the forward operator.
    ours = sum(name.startswith("fastact::") for name in names)
    return ours > 2 and not any(name.startswith("aten::") for name in called - _ALLOCATE)


def kernel_dtypes(operator: Operator) -> str:
    every = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dtypes that are experimental, or no dtypes at all
        own = [dtype for dtype in every if _computes_without_aten(operator, dtype)]
    own.sort(key=lambda dtype: (-dtype.itemsize, str(dtype)))
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in own)


def autocast(operator: Operator) -> str:
    with torch.autocast("cpu", torch.bfloat16):
        given = operator.function(_new(torch.float32), *operator.tensors.values()).dtype
    return {torch.float32: "as given", torch.bfloat16: "lower"}[given]


# ---- the document ------------------------------------------------------------------------------


def _table(family: Family) -> Iterator[str]:
    """The family's facts: what all its operators share in a sentence, the rest in a table."""
    columns: dict[str, list[str]] = {
        "Computes": [f"`{operator.computes}`" for operator in family.operators],
        "Kernels": [kernel_dtypes(o) if family.has_kernel_dtypes else "" for o in family.operators],
        "Saves": [saved(operator, operator.function) for operator in family.operators],
        "PyTorch saves": [saved(operator, operator.twin) for operator in family.operators],
        "Autocast": [autocast(operator) for operator in family.operators],
        "Source": [operator.source for operator in family.operators],
    }
    shared = {
        name: cells[0]
        for name, cells in columns.items()
        if len(set(cells)) == 1 and (len(cells) > 1 or name == "Autocast")
    }
    facts = " ".join(f"{name}: {cell}." for name, cell in shared.items() if cell)
    yield textwrap.fill(f"{family.text} {facts}", 100, break_on_hyphens=False)
    header = ["Operator", *(name for name in columns if name not in shared)]
    names = [o.name if o.name.startswith(("`", "no ")) else f"`{o.name}`" for o in family.operators]
    cells = zip(names, *(columns[name] for name in header[1:]), strict=True)
    yield ""
    for row in (header, ["---"] * len(header), *cells):
        escaped = [cell.replace("|", "\\|") for cell in row]
        yield f"| {' | '.join(escaped)} |"


def _schemas() -> dict[str, str]:
    """Those of the library by the operators' names."""
    return {
        schema.name.removeprefix("fastact::"): str(schema).removeprefix("fastact::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("fastact::")
    }


def _with_derived(names: Iterable[str], every: Mapping[str, str]) -> list[str]:
    """Each name and, behind it, the operators whose names continue it; `gelu_tanh` does not belong
    to `gelu`, being a name itself."""
    bases = {name for family in families() for name in family.schemas}

    def base_of(name: str) -> str:
        return max((b for b in bases if name == b or name.startswith(b + "_")), key=len, default="")

    return [name for base in names for name in sorted(every) if base_of(name) == base]


def _code(names: Iterable[str], schemas: Mapping[str, str]) -> Iterator[str]:
    yield from ("", "```", *(schemas[name] for name in names), "```")


def document() -> str:
    schemas = _schemas()
    rest = dict(schemas)
    lines = [_INTRODUCTION]
    for family in families():
        lines += [f"## {family.title}", "", *_table(family)]
        names = _with_derived(family.schemas, schemas)
        lines += [*_code(names, schemas), ""]
        for name in names:
            del rest[name]
    lines += ["## The others", "", "Facts about the library, controls, and what modules call."]
    lines += _code(sorted(rest), schemas)
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastact.testing.operators", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="fail where it is out of date")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="docs/operators.md")
    arguments = parser.parse_args(argv)
    if not torch.ops.fastact.enabled():
        sys.exit("FASTACT_DISABLE=1 leaves nothing to describe: unset it")
    text = document()
    if not arguments.check:
        arguments.document.write_text(text)
        print(f"wrote {arguments.document}")
        return 0
    committed = arguments.document.read_text() if arguments.document.exists() else ""
    changes = list(
        difflib.unified_diff(
            committed.splitlines(), text.splitlines(), "committed", "now", n=0, lineterm=""
        )
    )
    if changes:
        print(*changes, "Run python -m fastact.testing.operators.", sep="\n", file=sys.stderr)
    return 1 if changes else 0


if __name__ == "__main__":
    sys.exit(main())
