"""Does merge_linear give one layer that computes what two compute?"""

import re

import pytest
import torch
from advised_models import IMAGE, Named, X, names
from torch import nn

import fastact

MERGED = {
    "linear": (nn.Linear(8, 16), nn.Linear(16, 4)),
    "without a bias": (nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False)),
    "three": (nn.Linear(8, 4), nn.Dropout(), nn.Linear(4, 6, bias=False), nn.Linear(6, 3)),
    "fastact": (fastact.nn.Linear(8, 16), nn.Linear(16, 4)),
    "double": (nn.Linear(8, 16).double(), nn.Linear(16, 4).double()),
    "1x1 after 3x3": (nn.Conv2d(3, 8, 3, 2, 1, 2), nn.Conv2d(8, 4, 1, 2)),
    "3x3 after 1x1": (nn.Conv2d(3, 8, 1, 2), nn.Conv2d(8, 4, 3, 1, dilation=2)),
    "padded 3x3 after 1x1 without bias": (
        nn.Conv2d(3, 8, 1, 2, bias=False),
        nn.Conv2d(8, 4, 3, 2, padding=1),
    ),
    "3x3 after 3x3": (nn.Conv2d(3, 8, 3, 2, 1, 2), nn.Conv2d(8, 4, 3, 2, dilation=2)),
    "groups": (nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=4)),
    "one dimension": (nn.Conv1d(3, 8, 5, padding="same"), nn.Conv1d(8, 2, 3)),
    "three dimensions": (nn.Conv3d(2, 3, 2), nn.Conv3d(3, 2, 2)),
    "1xN and Nx1": (nn.Conv2d(3, 4, (1, 5)), nn.Conv2d(4, 2, (5, 1))),
    "reflected": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 2, 1)),
    "reflected later": (
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"),
    ),
}


def input_of(layer):
    if isinstance(layer, nn.Linear):
        return torch.randn(5, layer.in_features, dtype=layer.weight.dtype)
    rank = layer.weight.dim() - 2
    return torch.randn(2, layer.in_channels, *(19, 17, 12)[:rank])


@pytest.mark.parametrize("layers", MERGED.values(), ids=MERGED)
def test_merges(layers):
    x = input_of(layers[0])
    merged = fastact.merge_linear(*layers)
    expected = nn.Sequential(*layers).eval()(x)
    torch.testing.assert_close(merged(x), expected, rtol=1e-4, atol=1e-5)
    assert merged.weight.dtype == layers[0].weight.dtype
    assert not any(p.requires_grad for p in merged.parameters()) and not merged.training
    assert all(p.requires_grad for layer in layers for p in layer.parameters())


def hooked(layer):
    layer.register_forward_hook(lambda *arguments: None)
    return layer


NOT_MERGED = {
    "a convolution and a Linear": (nn.Conv2d(3, 8, 1), nn.Linear(8, 4)),
    "an activation": (fastact.nn.Linear(8, 8, activation="relu"), nn.Linear(8, 8)),
    "not one of torch.nn's": (nn.ConvTranspose2d(3, 3, 2), nn.Conv2d(3, 3, 1)),
    "has hooks": (hooked(nn.Linear(8, 8)), nn.Linear(8, 8)),
    "which is not 1x1": (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, padding=1)),
    "adds a bias to": (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1)),
    "the first returns 8 features, and the second takes 9": (nn.Linear(8, 8), nn.Linear(9, 9)),
    "different ranks": (nn.Conv1d(3, 8, 1), nn.Conv2d(8, 4, 1)),
    "torch.float32 on cpu and torch.float64": (nn.Linear(8, 8), nn.Linear(8, 8).double()),
    "not symmetric": (nn.Conv1d(3, 3, 2, padding="same"), nn.Conv1d(3, 3, 1)),
    "strides over": (
        nn.Conv2d(3, 4, 1, 2),
        nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"),
    ),
    "got 1 beside dropout": (nn.Linear(8, 8), nn.Dropout()),
}


@pytest.mark.parametrize("layers", NOT_MERGED.values(), ids=NOT_MERGED)
def test_does_not_merge(layers, request):
    reason = request.node.callspec.id
    with pytest.raises(ValueError, match=re.escape(reason)):
        fastact.merge_linear(*layers)


def test_merges_a_model():
    inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(), nn.Conv2d(8, 4, 1), nn.ReLU())
    model = nn.Sequential(inner, nn.Flatten(), nn.Linear(144, 8), nn.Linear(8, 4), nn.ReLU())
    merged = fastact.merge_linear(model)
    torch.testing.assert_close(merged(IMAGE), model.eval()(IMAGE), rtol=1e-4, atol=1e-5)
    assert isinstance(merged[3], nn.Identity) and isinstance(merged[0][2], nn.Identity)
    assert isinstance(model[3], nn.Linear)
    assert "collapsing-linear-maps" in names(model, IMAGE)
    assert names(merged, IMAGE) == set()


class Reversed(nn.Sequential):
    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


def test_merges_only_what_a_sequential_calls_in_order():
    layers = nn.Linear(8, 4), nn.Linear(4, 8)
    with pytest.raises(ValueError, match=r"no torch\.nn\.Sequential has two"):
        fastact.merge_linear(Reversed(*layers))
    shared = nn.Linear(8, 8)
    merged = fastact.merge_linear(nn.Sequential(shared, shared, shared))
    torch.testing.assert_close(merged(X), shared(shared(shared(X))), rtol=1e-4, atol=1e-5)


def test_merges_what_advise_names():
    model = Named()
    [advice] = fastact.advise(model, X)
    assert advice.evidence["merging"] == "exact"
    [second] = map(model.get_submodule, advice.evidence["second"])
    first = model.get_submodule(advice.evidence["first"])
    torch.testing.assert_close(fastact.merge_linear(first, second)(X), model(X))


def test_merge_linear_of_nothing():
    with pytest.raises(TypeError, match="expected layers or a model, got none"):
        fastact.merge_linear()
    with pytest.raises(TypeError, match=r"expected torch\.nn\.Module, got int"):
        fastact.merge_linear(nn.Linear(8, 8), 3)
    with pytest.raises(ValueError, match=r"no torch\.nn\.Sequential has two"):
        fastact.merge_linear(Named())
