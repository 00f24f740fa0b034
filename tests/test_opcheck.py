"""Does torch.library.opcheck find nothing wrong with any operator?"""

import re
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

from fastact.layers import RECURRENT_LAYERS
from fastact.testing.cases import CASES, DEFAULT_CASES, FUSED_CASES, FUSED_OF_EACH_KIND, UNARY_CASES

ops = torch.ops.fastact
EVERYTHING = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
    "test_aot_dispatch_dynamic",
)
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")

# Makes an input from a function that makes a contiguous one.
INPUTS = {
    "contiguous": lambda new: new(4, 6),
    "transposed": lambda new: new(6, 4).t(),
    "channels last": lambda new: new(2, 3, 2, 4).to(memory_format=torch.channels_last),
    "slice": lambda new: new(4, 9)[:, 1:8:2],
    "expanded": lambda new: new(1, 6).expand(4, 6),
    "0-dim": lambda new: new(),
    "empty": lambda new: new(0, 6),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _new(case, dtype=torch.float32):
    return lambda *shape: case.smooth(*shape, dtype=dtype)


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
def test_forward(case):
    """All utilities, with and without gradients."""
    x = _new(case)(4, 6)
    tensors = case.tensors(x)
    opcheck(case.row.operator, (x, *tensors, *case.values), test_utils=EVERYTHING)
    leaves = [t.clone().requires_grad_() for t in (x.t().contiguous().t(), *tensors)]
    opcheck(case.row.operator, (*leaves, *case.values), test_utils=EVERYTHING)


@pytest.mark.parametrize("layout", INPUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_of_every_layout(case, layout):
    """Schema, fake kernel (shape, strides, dtype) and autograd registration."""
    for dtype in DTYPES:
        x = INPUTS[layout](_new(case, dtype))
        if not case.accepts(x):
            continue
        for grad in (False, True):
            leaves = [t.detach().requires_grad_(grad) for t in (x, *case.tensors(x))]
            opcheck(case.row.operator, (*leaves, *case.values), test_utils=QUICK)


@pytest.mark.parametrize("case", [c for c in DEFAULT_CASES if c.row.family == "unary"], ids=str)
def test_inplace(case):
    operator = getattr(ops, case.row.name + "_")
    x = _new(case)(4, 6)
    opcheck(operator, (x, *case.values), test_utils=EVERYTHING)
    opcheck(operator, (x.clone().requires_grad_() * 1, *case.values), test_utils=QUICK)
    opcheck(operator, (x.t(), *case.values), test_utils=QUICK)


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
def test_backward(case):
    operator = getattr(ops, case.row.name + "_backward")
    x = _new(case)(4, 6)
    grad = torch.randn_like(case.function(x, *case.tensors(x)))
    arguments = (grad, x, *case.tensors(x), *case.values)
    opcheck(operator, arguments, test_utils=EVERYTHING)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_of_every_layout(case):
    operator = getattr(ops, case.row.name + "_backward")
    for layout in INPUTS.values():
        for dtype in DTYPES:
            x = layout(_new(case, dtype))
            if not case.accepts(x):
                continue
            ones = torch.ones_like(case.function(x, *case.tensors(x)))
            for grad in (ones, torch.ones((), dtype=dtype).expand(ones.shape)):
                arguments = (grad, x, *case.tensors(x), *case.values)
                opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


# Shapes of linear's input, weight and bias.
LINEAR = {
    "matrix": ((4, 5), (3, 5), (3,)),
    "no bias": ((4, 5), (3, 5), None),
    "vector": ((5,), (3, 5), (3,)),
    "3-D": ((2, 4, 5), (3, 5), (3,)),
    "1-D weight": ((4, 5), (5,), None),
    "empty batch": ((0, 5), (3, 5), (3,)),
    "K = 0": ((4, 0), (3, 0), (3,)),
}


def _linear_arguments(fused, shapes, grad):
    tensors = [None if s is None else torch.randn(s).requires_grad_(grad) for s in shapes]
    columns = shapes[1][0] if len(shapes[1]) > 1 else shapes[0][1]
    slope = torch.rand(columns).requires_grad_(grad) if fused.learnable else None
    return (*tensors, fused.name, list(fused.values), slope)


@pytest.mark.parametrize("fused", FUSED_CASES, ids=str)
def test_linear(fused):
    everything = EVERYTHING if str(fused) in map(str, FUSED_OF_EACH_KIND) else QUICK
    for grad in (False, True):
        arguments = _linear_arguments(fused, LINEAR["matrix"], grad)
        opcheck(ops.linear, arguments, test_utils=everything if grad else QUICK)


@pytest.mark.parametrize("shapes", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize(
    "fused", [f for f in FUSED_CASES if str(f) in ("none", "relu", "silu")], ids=str
)
def test_linear_of_every_shape(fused, shapes):
    for grad in (False, True):
        opcheck(ops.linear, _linear_arguments(fused, shapes, grad), test_utils=QUICK)


@pytest.mark.parametrize("fused", FUSED_OF_EACH_KIND, ids=str)
def test_linear_in_training(fused):
    """The operators that linear's node is made of; autograd is linear's own."""
    x, w, b, *activation = _linear_arguments(fused, LINEAR["matrix"], False)
    checks = ("test_schema", "test_faketensor")
    opcheck(ops.linear_training, (x, w, b, *activation), test_utils=checks)
    y, z = ops.linear_training(x, w, b, *activation)
    name, values, slope = activation
    saved = None if name is None else z if fused.learnable or name == "silu" else y
    for mask in ((True, True, True, fused.learnable, True), (True, *[False] * 4)):
        arguments = (torch.randn_like(y), saved, x, w, b, slope, name, values, mask)
        opcheck(ops.linear_backward, arguments, test_utils=checks)


@pytest.mark.parametrize("fused", FUSED_OF_EACH_KIND, ids=str)
def test_linear_packed(fused):
    x, w, b, *activation = _linear_arguments(fused, LINEAR["matrix"], False)
    opcheck(ops.pack_linear, (w,), test_utils=("test_schema", "test_faketensor"))
    for packed in (ops.pack_linear(w), torch.empty(0, dtype=torch.uint8)):
        opcheck(ops.linear_packed, (x, packed, w, b, *activation), test_utils=QUICK)


def test_every_operator_is_checked():
    """The operators that return tensors: those of the rows, and those that a test names."""
    names = {name for case in CASES for name in (case.row.name, case.row.name + "_backward")}
    names |= {case.row.name + "_" for case in UNARY_CASES}
    texts = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    names |= {"masked_softmax"}  # in test_masked_softmax
    names |= set(re.findall(r"opcheck\(\s*(?:torch\.)?ops\.(?:fastact\.)?(\w+)", texts))
    for layer in RECURRENT_LAYERS:  # in test_recurrent_operators
        names |= {layer.name + kind for kind in ("", "_training", "_backward", "_cell")}
    defined = {
        schema.name.removeprefix("fastact::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("fastact::")
        and any(isinstance(value.type, torch.TensorType) for value in schema.returns)
    }
    assert defined <= names
