"""What follows the product of a fused layer: the meaning of ``activation=``, and what an activation
module computes when it is called now."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from fastact.activations import REGISTRY, resolve, unknown_activation
from fastact.nn import activations

# ---- what an activation module computes now ----------------------------------------------------

# A registry name with its parameters.
_Computed = tuple[str, tuple[Any, ...]]


def _reader(name: str) -> Callable[[torch.nn.Module], _Computed | None]:
    names = tuple(REGISTRY[name].parameters)
    if not names:
        constant = (name, ())
        return lambda module: constant
    return lambda module: (name, tuple([getattr(module, parameter) for parameter in names]))


def _softmax_reader(name: str, *rest: float) -> Callable[[torch.nn.Module], _Computed | None]:
    def read(module: torch.nn.Module) -> _Computed | None:
        # Without dim PyTorch warns, and guesses from the number of dimensions; what is not an int
        # it refuses or converts.
        dim = module.dim
        return (name, (dim, *rest)) if type(dim) is int else None

    return read


def _read_gelu(module: torch.nn.Module) -> _Computed | None:
    name = {"none": "gelu", "tanh": "gelu_tanh"}.get(module.approximate)
    return None if name is None else (name, ())


_BY_NAME: dict[str, Callable[[torch.nn.Module], _Computed | None]] = {
    row.module: _reader(row.name) for row in REGISTRY.values() if row.module
} | {
    "GELU": _read_gelu,
    "Softmax": _softmax_reader("softmax", 1.0),
    "Softmin": _softmax_reader("softmax", -1.0),
    "LogSoftmax": _softmax_reader("log_softmax"),
}

# By exact type: torch.nn's and fastact's. A reader gives None where the module cannot be fused as
# it is. RReLU draws random numbers, GLU halves a dimension, Softmax2d asks for a number of them.
READERS: dict[type, Callable[[torch.nn.Module], _Computed | None]] = {
    getattr(namespace, name): read
    for name, read in _BY_NAME.items()
    for namespace in (torch.nn, activations)
}
# With the forward of the class when fastact was imported: it may have been patched since.
_KNOWN = {kind: (kind.forward, read) for kind, read in READERS.items()}


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
    forward, read = known
    if kind.forward is not forward or "forward" in module.__dict__ or has_hooks(module):
        return None
    return read(module)


def slope_of(prelu: torch.nn.Module) -> Tensor:
    """The weight of a PReLU module, without nn.Module.__getattr__ where it can be."""
    own = prelu._parameters
    return own["weight"] if "weight" in own else prelu.weight  # noqa: SIM401


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
    return name, parameters, slope_of(module) if name == "prelu" else None, None


# ---- activation= -------------------------------------------------------------------------------

_REFUSED = {torch.nn.GLU: "glu", torch.nn.RReLU: "rrelu"}
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
        elif isinstance(activation, str) and activation == "prelu":
            self.name = "prelu"
            activation, params = _made(op, activations.PReLU, params, factory), {}
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
        if self.name not in REGISTRY:
            return ""
        known = REGISTRY[self.name].parameters
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
