"""PyTorch's own generators of samples, bound to fastact's functions and modules."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fastact import functional, nn

if TYPE_CHECKING:
    from torch.testing._internal.common_modules import ModuleInfo
    from torch.testing._internal.opinfo.core import OpInfo

# torch.testing._internal may change without notice. These numbers tell when samples vanish:
# per function (samples, reference inputs, error inputs), for a floating-point dtype.
EXPECTED_SAMPLES: Mapping[str, tuple[int, int, int]] = {
    "relu": (4, 41, 0),
    "relu6": (3, 39, 0),
    "leaky_relu": (9, 9, 0),
    "prelu": (25, 108, 3),
    "elu": (3, 39, 0),
    "selu": (3, 39, 0),
    "celu": (3, 39, 0),
    "gelu": (8, 8, 1),
    "silu": (3, 39, 0),
    "mish": (3, 39, 0),
    "sigmoid": (3, 39, 0),
    "logsigmoid": (3, 39, 0),
    "tanh": (1, 35, 0),
    "hardtanh": (5, 43, 1),
    "hardsigmoid": (3, 39, 0),
    "hardswish": (4, 4, 0),
    "softplus": (3, 39, 0),
    "softsign": (3, 39, 0),
    "tanhshrink": (3, 39, 0),
    "softshrink": (5, 43, 1),
    "hardshrink": (6, 45, 0),
    "threshold": (4, 41, 0),
    "rrelu": (5, 43, 1),
    "glu": (46, 46, 0),
    "softmax": (14, 14, 0),
    "softmin": (14, 14, 0),
    "log_softmax": (14, 14, 0),
    "linear": (18, 18, 0),
    "conv1d": (10, 10, 10),
    "conv2d": (30, 30, 10),
    "conv3d": (20, 20, 10),
}
# Per module: samples in training mode, and as many in evaluation.
EXPECTED_MODULE_SAMPLES: Mapping[str, int] = {
    "ReLU": 4,
    "ReLU6": 4,
    "LeakyReLU": 5,
    "PReLU": 8,
    "ELU": 4,
    "SELU": 3,
    "CELU": 3,
    "GELU": 3,
    "SiLU": 3,
    "Mish": 3,
    "Sigmoid": 4,
    "LogSigmoid": 3,
    "Tanh": 3,
    "Hardtanh": 3,
    "Hardswish": 2,
    "Softplus": 5,
    "Softsign": 3,
    "Tanhshrink": 3,
    "Softshrink": 4,
    "Hardshrink": 3,
    "Threshold": 4,
    "GLU": 3,
    "Softmax": 3,
    "Softmax2d": 2,
    "Softmin": 4,
    "LogSoftmax": 4,
    "Linear": 3,
    "Conv1d": 4,
    "Conv2d": 4,
    "Conv3d": 4,
}
# Per recurrent module: samples in either mode, error inputs.
EXPECTED_RECURRENT_SAMPLES: Mapping[str, tuple[int, int]] = {
    "RNN": (32, 14),
    "GRU": (16, 14),
    "LSTM": (32, 14),
    "RNNCell": (3, 6),
    "GRUCell": (2, 6),
    "LSTMCell": (2, 4),
}


@functools.cache
def op_infos(name: str) -> list[OpInfo]:
    """PyTorch's OpInfos of a function, with all their samples, that compute fastact's. Takes
    seconds to import."""
    from torch.testing._internal.common_methods_invocations import op_db

    return [
        _bound(info, op=getattr(functional, name))
        for info in op_db
        if info.name in (name, f"nn.functional.{name}")
        and info.supports_dtype(torch.float32, "cpu")
    ]


@functools.cache
def module_info(name: str) -> ModuleInfo:
    """PyTorch's ModuleInfo of a module, that builds fastact's."""
    from torch.testing._internal.common_modules import module_db

    (info,) = (info for info in module_db if info.module_cls is getattr(torch.nn, name))
    return _bound(info, module_cls=getattr(nn, name))


def _bound(info: Any, **attributes: Any) -> Any:
    mine = copy.copy(info)
    for name, value in attributes.items():
        setattr(mine, name, value)
    return mine
