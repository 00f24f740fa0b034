"""Is the softmax family right along every dimension, for rows of any length and any content?"""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from fastact import functional, nn
from fastact.testing.cases import DTYPES, pairs
from fastact.testing.inputs import LAYOUTS, random_tensor

NAMES = ("softmax", "softmin", "log_softmax")
# Vectors and every tail, several blocks, a vocabulary.
LENGTHS = (
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    17,
    31,
    33,
    63,
    64,
    65,
    100,
    127,
    129,
    255,
    513,
    1000,
    4099,
    50257,
)
# PyTorch's own result carries rounding errors of this size; ours may be nearer to the truth.
TOLERANCES = {
    torch.float64: {},
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-6, "atol": 2**-7},
    torch.float16: {"rtol": 2**-9, "atol": 2**-9},
}


def _at(context):
    return lambda text: f"{context}: {text}"


def _both(name):
    return getattr(functional, name), getattr(F, name)


@pytest.mark.parametrize("name, dtype", pairs(NAMES, DTYPES))
def test_lengths(name, dtype):
    mine, twin = _both(name)
    for length in LENGTHS:
        rows = 3 if length < 4096 else 1
        x = random_tensor([rows, length], dtype)
        truth = twin(x.double(), -1)
        # A row of log-probabilities may be large: its rounding is relative.
        y = mine(x, -1)
        torch.testing.assert_close(y, truth.to(dtype), **TOLERANCES[dtype], msg=_at(length))
        if name != "log_softmax" and dtype in (torch.float32, torch.float64):
            torch.testing.assert_close(y.sum(-1), torch.ones(rows, dtype=dtype))


@pytest.mark.parametrize("name, dtype", pairs(NAMES, DTYPES))
def test_every_dimension_of_every_layout(name, dtype):
    mine, twin = _both(name)
    for layout, make in LAYOUTS.items():
        x = make(lambda shape: random_tensor(shape, dtype))
        for dim in range(-max(x.dim(), 1), max(x.dim(), 1)):
            context = f"{layout}, dim={dim}"
            y, expected = mine(x, dim), twin(x, dim)
            assert y.is_contiguous() == expected.is_contiguous(), context
            torch.testing.assert_close(y, expected, **TOLERANCES[dtype], msg=_at(context))
            leaf, other = x.detach().requires_grad_(), x.detach().requires_grad_()
            grad = torch.linspace(-1, 2, y.numel(), dtype=dtype).view(y.shape)
            mine(leaf, dim).backward(grad)
            twin(other, dim).backward(grad)
            # The gradient is a difference, of a term for each element of the row.
            tolerance = {key: 8 * value for key, value in TOLERANCES[dtype].items()}
            torch.testing.assert_close(leaf.grad, other.grad, **tolerance, msg=_at(context))


