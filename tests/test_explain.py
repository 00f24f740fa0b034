"""Does explain tell what runs, where, on which engine and why?"""

import doctest
import itertools
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fastact
from fastact import explain, functional, nn
from fastact.conversion import site
from fastact.explanation import reasons, watching
from fastact.testing.cases import DEFAULT_CASES, FUSED_CASES, enabled

pytestmark = pytest.mark.skipif(not enabled(), reason="FASTACT_DISABLE=1 leaves one reason")

ISA = torch.ops.fastact.instruction_set()


def told(function, *inputs):
    """(operation, where, engine) of each row."""
    return [(row.operation, row.where, row.engine) for row in explain(function, *inputs).rows]


def only_row(function, *inputs):
    [row] = explain(function, *inputs).rows
    return row


def perceptron():
    return torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2), torch.nn.Softmax(-1)
    )


# ---- models ------------------------------------------------------------------------------------


def test_model_of_pytorch():
    rows = explain(perceptron(), torch.randn(2, 4)).rows
    assert [(row.operation, row.where, row.engine, row.reason) for row in rows] == [
        ("aten.addmm", "0", "PyTorch", "fastact.convert replaces torch.nn.Linear"),
        ("aten.relu", "1", "PyTorch", "fastact.nn.ReLU computes it"),
        ("aten.addmm", "2", "PyTorch", "fastact.convert replaces torch.nn.Linear"),
        ("aten._softmax", "3", "PyTorch", "fastact.nn.Softmax computes it"),
    ]
    assert rows[1].shapes == ((2, 3),)
    assert {row.dtype for row in rows} == {torch.float32}


def test_model_converted_for_inference():
    model = fastact.convert(perceptron())
    assert told(model, torch.randn(2, 4)) == [
        ("fastact.linear_packed", "0", "fastact"),
        ("fastact.linear_packed", "2", "fastact"),
    ]
    first, second = explain(model, torch.randn(2, 4)).rows
    assert first.shapes == ((2, 4), (3, 4), (3,))  # without the packed weight's bytes
    assert first.reason.endswith("relu on its tiles")
    assert second.reason.endswith("softmax on its rows")


@pytest.mark.parametrize("grad", [True, False])
def test_model_converted_for_training(grad):
    model = fastact.convert(
        torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.GELU()), mode="training"
    )
    x = torch.randn(2, 4, requires_grad=grad)
    with torch.set_grad_enabled(grad):
        row = only_row(model, x)
    assert (row.operation, row.where, row.engine) == (
        "fastact.linear_training" if grad else "fastact.linear",
        "0",
        "fastact",
    )


def test_backward_where_a_callable_runs_it():
    model = fastact.convert(perceptron(), mode="training")
    x = torch.randn(2, 4)
    rows = explain(lambda: model(x).sum().backward()).rows
    first, second = (row for row in rows if "_backward" in row.operation)
    assert (first.operation, first.engine) == ("fastact.linear_backward", "fastact")
    assert first.where == "Sequential.2"
    assert first.reason == f"{ISA} kernel; with fastact.softmax_backward"
    # It reads no weight, as x needs no gradient.
    assert (second.operation, second.where) == ("fastact.linear_backward", "")
    assert model[0].weight.grad is not None


def test_modules_inside_a_function():
    model = perceptron()
    wheres = [where for _, where, _ in told(lambda x: model(x) + 1, torch.randn(2, 4))]
    assert wheres == ["Sequential.0", "Sequential.1", "Sequential.2", "Sequential.3", ""]
    assert told(model.forward, torch.randn(2, 4))[0] == ("aten.addmm", "0", "PyTorch")


