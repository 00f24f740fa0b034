"""Is bad input refused as PyTorch refuses it, with a message that says what is wrong?"""

import math

import pytest
import torch
import torch.nn.functional as F

from fastact import functional, nn
from fastact.activations import FUSIBLE, REGISTRY
from fastact.layers import LAYERS
from fastact.testing.cases import UNARY_CASES
from fastact.testing.inputs import random_tensor
from fastact.testing.samples import EXPECTED_MODULE_SAMPLES, EXPECTED_SAMPLES, module_info, op_infos

X = torch.linspace(-2, 2, 6).reshape(2, 3)
W = torch.ones(4, 3)


@pytest.mark.parametrize("name", [name for name, counts in EXPECTED_SAMPLES.items() if counts[2]])
def test_error_inputs(name):
    """PyTorch's own."""
    operator = LAYERS[name].name if name in LAYERS else name
    count = 0
    for error in (error for info in op_infos(name) for error in info.error_inputs("cpu")):
        sample = error.sample_input
        with pytest.raises(error.error_type, match=operator):
            getattr(functional, name)(sample.input, *sample.args, **sample.kwargs)
        count += 1
    assert count == EXPECTED_SAMPLES[name][2]


def test_module_error_inputs():
    """PyTorch's generators have none for these modules; should they gain some, test them."""
    for name in EXPECTED_MODULE_SAMPLES:
        info = module_info(name)
        make = info.module_error_inputs_func
        keywords = {"device": "cpu", "dtype": torch.float32, "requires_grad": False}
        assert not make or not list(make(info, training=True, **keywords)), name


# Those that PyTorch passes on as it gets them; the others stumble over a method of str.
BUILTIN = ("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish")
BUILTIN += ("logsigmoid", "hardtanh", "hardsigmoid", "hardswish", "softplus")
BUILTIN += ("softshrink", "hardshrink")
# Calls that PyTorch refuses.
REFUSED = [
    *(
        (row.name, ("x",), {})
        for row in REGISTRY.values()
        if hasattr(F, row.name) and not row.takes_slope
    ),
    ("relu", (), {}),
    ("relu", (None,), {}),
    ("relu", ([1.0, 2.0],), {}),
    ("relu", (3.0,), {}),
    ("relu", (X,), {"negative_slope": 1}),
    ("tanh", (X, 1), {}),
    ("leaky_relu", (X, "steep"), {}),
    ("leaky_relu", (X, None), {}),
    ("leaky_relu", (X, X), {}),
    ("leaky_relu", (X, 0.1, False, 1), {}),
    ("leaky_relu", (X,), {"slope": 0.1}),
    ("elu", (X, None), {}),
    ("celu", (X, 0.0), {}),
    ("celu", (X, "a"), {}),
    ("hardtanh", (X, 1.0, -1.0), {}),
    ("hardshrink", (X, None), {}),
    ("softshrink", (X, -1.0), {}),
    ("softshrink", (X, math.nan), {}),
    ("softplus", (X, 1, "a"), {}),
    ("softplus", (X,), {"beta": None}),
    ("threshold", (X,), {}),
    ("threshold", (X, 1.0), {}),
    ("threshold", (X, None, 1.0), {}),
    ("gelu", (X,), {"approximate": "sigmoid"}),
    ("gelu", (X,), {"approximate": None}),
    ("glu", (torch.tensor(1.0),), {}),
    ("glu", (X,), {}),
    ("glu", (X, 2), {}),
    ("glu", (X, "a"), {}),
    ("softmax", (X, 2), {}),
    ("softmax", (X, "a"), {}),
    ("rrelu", (X, 0.3, 0.1), {}),
    ("softmin", (X, -3), {}),
    ("log_softmax", (X, 2), {}),
    ("log_softmax", (torch.tensor(1.0), 1), {}),
    ("prelu", (X,), {}),
    ("prelu", (X, 0.5), {}),
    ("prelu", (X, torch.ones(2)), {}),
    ("prelu", (X, torch.ones(0)), {}),
    ("prelu", (X, torch.ones(1, 3)), {}),
    ("prelu", (X, torch.ones(3).double()), {}),
    ("prelu", (X, torch.ones(3, device="meta")), {}),
    ("prelu", (torch.ones(3), torch.ones(3)), {}),
    ("prelu", (torch.tensor(1.0), torch.ones(2)), {}),
    ("prelu", (X.long(), torch.ones(3).long()), {}),
    ("linear", (X,), {}),
    ("linear", (X, "w"), {}),
    ("linear", (X, W), {"bias": 3}),
    ("linear", (X, torch.ones(4, 2)), {}),
    ("linear", (X, torch.ones(2, 4, 3)), {}),
    ("linear", (X, torch.tensor(1.0)), {}),
    ("linear", (torch.tensor(1.0), torch.ones(4, 1)), {}),
    ("linear", (X, W.double()), {}),
    ("linear", (X, W, torch.ones(5)), {}),
    ("linear", (X, W, torch.ones(4, 4)), {}),
    ("linear", (X, W, torch.ones(4).double()), {}),
    ("linear", (X, W, torch.ones(4, device="meta")), {}),
    ("linear", (X, torch.ones(3), torch.ones(2)), {}),
]


