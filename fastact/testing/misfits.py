"""``python -m fastact.testing.misfits`` calls every operator with arguments that do not fit.

A call begins as one that fits; then some of its arguments are replaced by others of any shape,
dtype, layout, device or value, or by None. It must end in a value or in an exception of PyTorch's
kinds, never in a crash, an access outside a tensor's memory or an internal assertion. Calls run in
processes of their own, under glibc's checking allocator and with operands that begin or end at
pages that nobody may touch; where one dies, the next goes on behind the call that killed it.

    python -m fastact.testing.misfits --calls 20000 --seed 1
    python -m fastact.testing.misfits --seed 1 --only 1234    one call, in this process
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import math
import mmap
import os
import random
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastact.activations import FUSIBLE, KERNEL_DTYPES, REGISTRY
from fastact.layers import RECURRENT_LAYERS

EXPECTED_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)
# Preloaded, it makes malloc check its heap at every call and fill memory that is not in use.
CHECKING_ALLOCATOR = {
    "LD_PRELOAD": "libc_malloc_debug.so.0",
    "MALLOC_CHECK_": "3",
    "MALLOC_PERTURB_": "165",
}
_CALL_SECONDS = 60  # after which a child counts as hanging

_SHAPES = [(), (0,), (1,), (3,), (7,), (1000,), (4, 5), (5, 4), (4, 6), (5, 6), (6, 5), (2, 3)]
_SHAPES += [(0, 5), (5, 0), (1, 300), (300, 1), (64, 3), (2, 3, 4), (1, 1, 1), (3, 4, 6), (2, 0, 4)]
_SHAPES += [(2, 3, 4, 5), (1, 2, 1, 2, 1, 2)]
_DTYPES = [*KERNEL_DTYPES, *KERNEL_DTYPES, torch.int64, torch.uint8, torch.bool, torch.complex64]
_FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    3.0,
    1e30,
    -1e30,
    1e308,
    1e-320,
    math.inf,
    -math.inf,
    math.nan,
]
_INTEGERS = [0, 1, -1, 2, -2, 3, -7, 100, 2**31, -(2**31), 2**63 - 1, -(2**63)]
_NAMES = [*REGISTRY, "rrelu", "", "nope", "relu\0", "RELU", "x" * 10_000, None]


class _GuardedMemory:
    """Tensors that begin, or end, at a page whose access ends the process."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._page = mmap.PAGESIZE

    def like(self, t: Tensor, at_end: bool) -> Tensor:
        size = t.numel() * t.element_size()
        pages = -(-max(size, 1) // self._page)
        memory = mmap.mmap(-1, (pages + 2) * self._page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for guard in (0, (pages + 1) * self._page):
            if self._libc.mprotect(ctypes.c_void_p(address + guard), self._page, 0):
                raise OSError(ctypes.get_errno(), "mprotect failed")
        start = (pages + 1) * self._page - size if at_end else self._page
        # The tensor keeps the buffer, which keeps the mapping.
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        return whole[start : start + size].view(t.dtype).view(t.shape).copy_(t)


@dataclasses.dataclass
class _Call:
    """One call: what fits, then what is put in its place."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={_text(v)}' for k, v in self.arguments.items())})"

    def run(self) -> Any:
        packet = getattr(torch.ops.fastact, self.name)
        return packet.default(*self.arguments.values())


def _text(value: Any) -> str:
    if isinstance(value, list) and any(isinstance(item, Tensor) for item in value):
        return f"[{', '.join(map(_text, value))}]"
    if not isinstance(value, Tensor):
        return repr(value)[:60]
    marks = [str(value.dtype).removeprefix("torch."), str(list(value.shape))]
    if value.layout == torch.strided and not value.is_contiguous():
        marks.append(f"strides {list(value.stride())}")
    if value.layout != torch.strided:
        marks.append(str(value.layout).removeprefix("torch."))
    if value.device.type != "cpu":
        marks.append(value.device.type)
    if value.requires_grad:
        marks.append("grad")
    return " ".join(marks)


class Generator:
    """The calls of a seed: the same index gives the same call."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._guarded = _GuardedMemory()
        self._schemas = {
            schema.name.removeprefix("fastact::"): schema
            for schema in torch._C._jit_get_all_schemas()
            if schema.name.startswith("fastact::")
        }
        self.names = sorted(self._schemas)

    def call(self, index: int) -> tuple[_Call, random.Random]:
        """The call, and the generator for what is done with it."""
        r = random.Random(f"{self._seed} {index}")
        torch.manual_seed(r.getrandbits(32))
        name = self.names[index % len(self.names)]
        fitting = self._fitting(name, r)
        for argument in self._schemas[name].arguments:
            # Half of the calls have one argument that does not fit, the others none to all.
            if r.random() < r.choice((0.0, 1 / max(len(fitting), 1), 0.5)):
                fitting[argument.name] = self._misfit(argument, r)
        return _Call(name, fitting), r

    def _fitting(self, name: str, r: random.Random) -> dict[str, Any]:
        m, n, k = (r.choice((1, 2, 3, 5, 9, 17, 33)) for _ in range(3))
        dtype = r.choice(KERNEL_DTYPES)
        activation = r.choice([*FUSIBLE, None])
        takes_slope = activation is not None and FUSIBLE[activation].takes_slope
        row = REGISTRY.get(name.removesuffix("_backward").removesuffix("_"))
        recurrent = _RECURRENT.get(name.partition("_")[0])
        shapes: dict[str, tuple[int, ...]]
        if "linear" in name:
            shapes = {"input": (m, k), "weight": (n, k), "bias": (n,), "slope": (n,)}
            shapes |= dict.fromkeys(("residual", "grad", "saved"), (m, n))
        elif "conv" in name:
            shapes = {"input": (2, k, 6, 5), "weight": (n, k, 3, 2), "bias": (n,), "slope": (n,)}
            shapes |= dict.fromkeys(("residual", "grad", "saved"), (2, n, 4, 4))
        elif row is not None and row.takes_slope:
            shapes = {"self": (m, n, k), "grad": (m, n, k), "weight": (n,)}
        elif row is not None and row.halves_dimension:
            shapes = {"self": (m, 2 * n), "grad": (m, n)}
        elif recurrent is not None:
            shapes = _recurrent_shapes(name, recurrent.gates, m, n, k)
        else:
            shapes = dict.fromkeys(("self", "grad", "saved", "output", "mask", "operand"), (m, n))
        values: dict[str, Any] = {
            "activation": activation,
            "slope": None,
            "dim": -1,
            "is_causal": False,
            "mask": (True, True, True, takes_slope, True),
            "packed": False,
            "stride": [1],
            "padding": [0],
            "dilation": [1],
            "groups": 1,
            "setting": "safe",
            "nonlinearity": r.choice(("tanh", "relu")),
            "has_biases": True,
            "bidirectional": False,
        }
        arguments: dict[str, Any] = {}
        for argument in self._schemas[name].arguments:
            kind = str(argument.type)
            if argument.name == "slope" and not takes_slope:
                arguments["slope"] = None
            elif argument.name == "packed" and kind == "Tensor":
                pack = getattr(torch.ops.fastact, "pack_" + name.removesuffix("_packed"))
                arguments["packed"] = pack(arguments["input"].new_ones(shapes["weight"]))
            elif argument.name == "weights":
                assert recurrent is not None  # no other family has them
                gates = recurrent.gates * n
                weights = ((gates, k), (gates, n), (gates,), (gates,))
                arguments["weights"] = [torch.randn(s).to(dtype) for s in weights]
            elif argument.name == "lengths":
                arguments["lengths"] = torch.randint(0, 4, (m,)) if r.random() < 0.5 else None
            elif argument.name == "dropout_noise":
                arguments["dropout_noise"] = None
            elif argument.name == "mask" and recurrent is not None:
                arguments["mask"] = [True] * (1 + recurrent.states + len(arguments["weights"]))
            elif "Tensor" in kind:
                t = torch.randn(shapes[argument.name]).to(dtype)
                arguments[argument.name] = t > 0 if argument.name == "mask" else t
            elif argument.name in values:
                arguments[argument.name] = values[argument.name]
            elif argument.has_default_value():
                arguments[argument.name] = argument.default_value
            elif kind == "List[float]":
                arguments[argument.name] = []
            else:
                arguments[argument.name] = {"int": 1, "bool": True, "float": 1.0}.get(kind, "relu")
        return arguments

    def _misfit(self, argument: Any, r: random.Random) -> Any:
        kind = str(argument.type).removeprefix("Optional[").removesuffix("]")
        makers: dict[str, Callable[[], Any]] = {
            "Tensor": lambda: self._tensor(r),
            "float": lambda: r.choice(_FLOATS),
            "int": lambda: r.choice(_INTEGERS),
            "bool": lambda: r.choice((True, False)),
            "str": lambda: r.choice(_NAMES),
            "List[float]": lambda: [r.choice(_FLOATS) for _ in range(r.choice((0, 1, 2, 3, 9)))],
            "List[float": lambda: [r.choice(_FLOATS) for _ in range(r.choice((0, 1, 2, 3, 9)))],
            "List[int": lambda: [r.choice(_INTEGERS) for _ in range(r.choice((0, 1, 2, 2, 3)))],
            "List[Tensor": lambda: [self._tensor(r) for _ in range(r.choice((0, 1, 3, 4, 4, 8)))],
            "List[bool": lambda: [r.random() < 0.5 for _ in range(r.choice((0, 3, 4, 5, 5, 5, 6)))],
        }
        if r.random() < 0.1:
            return r.choice((None, "1", 1, 1.5, [], torch.ones(2)))
        return makers[kind]()

    def _tensor(self, r: random.Random) -> Tensor:
        t = (torch.randn(r.choice(_SHAPES)) * 3).to(r.choice(_DTYPES))
        form = r.choice(("plain", "plain", "end", "begin", "view", "expanded", "other", "grad"))
        if form in ("end", "begin"):
            return self._guarded.like(t, at_end=form == "end")
        if form == "view":
            return r.choice(
                (t.mT if t.dim() > 1 else t, torch.stack((t, t), -1)[..., 1], t[..., None])
            )
        if form == "expanded":
            return torch.ones((), dtype=t.dtype).expand(r.choice((*_SHAPES, (2**20, 2**20))))
        if form == "grad" and t.dtype.is_floating_point:
            return t.requires_grad_()
        if form == "other":
            forms = [_sparse, _meta, _negative, _inference]
            # PyTorch, to which other dtypes go, reads them all the same.
            forms += [_empty_storage] if t.dtype in KERNEL_DTYPES else []
            return r.choice(forms)(t)
        return t


_RECURRENT = {layer.name: layer for layer in RECURRENT_LAYERS}


def _recurrent_shapes(
    name: str, gates: int, batch: int, hidden: int, inputs: int
) -> dict[str, Any]:
    """Three steps of one layer; or a cell's one."""
    gates *= hidden
    if "cell" in name:
        shapes: dict[str, Any] = {"input": (batch, inputs)}
        shapes |= dict.fromkeys(("hx", "cx"), (batch, hidden))
        shapes |= {"w_ih": (gates, inputs), "w_hh": (gates, hidden)}
        return shapes | dict.fromkeys(("b_ih", "b_hh"), (gates,))
    shapes = {"input": (3, batch, inputs), "grad_output": (3, batch, hidden), "reserve": (0,)}
    return shapes | dict.fromkeys(("hx", "cx", "grad_hy", "grad_cy"), (1, batch, hidden))


def _sparse(t: Tensor) -> Tensor:
    return t.to_sparse()


def _meta(t: Tensor) -> Tensor:
    return t.to("meta")


def _negative(t: Tensor) -> Tensor:
    """With a lazy negation to resolve."""
    return torch._neg_view(t) if t.dtype != torch.bool else t


def _inference(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


def _empty_storage(t: Tensor) -> Tensor:
    """Whose memory was taken away, as sharded training does it."""
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def _is_emptied(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_emptied, value))
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() > 0
        and value.untyped_storage().nbytes() == 0
    )


_CONTEXTS: list[Callable[[], Any]] = [
    contextlib.nullcontext,
    contextlib.nullcontext,
    torch.no_grad,
    torch.inference_mode,
    lambda: torch.autocast("cpu", dtype=torch.bfloat16),
]


def _tensors(value: Any) -> list[Tensor]:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [v for v in values if isinstance(v, Tensor)]


def run_one(generator: Generator, index: int) -> tuple[str, str]:
    """(the call, what came: "value" or the name of an exception). Raises AssertionError for an
    exception that is none of PyTorch's kinds, or an internal assertion."""
    call, r = generator.call(index)
    try:
        context = r.choice(_CONTEXTS)
        if any(_is_emptied(t) for t in call.arguments.values()):
            context = torch.no_grad  # PyTorch's autocast would read it
        with context():
            result = call.run()
        outputs = [t for t in _tensors(result) if t.device.type == "cpu" and t.numel() < 2**24]
        differentiable = [t for t in outputs if t.requires_grad]
        if differentiable:
            saved = r.choice([t for t in call.arguments.values() if isinstance(t, Tensor)])
            if r.random() < 0.5 and saved.layout == torch.strided and saved.device.type == "cpu":
                # Between the passes a tensor becomes another one of its dtype.
                with contextlib.suppress(RuntimeError), torch.no_grad():
                    saved.data = torch.ones(r.choice(_SHAPES), dtype=saved.dtype)
            torch.autograd.backward(differentiable, [torch.ones_like(t) for t in differentiable])
        for t in outputs:
            t.detach().double().sum() if t.layout == torch.strided else None
        outcome = "value"
    except EXPECTED_ERRORS as error:
        assert "INTERNAL ASSERT" not in str(error), f"{call}: {error}"
        outcome = type(error).__name__
    except Exception as error:
        raise AssertionError(f"{call}: {type(error).__name__}: {error}") from error
    return str(call), outcome


def _child(seed: int, first: int, last: int) -> None:
    generator = Generator(seed)
    for index in range(first, last):
        print(f"{index} begins", flush=True)
        text, outcome = run_one(generator, index)
        print(f"{index} {outcome} {text}", flush=True)
        # A damaged heap shows in the next allocations.
        del text
        for size in (1, 10, 100, 1000):
            torch.empty(size).fill_(1)


def run(
    calls: int, seed: int, program: tuple[str, ...] = ("-m", "fastact.testing.misfits")
) -> tuple[Counter[str], list[str]]:
    """How often each outcome came, and the failures as text. ``program`` is what Python runs."""
    outcomes: Counter[str] = Counter()
    failures = []
    first = 0
    while first < calls:
        command = [sys.executable, "-W", "ignore", *program]
        command += ["--seed", str(seed), "--child", str(first), str(calls)]
        try:
            finished = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env=os.environ | CHECKING_ALLOCATOR,
                timeout=_CALL_SECONDS + calls,
            )
            out, err, code = finished.stdout, finished.stderr, finished.returncode
        except subprocess.TimeoutExpired as error:
            out = (error.stdout or b"").decode()
            err, code = "took too long", None
        reached = first
        for line in out.splitlines():
            index, outcome, *_ = line.split(" ", 2)
            reached = int(index)
            if outcome != "begins":
                outcomes[outcome] += 1
        if code == 0:
            break
        tail = " | ".join(err.strip().splitlines()[-1:])
        call = Generator(seed).call(reached)[0]
        failures.append(f"--seed {seed} --only {reached}: {call}: exit {code}: {tail}")
        outcomes["failure"] += 1
        first = reached + 1
    return outcomes, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the index of one call to make in this process")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.child:
        return _child(options.seed, *options.child)
    if options.only is not None:
        print(Generator(options.seed).call(options.only)[0], flush=True)
        return print(*run_one(Generator(options.seed), options.only)[1:])
    outcomes, failures = run(options.calls, options.seed)
    print(", ".join(f"{count} {name}" for name, count in outcomes.most_common()))
    sys.exit("\n".join(failures) if failures else 0)


if __name__ == "__main__":
    main()
