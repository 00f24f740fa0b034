"""What follows the product of a fused layer: the meaning of ``activation=``, and what an activation
module computes when it is called now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from fastact.activations import FORMS, FUSIBLE, REFUSED, resolve, unknown_activation
from fastact.nn import activations

# ---- what an activation module computes now ----------------------------------------------------

# A registry name with its parameters.
_Computed = tuple[str, tuple[Any, ...]]


class ActivationModule(NamedTuple):
    """How to read off a module of torch.nn what it computes now."""

    name: str
    attributes: tuple[str, ...] = ()  # the parameters, in the registry's order
    constants: tuple[float, ...] = ()  # further ones, after those
    # Where an attribute decides which activation it is: its name, and the activations by value.
    variant: tuple[str, Mapping[str, str]] | None = None

    @property
    def takes_dim(self) -> bool:
        """Whether its attribute is a dimension: PyTorch guesses without one, and refuses floats."""
        return self.attributes == ("dim",)

    def read(self, module: torch.nn.Module) -> _Computed | None:
        """The registry name, and the parameters whatever they are but for a dimension, which must
        be an int; None where only the call tells. Runs nobody's code."""
        own = module.__dict__
        parameters = [own.get(attribute) for attribute in self.attributes]
        if self.takes_dim and type(parameters[0]) is not int:
            return None
        name: str | None = self.name
        if self.variant is not None:
            value = own.get(self.variant[0])
            name = self.variant[1].get(value) if type(value) is str else None
        return None if name is None else (name, (*parameters, *self.constants))


# By the name of the class. RReLU draws random numbers, GLU halves a dimension, Softmax2d asks for a
# number of them.
ACTIVATION_MODULES: Mapping[str, ActivationModule] = {
    row.module: ActivationModule(
        row.function, tuple(row.parameters), variant=FORMS.get(row.function)
    )
    for row in FUSIBLE.values()
    if row.module
} | {
    # Its forward calls hardtanh with these, which somebody may have set.
    "ReLU6": ActivationModule("hardtanh", ("min_val", "max_val")),
    "Softmax": ActivationModule("softmax", ("dim",), (1.0,)),
    "Softmin": ActivationModule("softmax", ("dim",), (-1.0,)),
    "LogSoftmax": ActivationModule("log_softmax", ("dim",)),
}

# By exact type, torch.nn's and fastact's, with the forward of the class when fastact was imported:
# it may have been patched since.
_KNOWN = {
    kind: (kind.forward, row)
    for name, row in ACTIVATION_MODULES.items()
    for kind in (getattr(torch.nn, name), getattr(activations, name))
}