def _describe(call):
    name, args, kwargs = call

    def text(value):
        if isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            return f"{dtype}{list(value.shape)}".replace(" ", "") + value.device.type[:4]
        return repr(value)

    arguments = [*map(text, args), *(f"{key}={text(value)}" for key, value in kwargs.items())]
    return f"{name}({','.join(arguments)})"


# Of PyTorch's errors; another one is a mistake of the call's.
KINDS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)


@pytest.mark.parametrize("name, args, kwargs", REFUSED, ids=map(_describe, REFUSED))
def test_refused_as_by_the_twin(name, args, kwargs):
    with pytest.raises(KINDS) as theirs:
        getattr(F, name)(*args, **kwargs)
    # PyTorch's Python functions call methods of the argument, whatever it is.
    refused = {TypeError, AttributeError} if theirs.type is AttributeError else {theirs.type}
    with pytest.raises(KINDS) as mine:
        getattr(functional, name)(*args, **kwargs)
    assert mine.type in refused
    # "Dimension out of range (expected to be in range of [-2, 1], but got 2)" says enough.
    says_enough = {AttributeError: "has no attribute", IndexError: "Dimension out of range"}
    assert says_enough.get(mine.type, name) in str(mine.value)


# What fastact itself checks: the call, the exception, and what its message must contain, in order:
# operator, argument, what was expected, what came.
MESSAGES = {
    "prelu: dtype": (
        lambda: functional.prelu(X, torch.ones(3).double()),
        RuntimeError,
        r"fastact\.prelu\(\): weight: expected the dtype of input, Float, got Double",
    ),
    "prelu: device": (
        lambda: functional.prelu(X, torch.ones(3, device="meta")),
        RuntimeError,
        r"fastact\.prelu\(\): weight: expected the device of input, cpu, got meta",
    ),
    "prelu: channels": (
        lambda: functional.prelu(X, torch.ones(5)),
        RuntimeError,
        r"fastact\.prelu\(\): weight: expected 1 or 3 elements .*got 5",
    ),
    "prelu: dimensions": (
        lambda: functional.prelu(X, torch.ones(1, 3)),
        RuntimeError,
        r"fastact\.prelu\(\): weight: expected .*1-dimensional.* got 2",
    ),
    "linear: in_features": (
        lambda: functional.linear(X, torch.ones(4, 5)),
        RuntimeError,
        r"fastact\.linear\(\): input: expected a last dimension of 5 .*got shape \[2, 3\]",
    ),
    "linear: 0-dimensional input": (
        lambda: functional.linear(torch.tensor(1.0), W),
        RuntimeError,
        r"fastact\.linear\(\): input: expected at least 1 dimension, got a 0-dim",
    ),
    "linear: 3-dimensional weight": (
        lambda: functional.linear(X, torch.ones(2, 4, 3)),
        RuntimeError,
        r"fastact\.linear\(\): weight: expected 1 or 2 dimensions, got 3",
    ),
    "linear: dtype of weight": (
        lambda: functional.linear(X, W.half()),
        RuntimeError,
        r"fastact\.linear\(\): weight: expected the dtype of input, Float, got Half",
    ),
    "linear: dtype of bias": (
        lambda: functional.linear(X, W, torch.ones(4).bfloat16()),
        RuntimeError,
        r"fastact\.linear\(\): bias: expected the dtype of input, Float, got BFloat16",
    ),
    "linear: device of weight": (
        lambda: functional.linear(X, W.to("meta")),
        RuntimeError,
        r"fastact\.linear\(\): weight: expected the device of input, cpu, got meta",
    ),
    "linear: device of input": (
        lambda: functional.linear(X.to("meta"), W),
        RuntimeError,
        r"fastact\.linear\(\): weight: expected the device of input, meta, got cpu",
    ),
    "linear: shape of bias": (
        lambda: functional.linear(X, W, torch.ones(5)),
        RuntimeError,
        r"fastact\.linear\(\): bias: expected .*4.*, got .*5",
    ),
    "linear: shape of bias with an activation": (
        lambda: functional.linear(X, W, torch.ones(5), activation="relu"),
        RuntimeError,
        r"fastact\.linear\(\): bias: expected .*4.*, got .*5",
    ),
    "linear: unknown activation": (
        lambda: functional.linear(X, W, activation="leaky_rleu"),
        ValueError,
        r"fastact\.linear\(\): activation: expected one of relu, .*, got 'leaky_rleu'; "
        r"nearest: .*leaky_relu",
    ),
    "linear: activation of another case": (
        lambda: functional.linear(X, W, activation="ReLU"),
        ValueError,
        r"got 'ReLU'; nearest: .*\brelu\b",
    ),
    "linear: activation that is no name": (
        lambda: functional.linear(X, W, activation=3),
        ValueError,
        r"fastact\.linear\(\): activation: expected one of .*, got 3",
    ),
    "linear: unknown parameter": (
        lambda: functional.linear(X, W, activation="leaky_relu", alpha=0.1),
        TypeError,
        r"fastact\.linear\(\): alpha: unexpected parameter of activation 'leaky_relu', "
        r"which takes negative_slope; got 0\.1",
    ),
    "linear: parameter of an activation without": (
        lambda: functional.linear(X, W, activation="tanh", alpha=0.1),
        TypeError,
        r"fastact\.linear\(\): alpha: unexpected .*'tanh', which takes no parameters; got 0\.1",
    ),
    "linear: parameter without an activation": (
        lambda: functional.linear(X, W, negative_slope=0.1),
        TypeError,
        r"fastact\.linear\(\): negative_slope: unexpected parameter: activation is None",
    ),
    "linear: parameter of a wrong type": (
        lambda: functional.linear(X, W, activation="leaky_relu", negative_slope="steep"),
        TypeError,
        r"fastact\.linear\(\): negative_slope: expected .*, got .*(str|steep)",
    ),
    "linear: parameter out of range": (
        lambda: functional.linear(X, W, activation="softshrink", lambd=-1.0),
        RuntimeError,
        r"fastact\.\w+\(\): lambd: expected .*0, got -1",
    ),
    "linear: approximate=": (
        lambda: functional.linear(X, W, activation="gelu", approximate="sigmoid"),
        RuntimeError,
        r"fastact\.linear\(\): approximate: expected 'none' or 'tanh', got 'sigmoid'",
    ),
    "linear: prelu without a slope": (
        lambda: functional.linear(X, W, activation="prelu"),
        TypeError,
        r"fastact\.linear\(\): slope: expected a tensor for activation='prelu', got None",
    ),
    "linear: slope without prelu": (
        lambda: functional.linear(X, W, activation="relu", slope=torch.ones(1)),
        TypeError,
        r"fastact\.linear\(\): slope: expected None .*, got a tensor",
    ),
    "linear: slope of another size": (
        lambda: functional.linear(X, W, activation="prelu", slope=torch.ones(3)),
        RuntimeError,
        r"fastact\.\w+\(\): \w+: expected 1 or 4 elements .*got 3",
    ),
    "linear: dimension of softmax": (
        lambda: functional.linear(X, W, activation="softmax", dim=2),
        IndexError,
        r"\[-2, 1\].*got 2",
    ),
    "nn.Linear: unknown activation": (
        lambda: nn.Linear(3, 4, activation="gelo"),
        ValueError,
        r"fastact\.nn\.Linear\(\): activation: expected one of .*, got 'gelo'; nearest: .*gelu",
    ),
    "nn.Linear: unknown parameter": (
        lambda: nn.Linear(3, 4, activation="elu", beta=1.0),
        TypeError,
        r"fastact\.nn\.Linear\(\): beta: unexpected parameter of activation 'elu', which takes "
        r"alpha; got 1\.0",
    ),
    "nn.Linear: module that is no activation": (
        lambda: nn.Linear(3, 4, activation=torch.nn.Dropout()),
        ValueError,
        r"fastact\.nn\.Linear\(\): activation: expected one of .*, got 'Dropout'",
    ),
    "nn.Linear: arguments beside an instance": (
        lambda: nn.Linear(3, 4, activation=torch.nn.ELU(), alpha=2.0),
        TypeError,
        r"fastact\.nn\.Linear\(\): alpha: unexpected argument",
    ),
    "nn.Linear: arguments without an activation": (
        lambda: nn.Linear(3, 4, alpha=2.0),
        TypeError,
        r"fastact\.nn\.Linear\(\): alpha: unexpected argument: activation is None",
    ),
    "gelu: approximate=": (
        lambda: functional.gelu(X, approximate="sigmoid"),
        RuntimeError,
        r"fastact\.gelu\(\): approximate: expected 'none' or 'tanh', got 'sigmoid'",
    ),
    "hardtanh: order": (
        lambda: functional.hardtanh(X, 2.0, 1.0),
        ValueError,
        r"fastact\.hardtanh\(\): min_val: expected at most max_val, got min_val=2, max_val=1",
    ),
    "celu: alpha": (
        lambda: functional.celu(X, 0.0),
        RuntimeError,
        r"fastact\.celu\(\): alpha: expected a number other than 0, got 0",
    ),
    "softshrink: lambd": (
        lambda: functional.softshrink(X, -0.5),
        RuntimeError,
        r"fastact\.softshrink\(\): lambd: expected .* 0, got -0\.5",
    ),
}


