"""Do the operators of recurrent layers compute what torch.nn's layers do?"""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import fastact
from fastact.testing.cases import assert_same_bits
from fastact.testing.recurrent import (
    EDGE_CASES,
    LAYERS,
    OPTION_CASES,
    SHAPE_CASES,
    RecurrentCase,
    call,
    twin,
)
from fastact.testing.ulp import ulp_error

ops = torch.ops.fastact
# Absolute, beside twice PyTorch's own error; of gradients a share of the largest one.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.bfloat16: 4e-3,
    torch.float16: 5e-4,
}


def gradients(results, leaves):
    """By the same random gradients of the results, whatever their dtype."""
    generator = torch.Generator().manual_seed(1)
    grads = [
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in results
    ]
    return torch.autograd.grad(results, leaves, grads, allow_unused=True)


def everything(case, dtype, compute, state_dict, inputs, lengths=None):
    """Results and gradients of compute(arguments, module, lengths) in a dtype."""
    module = case.module(dtype)
    module.load_state_dict(state_dict)
    arguments = tuple(t.to(dtype).requires_grad_() for t in inputs)
    lengths = case.lengths() if lengths is None else lengths
    results = compute(arguments, module, lengths)
    return (*results, *gradients(results, [*arguments, *module._flat_weights]))


def assert_as_accurate(case, dtype):
    state_dict, inputs = case.module(dtype).state_dict(), case.arguments(dtype)

    def ours(arguments, module, lengths):
        return call(case.layer, arguments, module, lengths)

    exact = everything(case, torch.float64, twin, state_dict, inputs)
    theirs = everything(case, dtype, twin, state_dict, inputs)
    actual = everything(case, dtype, ours, state_dict, inputs)
    for i, (a, t, e) in enumerate(zip(actual, theirs, exact, strict=True)):
        assert a.dtype == dtype
        assert a.shape == t.shape, i
        assert a.is_contiguous()
        scale = max(1.0, e.abs().max().item())
        error, bound = ((x.double() - e).abs().max().item() for x in (a, t))
        assert error <= 2 * bound + TOLERANCE[dtype] * scale, (case, i, error, bound)


@pytest.mark.parametrize("case", OPTION_CASES, ids=str)
def test_options(case):
    assert_as_accurate(case, torch.float64)


@pytest.mark.parametrize("case", EDGE_CASES, ids=str)
def test_edges(case):
    assert_as_accurate(case, torch.float32)


