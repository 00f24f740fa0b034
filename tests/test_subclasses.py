"""Do tensors that are not plain ones (fake, meta, subclasses, under modes) come through?"""

import functools
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastact import functional, nn
from fastact.testing.cases import (
    CASES,
    DEFAULT_CASES,
    DTYPES,
    FUSED_CASES,
    FUSED_OF_EACH_KIND,
    VARIED_CASES,
    pairs,
    significant_strides,
)
from fastact.testing.inputs import LAYOUTS, random_tensor


class Plain(torch.Tensor):
    """Follows torch.Tensor's own protocol and nothing else."""


class Recorder(torch.Tensor):
    """Notes which functions it is handed."""

    calls: ClassVar[list[object]] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.calls.append(function)
        return super().__torch_function__(function, types, args, kwargs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_subclass_is_kept(case):
    x = random_tensor([4, 6])
    y = case.function(x.as_subclass(Plain), *case.tensors(x))
    assert type(y) is Plain
    torch.testing.assert_close(y.as_subclass(torch.Tensor), case.twin(x, *case.tensors(x)))
    leaf = x.as_subclass(Plain).requires_grad_()
    case.function(leaf, *case.tensors(x)).sum().backward()
    assert leaf.grad is not None


# What is handed where the function of the same name is not, or not alone.
HANDED = {
    "gelu_tanh": [F.gelu],
    "sigmoid": [torch.Tensor.sigmoid],
    "tanh": [torch.Tensor.tanh],
    "swiglu": [torch.Tensor.chunk, F.silu, torch.Tensor.mul],
    "geglu": [torch.Tensor.chunk, F.gelu, torch.Tensor.mul],
    "reglu": [torch.Tensor.chunk, F.relu, torch.Tensor.mul],
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_function_is_handed_pytorchs_function(case):
    """Which a class that overrides it knows."""
    x = random_tensor([4, 6])
    functions = [case.function]
    if case.row.module and case.values != (1.0, 1.0):  # which torch.nn.Hardtanh refuses
        module = case.module()
        functions.append(lambda input, *tensors: module(input))
    for function in functions:
        Recorder.calls.clear()
        y = function(x.as_subclass(Recorder), *case.tensors(x))
        assert type(y) is Recorder
        name = case.row.name
        assert Recorder.calls == (HANDED[name] if name in HANDED else [getattr(F, name)])
    twin = case.twin(x, *case.tensors(x))
    torch.testing.assert_close(
        case.function(x.as_subclass(Recorder), *case.tensors(x)).as_subclass(torch.Tensor), twin
    )


@pytest.mark.parametrize("case", [case for case in DEFAULT_CASES if case.row.inplace], ids=str)
def test_torch_function_in_place(case):
    x = random_tensor([4, 6])
    expected = case.twin(x)
    Recorder.calls.clear()
    written = x.as_subclass(Recorder)
    assert case.function(written, inplace=True) is written
    assert Recorder.calls == [getattr(F, case.row.name)]
    torch.testing.assert_close(x, expected)


def test_torch_function_of_the_others():
    x = random_tensor([4, 6])
    for call, handed in (
        (lambda x: functional.rrelu(x), [F.rrelu]),
        (lambda x: functional.softmin(x, -1), [F.softmin]),
        (lambda x: functional.masked_softmax(x), [F.softmax]),
        (lambda x: functional.linear(x, torch.ones(5, 6)), [F.linear]),
        (lambda x: functional.linear(torch.ones(5, 6), x), [F.linear]),
        (lambda x: functional.linear(torch.ones(2, 5), torch.ones(6, 5), x[0]), [F.linear]),
    ):
        operand = x.as_subclass(Recorder)
        Recorder.calls.clear()
        call(operand)
        assert [f for f in Recorder.calls if f is not torch.Tensor.__getitem__] == handed
        with torch._C.DisableTorchFunctionSubclass():
            Recorder.calls.clear()
            call(operand)
            assert Recorder.calls == []


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "additive"])
def test_torch_function_in_masked_softmax(mask):
    is_causal = mask == "causal"
    x = random_tensor([2, 4, 4])
    masks = {"bool": x[0] > -1, "additive": x[1]}
    for dim, scale in ((-1, 0.5),) if is_causal else ((-1, 0.5), (1, 1.0)):
        arguments = (masks.get(mask), dim, scale, is_causal)
        y = functional.masked_softmax(x.as_subclass(Recorder), *arguments)
        expected = functional.masked_softmax(x, *arguments)
        torch.testing.assert_close(y.as_subclass(torch.Tensor), expected)


class Doubled(torch.nn.Parameter):
    """A weight that stands for twice its values, in F.linear alone, as quantized weights do."""

    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_subclass(cls, data, False)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function is F.linear:
                x, weight, *bias = args
                return F.linear(x, 2 * weight, *bias)
            return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("fused", FUSED_CASES, ids=str)
