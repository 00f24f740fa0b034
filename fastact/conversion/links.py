"""What a site knows, as tables: layers, and what may follow one in a chain of calls.

What is looked up here is the object that is called, as it is in this very call: nothing is known by
the place where it is written. The tables hold what PyTorch was born with, so a function or a
forward that somebody has replaced since is not found in them.
"""

from __future__ import annotations

import enum
import inspect
import operator
import sys
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_exporting

from fastact import functional, nn
from fastact.activations import FORMS, FUSIBLE, resolve
from fastact.conversion.geometry import geometry_of
from fastact.layers import LAYERS
from fastact.nn.epilogue import ACTIVATION_MODULES, ActivationModule, has_hooks

Module = torch.nn.Module


class Role(enum.Flag):
    """What an object may be in a chain."""

    NOTHING = 0
    LAYER = enum.auto()
    FOLLOWER = enum.auto()  # a norm, an activation, an idle dropout, a sum, a max pool


class Epilogue(NamedTuple):
    """An activation, as fastact's operators are told of it."""

    name: str
    parameters: tuple[float, ...] = ()
    slope: Tensor | None = None
    inplace: bool = False


# Of what returns its input: a dropout in evaluation.
IDLE = Epilogue("")

# ---- layers ------------------------------------------------------------------------------------


class KnownLayer(NamedTuple):
    row: Any
    forward: Callable[..., Any]  # as its class was born with it
    # The method of the row's name `helper`, likewise.
    helper: Callable[..., Any] | None


LAYER_TYPES: dict[type, KnownLayer] = {
    kind: KnownLayer(row, kind.forward, getattr(kind, row.helper) if row.helper else None)
    for row in LAYERS.values()
    for kind in (row.module, row.twin)
}
_FUNCTIONS = {row.function: row.composition for row in LAYERS.values()}
# Folded into the layer before them.
NORM_TYPES = {kind: kind.forward for kind in {row.norm for row in LAYERS.values()}}


def untouched_function(owner: types.ModuleType, name: str) -> bool:
    """Whether a function that forwards of torch.nn call is PyTorch's own."""
    return getattr(owner, name) is born(owner, name)


def born(owner: types.ModuleType, name: str) -> Callable[..., Any]:
    """The function that PyTorch has there."""
    return _BORN[owner.__name__, name]


# ---- recurrent layers --------------------------------------------------------------------------

# torch.nn's, with the forward that they were born with: they are fused within.
RECURRENT = {
    getattr(torch.nn, name): getattr(torch.nn, name).forward for name in nn.recurrent.__all__
}


def recurrent_obstacle(module: Module) -> str | None:
    """Why a module of these classes, or derived from them, keeps their forward."""
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "it is parametrized"
    owner: Any = next(kind for kind in type(module).__mro__ if kind in RECURRENT)
    if owner.forward is not RECURRENT[owner]:
        return "its class has another forward by now"
    return None


# ---- activations as modules --------------------------------------------------------------------

# torch.nn's activation modules and fastact's.
TWINS: dict[type[Module], type[Module]] = {
    getattr(torch.nn, name): getattr(nn, name) for name in nn.activations.__all__
}


class KnownActivation(NamedTuple):
    """A class of activation modules."""

    row: ActivationModule
    forward: Callable[..., Any]  # as the class was born with it
    # What its forward calls: the module of that function, and its name.
    function: tuple[types.ModuleType, str] | None = None

    @property
    def has_slope(self) -> bool:
        return FUSIBLE[self.row.name].takes_slope

    def read(self, module: Module) -> Epilogue | None:
        """None where it cannot be fused as it is."""
        computed = self.row.read(module)
        if computed is None or not all(type(value) in (int, float) for value in computed[1]):
            return None
        slope = module._parameters.get("weight") if self.has_slope else None
        if self.has_slope and not is_plain(slope):
            return None
        return Epilogue(*computed, slope, module.__dict__.get("inplace") is True)


_TENSORS = (Tensor, torch.nn.Parameter)


def is_plain(value: Any) -> bool:
    """Whether it is a tensor that neither computes by itself nor stands for another one. An
    exported program is of stand-ins throughout."""
    return type(value) in _TENSORS or (is_exporting() and isinstance(value, Tensor))


# Modules whose forward does not call the function of torch.nn.functional named as the activation.
_CALLED = {
    "ReLU6": (F, "hardtanh"),
    "Sigmoid": (torch, "sigmoid"),
    "Softmin": (F, "softmin"),
    "Tanh": (torch, "tanh"),
}


