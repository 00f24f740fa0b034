"""Are RNN, GRU, LSTM and their cells torch.nn's in all but speed, with every option?

A longer run: `pytest -m slow tests/test_recurrent_modules.py`.
"""

import copy
import io
import itertools
import pickle
import resource
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)
from torch.testing._internal.common_modules import ModuleErrorEnum
from torch.utils._pytree import tree_leaves, tree_map

from fastact import nn
from fastact.testing.cases import pairs
from fastact.testing.samples import EXPECTED_RECURRENT_SAMPLES, module_info

LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")
DTYPES = (torch.float32, torch.float64)
# For PyTorch's samples, from [-9, 9]: of gradients that are small differences of large numbers.
SAMPLES_TOLERANCES = {torch.float32: {"rtol": 1e-3, "atol": 1e-4}, torch.float64: {}}
INPUT, H, P = 3, 5, 2  # sizes of input, state and projection

# Every way to build a layer, and a few names for those that the other tests go through.
FORMS = {
    "RNN": ("RNN", {}),
    "relu": ("RNN", {"nonlinearity": "relu"}),
    "GRU": ("GRU", {}),
    "LSTM": ("LSTM", {}),
    "projected": ("LSTM", {"proj_size": P}),
}
OPTIONS = [
    dict(zip(("num_layers", "bias", "batch_first", "bidirectional"), values, strict=True))
    for values in itertools.product((1, 3), (True, False), (False, True), (False, True))
]


def twins(form, dtype=torch.float32, **options):
    """fastact's layer and torch.nn's, with the same parameters."""
    name, more = FORMS[form]
    mine = getattr(nn, name)(INPUT, H, dtype=dtype, **more, **options)
    twin = getattr(torch.nn, name)(INPUT, H, dtype=dtype, **more, **options)
    twin.load_state_dict(mine.state_dict(), strict=True)
    return mine, twin


def first_states(layer, batch, dtype=torch.float32):
    """As an argument of its forward."""
    count = layer.num_layers * (1 + layer.bidirectional)
    h = torch.randn(count, batch, layer.proj_size or H, dtype=dtype, requires_grad=True)
    if layer.mode != "LSTM":
        return h
    return h, torch.randn(count, batch, H, dtype=dtype, requires_grad=True)


def results(layer, x, states, call=None, seed=1):
    """Outputs, and the gradients of input, states and parameters."""
    torch.manual_seed(seed)
    outputs = [
        t
        for t in tree_leaves((call or layer)(x, states))
        if isinstance(t, torch.Tensor) and t.is_floating_point()
    ]
    total = sum((t * torch.linspace(-1, 2, t.numel()).view_as(t)).sum() for t in outputs)
    leaves = [t for t in tree_leaves((x, states)) if isinstance(t, torch.Tensor)]
    leaves = [t for t in [*leaves, *layer.parameters()] if t.requires_grad]
    return outputs, torch.autograd.grad(total, leaves)


# ---- PyTorch's own samples ---------------------------------------------------------------------


def _tensors(value):
    return [t for t in tree_leaves(value) if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name, dtype", pairs(EXPECTED_RECURRENT_SAMPLES, DTYPES))
def test_samples(name, dtype, training):
    info = module_info(name)
    count = 0
    for sample in info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=training
    ):
        built, forward = sample.constructor_input, sample.forward_input
        mine = info.module_cls(*built.args, **built.kwargs).to(dtype).train(training)
        twin = getattr(torch.nn, name)(*built.args, **built.kwargs).to(dtype).train(training)
        twin.load_state_dict(mine.state_dict())
        found = []
        for module in (mine, twin):
            args, kwargs = copy.deepcopy((forward.args, forward.kwargs))
            outputs = _tensors(module(*args, **kwargs))
            sum(t.square().sum() for t in outputs).backward()
            leaves = [t for t in _tensors((args, kwargs)) if t.requires_grad]
            found.append((outputs, [t.grad for t in [*leaves, *module.parameters()]]))
        torch.testing.assert_close(*found, **SAMPLES_TOLERANCES[dtype])
        count += 1
    assert count == EXPECTED_RECURRENT_SAMPLES[name][0]


