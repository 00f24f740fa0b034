"""How large is the error of every activation and its gradient, and is it measured rightly?"""

import functools
import itertools
import math

import pytest
import torch
from mpmath import mp, mpf

from fastact.activations import REGISTRY
from fastact.testing import accuracy
from fastact.testing.accuracy import ELEMENTWISE, MEASURED, Errors, errors_of, sweep, violations
from fastact.testing.cases import assert_same_bits, pairs
from fastact.testing.inputs import special_values
from fastact.testing.ulp import FORMATS, ulp_error, ulp_of

INF, NAN = math.inf, math.nan
FLOAT_MAX, HALF_MAX = torch.finfo(torch.float32).max, torch.finfo(torch.float16).max
STRIDE = 4099
NOT_EXACT = [case for case in MEASURED if case.row.ulp > 0]
WITH_PARAMETERS = [case for case in ELEMENTWISE if case.parameters or case.label == "channels"]


# ---- the measure -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_ulp_is_the_distance_to_the_next_number(dtype):
    every = accuracy.inputs_of(range(1 << 15), dtype)
    following = torch.nextafter(every, torch.tensor(INF, dtype=dtype))
    inner = following.isfinite()
    distance = following.double() - every.double()
    assert inner.sum() > 30_000
    assert torch.equal(ulp_of(every.double(), dtype)[inner], distance[inner])
    assert torch.equal(ulp_of(-every.double(), dtype)[inner], distance[inner])


ULP_TABLE = [
    # dtype, result, truth, error
    (torch.float32, 1.0, 1.0, 0.0),
    (torch.float32, 1.0 + 2.0**-23, 1.0, 1.0),
    (torch.float32, 1.0 - 2.0**-24, 1.0, 0.5),  # below 1 the numbers are twice as dense
    (torch.float32, -2.0, -2.0 - 2.0**-23, 0.5),
    (torch.float32, 0.0, -0.0, 0.0),
    (torch.float32, 0.0, 2.0**-150, 0.5),
    (torch.float32, 2.0**-149, 0.0, 1.0),
    (torch.float32, 0.0, 2.0**-126, 2.0**23),
    (torch.float32, 1.0, 0.0, 2.0**149),
    (torch.float32, NAN, NAN, 0.0),
    (torch.float32, NAN, 1.0, INF),
    (torch.float32, 1.0, NAN, INF),
    (torch.float32, INF, INF, 0.0),
    (torch.float32, INF, -INF, INF),
    (torch.float32, FLOAT_MAX, INF, INF),
    (torch.float32, INF, FLOAT_MAX, 1.0),
    (torch.float32, INF, FLOAT_MAX + 2.0**102, 0.75),
    (torch.float32, INF, FLOAT_MAX + 2.0**103, 0.0),  # rounds to infinity
    (torch.float32, FLOAT_MAX, FLOAT_MAX + 2.0**103, 0.5),
    (torch.float32, -INF, -1e300, 0.0),
    (torch.float32, INF, -1e300, INF),
    (torch.float32, INF, 0.0, INF),
    (torch.float16, INF, 65520.0, 0.0),
    (torch.float16, INF, 65519.0, 1 - 15 / 32),
    (torch.float16, HALF_MAX, 65519.0, 15 / 32),
    (torch.bfloat16, 1.0 + 2.0**-7, 1.0, 1.0),
    (torch.float64, 5e-324, 0.0, 1.0),
    (torch.float64, INF, 2.0**1023, 2.0**52),
]


@pytest.mark.parametrize("dtype, result, truth, error", ULP_TABLE, ids=str)
def test_ulp_error(dtype, result, truth, error):
    # Beside a harmless number: one that needs a closer look must not spoil the others.
    found = ulp_error(
        torch.tensor([result, 1.0], dtype=dtype), torch.tensor([truth, 1.0], dtype=torch.float64)
    )
    if error == 2.0**149 or math.isinf(error):
        assert found[0] >= 2.0**149
    else:
        assert found[0] == error
    assert found[1] == 0


