"""A user's program that calls every public name; tests/test_typing.py runs and type-checks it.

``assert_type`` fails where a result is Any, and strict mypy where an ignored error is none.
"""

from typing import assert_type

import torch
from torch import Tensor

import fastact
from fastact import functional as FF
from fastact import memory
from fastact import nn as fnn
from fastact.nn import LeakyReLU

x = torch.randn(2, 4)
weight = torch.randn(4, 4)

# fastact.functional
assert_type(FF.relu(x), Tensor)
assert_type(FF.relu(x, inplace=False), Tensor)
assert_type(FF.relu6(x), Tensor)
assert_type(FF.leaky_relu(x, 0.1), Tensor)
assert_type(FF.leaky_relu(x, negative_slope=1, inplace=False), Tensor)
assert_type(FF.prelu(x, torch.ones(4)), Tensor)
assert_type(FF.rrelu(x, 0.1, upper=0.3, training=True), Tensor)
assert_type(FF.elu(x, alpha=2.0), Tensor)
assert_type(FF.selu(x), Tensor)
assert_type(FF.celu(x, 2.0), Tensor)
assert_type(FF.gelu(x, approximate="tanh"), Tensor)
assert_type(FF.silu(x), Tensor)
assert_type(FF.mish(x), Tensor)
assert_type(FF.sigmoid(x), Tensor)
assert_type(FF.logsigmoid(x), Tensor)
assert_type(FF.tanh(x), Tensor)
assert_type(FF.hardtanh(x, min_val=-2.0, max_val=2.0), Tensor)
assert_type(FF.hardsigmoid(x), Tensor)
assert_type(FF.hardswish(x), Tensor)
assert_type(FF.softplus(x, beta=2, threshold=10), Tensor)
assert_type(FF.softsign(x), Tensor)
assert_type(FF.tanhshrink(x), Tensor)
assert_type(FF.softshrink(x, lambd=0.3), Tensor)
assert_type(FF.hardshrink(x, lambd=0.3), Tensor)
assert_type(FF.threshold(x, 0.1, value=2.0), Tensor)
assert_type(FF.glu(x, dim=-1), Tensor)
assert_type(FF.swiglu(x), Tensor)
assert_type(FF.geglu(x), Tensor)
assert_type(FF.reglu(x), Tensor)
assert_type(FF.softmax(x, dim=-1, dtype=torch.float64), Tensor)
assert_type(FF.softmin(x, dim=-1), Tensor)
assert_type(FF.log_softmax(x, dim=-1), Tensor)
assert_type(FF.masked_softmax(x, mask=x > 0, dim=-1, scale=0.5, is_causal=False), Tensor)
assert_type(FF.linear(x, weight), Tensor)
assert_type(FF.linear(x, weight, None, "leaky_relu", negative_slope=0.1, residual=x), Tensor)
assert_type(FF.linear(x, weight, activation="prelu", slope=torch.ones(4)), Tensor)
images, kernels = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3)
assert_type(FF.conv1d(torch.randn(1, 3, 5), kernels[0]), Tensor)
assert_type(FF.conv2d(images, kernels, None, (2, 1), "valid", activation="relu"), Tensor)
assert_type(FF.conv2d(images, kernels, padding=1, activation="silu", residual=images), Tensor)
assert_type(FF.conv3d(images[None], kernels[:, None]), Tensor)