@pytest.mark.parametrize("name", EXPECTED_RECURRENT_SAMPLES)
def test_error_inputs(name):
    info = module_info(name)
    count = 0
    for error in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    ):
        built, forward = error.module_error_input.constructor_input, error.module_error_input
        make = partial(info.module_cls, *built.args, **built.kwargs)
        if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                make()
        else:
            module, forward = make(), forward.forward_input
            with pytest.raises(error.error_type, match="fastact"):
                module(*forward.args, **forward.kwargs)
        count += 1
    assert count == EXPECTED_RECURRENT_SAMPLES[name][1]


# ---- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("form, dtype", pairs(FORMS, DTYPES))
def test_every_option(form, dtype, options):
    """Outputs, strides and every gradient; with and without first states, batched and not."""
    mine, twin = twins(form, dtype, **options)
    x = torch.randn(4, 6, INPUT, dtype=dtype, requires_grad=True)
    given = first_states(mine, 4 if options["batch_first"] else 6, dtype)
    one = torch.randn(4, INPUT, dtype=dtype, requires_grad=True)
    first = tuple(t[:, 0] for t in given) if isinstance(given, tuple) else given[:, 0]
    first = tree_map(lambda t: t.detach().requires_grad_(), first)
    for arguments in ((x, given), (x, None), (one, first), (one, None)):
        a, b = results(mine, *arguments), results(twin, *arguments)
        torch.testing.assert_close(a, b)
        assert a[0][0].stride() == b[0][0].stride()


@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["padded", "batch first", "packed", "unbatched", "bfloat16"])
def test_dropout_draws_as_torchs(form, how, bidirectional, p):
    dtype = torch.bfloat16 if how == "bfloat16" else torch.float32
    options = {"num_layers": 3, "bidirectional": bidirectional, "dropout": p}
    mine, twin = twins(form, dtype, batch_first=how == "batch first", **options)
    x = torch.randn(40, 7, INPUT, dtype=dtype, requires_grad=True)
    if how == "unbatched":
        x = x[:, 0]
    if how == "packed":
        x = pack_padded_sequence(x, [9, 40, 1, 22, 40, 3, 2], enforce_sorted=False)
    tolerance = {"rtol": 2**-5, "atol": 2**-5} if how == "bfloat16" else {}
    a, b = (
        [t for t in _tensors(layer(x)) if t.is_floating_point()]
        for layer in (mine, twin)
        if torch.manual_seed(3)
    )
    after = torch.rand(1)
    torch.testing.assert_close(a, b, **tolerance)
    torch.manual_seed(3)
    twin(x)
    assert torch.equal(after, torch.rand(1))  # as many numbers were drawn
    if p < 1:
        assert not torch.equal(a[0], _tensors(mine(x))[0])
    mine.eval(), twin.eval()
    torch.testing.assert_close(_tensors(mine(x)), _tensors(twin(x)), **tolerance)


def test_dropout_of_one_layer():
    with pytest.warns(UserWarning, match="dropout option"):
        layer = nn.LSTM(INPUT, H, dropout=0.5)
    x = torch.randn(3, 2, INPUT)
    assert torch.equal(layer(x)[0], layer(x)[0])


# ---- sequences of several lengths --------------------------------------------------------------


def packed_form(call, x, states, lengths, batch_first=False):
    """What torch.nn makes of the same sequences as a PackedSequence, padded again."""
    packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
    output, last = call(packed, states)
    steps = x.shape[1 if batch_first else 0]
    return pad_packed_sequence(output, batch_first=batch_first, total_length=steps)[0], last