def test_ulp_error_refuses_a_truth_that_is_not_float64():
    with pytest.raises(TypeError, match="expected float64"):
        ulp_error(torch.ones(2), torch.ones(2))


def test_inputs_are_complete():
    chunks = accuracy.chunks_of(torch.float32)
    assert [chunk[-1] + 1 for chunk in chunks[:-1]] == [chunk[0] for chunk in chunks[1:]]
    assert chunks[0][0] == 0
    assert chunks[-1][-1] == (1 << 32) - 1
    for pattern in (0, 0x3F800000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        x = accuracy.inputs_of(range(pattern, pattern + 1), torch.float32)
        assert x.view(torch.int32).item() % (1 << 32) == pattern
    every = accuracy.inputs_of(*accuracy.chunks_of(torch.bfloat16), torch.bfloat16)
    assert every.view(torch.int16).unique().numel() == 1 << 16


# ---- fastact -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_float32(case):
    errors = sweep(errors_of, case, torch.float32, STRIDE)
    errors.join(sweep(accuracy.end_to_end_errors_of, case, torch.float32, STRIDE))
    of_pytorch = sweep(accuracy.errors_of_twin, case, torch.float32, STRIDE)
    assert not violations(case, torch.float32, errors, of_pytorch)


@pytest.mark.parametrize("case, dtype", pairs(ELEMENTWISE, [torch.bfloat16, torch.float16]))
def test_all_16_bit_inputs(case, dtype):
    assert not violations(case, dtype, sweep(errors_of, case, dtype))


@pytest.mark.parametrize("case", WITH_PARAMETERS, ids=str)
def test_parameters(case):
    assert not violations(case, torch.float32, sweep(errors_of, case, torch.float32, 65537))


# Gradients that make the product with the derivative subnormal or zero, and scaled losses.
GRADIENTS = [0.0, -0.0, 1e-45, -3e-39, 2.0**-126, 1e-20, -1024.0, 65536.0]


# Their kernels round the derivative before it is multiplied, so where it is subnormal a huge
# gradient shows how few digits it has.
ROUNDED_DERIVATIVE = {"gelu", "gelu_tanh", "silu", "mish", "softplus", "tanhshrink"}


@pytest.mark.parametrize(
    "case", [case for case in MEASURED if case.row.name not in ROUNDED_DERIVATIVE], ids=str
)
def test_extreme_gradients(case):
    x = accuracy.special_inputs(torch.float32)
    errors = Errors()
    for grad in GRADIENTS:
        errors.join(errors_of(case, x, torch.full_like(x, grad)))
    assert errors.gradient.error <= accuracy.bounds_of(case, torch.float32)[1], errors.gradient


@pytest.mark.parametrize("case", NOT_EXACT, ids=str)
def test_flushed_subnormals(case):
    """Kernels neither depend on subnormal numbers nor switch them on or off."""
    x = torch.cat([accuracy.special_inputs(torch.float32), torch.linspace(-130, 130, 100_001)])
    x = x[(x.abs() >= 2.0**-126) | (x == 0)]
    truth = accuracy.truth_of(case, x)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        y = accuracy.forward(case, x)
        still_on = torch.tensor([2.0**-140]) * 2 == 0
    finally:
        torch.set_flush_denormal(False)
    assert still_on
    normal = truth.abs() >= 2.0**-125
    assert normal.sum() > 40_000
    # A flushed intermediate may cost another unit next to the smallest normal results.
    assert ulp_error(y, truth)[normal].max() <= max(case.row.ulp, 2.0)
    assert y[~normal].abs().nan_to_num(0).max() <= 2.0**-124


# ---- along a dimension -------------------------------------------------------------------------


def _gated(activation, x, dim):
    a, b = x.chunk(2, dim)
    return activation(a) * b


def _gelu(x):
    # PyTorch's loses its digits in the tail, also in float64.
    return REGISTRY["gelu"].exact(x) if x.dtype == torch.float64 else torch.nn.functional.gelu(x)


TWINS = {
    "softmax": torch.softmax,
    "softmin": torch.nn.functional.softmin,
    "log_softmax": torch.log_softmax,
    "glu": torch.nn.functional.glu,
    "swiglu": functools.partial(_gated, torch.nn.functional.silu),
    "geglu": functools.partial(_gated, _gelu),
    "reglu": functools.partial(_gated, torch.relu),
}


@pytest.mark.parametrize("operator, dtype", pairs(accuracy.ALONG_DIMENSION, accuracy.DTYPES))
def test_no_worse_than_pytorch_along_a_dimension(operator, dtype):
    """Sums of rounded terms, and differences of large numbers: errors as large as PyTorch's."""
    twin, eps = TWINS[operator.name], torch.finfo(dtype).eps
    worst = torch.zeros(4, dtype=torch.float64)
    for length, deviation, dim in itertools.product(
        (2, 16, 100, 1000, 10_000), (0.1, 1, 10), (0, 1)
    ):
        x = (torch.randn(20, length) * deviation).to(dtype)
        x = x if dim else x.t().contiguous()
        inputs = [x.double().requires_grad_(), x.clone().requires_grad_()]
        exact, theirs = (twin(t, dim) for t in inputs)
        mine = operator.forward(x, dim)
        grad = torch.randn(exact.shape).to(dtype)
        truth, dtheirs = (
            torch.autograd.grad(y, t, grad.to(t.dtype))[0]
            for y, t in zip((exact, theirs), inputs, strict=True)
        )
        dmine = operator.backward(grad, mine if operator.reads_output else x, dim)
        row = truth.abs().amax(dim, keepdim=True) * eps + torch.finfo(dtype).smallest_normal * eps
        found = [ulp_error(y.detach(), exact.detach()).max() for y in (mine, theirs)]
        found += [((d.double() - truth).abs() / row).max() for d in (dmine, dtheirs)]
        worst = torch.maximum(worst, torch.stack(found))
    forward, forward_twin, gradient, gradient_twin = worst.tolist()
    assert forward <= 1.5 * forward_twin + 2
    assert gradient <= 1.5 * gradient_twin + 4


# ---- float64 -----------------------------------------------------------------------------------


def _sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def _gelu_tanh_argument(x):
    return 2 * mp.sqrt(2 / mp.pi) * (x + mpf("0.044715") * x**3)


SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
# Independent of the registry, for mpmath's numbers.
EXACT = {
    "elu": lambda x, alpha: x if x > 0 else alpha * mp.expm1(x),
    "selu": lambda x: SELU_SCALE * (x if x > 0 else SELU_ALPHA * mp.expm1(x)),
    "celu": lambda x, alpha: x if x > 0 else alpha * mp.expm1(x / alpha),
    "gelu": lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x * _sigmoid(_gelu_tanh_argument(x)),
    "silu": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * mp.tanh(mp.log1p(mp.exp(x))),
    "sigmoid": _sigmoid,
    "logsigmoid": lambda x: -mp.log1p(mp.exp(-x)),
    "tanh": mp.tanh,
    "hardsigmoid": lambda x: min(max(x + 3, 0), 6) / 6,
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "softplus": lambda x, beta, threshold: (
        x if x * beta > threshold else mp.log1p(mp.exp(beta * x)) / beta
    ),
    "softsign": lambda x: x / (1 + abs(x)),
    "tanhshrink": lambda x: x - mp.tanh(x),
}
# The derivative as a function of the output.
EXACT_FROM_OUTPUT = {
    "elu": lambda y, alpha: 1 if y > 0 else y + alpha,
    "selu": lambda y: SELU_SCALE if y > 0 else y + SELU_SCALE * SELU_ALPHA,
    "celu": lambda y, alpha: 1 if y > 0 else (y + alpha) / alpha,
    "sigmoid": lambda y: y * (1 - y),
    "logsigmoid": lambda y: -mp.expm1(y),
    "tanh": lambda y: 1 - y * y,
}
# What subnormal numbers cancel in x - tanh(x), and in a difference quotient, is 2,200 bits.
PRECISION = 2500
# None near the roots of derivatives.
# fmt: off
MAGNITUDES = [
    5e-324, 1e-310, 2.5e-308, 1e-200, 1e-30, 1e-12, 3e-8, 1e-4, 0.003, 0.02, 0.1, 0.3, 0.45, 1.01,
    1.7, 2.2, 2.9, 3.1, 4.4, 5.3, 7.7, 9.1, 11.3, 14.7, 19.9, 20.1, 27.6, 37.5, 44.4, 60.1, 87.2,
    103.9, 300.3, 700.1, 740.5, 5000.5,
]
# fmt: on
POINTS = [sign * magnitude for magnitude in MAGNITUDES for sign in (1, -1)]
IN_TABLE = [case for case in NOT_EXACT if case.row.name in EXACT]


def allowed(case, x, usual):
    """A few ULP; where an exponential enlarges the rounding error of its argument, that too."""
    if case.row.name == "gelu_tanh":
        return usual + 2 * abs(_gelu_tanh_argument(mpf(x)))
    return usual


def to_float64(values):
    """Rounded once, also to a subnormal number."""
    return torch.tensor([float(mp.nstr(value, 40)) for value in values], dtype=torch.float64)


def slope_at(function, x):
    """The derivative as a difference quotient of many digits."""
    step = abs(x) * mpf(2) ** -400
    return (function(x + step) - function(x - step)) / (2 * step)


def assert_within(case, result, truth, usual):
    errors = ulp_error(result, truth).tolist()
    wrong = [
        (x, error)
        for x, error in zip(POINTS, errors, strict=True)
        if error > allowed(case, x, usual)
    ]
    assert not wrong, f"(x, ULP): {wrong}"


@pytest.mark.parametrize("case", IN_TABLE, ids=str)
def test_float64(case):
    y = accuracy.forward(case, torch.tensor(POINTS, dtype=torch.float64))
    with mp.workprec(PRECISION):
        truth = to_float64([EXACT[case.row.name](mpf(x), *case.values) for x in POINTS])
    assert_within(case, y, truth, 4.5)


@pytest.mark.parametrize("case", IN_TABLE, ids=str)
def test_float64_gradient(case):
    name, x = case.row.name, torch.tensor(POINTS, dtype=torch.float64)
    grad = torch.linspace(0.6, 1.9, len(POINTS), dtype=torch.float64)
    reads_output = accuracy.saves_output(case)
    saved = accuracy.forward(case, x) if reads_output else x
    dx = accuracy.backward(case, grad, saved)
    with mp.workprec(PRECISION):
        if reads_output:
            slopes = [EXACT_FROM_OUTPUT[name](mpf(y), *case.values) for y in saved.tolist()]
        else:
            slopes = [slope_at(lambda v: EXACT[name](v, *case.values), mpf(x)) for x in POINTS]
        products = [mpf(g) * slope for g, slope in zip(grad.tolist(), slopes, strict=True)]
        truth = to_float64(products)
    assert_within(case, dx, truth, 8.5)


@pytest.mark.parametrize("case", NOT_EXACT, ids=str)
def test_float64_far_out(case):
    """Where every activation is constant or linear."""
    x = torch.tensor([1e10, 1e50, 1e100, INF], dtype=torch.float64)
    x = torch.cat([x, -x, torch.tensor([NAN])])
    assert ulp_error(accuracy.forward(case, x), accuracy.truth_of(case, x)).max() <= 1
    x = x[x.isfinite()]
    assert errors_of(case, x, torch.ones_like(x)).gradient.error <= 1


@pytest.mark.parametrize("case", [case for case in ELEMENTWISE if case.row.ulp == 0], ids=str)
def test_float64_equals_pytorch(case):
    x = torch.cat([special_values(torch.float64), torch.randn(10_000, dtype=torch.float64) * 3])
    assert_same_bits(accuracy.forward(case, x), case.twin(x, *case.tensors(x)), case)
    assert not errors_of(case, x, torch.randn_like(x)).gradient.error


def test_every_format_is_tested():
    assert set(FORMATS) == {torch.float64, *accuracy.DTYPES}
