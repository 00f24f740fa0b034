"""torch.nn's classes, faster: subclasses with the same constructors, parameters and state_dict."""

from fastact.nn import activations as _activations
from fastact.nn import recurrent as _recurrent
from fastact.nn.activations import *  # noqa: F403
from fastact.nn.conv import Conv1d, Conv2d, Conv3d
from fastact.nn.linear import Linear
from fastact.nn.recurrent import *  # noqa: F403

__all__ = [*_activations.__all__, *_recurrent.__all__, "Conv1d", "Conv2d", "Conv3d", "Linear"]