def observer(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a hook of all modules that only watches which modules are called: what it sees may be
    fused."""
    hook.observes_calls = True  # type: ignore[attr-defined]
    return hook


def has_hooks(module: torch.nn.Module) -> Any:
    """Whether anything runs around the module's forward: hooks of its own, or of all modules."""
    return (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or (
            (_ALL_FORWARD or _ALL_FORWARD_PRE or _ALL_BACKWARD or _ALL_BACKWARD_PRE)
            and any(map(_takes_part, chain(*map(dict.values, _ALL))))
        )
    )


# The hooks of all modules.
_ALL_FORWARD = torch_module._global_forward_hooks
_ALL_FORWARD_PRE = torch_module._global_forward_pre_hooks
_ALL_BACKWARD = torch_module._global_backward_hooks
_ALL_BACKWARD_PRE = torch_module._global_backward_pre_hooks
_ALL = (_ALL_FORWARD, _ALL_FORWARD_PRE, _ALL_BACKWARD, _ALL_BACKWARD_PRE)


def _takes_part(hook: Callable[..., Any]) -> bool:
    return not getattr(hook, "observes_calls", False)


def computed_by(module: torch.nn.Module) -> _Computed | None:
    """The registry name and the parameters of what calling an activation module computes now; None
    where only the call tells: a derived class, a forward set on the instance or the class, hooks,
    softmax without dim."""
    kind = type(module)
    known = _KNOWN.get(kind)
    if known is None:
        return None
    forward, row = known
    if kind.forward is not forward or "forward" in module.__dict__ or has_hooks(module):
        return None
    return row.read(module)


# Names of the activations that take a slope: a look-up in each call of a fused layer.
_WITH_SLOPE = frozenset(row.name for row in FUSIBLE.values() if row.takes_slope)


def slope_of(activation: Any) -> Tensor:
    """The weight of a PReLU module, without nn.Module.__getattr__ where it can be."""
    own = activation._parameters
    return own["weight"] if "weight" in own else activation.weight  # noqa: SIM401


# Name and parameters of the activation to fuse, if any; PReLU's slope; the module to call on the
# result where nothing is fused. A plain tuple: one of a NamedTuple takes 0.2 us more.
_Epilogue = tuple[str | None, tuple[Any, ...], Tensor | None, torch.nn.Module | None]


def epilogue_of(module: torch.nn.Module | None) -> _Epilogue:
    """The epilogue that does what calling an activation module does now."""
    if module is None:
        return None, (), None, None
    computed = computed_by(module)
    if computed is None:
        return None, (), None, module
    name, parameters = computed
    return name, parameters, slope_of(module) if name in _WITH_SLOPE else None, None


# ---- activation= -------------------------------------------------------------------------------

_REFUSED = {
    getattr(torch.nn, refused.module): name for name, refused in REFUSED.items() if refused.module
}
_ACCEPTED = tuple(
    kind
    for kind in (getattr(torch.nn, name) for name in activations.__all__)
    if kind not in _REFUSED
)


def _check_class(op: str, kind: type) -> None:
    for refused, name in _REFUSED.items():
        if issubclass(kind, refused):
            resolve(op, name, {})  # says why not
    if not issubclass(kind, _ACCEPTED):
        raise unknown_activation(op, kind.__name__)


class FusedActivation:
    """What ``activation=`` of a fused layer means.

    Attributes:
        name: the registry name, or of a module's class; or None.
        parameters: of the registry's activation.
        module: the module that was given or made, for the layer to keep as ``activation``.
        is_module: whether there is one; then it is asked at each call what it computes.
    """

    def __init__(
        self,
        op: str,
        activation: str | type[torch.nn.Module] | torch.nn.Module | None,
        params: dict[str, Any],
        **factory: Any,
    ) -> None:
        self.module: torch.nn.Module | None = None
        self.name: str | None = None
        self.parameters: tuple[Any, ...] = ()
        self.is_module = False
        if activation is None:
            if params:
                raise TypeError(
                    f"fastact.{op}(): {next(iter(params))}: unexpected argument: activation is None"
                )
            return
        if isinstance(activation, type) and issubclass(activation, torch.nn.Module):
            _check_class(op, activation)
            activation, params = _made(op, activation, params, factory), {}
        elif isinstance(activation, str) and activation in _WITH_SLOPE:
            self.name = FUSIBLE[activation].name
            kind = getattr(activations, FUSIBLE[activation].module or "")
            activation, params = _made(op, kind, params, factory), {}
        if not isinstance(activation, torch.nn.Module):
            self.name, self.parameters = resolve(op, activation, params)
            return
        if params:
            raise TypeError(
                f"fastact.{op}(): {next(iter(params))}: unexpected argument: "
                "an activation module has its own"
            )
        _check_class(op, type(activation))
        self.module, self.is_module = activation, True
        self.name = self.name or type(activation).__name__

    def __repr__(self) -> str:
        """The keyword arguments that a layer's repr shows; a module is shown by itself."""
        if self.name is None or self.name not in FUSIBLE:
            return ""
        known = FUSIBLE[self.name].parameters
        shown = [f"activation={self.name!r}"]
        shown += [f"{k}={v}" for k, v in zip(known, self.parameters, strict=True)]
        return ", ".join(shown)


def _made(op: str, kind: type, params: dict[str, Any], factory: dict[str, Any]) -> torch.nn.Module:
    try:
        module = kind(**params)
    except TypeError as error:
        raise TypeError(
            f"fastact.{op}(): activation: expected the arguments of {kind.__name__}, got {params}: "
            f"{error}"
        ) from error
    return module.to(**factory)