ROWS = {
    "all -inf": [-math.inf] * 5,
    "all +inf": [math.inf] * 5,
    "one +inf": [1.0, math.inf, 2.0, 3.0, 4.0],
    "some -inf": [1.0, -math.inf, 2.0, -math.inf, 4.0],
    "all but one -inf": [-math.inf, -math.inf, 7.0, -math.inf, -math.inf],
    "NaN": [1.0, math.nan, 2.0, 3.0, 4.0],
    "both infinities": [math.inf, -math.inf, 0.0, 1.0, 2.0],
    "large": [1e4, 1e4 - 1, 1e4 - 2, -1e4, 0.0],
    "overflow of exp": [100.0, 99.0, 98.0, 800.0, 801.0],
    "equal": [3.0] * 5,
    "zeros": [0.0, -0.0, 0.0, -0.0, 0.0],
    "far apart": [0.0, -200.0, -80.0, -110.0, 60.0],
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name, dtype", pairs(NAMES, DTYPES))
def test_special_rows(name, dtype, row):
    """In a short row and in a long one; along the last dimension and along the first."""
    mine, twin = _both(name)
    short = torch.tensor(ROWS[row], dtype=dtype)
    for x in (short, short.repeat(30)):
        torch.testing.assert_close(mine(x, -1), twin(x, -1), equal_nan=True, **TOLERANCES[dtype])
        columns = torch.stack([x, torch.zeros_like(x), x], 1)
        torch.testing.assert_close(
            mine(columns, 0), twin(columns, 0), equal_nan=True, **TOLERANCES[dtype]
        )


@pytest.mark.parametrize("name", NAMES)
def test_dtype_argument(name):
    mine, twin = _both(name)
    for source in (torch.int64, torch.float32, torch.bfloat16):
        x = random_tensor([4, 6]).to(source)
        for target in (torch.float64, torch.float32, torch.bfloat16):
            y = mine(x, -1, dtype=target)
            assert y.dtype == target
            torch.testing.assert_close(y, twin(x, -1, dtype=target), **TOLERANCES[target])
    leaf = random_tensor([4, 6], torch.bfloat16).requires_grad_()
    mine(leaf, 1, dtype=torch.float32).sum().backward()
    assert leaf.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_other_dtypes(name, dtype):
    mine, twin = _both(name)
    x = random_tensor([4, 6]).to(dtype)
    try:
        expected = twin(x, -1)
    except Exception as error:
        with pytest.raises(type(error)):
            mine(x, -1)
    else:
        torch.testing.assert_close(mine(x, -1), expected)


@pytest.mark.parametrize("name", NAMES)
def test_no_dimension(name):
    """PyTorch's choice of a dimension, and PyTorch's warning, pointing at the caller."""
    mine, twin = _both(name)
    module = {"softmax": nn.Softmax, "softmin": nn.Softmin, "log_softmax": nn.LogSoftmax}[name]
    for rank in range(5):
        x = random_tensor([2, 3, 2, 3][:rank])
        for call in (mine, module()):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                y = call(x)
            assert [str(w.message).split(".")[0] for w in caught] == [
                f"Implicit dimension choice for {name} has been deprecated"
            ]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.testing.assert_close(y, twin(x))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mine(random_tensor([2, 3]))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    mine = getattr(functional, name)
    for shape, dim in (((3, 4), -1), ((3, 4), 0), ((2, 3, 4), 1), ((5,), 0), ((), 0), ((0, 3), 1)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        function = lambda t, dim=dim: mine(t, dim)  # noqa: E731
        assert gradcheck(function, (x,), check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(function, (x,), check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("name, dtype", pairs(NAMES, DTYPES[1:]))
def test_error_of_gradients(name, dtype):
    """At most PyTorch's and one unit in the last place of the largest term."""
    mine, twin = _both(name)
    x = random_tensor([16, 100], dtype)
    grad = torch.randn_like(x)
    exact = x.double().requires_grad_()
    twin(exact, -1).backward(grad.double())
    errors = []
    for function in (mine, twin):
        leaf = x.clone().requires_grad_()
        function(leaf, -1).backward(grad)
        errors.append((leaf.grad.double() - exact.grad).abs())
    size = grad.abs().max() + grad.double().sum(-1).abs().max()
    assert (errors[0] - errors[1]).max() <= torch.finfo(dtype).eps * size


def test_softmax2d():
    x = random_tensor([2, 5, 3, 4])
    torch.testing.assert_close(nn.Softmax2d()(x), torch.nn.Softmax2d()(x))
    torch.testing.assert_close(nn.Softmax2d()(x[0]), torch.nn.Softmax2d()(x[0]))
    channels_last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(nn.Softmax2d()(channels_last), torch.nn.Softmax2d()(x))
    for wrong in (x[0, 0], x[None]):
        with pytest.raises(ValueError) as theirs:
            torch.nn.Softmax2d()(wrong)
        with pytest.raises(theirs.type, match="Softmax2d"):
            nn.Softmax2d()(wrong)
