"""Does every function compute what its PyTorch twin computes, whatever the input?"""

import functools
import inspect

import pytest
import torch
import torch.nn.functional as F

from fastact import functional
from fastact.activations import REGISTRY
from fastact.layers import LAYERS
from fastact.testing.cases import (
    CASES,
    DTYPES,
    UNARY_CASES,
    assert_like_twin,
    pairs,
    public_function,
)
from fastact.testing.inputs import LAYOUTS, SIZES, random_tensor, special_values
from fastact.testing.samples import EXPECTED_SAMPLES, op_infos

FUSED = [row.function for row in LAYERS.values()]
OTHER_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int64, torch.complex64)


@pytest.mark.parametrize("name, dtype", pairs(EXPECTED_SAMPLES, DTYPES))
def test_samples(name, dtype):
    """PyTorch's own reference inputs, and the same with a gap between the elements."""
    count = 0
    for info in op_infos(name):
        for sample in info.reference_inputs("cpu", dtype):
            _assert_like_twin(name, sample)
            _assert_like_twin(name, sample.noncontiguous())
            count += 1
    assert count == EXPECTED_SAMPLES[name][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EXPECTED_SAMPLES)
def test_gradients_of_samples(name, dtype):
    """Of PyTorch's own reference inputs, NaN and infinities among them. Its vector code gives other
    gradients at NaN than its scalar code, which runs on inputs with gaps."""
    count = 0
    for info in op_infos(name):
        for sample in info.reference_inputs("cpu", dtype):
            mine, expected = (
                _gradients(getattr(namespace, name), sample, with_gaps)
                for namespace, with_gaps in ((functional, False), (F, True))
            )
            if name in ("silu", "mish", "softsign"):
                # PyTorch's are NaN at infinity; fastact gives the limits.
                expected = (torch.where(sample.input.isinf(), mine[0], expected[0]),)
                assert not mine[0][sample.input.isinf()].isnan().any()
            torch.testing.assert_close(
                mine,
                expected,
                equal_nan=True,
                rtol=1e-4,
                atol=1e-4,
                msg=lambda text, s=sample: f"{s.summary()}: {text}",
            )
            count += 1
    assert count == EXPECTED_SAMPLES[name][1]


def _gradients(function, sample, with_gaps):
    leaves = []

    def leaf(value):
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach()
        value = torch.stack([value, value], -1)[..., 0] if with_gaps else value.clone()
        leaves.append(value.requires_grad_(value.is_floating_point()))
        return leaves[-1]

    torch.manual_seed(0)  # rrelu draws
    kwargs = {key: leaf(value) for key, value in sample.kwargs.items()}
    y = function(leaf(sample.input), *map(leaf, sample.args), **kwargs)
    torch.manual_seed(1)
    return torch.autograd.grad(y, leaves, torch.randn(y.shape).to(y.dtype))


def _outcome(function, *args, **kwargs):
    """The result, or the type of the error."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return type(error)


def _assert_like_twin(name, sample):
    kwargs = dict(sample.kwargs)
    approximate = kwargs.pop("approximate", "none") if name == "gelu" else "none"
    row = REGISTRY.get("gelu_tanh" if approximate == "tanh" else name)
    if row and "dtype" not in kwargs:
        assert_like_twin(row, sample.input, *sample.args, context=sample.summary(), **kwargs)
    else:
        results = []
        for namespace in (functional, F):
            torch.manual_seed(0)  # rrelu draws
            function = getattr(namespace, name)
            results.append(_outcome(function, sample.input, *sample.args, **kwargs))
        if isinstance(results[1], type):  # rrelu in float16, in training
            assert results[0] is results[1]
        else:
            if name in FUSED and sample.input.dtype.itemsize == 2:
                # PyTorch may round between the product and the bias.
                tensors = [t if t is None else t.double() for t in (sample.input, *sample.args)]
                results[1] = results[1].copy_(getattr(F, name)(*tensors, **kwargs))
            torch.testing.assert_close(*results, equal_nan=True, check_stride=True)


@pytest.mark.parametrize("name", EXPECTED_SAMPLES)
def test_generators_are_complete(name):
    """The comparisons above prove nothing where PyTorch's generators have dried up."""
    counts = [0, 0, 0]
    for info in op_infos(name):
        counts[0] += len(list(info.sample_inputs("cpu", torch.float32)))
        counts[1] += len(list(info.reference_inputs("cpu", torch.float32)))
        counts[2] += len(list(info.error_inputs("cpu"))) if info.error_inputs_func else 0
    assert tuple(counts) == EXPECTED_SAMPLES[name]


@pytest.mark.parametrize("case, dtype", pairs(CASES, DTYPES))
def test_layouts(case, dtype):
    made = {k: make(functools.partial(random_tensor, dtype=dtype)) for k, make in LAYOUTS.items()}
    accepted = {layout: x for layout, x in made.items() if case.accepts(x)}
    assert accepted
    for layout, x in accepted.items():
        case.assert_like_twin(x, layout)