def _activation_types() -> dict[type, KnownActivation]:
    found = {}
    for name, row in ACTIVATION_MODULES.items():
        theirs, ours = getattr(torch.nn, name), getattr(nn, name)
        function = _CALLED.get(name, (F, row.name))
        found[theirs] = KnownActivation(row, theirs.forward, function)
        found[ours] = KnownActivation(row, ours.forward)
    return found


ACTIVATION_TYPES = _activation_types()
_BORN = {
    (owner.__name__, name): getattr(owner, name)
    for owner, name in (
        {row.function for row in ACTIVATION_TYPES.values() if row.function}
        | {(F, name) for name in _FUNCTIONS}
        | {(F, "dropout"), (F, "batch_norm"), (F, "max_pool2d")}
    )
}

IDLE_TYPES = {kind: kind.forward for kind in (torch.nn.Dropout, torch.nn.Identity)}


class Foreign(NamedTuple):
    """A module of another library that is an activation: a registry name; or the attribute that
    holds the function it calls; or whether it returns its input as it is now."""

    name: str = ""
    holds: str = ""
    idle: Callable[[Module], bool] | None = None


# By qualified name, so that nobody has to import those libraries.
FOREIGN = {
    "timm.layers.activations.GELU": Foreign("gelu"),
    "timm.layers.activations.GELUTanh": Foreign("gelu_tanh"),
    "timm.layers.activations.Mish": Foreign("mish"),
    "timm.layers.activations.Sigmoid": Foreign("sigmoid"),
    "timm.layers.activations.Swish": Foreign("silu"),
    "timm.layers.activations.Tanh": Foreign("tanh"),
    "timm.layers.drop.DropPath": Foreign(
        idle=lambda module: module.training is False or bool(module.drop_prob == 0.0)
    ),
    "transformers.activations.FastGELUActivation": Foreign("gelu_tanh"),
    "transformers.activations.GELUActivation": Foreign(holds="act"),
    "transformers.activations.GELUTanh": Foreign(holds="act"),
    "transformers.activations.LinearActivation": Foreign(idle=lambda module: True),
    "transformers.activations.MishActivation": Foreign(holds="act"),
    "transformers.activations.NewGELUActivation": Foreign("gelu_tanh"),
    "transformers.activations.PytorchGELUTanh": Foreign("gelu_tanh"),
    "transformers.activations.SiLUActivation": Foreign("silu"),
}


# The forwards of those classes as they were first seen.
_foreign_forwards: weakref.WeakKeyDictionary[type, Any] = weakref.WeakKeyDictionary()


def foreign(kind: type) -> tuple[Foreign, Callable[..., Any]] | None:
    """A class's row, and the forward that it has in its library."""
    row = FOREIGN.get(f"{kind.__module__}.{kind.__qualname__}")
    if (
        row is None
        or getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind
    ):
        return None
    return row, _foreign_forwards.setdefault(kind, kind.forward)


# ---- activations as functions and methods ------------------------------------------------------

SUMS = {torch.add, operator.add}


class KnownCall(NamedTuple):
    """A function, or a method of Tensor, that is an activation."""

    name: str
    arguments: tuple[str, ...]  # after the input
    inplace: bool = False  # by its own name
    keywords_only: bool = False


def _calls() -> dict[Any, KnownCall]:
    """By function, or by name of the method."""
    found: dict[Any, KnownCall] = {}
    for name in dict.fromkeys(row.function for row in FUSIBLE.values()):
        twin = getattr(functional, name)
        arguments = tuple(inspect.signature(twin).parameters)[1:]
        found[twin] = KnownCall(name, arguments)
        # torch.softmax and Tensor.softmax have no _stacklevel between dim and dtype.
        shorter = tuple(a for a in arguments if a not in ("_stacklevel", "inplace"))
        keywords = name in FORMS
        for spelling in (name, name + "_"):
            inplace = spelling != name
            short = KnownCall(name, shorter, inplace, keywords)
            if hasattr(F, spelling):
                long = KnownCall(name, arguments, inplace, keywords)
                found[getattr(F, spelling)] = short if inplace else long
            if hasattr(torch, spelling):
                found[getattr(torch, spelling)] = short
            if hasattr(Tensor, spelling):
                found[spelling] = short
    return found


CALLS = _calls()
# Methods of Tensor that are links, as PyTorch was born with them; "add" is a sum.
METHODS = {name: getattr(Tensor, name) for name in (*CALLS, "add") if isinstance(name, str)}
_FUNCTION_TYPES = {type(f) for f in CALLS} - {str}
_DROPOUT = F.dropout


def is_function(f: Any) -> bool:
    """Whether it may be one of those in the tables."""
    return type(f) in _FUNCTION_TYPES


def _idle_dropout(p: Any = 0.5, training: Any = True, inplace: Any = False) -> bool:
    return training is False and type(p) in (int, float) and 0 <= p <= 1


