"""Do converted models run recurrent layers on fastact's operators, and else do as before?"""

import copy
import pickle

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastact

close = torch.testing.assert_close
LAYERS = ("RNN", "GRU", "LSTM")


class Tagger(torch.nn.Module):
    """Layers of every kind, and a loop of cells by hand."""

    def __init__(self, name="LSTM"):
        super().__init__()
        self.embed = torch.nn.Linear(4, 6)
        self.layer = getattr(torch.nn, name)(6, 5, 2, batch_first=True, dropout=0.3)
        self.cell = getattr(torch.nn, f"{name}Cell")(5, 5)
        self.head = torch.nn.Linear(5, 3)

    def forward(self, x):
        y, _ = self.layer(torch.relu(self.embed(x)))
        state = None
        for step in y.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Seen(TorchDispatchMode):
    """The operators called inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def drawn(model, x, seed=4):
    torch.manual_seed(seed)
    return model(x)


def engines(model, x):
    """How often each operator of ours was called."""
    names = [row.operation for row in fastact.explain(model, x).rows]
    return {name: names.count(name) for name in names if name.startswith("fastact.")}


@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize("name", LAYERS)
def test_computes_the_same(name, mode):
    model, x = Tagger(name), torch.randn(2, 7, 4)
    converted = fastact.convert(model, mode=mode)
    if mode == "inference":
        model.eval()
    found = drawn(converted, x)
    close(found, drawn(model, x))
    operator = f"fastact.{name.lower()}" + "_training" * (mode == "training")
    assert engines(converted, x)[operator] == 1 + 7  # the layer, and each cell's step
    if mode == "training":
        found.square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]  # they are shared
        model.zero_grad()
        drawn(model, x).square().sum().backward()
        close(gradients, [p.grad for p in model.parameters()])


def test_objects_keys_and_hooks_stay():
    model = Tagger()
    calls = []
    model.layer.register_forward_hook(lambda *_: calls.append("after"))
    converted = fastact.convert(model, mode="training")
    assert repr(converted) == repr(model)
    assert list(converted.state_dict()) == list(model.state_dict())
    assert converted.layer.weight_hh_l0 is model.layer.weight_hh_l0
    assert isinstance(converted.layer, torch.nn.LSTM)
    converted(torch.randn(2, 3, 4))
    assert calls == ["after"]
    reverted = fastact.revert(converted)
    assert [type(m) for m in reverted.modules()] == [type(m) for m in model.modules()]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_stay_converted(how):
    converted = fastact.convert(torch.nn.GRU(4, 5))
    other, x = how(converted), torch.randn(3, 2, 4)
    assert type(other) is type(converted)
    close(other(x), converted(x))
    assert "fastact.gru" in engines(other, x)


def test_packed_sequences():
    layer = torch.nn.GRU(4, 5, bidirectional=True).eval()
    packed = pack_sequence([torch.randn(n, 4) for n in (2, 5, 3)], enforce_sorted=False)
    converted = fastact.convert(layer)
    close(tree_leaves(converted(packed)), tree_leaves(layer(packed)))


class Doubled(torch.nn.GRU):
    def forward(self, input, hx=None):
        output, last = super().forward(2 * input, hx)
        return output + 1, last


class Checked(torch.nn.GRU):
    checks = 0

    def check_forward_args(self, input, hidden, batch_sizes):
        self.checks += 1
        super().check_forward_args(input, hidden, batch_sizes)


def test_derived_classes():
    """What they do around torch.nn's forward is done; what they put inside it, too."""
    x = torch.randn(3, 2, 4)
    layer = Doubled(4, 5)
    converted = fastact.convert(layer, mode="training")
    assert type(converted).__name__ == "Doubled"
    close(converted(x), layer(x))
    assert "fastact.gru_training" in engines(converted, x)
    converted = fastact.convert(Checked(4, 5), mode="training")
    converted(x)
    assert converted.checks == 1
    reasons = {row.reason for row in fastact.explain(converted, x).rows}
    assert "torch.nn's forward is called: docs/recurrent.md says when" in reasons


def test_patched_forwards(monkeypatch):
    """On the instance, and on the class, before and after."""
    x = torch.randn(3, 2, 4)
    layer = torch.nn.GRU(4, 5)
    converted = fastact.convert(layer, mode="training")
    monkeypatch.setattr(torch.nn.GRU, "forward", lambda self, input, hx=None: "theirs")
    assert converted(x) == "theirs"
    assert fastact.convert(layer, mode="training")(x) == "theirs"
    converted.forward = lambda x: "mine"
    assert converted(x) == "mine"


def test_errors_are_the_originals():
    layer = torch.nn.LSTM(4, 5)
    converted = fastact.convert(layer, mode="training")
    for arguments in (
        (torch.randn(4),),
        (torch.randn(3, 2, 7),),
        (torch.randn(3, 2, 4).double(),),
        (torch.randn(3, 2, 4), (torch.randn(1, 3, 5), torch.randn(1, 2, 5))),
        (torch.randn(3, 2, 4), torch.randn(1, 2, 5)),
        (None,),
    ):
        with pytest.raises(Exception) as theirs:
            layer(*arguments)
        with pytest.raises(type(theirs.value)) as ours:
            converted(*arguments)
        assert str(ours.value) == str(theirs.value)
    with pytest.raises(TypeError, match="lengths"):
        converted(torch.randn(3, 2, 4), lengths=torch.tensor([3, 2]))


def test_an_error_draws_no_numbers():
    layer = torch.nn.LSTM(4, 5, num_layers=2, dropout=0.5)
    x, states = torch.randn(3, 2, 4), (torch.randn(2, 3, 5), torch.randn(2, 2, 5))
    for model in (layer, fastact.convert(layer, mode="training")):
        before = torch.get_rng_state()
        with pytest.raises(RuntimeError):
            model(x, states)
        assert torch.equal(torch.get_rng_state(), before)


def test_who_watches_sees_the_original():
    layer, x = torch.nn.GRU(4, 5), torch.randn(3, 2, 4)
    converted = fastact.convert(layer, mode="training")
    with Seen() as original:
        layer(x)
    with Seen() as seen:
        converted(x)
    assert seen.names == original.names


def test_filter_and_parametrizations(capsys):
    model = Tagger()
    torch.nn.utils.parametrizations.weight_norm(model.cell, "weight_hh")
    kept = fastact.convert(model, mode="training", filter_fn=lambda m, name: name != "layer")
    assert type(kept.layer) is torch.nn.LSTM
    fastact.convert(model, dry_run=True)
    printed = capsys.readouterr().out
    assert "all steps by the operator of fastact.nn.LSTM" in printed
    assert "left as it is: it is parametrized" in printed
    with pytest.raises(RuntimeError, match="it is parametrized"):
        fastact.convert(model, use_fallback=False)


def test_explain_tells_of_them():
    model, x = torch.nn.Sequential(torch.nn.GRU(4, 5)), torch.randn(3, 2, 4)
    reasons = {row.reason for row in fastact.explain(model, x).rows}
    assert reasons == {"fastact.convert replaces torch.nn.GRU"}
    rows = fastact.explain(fastact.convert(model), x).rows
    assert [row.where for row in rows if row.operation == "fastact.gru"] == ["0"]


def test_fastacts_own_are_left():
    layer = fastact.nn.GRU(4, 5)
    assert type(fastact.convert(layer, mode="training")) is fastact.nn.GRU