@pytest.mark.parametrize("case, dtype", pairs(CASES, DTYPES))
def test_sizes(case, dtype):
    """Every tail after whole vectors, at changing offsets from their alignment."""
    data = random_tensor([max(SIZES) + 16], dtype)
    tails = [(i % 17, data[i % 17 : i % 17 + size]) for i, size in enumerate(SIZES)]
    accepted = [(offset, x) for offset, x in tails if case.accepts(x)]
    assert accepted
    for offset, x in accepted:
        case.assert_like_twin(x, f"{len(x)} at {offset}")


@pytest.mark.parametrize("case, dtype", pairs(CASES, DTYPES))
def test_special_values(case, dtype):
    values = special_values(dtype)
    # Inside a vector, in a tail, and alone.
    inputs = (values.repeat(3), values[:7], *values.reshape(-1, 1).unbind())
    accepted = [x for x in inputs if case.accepts(x)]
    assert accepted
    for x in accepted:
        case.assert_like_twin(x)


@pytest.mark.parametrize("case, dtype", pairs(UNARY_CASES, OTHER_DTYPES))
def test_other_dtypes(case, dtype):
    """Integers, bools and complex numbers: what the twin computes, or the error that it raises."""
    x = torch.tensor([[0, 1, 2], [3, 5, 100]]).to(dtype)
    if dtype.is_signed:
        x = torch.cat([x, -x])
    try:
        expected = case.twin(x)
    except Exception as error:
        with pytest.raises(type(error)):
            case.function(x)
    else:
        torch.testing.assert_close(case.function(x), expected, equal_nan=True)


# The twins that are builtins have no signature; these are the ones that PyTorch's documents state.
DOCUMENTED = {
    "prelu": lambda input, weight: None,
    "gelu": lambda input, approximate="none": None,
    "logsigmoid": lambda input: None,
    "softplus": lambda input, beta=1, threshold=20: None,
    "softshrink": lambda input, lambd=0.5: None,
    "hardshrink": lambda input, lambd=0.5: None,
    "linear": lambda input, weight, bias=None: None,
} | dict.fromkeys(
    ("conv1d", "conv2d", "conv3d"),
    lambda input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1: None,
)


@pytest.mark.parametrize("name", EXPECTED_SAMPLES)
def test_signature(name):
    twin = getattr(F, name)
    expected = inspect.signature(DOCUMENTED.get(name, twin)).parameters
    actual = dict(inspect.signature(getattr(functional, name)).parameters)
    if name in FUSED:
        for added in ("activation", "slope", "residual", "params"):
            del actual[added]
    assert list(actual) == list(expected)
    for parameter, theirs in expected.items():
        assert actual[parameter].default == theirs.default, parameter
        assert actual[parameter].kind == theirs.kind, parameter


@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_keyword_forms(case):
    """Positional, by keyword, in another order, input by keyword too."""
    x = random_tensor([3, 5])
    function = public_function(case.row)
    expected = case.twin(x)
    keywords = dict(reversed(case.keywords.items()))
    forms = [
        function(x, *case.values),
        function(x, **keywords),
        function(input=x, **keywords),
    ]
    if case.row.inplace:
        forms += [
            function(x, *case.values, False),
            function(x.clone(), *case.values, True),
            function(x.clone(), inplace=True, **keywords),
        ]
    for actual in forms:
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("case", [case for case in UNARY_CASES if case.values], ids=str)
def test_parameters_of_other_types(case):
    """An int, a bool, a NumPy number, a 0-dimensional tensor: as the twin takes them."""
    np = pytest.importorskip("numpy")
    x = random_tensor([3, 5])
    function = public = getattr(functional, case.row.name)
    for convert in (int, bool, np.float32, np.int64, torch.tensor):
        values = [convert(value) for value in case.values]
        try:
            expected = case.row.reference(x, *values)
        except Exception as error:
            with pytest.raises(type(error)):
                function(x, *values)
        else:
            torch.testing.assert_close(public(x, *values), expected, equal_nan=True)


@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_lazily_negated_inputs(case):
    """A view with the negative bit holds the negated values only when resolved."""
    x = random_tensor([4, 9], torch.float64)
    torch.testing.assert_close(case.function(torch._neg_view(x)), case.twin(x.neg()))
    imaginary = torch.complex(x, x).conj().imag
    assert imaginary.is_neg()
    torch.testing.assert_close(case.function(imaginary), case.twin(x.neg()))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_other_layouts(case):
    """Sparse, MKL-DNN and nested tensors: what the twin computes, or the error that it raises."""
    x = random_tensor([4, 9])
    nested = [random_tensor([3, 5]), random_tensor([2, 5])]
    for other in (
        x.relu().to_sparse(),
        x.relu().to_sparse_csr(),
        x.to_mkldnn(),
        torch.nested.nested_tensor(nested),
        torch.nested.nested_tensor(nested, layout=torch.jagged),
    ):
        expected, actual = _outcome(case.twin, other), _outcome(case.function, other)
        if isinstance(expected, type):
            # NotImplementedError is a RuntimeError.
            assert isinstance(actual, type)
            assert issubclass(actual, RuntimeError)
        else:
            assert isinstance(actual, torch.Tensor), f"{other.layout}: raises {actual}"
            assert (actual.layout, actual.is_nested) == (expected.layout, expected.is_nested)
            torch.testing.assert_close(_dense(actual), _dense(expected))


def _dense(tensor):
    if tensor.is_nested:
        return torch.cat([part.flatten() for part in tensor.unbind()])
    return tensor.to_dense()