def test_weight_that_overrides_linear(fused):
    x, w, b = random_tensor([4, 6]), random_tensor([5, 6]), random_tensor([5])
    slope = torch.linspace(-1, 1, 5)
    learnable = {"slope": slope} if fused.learnable else {}
    expected = F.linear(x, 2 * w, b)
    expected = fused.twin(expected, slope) if fused.learnable else fused.twin(expected)
    y = functional.linear(x, Doubled(w), b, fused.name, **fused.parameters, **learnable)
    torch.testing.assert_close(y, expected)
    parameters = {"num_parameters": 5} if fused.learnable else fused.parameters
    layer = nn.Linear(6, 5, activation=fused.name, **parameters)
    if fused.learnable:
        torch.nn.init.uniform_(layer.activation.weight)
        expected = fused.twin(F.linear(x, 2 * w, layer.bias), layer.activation.weight)
    else:
        expected = fused.twin(F.linear(x, 2 * w, layer.bias))
    layer.weight = Doubled(w)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("fused", FUSED_OF_EACH_KIND, ids=str)
def test_compiled_weight_that_overrides_linear(fused, dynamo):
    x, w, b = random_tensor([4, 6]), random_tensor([5, 6]), random_tensor([5])
    parameters = {"num_parameters": 5} if fused.learnable else fused.parameters
    layer = nn.Linear(6, 5, activation=fused.name, **parameters)
    slope = [layer.activation.weight] if fused.learnable else []
    layer.weight = Doubled(w)
    layer.bias = torch.nn.Parameter(b)
    learnable = {"slope": slope[0]} if fused.learnable else {}

    def function(x):
        return functional.linear(x, layer.weight, b, fused.name, **fused.parameters, **learnable)

    expected = fused.twin(F.linear(x, 2 * w, b), *slope)
    for compiled in (torch.compile(f, fullgraph=True, backend="eager") for f in (layer, function)):
        torch.testing.assert_close(compiled(x).as_subclass(torch.Tensor), expected)