class Nested(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
        self.activation = torch.nn.Tanh()

    def forward(self, x):
        for layer in self.layers:
            x = self.activation(layer(x))
        return F.silu(x) * torch.sin(x)


def test_paths_and_alternatives():
    rows = explain(Nested(), torch.randn(20, 3)).rows
    assert [(row.operation, row.where) for row in rows] == [
        ("aten.addmm", "layers.0"),
        ("aten.tanh", "activation"),
        ("aten.addmm", "layers.1"),
        ("aten.tanh", "activation"),
        ("aten.silu", ""),
        ("aten.sin", ""),
        ("aten.mul", ""),
    ]
    assert rows[4].reason == "fastact.functional.silu computes it"
    assert rows[5].reason == "fastact has no kernel for it"


def test_pair_in_a_forward_of_its_own():
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(3, 3)
            self.second = torch.nn.Linear(3, 3)

        def forward(self, x):
            return torch.sin(F.relu(self.second(F.relu(self.first(x)))))

    assert told(fastact.convert(Pair()), torch.randn(2, 3)) == [
        ("fastact.linear_packed", "first", "fastact"),
        ("fastact.linear_packed", "second", "fastact"),
        ("aten.sin", "", "PyTorch"),
    ]


def test_layer_that_convert_leaves():
    layer = torch.nn.Linear(3, 3)
    torch.nn.utils.parametrizations.weight_norm(layer)
    rows = explain(layer, torch.randn(2, 3)).rows
    assert {row.reason for row in rows if row.operation == "aten.addmm"} == {
        "fastact.convert leaves ParametrizedLinear: it is parametrized"
    }


def test_fast_path_of_a_transformer_is_seen():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad():
        row = only_row(layer, torch.randn(2, 5, 8))
    assert (row.operation, row.where) == ("aten._transformer_encoder_layer_fwd", "")


# ---- the engine --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_activations_on_own_kernels(case, dtype):
    x = torch.randn(4, 4, 6).to(dtype)
    for view in (x, x.transpose(0, 2), x[:, ::2], x[:1].expand(3, 4, 6)):
        row = only_row(case.function, view, *case.tensors(view))
        assert (row.engine, row.reason, row.dtype) == ("fastact", f"{ISA} kernel", dtype)


@pytest.mark.parametrize("case", DEFAULT_CASES, ids=str)
def test_backward_on_own_kernels(case):
    def step():
        x = case.smooth(5, 6).requires_grad_()
        tensors = [t.requires_grad_() for t in case.tensors(x.detach())]
        case.function(x, *tensors).sum().backward()

    engines = [row.engine for row in explain(step).rows if row.operation.startswith("fastact.")]
    assert engines == ["fastact", "fastact"]


@pytest.mark.parametrize("fused", FUSED_CASES, ids=str)
def test_linear_on_own_kernels(fused):
    x, w = torch.randn(5, 6), torch.randn(4, 6)
    learnable = {"slope": torch.rand(4)} if fused.learnable else {}
    row = only_row(
        lambda: functional.linear(x, w, activation=fused.name, **fused.parameters, **learnable)
    )
    assert (row.operation, row.engine) == ("fastact.linear", "fastact")
    head, *rest = row.reason.split("; ")
    assert head == f"{ISA} kernel"
    if fused.parameters.get("dim") == 0:
        assert rest[1] == f"with fastact.{fused.name}"
    elif fused.name in ("softmax", "log_softmax"):
        assert rest[1] == f"{fused.name} on its rows"
    else:
        assert rest[1:] == ([] if fused.name is None else [f"{fused.name} on its tiles"])


def test_linear_with_a_residual():
    x, w, r = torch.randn(5, 6), torch.randn(4, 6), torch.randn(5, 4)
    for residual, expected in ((r, ["residual on its tiles"]), (r[0], ["with aten.add"])):
        row = only_row(lambda residual=residual: functional.linear(x, w, residual=residual))
        assert (row.operation, row.engine) == ("fastact.linear", "fastact")
        assert row.reason.split("; ")[2:] == expected


@pytest.mark.parametrize("rows", [1, 8, 9, 100, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_road_of_the_product(rows, dtype):
    x, w = torch.randn(rows, 64).to(dtype), torch.randn(128, 64).to(dtype)
    packed = torch.ops.fastact.pack_linear(w)
    for function, arguments in (
        (lambda: functional.linear(x, w), (x, w)),
        (lambda: torch.ops.fastact.linear_packed(x, packed, w), (x, w, True)),
    ):
        algorithm = torch.ops.fastact.linear_algorithm(*arguments)
        assert algorithm in reasons.ALGORITHMS
        assert f"; {algorithm}: {reasons.ALGORITHMS[algorithm]}" in only_row(function).reason


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(func._schema.name.replace("::", "."))
        return func(*args, **(kwargs or {}))


def test_nothing_but_views_is_left_out():
    model, x = fastact.convert(Nested(), mode="training"), torch.randn(2, 3, requires_grad=True)
    # Of a mode that a site knows of, it is no disturbance.
    with site.observing(lambda *args: None), Operators() as seen:
        model(x)
    assert [row.operation for row in explain(model, x).rows] == seen.names


# ---- compositions ------------------------------------------------------------------------------

X = torch.randn(5, 6)
W = torch.randn(4, 6)


def linear(activation="gelu", x=X, w=W, bias=None, **params):
    return lambda: functional.linear(x, w, bias, activation=activation, **params)


COMPOSED = {
    "integers": (linear("relu", X.long(), W.long()), "no kernel for int64"),
    "complex": (linear("tanh", X.cfloat(), W.cfloat()), "no kernel for complex64"),
    "1-D weight": (linear(w=W[0]), "no kernel for a weight of 1 dimension"),
    "scalar bias": (linear(bias=torch.tensor(1.0)), "no kernel for a bias of shape []"),
    "bias of one": (linear(bias=torch.ones(1)), "no kernel for a bias of shape [1]"),
    "slopes of a middle dimension": (
        linear("prelu", X.view(1, 5, 6), slope=torch.rand(5)),
        "no kernel for slopes of prelu that do not lie along the last dimension",
    ),
    "mask along another dimension": (
        lambda: functional.masked_softmax(X, X > 0, dim=0),
        "no kernel for a softmax with a mask over another dimension than the last",
    ),
    "relu of integers": (lambda: functional.relu(X.int()), "no kernel for int32"),
    "operator on integers": (lambda: torch.ops.fastact.relu(X.int()), "no kernel for int32"),
    "complex softmax": (lambda: functional.tanh(X.cfloat()), "no kernel for complex64"),
    "sparse": (lambda: functional.relu(X.to_sparse()), "no kernel for sparse_coo tensors"),
    "nested": (
        lambda: functional.gelu(torch.nested.nested_tensor([X, X[1:]])),
        "no kernel for nested tensors",
    ),
}


@pytest.mark.parametrize("function, reason", COMPOSED.values(), ids=COMPOSED)
def test_compositions(function, reason):
    rows = explain(function).rows
    assert {row.engine for row in rows} == {"PyTorch"}
    assert any(row.reason.split(":")[0] == reason for row in rows), rows


def test_meta_tensors():
    row = only_row(linear(x=X.to("meta"), w=W.to("meta")))
    assert (row.engine, row.reason) == ("none", "meta tensors have no values")


def test_composition_names_what_ran():
    row = only_row(COMPOSED["1-D weight"][0])
    assert row.reason.endswith(": runs aten.linear, fastact.gelu_")


def test_forward_mode():
    def tangent(x):
        return torch.func.jvp(functional.gelu, (x,), (x,))

    reasons = [row.reason for row in explain(tangent, X).rows if row.operation == "aten.gelu"]
    assert reasons == ["no kernel for forward-mode derivatives"]


def test_disabled():
    program = """if True:
        import torch, fastact
        x = torch.ones(2, 2)
        for row in fastact.explain(fastact.nn.Linear(2, 2, activation="tanh"), x).rows:
            print(row.operation, row.engine, row.reason)
    """
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"FASTACT_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.startswith("fastact.linear PyTorch FASTACT_DISABLE=1: runs aten.linear")


def test_autocast():
    model = fastact.convert(perceptron(), mode="training")
    with torch.autocast("cpu"), torch.no_grad():
        rows = explain(model, torch.randn(2, 4)).rows
    conversions = {row.reason for row in rows if row.operation == "aten._to_copy"}
    assert conversions == {"a conversion to bfloat16"}
    assert [row.dtype for row in rows if row.operation == "fastact.linear"] == [torch.bfloat16] * 2


def test_tensor_that_computes_by_itself():
    class Doubling(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            return torch.full((2,), 7.0)

    def function():
        with torch.no_grad():
            x = torch.Tensor._make_subclass(Doubling, torch.ones(2))
            assert functional.relu(x).tolist() == [7.0, 7.0]

    row = explain(function).rows[-1]
    assert (row.operation, row.engine) == ("fastact.relu", "Doubling")


def test_operators_of_others():
    library = torch.library.Library("explained", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CPU")
    row = only_row(lambda x: torch.ops.explained.twice(x), X)
    assert (row.operation, row.engine) == ("explained.twice", "explained")


# ---- the run leaves nothing behind -------------------------------------------------------------


def test_result_is_the_models():
    kept = []
    model = perceptron()
    for each in (model, fastact.convert(model), fastact.convert(model, mode="training")):
        explain(lambda x, each=each: kept.append(each(x)), X[:, :4])
    for result in kept[1:]:
        torch.testing.assert_close(result, kept[0])


def test_model_is_as_before():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(), torch.nn.ReLU())
    model[1].eval()
    explain(model, X[:, :4])
    assert [module.training for module in model] == [True, False, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hooks_are_gone_after_an_error():
    from torch.nn.modules import module

    def broken(x):
        raise KeyError("mine")

    model = perceptron()
    model[2].forward = broken
    with pytest.raises(KeyError, match="mine"):
        explain(model, X[:, :4])
    assert not module._global_forward_hooks and not module._global_forward_pre_hooks
    assert torch._C._len_torch_dispatch_stack() == 0


def test_error_caught_by_the_model():
    class Caught(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(7, 7)

        def forward(self, x):
            try:
                self.layer(x)
            except RuntimeError:
                return torch.sin(x)

    assert ("aten.sin", "", "PyTorch") in told(Caught(), X)


def test_what_cannot_be_explained():
    for wrong in (3, None, torch.ones(2)):
        with pytest.raises(TypeError, match=r"explain\(\): model_or_callable: expected .*, got "):
            explain(wrong)


def test_compiled_is_refused(dynamo):
    model = perceptron()
    for compiled in (
        torch.compile(model, backend="eager"),
        torch.compile(lambda x: x, backend="eager"),
        torch.jit.trace(model, X[:, :4], check_trace=False),
    ):
        with pytest.raises(TypeError, match="got a compiled one"):
            explain(compiled, X[:, :4])


# ---- the table ---------------------------------------------------------------------------------


def test_table():
    report = explain(perceptron(), torch.randn(2, 4))
    head, *lines, summary = str(report).splitlines()
    assert head.split() == ["operation", "where", "shapes", "dtype", "engine", "reason"]
    assert lines[1].split()[:5] == ["aten.relu", "1", "2x3", "float32", "PyTorch"]
    for column in ("where", "shapes", "dtype", "engine", "reason"):
        start = head.index(column)
        assert {line[start - 2 : start] for line in [head, *lines]} == {"  "}, column
        assert all(line[start] != " " for line in lines), column
    assert summary == "0 of 4 operations on fastact's kernels"
    assert repr(report) == str(report)


def test_report_of_nothing():
    report = explain(lambda: None)
    assert report.rows == ()
    assert str(report).splitlines()[-1] == "0 of 0 operations on fastact's kernels"


def test_every_function_has_its_alternative():
    """What F's functions run in PyTorch is told to be fastact.functional's too."""
    linear_arguments = (torch.randn(3, 4), torch.randn(2, 4), torch.randn(2))
    for name, inputs in itertools.chain(
        ((name, (X,)) for name in ("relu", "gelu", "silu", "mish", "hardswish", "logsigmoid")),
        [("prelu", (X, torch.rand(6))), ("linear", linear_arguments), ("softmax", (X, -1))],
        [("leaky_relu_", (X.clone(),)), ("log_softmax", (X, -1)), ("glu", (X,))],
    ):
        row = only_row(getattr(F, name), *inputs)
        assert row.reason.startswith(f"fastact.functional.{name.rstrip('_')} computes it")


def test_example():
    outcome = doctest.testmod(watching, extraglobs={"torch": torch, "fastact": fastact})
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_fastact_layers_of_ones_own():
    assert told(nn.Linear(6, 4, activation="relu"), X) == [("fastact.linear", "", "fastact")]