@pytest.mark.parametrize("lengths", [[2, 5, 3], [5, 5, 5], [5, 4, 1], [1, 1, 1]], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True, "num_layers": 2, "dropout": 0.5}, {"batch_first": True}],
    ids=["plain", "deep", "batch first"],
)
@pytest.mark.parametrize("form", FORMS)
def test_lengths(form, options, lengths):
    """lengths= and a PackedSequence are one and the same, as tensors of any integer dtype."""
    mine, twin = twins(form, **options)
    batch_first = options.get("batch_first", False)
    x = torch.randn(*((3, 5) if batch_first else (5, 3)), INPUT, requires_grad=True)
    states = first_states(mine, 3)
    expected = results(twin, x, states, lambda x, h: packed_form(twin, x, h, lengths, batch_first))
    for dtype in (torch.int64, torch.int32, torch.uint8):
        given = torch.tensor(lengths, dtype=dtype)
        found = results(mine, x, states, lambda x, h, n=given: mine(x, h, lengths=n))
        torch.testing.assert_close(found, expected)
    found = results(mine, x, states, lambda x, h: packed_form(mine, x, h, lengths, batch_first))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        results(mine, x, None, lambda x, h: mine(x, h, lengths=torch.tensor(lengths))),
        results(twin, x, None, lambda x, h: packed_form(twin, x, h, lengths, batch_first)),
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_sequence_keeps_its_order(form):
    mine, twin = twins(form, bidirectional=True)
    sequences = [torch.randn(n, INPUT) for n in (2, 5, 3)]
    for packed in (
        pack_sequence(sequences, enforce_sorted=False),
        pack_sequence(sorted(sequences, key=len, reverse=True)),
    ):
        (a, last), (b, twins_last) = mine(packed), twin(packed)
        assert isinstance(a, PackedSequence)
        torch.testing.assert_close(a.data, b.data)
        torch.testing.assert_close(last, twins_last)
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            ours, theirs = getattr(a, name), getattr(b, name)
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("form", FORMS)
def test_padding_does_not_count(form):
    """Neither NaN in it nor a sequence without steps, whose last state is its first one."""
    mine, _ = twins(form, num_layers=2, bidirectional=True)
    x = torch.randn(5, 4, INPUT)
    lengths = torch.tensor([3, 0, 5, 1])
    states = first_states(mine, 4)
    padding = torch.arange(5).unsqueeze(1) >= lengths
    output, last = mine(x, states, lengths=lengths)
    other, others_last = mine(x.masked_fill(padding.unsqueeze(-1), 9.0), states, lengths=lengths)
    assert torch.equal(output, other)
    assert not output[padding].any()
    for ours, theirs, first in zip(*map(_tensors, (last, others_last, states)), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours[:, 1], first[:, 1])
    for i, length in enumerate(lengths.tolist()):
        if length:
            alone = mine(x[:length, i], tree_map(lambda t, i=i: t[:, i], states))
            torch.testing.assert_close(output[:length, i], alone[0])


# ---- cells -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_cells(name, bias):
    mine, twin = (getattr(module, name)(INPUT, H, bias) for module in (nn, torch.nn))
    twin.load_state_dict(mine.state_dict())
    x = torch.randn(4, INPUT, requires_grad=True)
    h = torch.randn(4, H, requires_grad=True)
    states = (h, torch.randn(4, H, requires_grad=True)) if name == "LSTMCell" else h
    one = tree_map(lambda t: t[0].detach().requires_grad_(), states)
    for arguments in ((x, states), (x, None), (x[0].detach().requires_grad_(), one)):
        torch.testing.assert_close(results(mine, *arguments), results(twin, *arguments))


@pytest.mark.parametrize(
    "name, nonlinearity", [*((name, None) for name in CELLS), ("RNNCell", "relu")]
)
def test_a_loop_of_cells_is_a_layer(name, nonlinearity):
    more = {"nonlinearity": nonlinearity} if nonlinearity else {}
    cell = getattr(nn, name)(INPUT, H, **more)
    layer = getattr(nn, name.removesuffix("Cell"))(INPUT, H, **more)
    layer.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    x, state, outputs = torch.randn(7, 4, INPUT), None, []
    for step in x:
        state = cell(step, state)
        outputs.append(state[0] if name == "LSTMCell" else state)
    torch.testing.assert_close(layer(x)[0], torch.stack(outputs))


# ---- modules as objects ------------------------------------------------------------------------


def _through_torch_save(module):
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    result = copy.deepcopy(module)
    result.load_state_dict(torch.load(buffer, weights_only=True))
    return result


COPIES = {
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "torch.save": _through_torch_save,
}


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_is_its_twin(name):
    mine, twin = (getattr(module, name)(INPUT, H, bias=False) for module in (nn, torch.nn))
    assert isinstance(mine, type(twin))
    assert type(mine).__module__ == "fastact.nn"
    assert repr(mine) == repr(twin)
    mine.load_state_dict(twin.state_dict(), strict=True)
    twin.load_state_dict(mine.state_dict(), strict=True)
    x = torch.randn(4, 2, INPUT) if name in LAYERS else torch.randn(4, INPUT)
    for how in COPIES.values():
        other = how(mine)
        assert type(other) is type(mine)
        assert repr(other) == repr(mine)
        torch.testing.assert_close(_tensors(other(x)), _tensors(twin(x)))