# PyTorch's threshold cannot be compiled for a class that overrides it.
@pytest.mark.parametrize("case", [c for c in VARIED_CASES if c.row.name != "threshold"], ids=str)
def test_compiled_torch_function_is_handed_pytorchs_function(case, dynamo):
    class Raised(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if "fastact" in str(function):
                raise NotImplementedError(function)
            return super().__torch_function__(function, types, args, kwargs)

    x = random_tensor([4, 6])
    compiled = torch.compile(case.function, fullgraph=True, backend="eager")
    y = compiled(x.as_subclass(Raised), *case.tensors(x))
    assert type(y) is Raised
    expected = case.twin(x, *case.tensors(x))
    torch.testing.assert_close(y.as_subclass(torch.Tensor), expected)


def test_residual_beside_an_override():
    x, w, r = random_tensor([4, 6]), random_tensor([5, 6]), random_tensor([4, 5])
    y = functional.linear(x, Doubled(w), activation="relu", residual=r)
    torch.testing.assert_close(y, torch.relu(F.linear(x, 2 * w) + r))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_masked_tensor(case):
    """As the twin: what it does not support raises the same."""
    x = random_tensor([4, 6])
    masked = torch.masked.masked_tensor(x, x > -1)
    outcomes = []
    twin = functools.partial(F.glu, **case.keywords) if case.row.name == "glu" else case.twin
    for function in (case.function, twin):
        try:
            outcomes.append(function(masked, *case.tensors(x)))
        except Exception as error:
            outcomes.append(error)
    mine, theirs = outcomes
    assert type(mine) is type(theirs), outcomes
    if isinstance(theirs, torch.masked.MaskedTensor):
        torch.testing.assert_close(mine.to_tensor(0.0), theirs.to_tensor(0.0))


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_masked_tensor_in_linear():
    x, w = random_tensor([4, 6]), random_tensor([5, 6])
    outcomes = []
    for function in (functional.linear, F.linear):
        try:
            outcomes.append(function(torch.masked.masked_tensor(x, x > -1), w))
        except Exception as error:
            outcomes.append(error)
    assert type(outcomes[0]) is type(outcomes[1]), outcomes


def test_a_symbolic_trace_holds_fastacts_operators():
    """A torch.fx.Proxy overrides __torch_function__ too; a trace must not lose the kernels."""
    graph = torch.fx.symbolic_trace(lambda x: functional.silu(x)).graph
    assert torch.ops.fastact.silu in [node.target for node in graph.nodes]
    layer = torch.fx.symbolic_trace(lambda x, w: functional.linear(x, w, activation="gelu"))
    assert torch.ops.fastact.linear in [node.target for node in layer.graph.nodes]


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
def test_torch_function_mode_sees_the_call(case):
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    x = random_tensor([4, 6])
    with Mode():
        y = case.function(x, *case.tensors(x))
    assert any(case.row.name in call for call in seen), seen
    torch.testing.assert_close(y, case.twin(x, *case.tensors(x)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dispatch_mode_sees_one_operator(case):
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    x = random_tensor([4, 6])
    leaves = [t.clone().requires_grad_() for t in (x, *case.tensors(x))]
    with Mode():
        y = case.function(*leaves)
        # A saved output is detached, as in PyTorch.
        assert [name for name in seen if name != "aten.detach.default"] == [
            f"fastact.{case.row.name}.default"
        ]
        y.backward(torch.ones_like(y.detach()))
    assert f"fastact.{case.row.name}_backward.default" in seen


@pytest.mark.parametrize("fused", FUSED_CASES, ids=str)
def test_dispatch_mode_sees_linear(fused):
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    x, w = random_tensor([4, 6]), random_tensor([5, 6])
    learnable = {"slope": torch.rand(5)} if fused.learnable else {}
    with Mode():
        functional.linear(x, w, activation=fused.name, **fused.parameters, **learnable)
    assert seen == ["fastact.linear.default"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_wrapper_subclass(case):
    """TwoTensor: a subclass by __torch_dispatch__, forward and backward."""
    a, b = random_tensor([4, 6]), random_tensor([4, 6])
    x = TwoTensor(a.clone(), b.clone()).requires_grad_()
    y = case.function(x, *case.tensors(a))
    assert type(y) is TwoTensor
    torch.testing.assert_close(y.a, case.twin(a, *case.tensors(a)))
    torch.testing.assert_close(y.b, case.twin(b, *case.tensors(b)))
    y.sum().backward()
    for part, gradient in ((a, x.grad.a), (b, x.grad.b)):
        leaf = part.clone().requires_grad_()
        case.twin(leaf, *case.tensors(part)).sum().backward()
        torch.testing.assert_close(gradient, leaf.grad)


def test_wrapper_subclass_in_linear():
    a, b, w = random_tensor([4, 6]), random_tensor([4, 6]), random_tensor([5, 6])
    y = functional.linear(TwoTensor(a, b), w, activation="relu")
    assert type(y) is TwoTensor
    torch.testing.assert_close(y.b, torch.relu(torch.nn.functional.linear(b, w)))


@pytest.mark.parametrize("case, dtype", pairs(CASES, DTYPES))
def test_meta_tensors(case, dtype):
    """The fake kernel promises what the real one does: shape, strides, dtype."""
    for layout, make in LAYOUTS.items():
        x = make(lambda shape: random_tensor(shape, dtype))
        if not case.accepts(x):
            continue
        real = case.function(x, *case.tensors(x))
        fake = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device="meta")
        promised = case.function(fake, *case.tensors(fake))
        assert promised.device.type == "meta"
        assert (promised.shape, promised.dtype) == (real.shape, real.dtype), layout
        assert significant_strides(promised) == significant_strides(real), layout


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fake_tensors_keep_their_graph(case):
    with FakeTensorMode():
        x = torch.empty(4, 6, requires_grad=True)
        y = case.function(x, *case.tensors(x))
        assert y.requires_grad
        y.sum().backward()
        assert x.grad.shape == x.shape


@pytest.mark.parametrize("fused", FUSED_CASES, ids=str)
def test_meta_tensors_in_linear(fused):
    for shape, weight, expected in (
        ((3, 4), (5, 4), (3, 5)),
        ((2, 3, 4), (5, 4), (2, 3, 5)),
        ((0, 4), (5, 4), (0, 5)),
    ):
        x, w = torch.empty(shape, device="meta"), torch.empty(weight, device="meta")
        slope = torch.empty(1, device="meta")
        learnable = {"slope": slope} if fused.learnable else {}
        y = functional.linear(x, w, activation=fused.name, **fused.parameters, **learnable)
        assert (y.device.type, tuple(y.shape)) == ("meta", expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inference_mode(case):
    x = random_tensor([4, 6])
    with torch.inference_mode():
        inference = x.clone()
        y = case.function(inference, *case.tensors(x))
        assert y.is_inference()
        torch.testing.assert_close(y, case.twin(x, *case.tensors(x)))
    if case.row.family == "unary":
        with pytest.raises(RuntimeError, match=r"[Ii]nference tensor"):
            getattr(torch.ops.fastact, case.row.name + "_")(inference, *case.values)


def test_parameters_are_plain_tensors():
    """nn.Parameter and nn.Buffer are subclasses by class alone; they take the fast path."""
    weight = torch.nn.Parameter(random_tensor([5, 6]))
    x = random_tensor([4, 6])
    y = functional.linear(x, weight, activation="relu")
    assert type(y) is torch.Tensor
    assert type(functional.relu(weight)) is torch.Tensor
    assert type(functional.relu(torch.nn.Buffer(x))) is torch.Tensor


def test_parametrized_weight():
    """torch.nn.utils.parametrize puts a computed tensor in a parameter's place."""
    layer = nn.Linear(6, 5, activation="tanh")
    torch.nn.utils.parametrizations.weight_norm(layer)
    x = random_tensor([4, 6])
    expected = torch.tanh(torch.nn.functional.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert layer.parametrizations.weight.original0.grad is not None


def test_pruned_weight():
    """torch.nn.utils.prune computes a weight before each call and stores it as an attribute."""
    layer = nn.Linear(6, 5, activation="tanh")
    torch.nn.utils.prune.random_unstructured(layer, "weight", amount=0.5)
    x = random_tensor([4, 6])
    expected = torch.tanh(torch.nn.functional.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(layer(x), expected)
    assert (layer.weight == 0).sum() == 15
