"""Does PyTorch's counter of floating-point operations count linear's as it counts torch.nn's?"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastact
from fastact import functional, nn
from fastact.testing.cases import FUSED_CASES
from fastact.testing.inputs import random_tensor

# input, weight
SHAPES = {
    "matrix": ((7, 6), (5, 6)),
    "one row": ((1, 6), (5, 6)),
    "three dimensions": ((2, 3, 6), (5, 6)),
    "vector": ((6,), (5, 6)),
    "empty": ((0, 6), (5, 6)),
}


def counted(function, *args):
    """In forward and backward."""
    with FlopCounterMode(display=False) as counter:
        output = function(*args)
        if output.requires_grad:
            output.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("needs", ["", "input", "weight", "input weight", "bias"])
@pytest.mark.parametrize("fused", FUSED_CASES, ids=str)
def test_linear(fused, needs):
    x, w = random_tensor((7, 6)), random_tensor((5, 6))
    b, slope = random_tensor((5,)), torch.rand(5)
    for name, tensor in (("input", x), ("weight", w), ("bias", b)):
        tensor.requires_grad_(name in needs.split())
    learnable = {"slope": slope} if fused.learnable else {}
    mine = counted(lambda: functional.linear(x, w, b, fused.name, **fused.parameters, **learnable))
    twin = counted(
        lambda: (
            fused.twin(F.linear(x, w, b), slope)
            if fused.learnable
            else fused.twin(F.linear(x, w, b))
        )
    )
    assert mine == twin
    # Beside the product itself, one for the gradient of each of its factors.
    assert mine == 2 * 7 * 6 * 5 * (1 + len({"input", "weight"} & set(needs.split())))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_every_shape(shapes, bias):
    shape, weight = shapes
    x, w = random_tensor(shape).requires_grad_(), random_tensor(weight).requires_grad_()
    b = random_tensor(weight[:1]).requires_grad_() if bias else None
    mine = counted(lambda: functional.linear(x, w, b, "gelu"))
    assert mine == counted(lambda: F.gelu(F.linear(x, w, b)))


@pytest.mark.parametrize("how", ["plain", "training", "inference"])
def test_models(how):
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 5), torch.nn.GELU(), torch.nn.Linear(5, 4), torch.nn.Softmax(-1)
    )
    x = random_tensor([3, 6])
    if how == "plain":
        mine = torch.nn.Sequential(
            nn.Linear(6, 5, activation="gelu"), nn.Linear(5, 4, activation=torch.nn.Softmax(-1))
        )
    else:
        mine = fastact.convert(model, mode=how)
    if how == "inference":
        model.requires_grad_(False)
    assert counted(mine, x) == counted(model, x) > 0


@pytest.mark.parametrize("wanted", ["nothing", "weights", "input", "states", "all"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
@pytest.mark.parametrize("name", ["RNN", "GRU"])  # oneDNN's LSTM counts for nothing
def test_recurrent(name, options, wanted):
    mine, twin = (getattr(module, name)(6, 5, **options) for module in (nn, torch.nn))
    x, h = (
        random_tensor((7, 3, 6)),
        random_tensor((mine.num_layers * (1 + mine.bidirectional), 3, 5)),
    )
    x.requires_grad_(wanted in ("input", "all"))
    h.requires_grad_(wanted in ("states", "all"))
    for layer in (mine, twin):
        layer.requires_grad_(wanted in ("weights", "all"))
    found, expected = (counted(lambda layer=layer: layer(x, h)[0]) for layer in (mine, twin))
    assert found > 0
    # torch.nn's gradient leaves out what nobody asks for in between, too.
    assert found == expected if wanted in ("nothing", "all") else found >= expected


def test_lstms_are_counted():
    x = random_tensor((7, 3, 6)).requires_grad_()
    mine = counted(lambda: nn.LSTM(6, 5, 2, proj_size=4)(x)[0])
    steps = 2 * 7 * 3
    forward = steps * (20 * 6 + 20 * 4 + 4 * 5 + 20 * 4 + 20 * 4 + 4 * 5)
    first_states = 2 * 3 * 2 * 20 * 4
    assert mine == 3 * forward - first_states