@pytest.mark.parametrize("case", SHAPE_CASES, ids=str)
def test_shapes(case):
    for dtype in (torch.float32, torch.float64):
        assert_as_accurate(case, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_16_bits(layer, dtype):
    for sizes in ({"batch": 5, "hidden": 33}, {"batch": 1, "hidden": 16, "num_layers": 2}):
        assert_as_accurate(RecurrentCase(layer, **sizes), dtype)
    assert_as_accurate(RecurrentCase(layer, num_layers=2, ragged=True), dtype)


@pytest.mark.parametrize("layer", LAYERS)
def test_inference_is_the_same(layer):
    """Nothing is kept, so that other memory is used: the bits are those of training."""
    for batch, ragged in ((1, False), (9, False), (9, True)):
        case = RecurrentCase(layer, 3, True, batch=batch, ragged=ragged)
        arguments, module = case.arguments(), case.module()
        trained = call(layer, arguments, module, case.lengths())
        assert all(t.requires_grad for t in trained)
        with torch.no_grad():
            inferred = call(layer, arguments, module, case.lengths())
        for a, b in zip(inferred, trained, strict=True):
            assert_same_bits(a, b.detach(), (layer, batch, ragged))


# ---- sequences of several lengths ----------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_sequences_without_steps(layer):
    """Their output is 0 and their last state the first one; nothing else changes."""
    case = RecurrentCase(layer, 2, True, batch=4)
    arguments, module = case.arguments(), case.module()
    lengths = torch.tensor([0, 5, 0, 2])
    output, *states = call(layer, arguments, module, lengths)
    some = [1, 3]
    own = tuple(t[:, some] for t in arguments)
    for a, b in zip((output, *states), twin(own, module, lengths[some]), strict=True):
        torch.testing.assert_close(a[:, some], b)
    assert not output[:, [0, 2]].any()
    for last, first in zip(states, arguments[1:], strict=True):
        assert torch.equal(last[:, [0, 2]], first[:, [0, 2]])
    none = torch.zeros(4, dtype=torch.int64)
    leaves = [t.requires_grad_() for t in arguments]
    output, *states = call(layer, arguments, module, none)
    assert not output.any()
    results = torch.autograd.grad(sum(t.sum() for t in states), [*leaves, *module._flat_weights])
    for gradient, leaf in zip(results, [*leaves, *module._flat_weights], strict=True):
        is_state = any(leaf is t for t in leaves[1:])
        assert torch.equal(gradient, torch.full_like(gradient, float(is_state)))


@pytest.mark.parametrize("layer", LAYERS)
def test_values_do_not_depend_on_the_batch(layer):
    """From two sequences on, whatever the others are and how long they run."""
    case = RecurrentCase(layer, 2, True, steps=6, batch=13, hidden=150)
    arguments, module = case.arguments(), case.module()
    lengths = torch.tensor([6, 1, 4, 6, 2, 3, 6, 5, 1, 2, 4, 6, 3])

    def results(sequences, ragged):
        own = tuple(t[:, sequences] for t in arguments)
        leaves = [t.requires_grad_() for t in own]
        found = call(layer, own, module, lengths[sequences] if ragged else None)
        return [*found, *torch.autograd.grad(sum(t.sum() for t in found), leaves)]

    for ragged in (False, True):
        whole = results(list(range(13)), ragged)
        for some in ([4, 0], [3, 1, 12], [7, 2, 5, 9, 11]):
            for a, b in zip(results(some, ragged), whole, strict=True):
                assert_same_bits(a.detach(), b.detach()[:, some], (layer, some, ragged))


def test_noise_multiplies_the_inputs_of_upper_layers():
    for layer in LAYERS:
        case = RecurrentCase(layer, 3, True, ragged=True, batch=4)
        arguments, module = case.arguments(torch.float64), case.module(torch.float64)
        width = 2 * (3 if layer == "projecting lstm" else 7)
        noise = torch.rand(2, 5, 4, width, dtype=torch.float64)
        leaves = [t.requires_grad_() for t in (*arguments, *module._flat_weights)]
        actual = call(layer, arguments, module, case.lengths(), noise)
        # Layer by layer.
        x, *states = arguments
        each, outputs = len(module._flat_weights) // 3, []
        for i in range(3):
            own = tuple(t[2 * i : 2 * i + 2] for t in states)
            weights = module._flat_weights[i * each : (i + 1) * each]
            x, *last = call(layer, (x, *own), module, case.lengths(), None, weights)
            outputs.append(last)
            if i < 2:
                x = x * noise[i]
        expected = (x, *(torch.cat(parts) for parts in zip(*outputs, strict=True)))
        for a, b in zip(
            [*actual, *gradients(actual, leaves)],
            [*expected, *gradients(expected, leaves)],
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_strides(layer):
    """Of operands and of gradients; the output is contiguous, as PyTorch's."""
    case = RecurrentCase(layer, batch=4)
    arguments, module = case.arguments(), case.module()
    expected = everything(case, torch.float32, twin, module.state_dict(), arguments)

    def odd(t):
        return torch.stack((t, t), -1)[..., 1].movedim(0, -1).contiguous().movedim(-1, 0)

    def ours(arguments, module, lengths):
        weights = [odd(w) for w in module._flat_weights]
        results = call(layer, tuple(map(odd, arguments)), module, None, None, weights)
        assert all(t.is_contiguous() for t in results)
        return [odd(t) for t in results]

    actual = everything(case, torch.float32, ours, module.state_dict(), arguments)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_empty_batch():
    for layer in LAYERS:
        case = RecurrentCase(layer, 2, True, batch=0)
        arguments, module = case.arguments(), case.module()
        for a, b in zip(call(layer, arguments, module), twin(arguments, module), strict=True):
            assert a.shape == b.shape
        leaves = [t.requires_grad_() for t in arguments]
        results = call(layer, arguments, module, torch.zeros(0, dtype=torch.int64))
        for gradient in gradients(results, [*leaves, *module._flat_weights]):
            assert not gradient.any()


@pytest.mark.parametrize("layer", LAYERS)
def test_the_output_may_be_written_to(layer):
    """As PyTorch's; and backward may run twice."""
    case = RecurrentCase(layer, 2)
    arguments, module = case.arguments(), case.module()
    leaves = [t.requires_grad_() for t in (*arguments, *module._flat_weights)]
    output, *_ = call(layer, arguments, module)
    expected = torch.autograd.grad(output.sum(), leaves, retain_graph=True)
    again = torch.autograd.grad(output.sum(), leaves)
    output, *_ = call(layer, arguments, module)
    written = torch.autograd.grad((output.mul_(2) / 2).sum(), leaves)
    for a, b, c in zip(expected, again, written, strict=True):
        assert_same_bits(a, b, layer)
        assert_same_bits(a, c, layer)


@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_not_wanted_is_not_computed(layer):
    """Each gradient alone is what it is among all; others are None."""
    case = RecurrentCase(layer, 2, True, ragged=True)
    arguments, module = case.arguments(), case.module()
    parameters = [w.detach() for w in module._flat_weights]
    leaves = [*arguments, *parameters]
    states = len(arguments)

    def wanted(some):
        own = [t.clone().requires_grad_(i in some) for i, t in enumerate(leaves)]
        results = call(layer, tuple(own[:states]), module, case.lengths(), None, own[states:])
        return gradients(results, [own[i] for i in some])

    whole = wanted(range(len(leaves)))
    for i in range(len(leaves)):
        assert_same_bits(wanted([i])[0], whole[i], (layer, i))


def test_some_outputs_only():
    """A result that nobody used has no gradient."""
    for layer in LAYERS:
        case = RecurrentCase(layer, 2, True, ragged=True)
        arguments, module = case.arguments(torch.float64), case.module(torch.float64)
        leaves = [t.requires_grad_() for t in (*arguments, *module._flat_weights)]
        ours = call(layer, arguments, module, case.lengths())
        theirs = twin(arguments, module, case.lengths())
        for a, b in zip(ours, theirs, strict=True):
            found = torch.autograd.grad(a.sum(), leaves, retain_graph=True)
            expected = torch.autograd.grad(b.sum(), leaves, retain_graph=True)
            for x, y in zip(found, expected, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


# ---- differentiation -----------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("ragged", [False, True])
def test_derivatives(layer, ragged):
    """First by the kernels, second ones by the composition, forward mode too."""
    case = RecurrentCase(layer, 2, True, steps=3, batch=2, inputs=2, hidden=4, ragged=ragged)
    module = case.module(torch.float64)
    arguments = [t.requires_grad_() for t in case.arguments(torch.float64)]
    weights = [w.detach().clone().requires_grad_() for w in module._flat_weights]

    def f(*tensors):
        states = len(arguments)
        return call(layer, tensors[:states], module, case.lengths(), None, list(tensors[states:]))

    assert gradcheck(f, (*arguments, *weights), fast_mode=True, check_forward_ad=True)
    if layer != "relu":
        assert gradgradcheck(f, (*arguments, *weights), fast_mode=True)


@pytest.mark.parametrize("layer", LAYERS)
def test_opcheck(layer):
    case = RecurrentCase(layer, 2, True, steps=3, ragged=True)
    operator, _, options = LAYERS[layer]
    module, lengths = case.module(), case.lengths()
    weights = [w.detach() for w in module._flat_weights]
    more = [options["nonlinearity"]] if "nonlinearity" in options else []
    noise = torch.rand(1, 3, 3, 2 * options.get("proj_size", 7))
    for grad in (False, True):
        arguments = [t.requires_grad_(grad) for t in case.arguments()]
        leaves = [w.clone().requires_grad_(grad) for w in weights]
        given = (*arguments, leaves, lengths, noise, True, True, *more)
        opcheck(getattr(ops, operator), given)
    arguments = case.arguments()
    given = (*arguments, weights, lengths, noise, True, True, *more)
    quick = ("test_schema", "test_faketensor")
    opcheck(getattr(ops, f"{operator}_training"), given, test_utils=quick)
    *results, reserve = getattr(ops, f"{operator}_training")(*given)
    grads = [torch.randn_like(t) for t in results]
    for mask in (True, False):
        masks = [mask or i == 1 for i in range(len(arguments) + len(weights))]
        backward = (*grads[:1], *[None] * (len(grads) - 1), *arguments, weights, lengths, noise)
        opcheck(
            getattr(ops, f"{operator}_backward"),
            (*backward, reserve, True, True, *more, masks),
            test_utils=quick,
        )


# ---- cells ---------------------------------------------------------------------------------------

CELLS = {"tanh": nn.RNNCell, "relu": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


def cell_call(layer, arguments, module):
    more = [layer] if layer in ("tanh", "relu") else []
    weights = (module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
    result = getattr(ops, LAYERS[layer][0] + "_cell")(*arguments, *weights, *more)
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer", CELLS)
def test_cells(layer, bias):
    options = {"nonlinearity": layer} if layer in ("tanh", "relu") else {}
    for batch, dtype in ((1, torch.float64), (11, torch.float64), (3, torch.float32)):
        module = CELLS[layer](5, 18, bias=bias, dtype=dtype, **options)
        states = 2 if layer == "lstm" else 1
        arguments = [torch.randn(batch, n, dtype=dtype) for n in (5, *[18] * states)]
        leaves = [t.requires_grad_() for t in (*arguments, *module.parameters())]
        hx = tuple(arguments[1:]) if states == 2 else arguments[1]
        theirs = module(arguments[0], hx)
        theirs = theirs if isinstance(theirs, tuple) else (theirs,)
        ours = cell_call(layer, arguments, module)
        for a, b in zip(
            (*ours, *gradients(ours, leaves)), (*theirs, *gradients(theirs, leaves)), strict=True
        ):
            torch.testing.assert_close(a, b)
    opcheck(
        getattr(ops, LAYERS[layer][0] + "_cell"),
        (*arguments, module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh),
    )


def test_cell_with_one_bias():
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    w_ih, w_hh, bias = torch.randn(4, 3), torch.randn(4, 4), torch.randn(4)
    expected = torch.tanh(x @ w_ih.T + h @ w_hh.T + bias)
    for biases in ((bias, None), (None, bias)):
        torch.testing.assert_close(ops.rnn_cell(x, h, w_ih, w_hh, *biases), expected)


# ---- threads and processes -----------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_number_of_threads(layer):
    for sizes in ({"batch": 1}, {"batch": 6}, {"batch": 40}, {"batch": 24, "ragged": True}):
        case = RecurrentCase(layer, 2, True, steps=6, inputs=70, hidden=150, **sizes)
        module, arguments = case.module(), case.arguments()
        expected = None
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [t.requires_grad_() for t in (*arguments, *module._flat_weights)]
            results = call(layer, arguments, module, case.lengths())
            found = [*results, *gradients(results, leaves)]
            expected = expected or found
            for a, b in zip(found, expected, strict=True):
                assert_same_bits(a.detach(), b.detach(), (str(case), threads))


TROUBLE = """
import os, sys, threading, time
import torch, fastact
from fastact.testing.recurrent import RecurrentCase, call
torch.set_num_threads(4)
case = RecurrentCase("lstm", 2, steps=30, batch=2, inputs=64, hidden=128)
module, arguments = case.module(), case.arguments()
def result():
    with torch.no_grad():
        return [t.numpy().tobytes() for t in call("lstm", arguments, module)]
expected = result()
what = sys.argv[1]
if what == "fork":
    torch.tanh(torch.randn(1 << 20)).sum()  # PyTorch's threads have run
    pid = os.fork()
    if pid == 0:
        os._exit(0 if all(result() == expected for _ in range(20)) else 1)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
if what == "one core":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sys.exit(not all(result() == expected for _ in range(20)))
if what == "fewer":  # of torch's pool than it says
    os.environ["OMP_THREAD_LIMIT"]
    sys.exit(not all(result() == expected for _ in range(20)))
# Beside threads whose pools are busy, and calls of the same operator on other threads.
stop = time.monotonic() + 3
wrong = []
def multiply():
    a = torch.randn(300, 300)
    while time.monotonic() < stop:
        a @ a
def compare():
    while time.monotonic() < stop:
        wrong.extend([1] if result() != expected else [])
threads = [threading.Thread(target=f) for f in (multiply, multiply, compare, compare)]
[t.start() for t in threads]
[t.join() for t in threads]
sys.exit(len(wrong))
"""


@pytest.mark.parametrize("what", ["fork", "one core", "fewer", "busy"])
def test_threads_that_do_not_come(what):
    """They are done without: nothing hangs."""
    limit = {"OMP_THREAD_LIMIT": "2"} if what == "fewer" else {}
    finished = subprocess.run(
        [sys.executable, "-c", TROUBLE, what], timeout=60, env=os.environ | limit
    )
    assert finished.returncode == 0


def test_subnormal_numbers_are_flushed_on_every_thread():
    """As the caller wishes it: a state that decays to nothing is 0, or not, in every unit."""
    case = RecurrentCase("relu", steps=200, batch=1, inputs=1, hidden=256, bias=False)
    module = case.module()
    with torch.no_grad():
        module.weight_ih_l0.zero_()
        module.weight_hh_l0.copy_(torch.eye(256) / 2)
    arguments = (torch.zeros(200, 1, 1), torch.ones(1, 1, 256))
    torch.set_num_threads(2)
    try:
        for flush in (False, True):
            if not torch.set_flush_denormal(flush):
                pytest.skip("this processor cannot flush subnormal numbers")
            with torch.no_grad():
                output, _ = call("relu", arguments, module)
            torch.set_flush_denormal(False)
            tiny = output[130]
            assert (tiny == 0).all() if flush else (tiny != 0).all()
    finally:
        torch.set_flush_denormal(False)


ISA = """
import torch, fastact, sys
sys.path.insert(0, "tests")
from test_recurrent_operators import assert_as_accurate, LAYERS
from fastact.testing.recurrent import RecurrentCase, EDGE_CASES
torch.manual_seed(0)
cases = [RecurrentCase(layer, 2, True, batch=batch, hidden=hidden, ragged=ragged)
         for layer in LAYERS for batch, hidden, ragged in ((1, 20, False), (5, 36, True))]
for case in cases + EDGE_CASES[::7]:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert_as_accurate(case, dtype)
print(fastact.info()["instruction_set"])
"""
SUPPORTED = {
    "baseline": True,
    "avx2": torch.cpu._is_avx2_supported(),
    "avx512": torch.cpu._is_avx512_supported(),
    "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
}


@pytest.mark.parametrize("isa", fastact.info()["instruction_sets"])
def test_every_instruction_set(isa):
    if not SUPPORTED[isa]:
        pytest.skip(f"this processor has no {isa}")
    finished = subprocess.run(
        [sys.executable, "-c", ISA],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"FASTACT_ISA": isa, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == isa


# ---- arguments that do not fit -------------------------------------------------------------------

R = torch.randn
FITTING = {
    "input": R(5, 3, 4),
    "hx": R(2, 3, 7),
    "cx": R(2, 3, 7),
    "weights": [R(28, 4), R(28, 7), R(28), R(28), R(28, 7), R(28, 7), R(28), R(28)],
    "lengths": torch.tensor([5, 2, 0]),
    "dropout_noise": R(1, 5, 3, 7),
}


def _weights(i, w):
    return [*FITTING["weights"][:i], w, *FITTING["weights"][i + 1 :]]


REFUSED = {
    "input": (R(5, 4), R(0, 3, 4), R(5, 3, 6), R(5, 3, 4).double(), R(5, 3, 4).to_sparse()),
    "hx": (R(2, 3, 8), R(1, 3, 7), R(2, 4, 7), R(3, 7), R(2, 3, 7).double()),
    "cx": (R(2, 3, 8), R(1, 3, 7), R(2, 3, 7).half()),
    "weights": (
        [],
        FITTING["weights"][:7],
        _weights(0, R(28, 5)),
        _weights(0, R(28)),
        _weights(1, R(27, 7)),
        _weights(2, R(27)),
        _weights(4, R(28, 4)),
        _weights(5, R(28, 6)),
        _weights(6, R(28).double()),
    ),
    "lengths": (
        torch.tensor([5, 2]),
        torch.tensor([5, 2, 6]),
        torch.tensor([5, -1, 3]),
        torch.tensor([5, 2, 0], dtype=torch.int32),
        R(3),
    ),
    "dropout_noise": (R(5, 3, 7), R(2, 5, 3, 7), R(1, 5, 3, 7).double()),
}


def _refused_on(device):
    """On meta without what only values or a layout tell."""
    for argument, values in REFUSED.items():
        for i, value in enumerate(values):
            is_value = argument == "lengths" and value.dtype == torch.int64 and value.shape == (3,)
            is_sparse = isinstance(value, torch.Tensor) and value.layout != torch.strided
            if device == "cpu" or not (is_value or is_sparse):
                yield pytest.param(argument, value, device, id=f"{argument}-{i}-{device}")


@pytest.mark.parametrize("argument, value, device", [*_refused_on("cpu"), *_refused_on("meta")])
def test_refused(argument, value, device):
    """By the kernels and by the fake kernels alike, where they can know."""
    arguments = FITTING | {argument: value}
    arguments = {
        name: [t.to(device) for t in v] if isinstance(v, list) else v.to(device)
        for name, v in arguments.items()
    }
    with pytest.raises(RuntimeError) as refusal:
        ops.lstm(*arguments.values())
    message = str(refusal.value)
    # Where two arguments do not fit each other, the weights say what is right.
    blamed = {"input": ("input", "weights")}.get(argument, (argument,))
    if argument == "weights" and not message.startswith("fastact.lstm(): weights"):
        blamed = ("hx", "cx")
    assert message.startswith(tuple(f"fastact.lstm(): {name}: expected " for name in blamed))
    assert "got" in message


def test_refused_values():
    for name in ("input", "hx", "cx", "weights"):
        with pytest.raises((TypeError, RuntimeError)):
            ops.lstm(*(FITTING | {name: None}).values())
    weights = [R(7, 4), R(7, 7), R(7), R(7)]
    with pytest.raises(ValueError, match=r"fastact.rnn\(\): nonlinearity: expected 'tanh' or"):
        ops.rnn(R(5, 3, 4), R(1, 3, 7), weights, nonlinearity="gelu")
    with pytest.raises(RuntimeError, match=r"fastact.gru\(\): weights: expected w_hh of 3 \* H"):
        ops.gru(R(5, 3, 4), R(1, 3, 7), [R(20, 4), R(20, 7), R(20), R(20)])
    with pytest.raises(RuntimeError, match=r"fastact.gru_cell\(\): hx: expected 2 dimensions"):
        ops.gru_cell(R(3, 4), R(7), R(21, 4), R(21, 7))
    arguments = (R(5, 3, 4), R(1, 3, 7), weights, None, None)
    *_, reserve = ops.rnn_training(*arguments)
    for wrong in (reserve[:-1], reserve.double(), reserve[::2]):
        with pytest.raises(RuntimeError, match=r"fastact.rnn_backward\(\): reserve: expected"):
            ops.rnn_backward(R(5, 3, 7), None, *arguments, wrong, True, False, "tanh", [True] * 6)
    with pytest.raises(RuntimeError, match=r"fastact.rnn_backward\(\): mask: expected 6"):
        ops.rnn_backward(R(5, 3, 7), None, *arguments, reserve, True, False, "tanh", [True] * 5)
    with pytest.raises(RuntimeError, match=r"fastact.rnn_backward\(\): grad_output: expected"):
        ops.rnn_backward(R(5, 3, 8), None, *arguments, reserve, True, False, "tanh", [True] * 6)


def test_large_sizes_are_finite():
    """10,000 steps of a state that neither grows nor decays."""
    case = RecurrentCase("gru", steps=10_000, batch=1, inputs=1, hidden=4)
    output, hy = call("gru", case.arguments(), case.module())
    assert output.isfinite().all()
    assert torch.equal(output[-1], hy[0])


# ---- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_autocast(layer, given):
    """As the twin: RNN and LSTM in the lower precision, GRU as its input."""
    case = RecurrentCase(layer)
    arguments, module = case.arguments(given), case.module()
    with torch.autocast("cpu", torch.bfloat16):
        results = call(layer, arguments, module)
    expected = given if layer == "gru" else torch.bfloat16
    assert {t.dtype for t in results} == {expected}
    sum(t.float().sum() for t in results).backward()
    assert module.weight_ih_l0.grad.dtype == torch.float32


def test_gates_are_accurate():
    """math/recurrent.h states 2.5 ULP: a cell's sum is x, and its result one gate of that."""
    bits = torch.arange(-(2**31), 2**31, 65537).to(torch.int32)
    x = bits.view(torch.float32)
    x = x[x.isfinite()].view(1, -1, 1)
    h = torch.zeros(1, x.size(1), 1)
    one, none = torch.ones(1, 1), torch.zeros(1, 1)
    y, _ = ops.rnn(x, h, [one, none], None, None, False)
    assert ulp_error(y, x.double().tanh()).max() <= 2.5
    # Of a GRU whose candidate is 0 and whose state was 1: z.
    update = torch.tensor([[0.0], [1], [0]])
    y, _ = ops.gru(x, h + 1, [update, torch.zeros(3, 1)], None, None, False)
    normal = x >= -87  # below, the power alone would be 0
    assert ulp_error(y, x.double().sigmoid())[normal].max() <= 2.5
    assert (y[~normal] <= 1.7e-38).all() and (y[~normal] >= 0).all()