@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_read_at_the_call(name):
    """Replaced, parametrized, swapped by functional_call, moved to another dtype."""
    mine, twin = twins(name, num_layers=2)
    x = torch.randn(4, 2, INPUT)
    replaced = torch.nn.Parameter(torch.randn_like(mine.weight_hh_l1))
    for layer in (mine, twin):
        layer.weight_hh_l1 = replaced
    torch.testing.assert_close(mine(x), twin(x))
    swapped = {key: value * 0.5 for key, value in mine.state_dict().items()}
    torch.testing.assert_close(
        torch.func.functional_call(mine, swapped, (x,)),
        torch.func.functional_call(twin, swapped, (x,)),
    )
    for layer in (mine, twin):
        torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    torch.testing.assert_close(mine(x), twin(x))
    torch.testing.assert_close(mine.double()(x.double()), twin.double()(x.double()))


def test_who_watches_sees_the_operator():
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Named(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs or {})

    layer, x = nn.GRU(INPUT, H), torch.randn(4, 2, INPUT)
    with Watch(), torch.no_grad():
        layer(x)
    assert "fastact.gru.default" in seen
    seen.clear()
    output = layer(x.as_subclass(Named))[0]
    assert "gru" in seen
    torch.testing.assert_close(output.as_subclass(torch.Tensor), layer(x)[0])
    # PyTorch's functions take no lengths: the operator is what the class sees.
    seen.clear()
    output = layer(x.as_subclass(Named), lengths=[4, 2])[0]
    assert any("gru" in name for name in seen)
    torch.testing.assert_close(output.as_subclass(torch.Tensor), layer(x, lengths=[4, 2])[0])