def of_call(
    target: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] = {}
) -> Epilogue | None:
    """The activation that a call of a function, or of the method of that name, is: with these
    arguments after the input. IDLE for a dropout that does nothing; None for anything else."""
    if target is _DROPOUT:
        try:
            return IDLE if _idle_dropout(*args, **kwargs) else None
        except TypeError:
            return None
    if target not in CALLS:
        return None
    name, known, written, keywords_only = CALLS[target]
    if len(args) > len(known) or (args and keywords_only):
        return None
    given = dict(zip(known, args, strict=False))
    for key, value in kwargs.items():
        if key in given or key not in known:
            return None
        given[key] = value
    given.pop("_stacklevel", None)
    inplace = given.pop("inplace", False) or written
    if type(inplace) is not bool or given.pop("dtype", None) is not None:
        return None
    row = FUSIBLE[name]
    if row.takes_slope:
        slope = given.get(*row.tensors)
        return Epilogue(name, (), slope, inplace) if is_plain(slope) else None
    if row.along_dimension and type(given.get("dim")) is not int:
        return None
    form = FORMS.get(name)
    if form is not None and form.argument in given:
        value = given[form.argument]
        if type(value) is not str or value not in form.names:
            return None
    numbers = [value for key, value in given.items() if form is None or key != form.argument]
    if not all(type(value) in (int, float) for value in numbers):
        return None
    if row.requires_parameters and len(numbers) < len(row.parameters):
        return None
    return Epilogue(*resolve("convert", name, given), None, inplace)


BARE = {target: of_call(target) for target in CALLS}  # with the input alone

# ---- max pools ---------------------------------------------------------------------------------


class Pool(NamedTuple):
    """A max pool of images, as torch.max_pool2d is told of it: rows and columns."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool


POOL_TYPES = {torch.nn.MaxPool2d: torch.nn.MaxPool2d.forward}
_POOL_FUNCTIONS = {F.max_pool2d, torch.max_pool2d}
_POOL_ARGUMENTS = (*Pool._fields, "return_indices")


def pool_from(values: Mapping[str, Any]) -> Pool | None:
    """Of the arguments after the input, or of a module's attributes."""
    kernel_size = values.get("kernel_size")
    stride = values.get("stride")
    pairs: list[Any] = [
        (value, value) if type(value) is int else value
        for value in (
            kernel_size,
            kernel_size if stride is None else stride,
            values.get("padding", 0),
            values.get("dilation", 1),
        )
    ]
    ceil_mode = values.get("ceil_mode", False)
    if type(ceil_mode) is not bool or values.get("return_indices", False) is not False:
        return None
    if any(type(p) is not tuple or [type(one) for one in p] != [int, int] for p in pairs):
        return None
    kernel, stride, padding, dilation = pairs
    return Pool(kernel, stride, padding, dilation, ceil_mode)


def pool_of_call(
    target: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] = {}
) -> Pool | None:
    """The max pool that a call of a function is: with these arguments after the input."""
    if target not in _POOL_FUNCTIONS or len(args) > len(_POOL_ARGUMENTS):
        return None
    given = dict(zip(_POOL_ARGUMENTS, args, strict=False))
    if given.keys() & kwargs.keys() or kwargs.keys() - set(_POOL_ARGUMENTS):
        return None
    return pool_from({**given, **kwargs})


def pool_of(
    f: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] = {}
) -> Pool | str | None:
    """The max pool that a callable is now, or why it is none that is known; None for others."""
    if type(f) in _FUNCTION_TYPES and f in _POOL_FUNCTIONS:
        return pool_of_call(f, args, kwargs) or "it is no max pool of two dimensions by numbers"
    if type(f) not in POOL_TYPES:
        return None
    reason = interference(f, POOL_TYPES[type(f)])
    if LEFT_OUT in f.__dict__:
        reason = "left out by filter_fn"
    if reason is None and not untouched_function(F, "max_pool2d"):
        reason = "torch.nn.functional.max_pool2d was replaced"
    if reason is None and (args or kwargs):
        reason = "it is called with more than its input"
    return reason or pool_from(f.__dict__) or "it returns indices, or its numbers are no numbers"


# ---- what an object is now ---------------------------------------------------------------------

_CALL = Module.__call__
_CALL_PARTS = {name: getattr(Module, name) for name in ("_call_impl", "_wrapped_call_impl")}
# In the __dict__ of a module that filter_fn leaves out.
LEFT_OUT = "_fastact_left_out"
# In the __dict__ of a convolution: which of Winograd's algorithms it may use in place of what
# fastact.set_winograd says.
WINOGRAD = "_fastact_winograd"


