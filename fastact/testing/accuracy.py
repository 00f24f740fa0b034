"""The errors of an activation and its gradient over all their inputs.

A sweep runs over all 2^32 float32 inputs, or all 65,536 of bfloat16 or float16, through the very
operators that users call, against float64 (``Activation.exact``). ``tools/write_accuracy.py`` makes
docs/accuracy.md of it.

What must equal PyTorch bit for bit (``ulp=0`` in the registry) is compared with PyTorch in float32.
A gradient is measured as a function of (incoming gradient, saved tensor), with saved tensors that
the forward produced. At an infinite input where PyTorch's formula is infinity times zero, the truth
is the limit.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastact.activations import REGISTRY, Activation
from fastact.testing.cases import CASES, DEFAULT_CASES, Case
from fastact.testing.ulp import ulp_error

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}

# The promises that are not in the registry, in ULP.
BOUND_16_BIT = 0.51
BOUND_GRADIENT = 4.0

CHUNK = 1 << 17  # inputs at a time: a float64 temporary is 1 MiB, and stays in the cache
STRIDE_OF_PYTORCH = 997  # PyTorch's own figures come from every 997th input

# The rows whose elements have nothing to do with each other: with every setting of their
# parameters, and with the one that is swept.
ELEMENTWISE = [case for case in CASES if case.row.elementwise]
MEASURED = [case for case in DEFAULT_CASES if case.row.elementwise]

# ---- operators ---------------------------------------------------------------------------------


def forward(case: Case, x: Tensor) -> Tensor:
    """The forward operator of fastact."""
    return case.row.operator(x, *case.tensors(x), *case.values)


def backward(case: Case, grad: Tensor, saved: Tensor) -> Tensor:
    """The backward operator of fastact: the gradient of the input."""
    operator = getattr(torch.ops.fastact, case.row.name + "_backward")
    result = operator(grad, saved, *case.tensors(saved), *case.values)
    return result[0] if isinstance(result, tuple) else result


@functools.cache
def saves_output(case: Case) -> bool:
    """Whether backward reads the output rather than the input."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.ones(1, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = forward(case, x)
    return kept[0].data_ptr() == y.data_ptr()


@dataclass(frozen=True)
class AlongDimension:
    """Operators that run along a dimension, by one signature.

    Attributes:
        forward: of (input, dim).
        backward: of (grad, saved, dim).
        reads_output: whether what backward reads is the output rather than the input.
    """

    name: str
    forward: Callable[[Tensor, int], Tensor]
    backward: Callable[[Tensor, Tensor, int], Tensor]
    reads_output: bool = False

    def __str__(self) -> str:
        return self.name


def _along(row: Activation, name: str, **setting: float) -> AlongDimension:
    backward = getattr(torch.ops.fastact, row.name + "_backward")
    _, *rest = {**row.parameters, **setting}.values()
    return AlongDimension(
        name,
        lambda x, dim: row.operator(x, dim, *rest),
        lambda grad, saved, dim: backward(grad, saved, dim, *rest),
        reads_output=not row.halves_dimension,
    )


ALONG_DIMENSION = [_along(row, row.name) for row in REGISTRY.values() if row.along_dimension] + [
    _along(REGISTRY["softmax"], "softmin", scale=-1.0)
]


def twin(case: Case, x: Tensor) -> Tensor:
    """PyTorch's result."""
    return _in_whole_vectors(case, lambda x: case.twin(x, *case.tensors(x)), x)