@pytest.mark.parametrize("form", FORMS)
def test_meta_tensors(form):
    mine, twin = twins(form, num_layers=2, bidirectional=True, batch_first=True)
    mine, twin = mine.to("meta"), twin.to("meta")
    x = torch.empty(4, 2, INPUT, device="meta")
    shapes = [[(t.shape, t.device, t.dtype) for t in _tensors(m(x))] for m in (mine, twin)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", LAYERS)
def test_trains(name):
    mine, twin = twins(name, num_layers=2)
    x = torch.randn(6, 4, INPUT)
    for layer in (mine, twin):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            layer(x)[0].square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(mine.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_results_may_be_written_to(name):
    """As a residual in place does, before backward reads what was saved."""
    mine, twin = twins(name)
    x = torch.randn(6, 4, INPUT, requires_grad=True)

    def written(layer, x, hx):
        output, last = layer(x, hx)
        output += 1
        return output * output, last

    twins_results = None
    try:
        twins_results = results(twin, x, None, partial(written, twin))
    except RuntimeError as error:  # torch.nn.LSTM's by oneDNN keeps its output
        assert name == "LSTM" and "inplace" in str(error)
    if twins_results is not None:
        torch.testing.assert_close(results(mine, x, None, partial(written, mine)), twins_results)


# ---- errors ------------------------------------------------------------------------------------

X = torch.zeros(5, 2, INPUT)
# (arguments, keywords, words of the message); torch.nn's exception, but for `lengths`.
REFUSED = {
    "1-D": ((torch.zeros(INPUT),), {}, "input: expected 2 or 3 dimensions, got 1"),
    "4-D": ((torch.zeros(1, 5, 2, INPUT),), {}, "input: expected 2 or 3 dimensions, got 4"),
    "no step": ((torch.zeros(0, 2, INPUT),), {}, "at least one step"),
    "input size": ((torch.zeros(5, 2, 7),), {}, "input: expected 3 as the last"),
    "dtype": ((X.double(),), {}, "input: expected the dtype of the weights"),
    "hx 2-D": ((X, torch.zeros(1, H)), {}, "hx: expected 3 dimensions"),
    "hx batch": ((X, torch.zeros(1, 3, H)), {}, "hx"),
    "hx layers": ((X, torch.zeros(2, 2, H)), {}, "hx"),
    "hx size": ((X, torch.zeros(1, 2, 7)), {}, "hx"),
    "hx dtype": ((X, torch.zeros(1, 2, H).double()), {}, "hx"),
    "unbatched, hx 3-D": ((X[0], torch.zeros(1, 1, H)), {}, "hx: expected 2 dimensions"),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", REFUSED)
def test_refused_as_torch_refuses(name, case):
    (x, *hx), keywords, words = REFUSED[case]
    mine, twin = twins(name)
    if hx and name == "LSTM":
        hx = [(hx[0], hx[0])]
    with pytest.raises(Exception) as theirs:
        twin(x, *hx, **keywords)
    with pytest.raises(type(theirs.value), match=words):
        mine(x, *hx, **keywords)


LENGTHS = {
    "negative": (torch.tensor([-1, 2]), RuntimeError, "from 0 to 5, got -1"),
    "too large": (torch.tensor([6, 2]), RuntimeError, "from 0 to 5, got 6"),
    "too many": (torch.tensor([1, 2, 3]), RuntimeError, "lengths"),
    "no tensor of one dimension": (torch.tensor([[1], [2]]), RuntimeError, "lengths"),
    "floats": (torch.tensor([1.0, 2.0]), RuntimeError, "expected integers, got torch.float32"),
    "bools": (torch.tensor([True, False]), RuntimeError, "expected integers, got torch.bool"),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", LENGTHS)
def test_refused_lengths(name, case):
    lengths, error, words = LENGTHS[case]
    with pytest.raises(error, match=words):
        getattr(nn, name)(INPUT, H)(X, lengths=lengths)


@pytest.mark.parametrize("name", LAYERS)
def test_refused_beside_lengths(name):
    layer = getattr(nn, name)(INPUT, H)
    with pytest.raises(ValueError, match="beside a PackedSequence"):
        layer(pack_sequence([X[:, 0]]), lengths=torch.tensor([5]))
    with pytest.raises(ValueError, match="without a batch"):
        layer(X[:, 0], lengths=torch.tensor([5]))


def test_refused_states_of_lstms():
    with pytest.raises(TypeError, match=r"hx: expected \(h, c\)"):
        nn.LSTM(INPUT, H)(X, torch.zeros(1, 2, H))
    with pytest.raises(TypeError, match=r"hx: expected \(h, c\)"):
        nn.LSTMCell(INPUT, H)(X[0], (torch.zeros(2, H),))


# ---- any combination ---------------------------------------------------------------------------


@st.composite
def calls(draw):
    form = draw(st.sampled_from(list(FORMS)))
    options = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.4])),
    }
    if options["num_layers"] == 1:
        options["dropout"] = 0.0
    batch, steps = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    lengths = None
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
    return form, options, batch, steps, lengths, draw(st.booleans()), draw(st.integers(0, 99))


def check_call(call):
    form, options, batch, steps, lengths, has_states, seed = call
    torch.manual_seed(seed)
    mine, twin = twins(form, torch.float64, **options)
    batch_first = options["batch_first"]
    shape = (batch, steps, INPUT) if batch_first else (steps, batch, INPUT)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    states = first_states(mine, batch, torch.float64) if has_states else None
    mines = theirs = None
    if lengths is not None:
        mines = lambda x, h: mine(x, h, lengths=torch.tensor(lengths))  # noqa: E731
        theirs = lambda x, h: packed_form(twin, x, h, lengths, batch_first)  # noqa: E731
    torch.testing.assert_close(
        results(mine, x, states, mines, seed), results(twin, x, states, theirs, seed)
    )


some = partial(
    settings,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@some(max_examples=50, derandomize=True)
@given(calls())
def test_any_combination(call):
    check_call(call)


@pytest.mark.slow
@some(max_examples=2000)
@given(calls())
def test_many_combinations(call):
    check_call(call)


# ---- long sequences ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_ten_thousand_steps(name):
    """Finite, as torch.nn's, and without memory by the step in inference."""
    mine, twin = (getattr(module, name)(16, 32, 2) for module in (nn, torch.nn))
    twin.load_state_dict(mine.state_dict())
    x = torch.randn(10_000, 4, 16)
    with torch.no_grad():
        mine(x[:10])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        output, last = mine(x)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        expected = twin(x)
    assert output.isfinite().all()
    torch.testing.assert_close((output, last), expected, rtol=1e-3, atol=1e-4)
    assert grown < 12 * output.nbytes / 1024  # in KiB
    x.requires_grad_()
    mine(x)[0].sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in mine.parameters())