def interference(module: Module, forward: Callable[..., Any]) -> str | None:
    """Why its call may do something else than the forward that its class was born with."""
    own = module.__dict__
    if has_hooks(module):
        return "it has hooks"
    if "forward" in own:
        return "its forward was set on the instance"
    if "_compiled_call_impl" in own:
        return "it is compiled"
    if type(module).forward is not forward:
        return "its class has another forward by now"
    if type(module).__call__ is not _CALL and not is_exporting():
        return "its class has another __call__ by now"
    return None


def calls_replaced() -> str | None:
    """Why no module's call can be left out."""
    for name, function in _CALL_PARTS.items():
        if getattr(Module, name) is not function and not is_exporting():
            return f"torch.nn.Module.{name} was replaced"
    return None


def layer_obstacle(layer: Any) -> str | None:
    """Why a module is not a layer that an operator computes as it is now."""
    kind = type(layer)
    known = LAYER_TYPES.get(kind)
    if known is None:
        return unknown_layer(layer)
    reason = interference(layer, known.forward)
    if reason is not None:
        return reason
    own, parameters = layer.__dict__, layer._parameters
    if LEFT_OUT in own:
        return "left out by filter_fn"
    helper = known.row.helper
    if helper and (helper in own or getattr(kind, helper) is not known.helper):
        return f"its {helper} is another by now"
    if kind is known.row.module and not untouched_function(F, known.row.function):
        return f"torch.nn.functional.{known.row.function} was replaced"
    weight, bias = parameters.get("weight"), parameters.get("bias", layer)
    if (
        not is_plain(weight)
        or weight.layout is not torch.strided
        or not (bias is None or is_plain(bias))
        or "weight" in own
        or "bias" in own
    ):
        return "its weight or bias is not a plain parameter"
    if geometry_of(known.row, layer) is None:
        return "its padding is not one of zeros, the same on both sides"
    return None


def unknown_layer(layer: Any) -> str:
    if not isinstance(layer, Module):
        return "it is no module"
    if torch.nn.utils.parametrize.is_parametrized(layer):
        return "it is parametrized"
    if isinstance(layer, tuple(LAYER_TYPES)):
        return "its class is derived from a layer's, and may compute something else"
    return "it is no layer that fastact computes"


def epilogue_of(
    f: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] = {}
) -> Epilogue | str:
    """The activation that a callable is now, IDLE, or why it is none."""
    kind = type(f)
    if kind in _FUNCTION_TYPES:
        known = BARE.get(f) if not (args or kwargs) else of_call(f, args, kwargs)
        if f is _DROPOUT:
            known = of_call(f, args, kwargs)
        return known if known is not None else "it is no activation that can be fused as called"
    if not isinstance(f, Module) or args or kwargs:
        return "it is no activation that can be fused as called"
    row = ACTIVATION_TYPES.get(kind)
    if row is not None:
        reason = interference(f, row.forward)
        if LEFT_OUT in f.__dict__:
            reason = "left out by filter_fn"
        if reason is None and row.function and not untouched_function(*row.function):
            reason = f"{row.function[0].__name__}.{row.function[1]} was replaced"
        return reason or row.read(f) or "it cannot be fused with the parameters it has"
    if kind in IDLE_TYPES:
        reason = interference(f, IDLE_TYPES[kind])
        if reason is None and kind is torch.nn.Dropout:
            idle = _idle_dropout(f.__dict__.get("p"), f.__dict__.get("training"))
            if not idle or not untouched_function(F, "dropout"):
                reason = "it may drop something"
        return reason or IDLE
    other = foreign(kind)
    if other is None:
        return "it is no activation that fastact knows"
    of_others, forward = other
    reason = interference(f, forward)
    if reason is not None:
        return reason
    if of_others.idle is not None:
        return IDLE if of_others.idle(f) else "it may drop something"
    if of_others.holds:
        return epilogue_of(f.__dict__.get(of_others.holds, f._modules.get(of_others.holds)))
    return Epilogue(of_others.name)


def role_of(value: Any) -> Role:
    """What an object found on a module, or named by a forward, may be."""
    kind = type(value)
    if kind in LAYER_TYPES or getattr(kind, "cls_to_become", None) in LAYER_TYPES:
        return Role.LAYER  # perhaps a lazy one, which becomes it
    if any(kind in known for known in (ACTIVATION_TYPES, IDLE_TYPES, NORM_TYPES, POOL_TYPES)):
        return Role.FOLLOWER
    if isinstance(value, Module) and foreign(kind):
        return Role.FOLLOWER
    if is_function(value) and any(
        value in known for known in (CALLS, {_DROPOUT}, SUMS, _POOL_FUNCTIONS)
    ):
        return Role.FOLLOWER
    return Role.NOTHING
