# Made by tools/write_stubs.py from the imported module. Do not edit.

import torch

__all__ = [  # noqa: RUF022
    "ReLU",
    "ReLU6",
    "LeakyReLU",
    "ELU",
    "SELU",
    "CELU",
    "SiLU",
    "Mish",
    "Sigmoid",
    "LogSigmoid",
    "Tanh",
    "Hardtanh",
    "Hardsigmoid",
    "Hardswish",
    "Softplus",
    "Softsign",
    "Tanhshrink",
    "Softshrink",
    "Hardshrink",
    "Threshold",
    "GLU",
    "GELU",
    "LogSoftmax",
    "PReLU",
    "RReLU",
    "Softmax",
    "Softmax2d",
    "Softmin",
]

class ReLU(torch.nn.ReLU):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class ReLU6(torch.nn.ReLU6):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class LeakyReLU(torch.nn.LeakyReLU):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class ELU(torch.nn.ELU):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class SELU(torch.nn.SELU):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class CELU(torch.nn.CELU):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class SiLU(torch.nn.SiLU):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Mish(torch.nn.Mish):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Sigmoid(torch.nn.Sigmoid):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class LogSigmoid(torch.nn.LogSigmoid):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Tanh(torch.nn.Tanh):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Hardtanh(torch.nn.Hardtanh):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Hardsigmoid(torch.nn.Hardsigmoid):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Hardswish(torch.nn.Hardswish):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Softplus(torch.nn.Softplus):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Softsign(torch.nn.Softsign):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Tanhshrink(torch.nn.Tanhshrink):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Softshrink(torch.nn.Softshrink):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Hardshrink(torch.nn.Hardshrink):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Threshold(torch.nn.Threshold):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class GLU(torch.nn.GLU):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class GELU(torch.nn.GELU):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class LogSoftmax(torch.nn.LogSoftmax):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class PReLU(torch.nn.PReLU):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class RReLU(torch.nn.RReLU):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Softmax(torch.nn.Softmax):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Softmax2d(torch.nn.Softmax2d):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...

class Softmin(torch.nn.Softmin):
    def forward(
        self,
        input: torch.Tensor,
    ) -> torch.Tensor: ...