@pytest.mark.parametrize("call, error, message", MESSAGES.values(), ids=MESSAGES)
def test_message(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert caught.type is error


@pytest.mark.parametrize("name", ["glu", "swiglu", "geglu", "reglu", "rrelu"])
def test_what_cannot_be_fused(name):
    """Shape-changing and random activations."""
    for build in (
        lambda: functional.linear(X, W, activation=name),
        lambda: nn.Linear(3, 4, activation=name),
    ):
        with pytest.raises(ValueError, match=rf"activation: '{name}' cannot be fused: it "):
            build()
    assert name not in FUSIBLE


# In-place calls that are refused: what the operator is given, on a tensor of 6 elements.
REFUSED_IN_PLACE = {
    "hardtanh: order": (lambda x: functional.hardtanh(x, 2.0, 1.0, inplace=True), ValueError),
    "celu: alpha": (lambda x: functional.celu(x, 0.0, inplace=True), RuntimeError),
    "softshrink: lambd": (lambda x: torch.ops.fastact.softshrink_(x, -1.0), RuntimeError),
    "relu: type": (lambda x: functional.leaky_relu(x, "steep", inplace=True), TypeError),
}


@pytest.mark.parametrize("call, error", REFUSED_IN_PLACE.values(), ids=REFUSED_IN_PLACE)
@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
def test_nothing_is_written_on_error(call, error, grad):
    leaf = random_tensor([2, 3]).requires_grad_(grad)
    x = leaf * 1
    before, version, node = x.detach().clone(), x._version, x.grad_fn
    with pytest.raises(error):
        call(x)
    assert torch.equal(x, before)
    assert (x._version, x.grad_fn) == (version, node)


@pytest.mark.parametrize("case", UNARY_CASES, ids=str)
def test_nothing_is_written_where_elements_share_memory(case):
    inplace = getattr(torch.ops.fastact, case.row.name + "_")
    x = random_tensor([1]).expand(3, 2)
    before, version = x.clone(), x._version
    with pytest.raises(RuntimeError, match="single memory location"):
        inplace(x, *case.values)
    assert torch.equal(x, before)
    assert x._version == version
