"""torch.nn's classes, faster: subclasses with the same constructors, parameters and state_dict."""

from fastact.nn import activations as _activations
from fastact.nn.activations import *  # noqa: F403
from fastact.nn.linear import Linear

__all__ = [*_activations.__all__, "Linear"]