def twin_gradient(case: Case, grad: Tensor, x: Tensor) -> Tensor:
    """PyTorch's gradient of the input; at NaN that of its scalar code, with which its vector code
    does not agree (0 or NaN in place of the incoming gradient: relu6, elu, softshrink ...)."""

    def differentiated(grad: Tensor, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(case.twin(x, *case.tensors(x)), x, grad)[0]

    result = _in_whole_vectors(case, differentiated, grad, x)
    undefined = x.isnan()
    if case.row.family == "unary" and undefined.any():
        alone = torch.full((1,), math.nan, dtype=x.dtype)
        slope = differentiated(torch.ones_like(alone), alone)
        result = torch.where(undefined, grad * slope, result)
    return result


def _in_whole_vectors(case: Case, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """What PyTorch's vector code computes. In a tail, and for strided tensors, it runs scalar code,
    which gives zeros another sign."""
    shape, count = tensors[0].shape, tensors[0].numel()
    dense = all(t.is_contiguous() for t in tensors)
    if case.row.family != "unary" or (dense and count % 64 == 0):
        return function(*tensors)
    padded = (torch.nn.functional.pad(t.flatten(), (0, -count % 64)) for t in tensors)
    return function(*padded)[:count].view(shape)


# ---- truths ------------------------------------------------------------------------------------


def exact(case: Case, x: Tensor, tensors: Sequence[Tensor] | None = None) -> Tensor:
    """The result in float64, differentiable. ``tensors`` are by default those for an input x."""
    function = case.row.truth or case.row.reference
    tensors = case.tensors(x) if tensors is None else tensors
    return function(x.double(), *(t.double() for t in tensors), **case.keywords)


def truth_of(case: Case, x: Tensor) -> Tensor:
    """The result in float64; at infinities where PyTorch's is NaN, the limit, unless the activation
    must equal PyTorch."""
    return _with_limits(case, functools.partial(exact, case), x)


def _with_limits(case: Case, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    value = function(x)
    # One pass tells whether anything needs a closer look.
    if case.row.ulp > 0 and not torch.isfinite(value.sum()):
        undefined = value.isnan() & x.isinf()
        if undefined.any():
            largest = torch.finfo(x.dtype).max
            value[undefined] = function(x[undefined].clamp(-largest, largest))
    return value


def _elu(y: Tensor, scale: float, scale_alpha: float, steepness: float) -> Tensor:
    return torch.where(y > 0, scale, steepness * (y + scale_alpha))


# The derivative as a function of the saved output.
_FROM_OUTPUT: Mapping[str, Callable[..., Tensor]] = {
    "elu": lambda y, alpha: _elu(y, 1.0, alpha, 1.0),
    "celu": lambda y, alpha: _elu(y, 1.0, alpha, 1 / alpha),
    "selu": lambda y: _elu(y, 1.0507009873554805, 1.0507009873554805 * 1.6732632423543772, 1.0),
    "sigmoid": lambda y: y * (1 - y),
    "logsigmoid": lambda y: -torch.expm1(y),
    "tanh": lambda y: (1 - y) * (1 + y),
}
# The derivative as a function of the input, where autograd of the exact form cancels or overflows.
_FROM_INPUT: Mapping[str, Callable[..., Tensor]] = {
    "elu": lambda x, alpha: torch.where(x > 0, 1.0, alpha * torch.exp(x)),
    # PyTorch rounds 1 / alpha to float32 here.
    "celu": lambda x, alpha: torch.where(x > 0, 1.0, torch.exp(x / alpha)),
    "softsign": lambda x: (1 + x.abs()).square().reciprocal(),
    "tanhshrink": lambda x: torch.tanh(x).square(),
}


def derivative(case: Case, saved: Tensor) -> Tensor | None:
    """The derivative in float64 as a function of what backward reads; None where that is an output
    and no formula is known (the gradient is then measured end to end alone)."""
    name, wide = case.row.name, saved.double()
    if saves_output(case):
        return _FROM_OUTPUT[name](wide, *case.values) if name in _FROM_OUTPUT else None
    if name in _FROM_INPUT:
        return _FROM_INPUT[name](wide, *case.values)
    return _with_limits(case, functools.partial(_differentiated, case), saved)


def _differentiated(case: Case, x: Tensor) -> Tensor:
    tensors = case.tensors(x)
    with torch.enable_grad():
        x = x.double().requires_grad_()
        return torch.autograd.grad(exact(case, x, tensors).sum(), x)[0]


# ---- inputs ------------------------------------------------------------------------------------


def chunks_of(dtype: torch.dtype, stride: int = 1) -> list[range]:
    """Every ``stride``-th bit pattern of the dtype, in chunks."""
    patterns, step = 1 << torch.finfo(dtype).bits, CHUNK * stride
    return [range(i, min(i + step, patterns), stride) for i in range(0, patterns, step)]


def inputs_of(chunk: range, dtype: torch.dtype) -> Tensor:
    """The numbers that have these bit patterns."""
    patterns = torch.arange(chunk.start, chunk.stop, chunk.step)
    return patterns.to(INTEGERS[dtype]).view(dtype)  # the conversion keeps the low bits


# Where formulas change branch, saturate, vanish or overflow; roots of derivatives.
# fmt: off
_EDGES = (
    0.0, 2.0**-126, 2.0**-24, 2.0**-14, 2.0**-12, 2.0**-6, 0.2, 0.35, 0.5, 0.7518, 1.0, 1.1924,
    1.2784, 1.5, 2.0, 3.0, 5.0, 6.0, 8.0, 9.01, 10.0, 13.0, 14.5, 16.6, 17.33, 18.7, 20.0, 25.0,
    38.9, 40.0, 60.0, 80.0, 87.34, 88.03, 88.72, 97.0, 103.28, 103.97, 110.0, 200.0, 745.0,
    2.0**24, 2.0**30, 2.0**60, 65504.0,
)
# fmt: on


def special_inputs(dtype: torch.dtype) -> Tensor:
    """Both signs of: 33 neighbours of each edge, the smallest and the largest numbers, all numbers
    of 16 bits, infinity, quiet and signalling NaN."""
    integer = INTEGERS[dtype]
    edges = torch.tensor(_EDGES, dtype=torch.float64).to(dtype).view(integer).long()
    infinity = torch.tensor(math.inf, dtype=dtype).view(integer).long()
    near = torch.arange(-16, 17)
    quiet_bit = 1 << -math.frexp(torch.finfo(dtype).eps)[1]
    # Every bfloat16 and float16 number, with its neighbours: bounds of tables are such numbers.
    shorter = [inputs_of(range(1 << 15), kind) for kind in (torch.bfloat16, torch.float16)]
    short = torch.cat(shorter).nan_to_num(0, 0).to(dtype).view(integer).long()
    patterns = torch.cat(
        [
            (edges[:, None] + near).flatten(),
            (short[:, None] + torch.arange(-1, 2)).flatten(),
            torch.arange(33),
            infinity - torch.arange(33),
            infinity + torch.tensor([1, quiet_bit, quiet_bit + 1, 2 * quiet_bit - 1]),
        ]
    )
    patterns = patterns[(patterns >= 0) & (patterns < infinity + 2 * quiet_bit)].unique()
    sign = 1 << (torch.finfo(dtype).bits - 1)
    return torch.cat([patterns, patterns + sign]).to(integer).view(dtype)


# ---- measuring ---------------------------------------------------------------------------------


@dataclass
class Maximum:
    """The largest error so far and the input that has it."""

    error: float = 0.0
    at: float = math.nan

    def add(self, errors: Tensor, x: Tensor) -> None:
        largest = errors.max().item() if errors.numel() else 0.0
        if largest > self.error:
            self.error, self.at = largest, x.flatten()[errors.argmax()].item()

    def join(self, other: Maximum) -> None:
        if other.error > self.error:
            self.error, self.at = other.error, other.at


@dataclass
class Errors:
    """What a sweep found, in ULP, or 1 for bits that differ from PyTorch's and must not.

    Attributes:
        forward: of the output.
        gradient: of the gradient as a function of (incoming gradient, saved tensor).
        end_to_end: of the gradient as a function of the input, where backward reads the output:
            absolute, in ulps of 1.
    """

    forward: Maximum = field(default_factory=Maximum)
    gradient: Maximum = field(default_factory=Maximum)
    end_to_end: Maximum = field(default_factory=Maximum)

    def join(self, other: Errors) -> None:
        self.forward.join(other.forward)
        self.gradient.join(other.gradient)
        self.end_to_end.join(other.end_to_end)


def differing_bits(a: Tensor, b: Tensor) -> Tensor:
    """1.0 where the bits differ, else 0.0; all NaN are alike."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    if torch.equal(a.view(integer), b.view(integer)):
        return torch.zeros(a.shape)
    different = a.view(integer) != b.view(integer)
    return (different & ~(a.isnan() & b.isnan())).double()


@functools.cache
def incoming_gradient(dtype: torch.dtype) -> Tensor:
    """Both signs, every size within a few binades, long significands; a chunk of them."""
    generator = torch.Generator().manual_seed(20261122)
    return torch.randn(CHUNK, generator=generator).clamp_(-3, 3).to(dtype)


def compared_bitwise(case: Case, dtype: torch.dtype) -> bool:
    return case.row.ulp == 0 and dtype in (torch.float32, torch.float64)


def errors_of(case: Case, x: Tensor, grad: Tensor) -> Errors:
    """The errors of fastact at the inputs x, for the incoming gradient grad."""
    errors = Errors()
    y = forward(case, x)
    saved = y if saves_output(case) else x
    dx = backward(case, grad, saved)
    if compared_bitwise(case, x.dtype):
        errors.forward.add(differing_bits(y, twin(case, x)), x)
        errors.gradient.add(differing_bits(dx, twin_gradient(case, grad, x)), x)
    else:
        errors.forward.add(ulp_error(y, truth_of(case, x)), x)
        slope = derivative(case, saved)
        if slope is not None:
            error = ulp_error(dx, slope.mul_(grad))
            errors.gradient.add(_without_nan_inputs(error, x), x)
    return errors


def end_to_end_errors_of(case: Case, x: Tensor, grad: Tensor) -> Errors:
    """The error of fastact's gradient as a function of the input, where it is another function."""
    errors = Errors()
    if saves_output(case):
        _add_end_to_end(errors, case, x, backward(case, torch.ones_like(x), forward(case, x)))
    return errors


def errors_of_twin(case: Case, x: Tensor, grad: Tensor) -> Errors:
    """The errors of PyTorch at the finite ones of the inputs x."""
    finite = x.isfinite()
    x, grad = x[finite], grad[finite]
    errors = Errors()
    errors.forward.add(ulp_error(twin(case, x), truth_of(case, x)), x)
    if saves_output(case):
        _add_end_to_end(errors, case, x, twin_gradient(case, torch.ones_like(x), x))
    else:
        truth = derivative(case, x)
        assert truth is not None  # as no output is saved
        errors.gradient.add(ulp_error(twin_gradient(case, grad, x), truth * grad), x)
    return errors


def _add_end_to_end(errors: Errors, case: Case, x: Tensor, slope: Tensor) -> None:
    # As a function of the exact output, with an absolute error of about 2^-53.
    truth = derivative(case, truth_of(case, x))
    if truth is not None:
        error = (slope.double() - truth).abs_().div_(torch.finfo(x.dtype).eps)
        error = _without_nan_inputs(error, x)
        errors.end_to_end.add(error.masked_fill_(error.isnan(), torch.inf), x)


def _without_nan_inputs(error: Tensor, x: Tensor) -> Tensor:
    """A NaN input has no gradient."""
    return error.masked_fill_(x.isnan(), 0.0) if torch.isnan(x.sum()) else error


def sweep(
    measure: Callable[[Case, Tensor, Tensor], Errors],
    case: Case,
    dtype: torch.dtype,
    stride: int = 1,
    on_progress: Callable[[int], None] = lambda inputs: None,
    pool: ThreadPoolExecutor | None = None,
) -> Errors:
    """``measure`` over every ``stride``-th input, and the special ones.

    ``on_progress`` is told how many bit patterns are done. ``pool`` takes the chunks in parallel:
    its threads should have one thread of PyTorch each.
    """
    total, lock = Errors(), threading.Lock()
    saves_output(case)  # asked once, not by several threads at a time

    def measure_chunk(chunk: range | Tensor) -> None:
        x = inputs_of(chunk, dtype) if isinstance(chunk, range) else chunk
        errors = measure(case, x, incoming_gradient(dtype)[: x.numel()])
        with lock:
            total.join(errors)
            on_progress(len(chunk) * stride if isinstance(chunk, range) else 0)

    chunks = [*special_inputs(dtype).split(CHUNK), *chunks_of(dtype, stride)]
    for _ in (pool.map if pool else map)(measure_chunk, chunks):
        pass
    return total


# ---- bounds ------------------------------------------------------------------------------------


def bounds_of(case: Case, dtype: torch.dtype) -> tuple[float, float]:
    """The largest errors allowed, of the output and of the gradient."""
    if compared_bitwise(case, dtype):
        return 0.0, 0.0
    return case.row.ulp if dtype == torch.float32 else BOUND_16_BIT, BOUND_GRADIENT


def violations(
    case: Case, dtype: torch.dtype, errors: Errors, of_pytorch: Errors | None = None
) -> list[str]:
    """What is above its bound, a line each."""
    forward_bound, gradient_bound = bounds_of(case, dtype)
    checks = [
        ("output", errors.forward, forward_bound),
        ("gradient", errors.gradient, gradient_bound),
    ]
    if of_pytorch is not None and dtype == torch.float32:
        bound = of_pytorch.end_to_end.error + 1
        checks.append(("gradient end to end", errors.end_to_end, bound))
    return [
        f"{case.row.name} {name_of(dtype)}: {what}: error {found.error:.4g} at x = {found.at!r}, "
        f"allowed {bound:.4g}"
        for what, found, bound in checks
        if found.error > bound
    ]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