# fastact.nn
linear = fnn.Linear(4, 4, bias=False, activation="elu", alpha=0.5, device="cpu")
modules: list[torch.nn.Module] = [
    linear,
    fnn.Linear(4, 4, activation=torch.nn.GELU("tanh"), dtype=torch.float32),
    fnn.Linear(4, 4, activation=LeakyReLU, negative_slope=0.2),
    fnn.ReLU(inplace=True),
    fnn.ReLU6(),
    fnn.LeakyReLU(0.1),
    fnn.PReLU(num_parameters=4),
    fnn.RReLU(0.1, 0.3),
    fnn.ELU(alpha=2.0),
    fnn.SELU(),
    fnn.CELU(alpha=2.0),
    fnn.GELU(approximate="tanh"),
    fnn.SiLU(),
    fnn.Mish(),
    fnn.Sigmoid(),
    fnn.LogSigmoid(),
    fnn.Tanh(),
    fnn.Hardtanh(-2.0, 2.0),
    fnn.Hardsigmoid(),
    fnn.Hardswish(),
    fnn.Softplus(beta=2.0),
    fnn.Softsign(),
    fnn.Tanhshrink(),
    fnn.Softshrink(0.3),
    fnn.Hardshrink(0.3),
    fnn.Threshold(0.1, 2.0),
    fnn.Softmax(dim=-1),
    fnn.Softmin(dim=-1),
    fnn.LogSoftmax(dim=-1),
]
model = torch.nn.Sequential(*modules)
y: Tensor = model(x)
halves: Tensor = fnn.GLU(dim=-1)(x)
channels: Tensor = fnn.Softmax2d()(x.view(1, 2, 2, 2))
convolution = fnn.Conv2d(4, 4, 3, padding="same", activation="leaky_relu", negative_slope=0.1)
assert_type(convolution.forward(images), Tensor)
assert_type(fnn.Conv1d(4, 4, 1, padding_mode="reflect").forward(torch.randn(1, 4, 5)), Tensor)
assert_type(fnn.Conv3d(1, 4, 1, activation=torch.nn.PReLU()).forward(images[None]), Tensor)
assert_type(linear.forward(x), Tensor)
assert_type(fnn.ReLU().forward(x), Tensor)

# recurrent layers
sequences = torch.randn(5, 3, 4)
lengths = torch.tensor([5, 2, 4])
output, h = fnn.RNN(4, 6, nonlinearity="relu").forward(sequences, lengths=lengths)
assert_type(h, Tensor)
output, h = fnn.GRU(4, 6, num_layers=2, bidirectional=True).forward(sequences)
output, (h, c) = fnn.LSTM(4, 6, proj_size=2).forward(sequences, (h[:1, :, :2], h[:1]))
assert_type(c, Tensor)
assert_type(fnn.RNNCell(4, 6).forward(sequences[0]), Tensor)
assert_type(fnn.GRUCell(4, 6).forward(sequences[0]), Tensor)
assert_type(fnn.LSTMCell(4, 6).forward(sequences[0]), tuple[Tensor, Tensor])


# whole models
def keep_the_head(module: torch.nn.Module, name: str) -> bool:
    return name != "head"


assert_type(fastact.convert(model), torch.nn.Module)
converted = fastact.convert(
    model, mode="training", filter_fn=keep_the_head, inplace=False, dry_run=False, use_fallback=True
)
assert_type(fastact.revert(converted), torch.nn.Module)
report = fastact.explain(model, x)
assert_type(report, fastact.Report)
operations: list[str] = [row.operation for row in report.rows]

# advice and pictures
advice = fastact.advise(model, x, loss=torch.nn.MSELoss(), ignore=["dead-relu"])
assert_type(advice, list[fastact.Advice])
rules: list[str] = [finding.rule for finding in advice]
merged = fastact.merge_linear(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
fastact.plot(["relu", "leaky_relu"], negative_slope=0.1)

# the rest
facts: dict[str, object] = fastact.info()
version: str = fastact.__version__
statistics: dict[str, int] = memory.stats()
fastact.set_winograd("safe")
memory.empty_cache()
memory.set_limit(statistics["limit_bytes"])
memory.disable()
memory.enable()


def wrong() -> None:
    """Never called: what a type checker must refuse."""
    FF.relu(3)  # type: ignore[arg-type]
    FF.leaky_relu(x, slope=0.1)  # type: ignore[call-arg]
    FF.threshold(x)  # type: ignore[call-arg]
    FF.linear(x, weight, activation=3)  # type: ignore[arg-type]
    fnn.Linear(4, 4, activation=3)  # type: ignore[arg-type]
    FF.conv2d(images, kernels, residual=3)  # type: ignore[arg-type]
    fnn.Conv2d(4, 4, activation="relu")  # type: ignore[call-arg]
    fnn.LeakyReLU(slope=0.1)  # type: ignore[call-arg]
    fnn.GRU(4, 6).forward(sequences, lengths=3)  # type: ignore[arg-type]
    fastact.convert(x)  # type: ignore[arg-type]
    memory.set_limit("1 GB")  # type: ignore[arg-type]
