"""Is every argument of every function taken, or refused, as PyTorch's twin takes or refuses it?"""

import decimal
import fractions
import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastact import functional

X = torch.linspace(-2, 2, 8).reshape(2, 4)
# What each argument of each function is given in turn, by name.
VALUES = {
    "None": None,
    "bool": True,
    "int": 3,
    "negative int": -5,
    "float": 1.5,
    "nan": math.nan,
    "2**63": 2**63,
    "2**64": 2**64,
    "10**400": 10**400,
    "complex": 1j,
    "real complex": 1 + 0j,
    "str": "1",
    "bytes": b"1",
    "list": [1.0],
    "tuple": (1.0,),
    "dict": {},
    "set": {1},
    "object": object(),
    "generator": (i for i in ()),
    "class": torch.Tensor,
    "dtype": torch.float32,
    "storage": X.untyped_storage(),
    "Fraction": fractions.Fraction(1, 2),
    "Decimal": decimal.Decimal(1),
    "np.float64": np.float64(0.5),
    "np.float32": np.float32(0.5),
    "np.float16": np.float16(0.5),
    "np.complex64": np.complex64(1j),
    "np.int64": np.int64(1),
    "np.int32": np.int32(1),
    "np.uint8": np.uint8(1),
    "np.bool": np.bool_(True),
    "np.str": np.str_("1"),
    "np.datetime64": np.datetime64("2026-01-01"),
    "array of 0 dimensions": np.array(0.5),
    "array": np.ones((2, 4), dtype=np.float32),
    "tensor of 0 dimensions": torch.tensor(0.5),
    "int tensor of 0 dimensions": torch.tensor(1),
    "bool tensor of 0 dimensions": torch.tensor(True),
    "complex tensor of 0 dimensions": torch.tensor(1j),
    "tensor of 0 dimensions with grad": torch.tensor(0.5, requires_grad=True),
    "tensor of 1 element": torch.tensor([0.5]),
    "empty tensor": torch.empty(0),
    "tensor": X.flip(0),
    "double tensor": X.double(),
    "half tensor": X.half(),
    "float8 tensor": X.to(torch.float8_e4m3fn),
    "int tensor": torch.ones(2, 4, dtype=torch.long),
    "uint8 tensor": torch.ones(2, 4, dtype=torch.uint8),
    "bool tensor": torch.ones(2, 4, dtype=torch.bool),
    "complex tensor": torch.ones(2, 4, dtype=torch.complex64),
    "sparse tensor": X.to_sparse(),
    "meta tensor": X.to("meta"),
}
REQUIRED = {
    ("prelu", "weight"): torch.tensor([0.5]),
    ("linear", "weight"): torch.linspace(-1, 1, 12).reshape(3, 4),
    ("threshold", "threshold"): 1.0,
    ("threshold", "value"): 2.0,
}
CONVOLUTIONS = {"conv1d": (2, 4), "conv2d": (2, 2, 2), "conv3d": (2, 2, 2, 1)}
for _name, _shape in CONVOLUTIONS.items():
    REQUIRED[_name, "input"] = X.reshape(_shape)
    REQUIRED[_name, "weight"] = torch.ones(6, 2, *[1] * (len(_shape) - 1))
# Without a twin.
FASTACTS = {
    name: {"activation", "slope", "residual", "params"} for name in ("linear", *CONVOLUTIONS)
}
# PyTorch drops the imaginary part, with NumPy's warning; fastact refuses it as any other complex.
DROPPED = "np.complex64"
DIFFERENT = {
    # PyTorch compares the bounds in Python before it asks what they are. Both refuse them, but for
    # a complex number that is real, which fastact takes here as PyTorch does elsewhere.
    ("hardtanh", "min_val"): {"10**400", "2**64", "array", "complex tensor of 0 dimensions"}
    | {name for name in VALUES if "tensor" in name and "of" not in name}
    | {"complex", "empty tensor", "real complex"},
    # A string all the same, to PyTorch's parser.
    ("gelu", "approximate"): {"bytes"},
    # PyTorch's meta kernel does not ask where the others are.
    ("linear", "input"): {"meta tensor"},
    ("linear", "weight"): {"meta tensor"},
    # Composed of functions that say that they cannot in another way.
    ("rrelu", "input"): {"sparse tensor"},
}
for _name in CONVOLUTIONS:
    # Of a meta tensor PyTorch's reads memory that nobody wrote; the dtypes it refuses, too.
    DIFFERENT[_name, "input"] = {"meta tensor", "float8 tensor", "bool tensor"}
    DIFFERENT[_name, "bias"] = {"meta tensor"}
    # An integer to PyTorch here, though not as a dimension.
    for _argument in ("stride", "padding", "dilation", "groups"):
        DIFFERENT[_name, _argument] = {"bool tensor of 0 dimensions", "bytes"}
DIFFERENT["hardtanh", "max_val"] = DIFFERENT["hardtanh", "min_val"]


def outcome(function, args, kwargs):
    torch.manual_seed(0)
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return error


def call_with(name, parameters, changed, value):
    """Arguments that are all right but for one; by name, as far as PyTorch's builtins allow."""
    given = {p.name: REQUIRED[name, p.name] for p in parameters if (name, p.name) in REQUIRED}
    if name in ("softmax", "log_softmax", "softmin"):
        given["dim"] = 1
    given = {"input": X.clone(), **given, changed: value}
    if changed == "input" and isinstance(value, torch.Tensor):
        given["input"] = value.clone()
    args = [given.pop("input")]
    if "weight" in given:
        args.append(given.pop("weight"))
    return args, given


def agree(mine, theirs):
    if isinstance(mine, Exception) or isinstance(theirs, Exception):
        # PyTorch's Python functions use whatever they are given.
        stumbled = isinstance(theirs, (AttributeError, TypeError)) and type(mine) is TypeError
        return stumbled or type(mine) is type(theirs)
    try:
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2, equal_nan=True)
    except AssertionError:
        return False
    return True


TWINS = [name for name in functional.__all__ if hasattr(F, name)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TWINS)
def test_every_argument(name):
    function, twin = getattr(functional, name), getattr(F, name)
    parameters = inspect.signature(function).parameters.values()
    parameters = [p for p in parameters if p.name not in FASTACTS.get(name, {"_stacklevel"})]
    differences = []
    for parameter in parameters:
        for described, value in VALUES.items():
            theirs = outcome(twin, *call_with(name, parameters, parameter.name, value))
            mine = outcome(function, *call_with(name, parameters, parameter.name, value))
            if described == DROPPED and parameter.annotation in ("float", float):
                assert isinstance(mine, RuntimeError), parameter.name
            elif described in DIFFERENT.get((name, parameter.name), ()):
                refused = isinstance(mine, Exception)
                assert refused or described == "real complex", (parameter.name, described)
            elif not agree(mine, theirs):
                differences.append((parameter.name, described, mine, theirs))
            if isinstance(mine, TypeError) and name != "rrelu":  # which hands some on to PyTorch's
                assert str(mine).startswith("fastact."), mine
    assert not differences, "\n".join(map(str, differences))


@pytest.mark.parametrize("bounds", [(math.nan, 1.0), (-1.0, math.nan), (math.nan, math.nan)])
def test_hardtanh_of_nan_bounds(bounds):
    torch.testing.assert_close(
        functional.hardtanh(X, *bounds), F.hardtanh(X, *bounds), equal_nan=True
    )
