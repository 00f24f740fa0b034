"""Does any combination of shape, layout, dtype, values and aliasing break an operator?

A longer run: FASTACT_EXAMPLES=10000 python -m pytest tests/test_properties.py
"""

import math
import os
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from fastact import functional
from fastact.testing import accuracy
from fastact.testing.cases import DTYPES, FUSED_CASES, assert_same_bits
from fastact.testing.inputs import special_values
from fastact.testing.ulp import ulp_error

EXAMPLES = int(os.environ.get("FASTACT_EXAMPLES", "200"))
every_combination = settings(
    max_examples=EXAMPLES,
    deadline=None,
    # The usual run always tries the same ones, a longer one others each time.
    derandomize=EXAMPLES <= 200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# Nothing, one, around the vectors of each width and around groups of four of them, primes.
SIZES = [0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 67, 127, 129, 257, 4099]
MOST_ELEMENTS = 5000


@st.composite
def shapes(draw):
    shape, room = [], MOST_ELEMENTS
    for _ in range(draw(st.integers(0, 5))):
        shape.append(draw(st.sampled_from([size for size in SIZES if size <= room])))
        room //= max(shape[-1], 1)
    return tuple(shape)


@dataclass(frozen=True)
class Layout:
    """Where the elements of a tensor lie.

    Attributes:
        order: the dimensions from the outermost in memory to the innermost.
        steps, gaps, starts: each dimension takes every step-th of its elements, after `start` of
            them, and leaves `gap` behind.
        expanded: the dimensions of stride 0.
        offset: of the first element.
    """

    order: tuple[int, ...]
    steps: tuple[int, ...]
    gaps: tuple[int, ...]
    starts: tuple[int, ...]
    expanded: tuple[bool, ...]
    offset: int

    def make(self, shape, values):
        """A tensor with this layout; `values` makes its distinct elements from their shape."""
        distinct = [1 if self.expanded[i] else size for i, size in enumerate(shape)]
        extent = [
            self.starts[i] + size * self.steps[i] + self.gaps[i] for i, size in enumerate(distinct)
        ]
        in_memory = [extent[i] for i in self.order]
        count = math.prod(in_memory)
        storage = values((self.offset + count,))
        tensor = storage[self.offset :].view(in_memory)
        tensor = tensor.permute([self.order.index(i) for i in range(len(shape))])
        for i, size in enumerate(distinct):
            start, step = self.starts[i], self.steps[i]
            tensor = tensor.narrow(i, start, size * step)
            tensor = tensor[(slice(None),) * i + (slice(None, None, step),)]
        return tensor.expand(shape)


@st.composite
def layouts(draw, shape):
    rank = len(shape)
    order = tuple(range(rank))
    if rank > 3 and draw(st.booleans()):
        order = (0, *range(2, rank), 1)  # channels last
    elif draw(st.booleans()):
        order = tuple(draw(st.permutations(range(rank))))
    # Gaps in one dimension at most: they multiply the memory, and one changes the algorithm.
    torn = draw(st.integers(-1, rank - 1))

    def one(choices, usual):
        chosen = draw(st.sampled_from(choices)) if torn >= 0 else usual
        return tuple(chosen if i == torn else usual for i in range(rank))

    return Layout(
        order=order,
        steps=one([1, 2, 3], 1),
        gaps=one([0, 1, 7], 0),
        starts=one([0, 1, 2], 0),
        expanded=tuple(draw(st.sampled_from([False, False, True])) for _ in range(rank)),
        offset=draw(st.integers(0, 15)),
    )


@st.composite
def values(draw, dtype):
    """Makes elements from a shape: random ones, some of them special."""
    seed, specials = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0, 0, 1, 5]))
    deviation = draw(st.sampled_from([0.01, 1, 4, 40]))

    def make(shape):
        generator = torch.Generator().manual_seed(seed)
        x = (torch.randn(shape, generator=generator) * deviation).to(dtype)
        if specials and x.numel():
            some = torch.randint(0, x.numel(), (x.numel() // 4 + specials,), generator=generator)
            table = special_values(dtype)
            which = torch.randint(0, len(table), some.shape, generator=generator)
            x.view(-1)[some] = table[which]
        return x

    return make


def strides(tensor):
    """Those that mean anything."""
    sizes = enumerate(tensor.shape) if tensor.numel() else ()
    return [tensor.stride(i) for i, size in sizes if size > 1]


def assert_within_bounds(case, x, grad):
    if x.dtype != torch.float64 or accuracy.compared_bitwise(case, x.dtype):
        errors = accuracy.errors_of(case, x, grad)
        forward, gradient = accuracy.bounds_of(case, x.dtype)
        assert errors.forward.error <= forward, (case, errors.forward)
        assert errors.gradient.error <= gradient, (case, errors.gradient)
        return
    # Here the truth itself is not exact to the last digits: see test_numerics.
    y, truth = accuracy.forward(case, x), accuracy.truth_of(case, x)
    close = (y - truth).abs() <= 1e-9 * truth.abs() + 1e-300
    assert (close | (y == truth) | (y.isnan() & truth.isnan())).all(), case


@pytest.mark.parametrize("name", [case.row.name for case in accuracy.MEASURED])
@every_combination
@given(data=st.data())
def test_activation(name, data):
    case = data.draw(st.sampled_from([c for c in accuracy.ELEMENTWISE if c.row.name == name]))
    shape = data.draw(shapes().filter(lambda shape: shape or case.label != "channels"))
    dtype = data.draw(st.sampled_from(DTYPES))
    layout = data.draw(layouts(shape))
    x = layout.make(shape, data.draw(values(dtype)))
    aliased = data.draw(st.booleans())
    grad = x
    if not aliased:
        small = data.draw(st.sampled_from([0, 2**31 + 5]))
        generator = torch.Generator().manual_seed(small)
        grad = data.draw(layouts(shape)).make(
            shape, lambda size: torch.randn(size, generator=generator).clamp_(-3, 3).to(dtype)
        )
    note(f"{dtype} {tuple(x.shape)} {x.stride()} {layout}")
    before = x.clone()

    assert_within_bounds(case, x, grad.clamp(-3, 3))
    y = accuracy.forward(case, x)
    # PyTorch's logsigmoid is contiguous.
    assert strides(y) == strides(
        x.contiguous() if case.row.name == "logsigmoid" else torch.empty_like(x)
    )
    # The value of an element depends on nothing else.
    dense = accuracy.forward(case, x.contiguous())
    assert_same_bits(y, dense, case)
    saved = y if accuracy.saves_output(case) else x
    dx = accuracy.backward(case, grad, saved)
    assert_same_bits(dx, accuracy.backward(case, grad.contiguous(), saved.contiguous()), case)
    assert_same_bits(x, before, f"{case}: the input has changed")

    if case.row.family == "unary" and not any(layout.expanded):
        result = getattr(torch.ops.fastact, case.row.name + "_")(x, *case.values)
        assert result is x
        assert_same_bits(x, dense, case)


TWINS = {
    "softmax": torch.softmax,
    "softmin": torch.nn.functional.softmin,
    "log_softmax": torch.log_softmax,
    "glu": torch.nn.functional.glu,
    "swiglu": lambda x, dim: _gated(torch.nn.functional.silu, x, dim),
    "geglu": lambda x, dim: _gated(torch.nn.functional.gelu, x, dim),
    "reglu": lambda x, dim: _gated(torch.relu, x, dim),
}


def _gated(activation, x, dim):
    a, b = x.chunk(2, dim)
    return activation(a) * b


@pytest.mark.parametrize("operator", accuracy.ALONG_DIMENSION, ids=str)
@every_combination
@given(data=st.data())
def test_along_a_dimension(operator, data):
    """Against PyTorch in float64; finite numbers, of which rows of PyTorch's make no NaN."""
    shape = list(data.draw(shapes().filter(bool)))
    dim = data.draw(st.integers(0, len(shape) - 1))
    if operator.name.endswith("glu"):
        shape[dim] += shape[dim] % 2
    dtype = data.draw(st.sampled_from(DTYPES))
    seed = data.draw(st.integers(0, 2**32 - 1))
    deviation = data.draw(st.sampled_from([0.01, 1, 8]))
    generator = torch.Generator().manual_seed(seed)

    def operand(size):
        def numbers(size):
            return (torch.randn(size, generator=generator) * deviation).to(dtype)

        return data.draw(layouts(tuple(size))).make(tuple(size), numbers)

    x = operand(shape)
    note(f"{dtype} {tuple(x.shape)} {x.stride()} dim {dim}, seed {seed}")
    exact = x.double().requires_grad_()
    expected = TWINS[operator.name](exact, dim)
    y = operator.forward(x, dim)
    assert (y.shape, y.dtype) == (expected.shape, dtype)
    torch.testing.assert_close(y, expected.to(dtype))

    grad = operand(expected.shape)
    saved = expected.detach().to(dtype) if operator.reads_output else x
    dx = operator.backward(grad, saved, dim)
    (dexpected,) = torch.autograd.grad(expected, exact, grad.double())
    # What a saved output is rounded to counts for the sum of a whole row.
    slack = 4 * torch.finfo(dtype).eps * (1 + grad.double().abs().sum().item())
    torch.testing.assert_close(dx, dexpected.to(dtype), rtol=2e-2, atol=slack)


@every_combination
@given(data=st.data())
def test_linear(data):
    """Small integers, so that the matrix product is exact whatever the order of the sums."""
    fused = data.draw(st.sampled_from(FUSED_CASES))
    rows = data.draw(shapes().filter(lambda shape: len(shape) < 4 and math.prod(shape) < 300))
    inner, outer = (data.draw(st.sampled_from([0, 1, 2, 3, 7, 16, 17, 33, 65])) for _ in range(2))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))

    def integers(shape):
        return torch.randint(-4, 5, shape, generator=generator).to(dtype)

    def operand(shape):
        return data.draw(layouts(shape)).make(shape, integers)

    x, weight = operand((*rows, inner)), operand((outer, inner))
    bias = operand((outer,)) if data.draw(st.booleans()) else None
    note(f"{dtype} {tuple(x.shape)} {x.stride()} {weight.stride()}")
    slope = torch.linspace(-1, 1, outer, dtype=dtype) if fused.learnable else None
    residual = operand((*rows, outer)) if data.draw(st.booleans()) else None
    keywords = {"slope": slope, "residual": residual, **fused.parameters}
    y = functional.linear(x, weight, bias, fused.name, **keywords)

    z = x.double() @ weight.double().t()
    z = z if bias is None else z + bias.double()
    z = z if residual is None else z + residual.double()
    expected = torch.where(z > 0, z, z * slope.double()) if fused.learnable else fused.twin(z)
    assert y.shape == expected.shape
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype), rtol=1e-5, atol=1e-6)
    if fused.name in (None, "relu", "relu6", "hardtanh") and not fused.parameters:
        assert not ulp_error(y, expected).count_nonzero()
