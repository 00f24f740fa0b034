"""The classes that converted modules have.

A converted module's class is a subclass of its own, in whose MRO each class comes after its shadow,
which holds those of its methods that have sites, and the forward of a recurrent layer: C', C,
Base', Base, ... So super() finds them too.
"""

from __future__ import annotations

import abc
import functools
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.utils._pytree import tree_leaves, tree_map

from fastact import _C
from fastact.conversion import source
from fastact.conversion.links import RECURRENT, Role
from fastact.conversion.recurrent import recurrent_forward
from fastact.conversion.site import Site, run_sequence
from fastact.conversion.source import Left, Path

Module = torch.nn.Module
Roles = Mapping[Path, Role]


class Method(NamedTuple):
    """One method of a class: what of it was found to be rewritten."""

    owner: type
    name: str
    function: Any  # a types.FunctionType

    @property
    def label(self) -> str:
        return f"{self.owner.__module__}.{self.owner.__qualname__}.{self.name}"


def methods_of(kind: type) -> Iterator[Method]:
    """Those of a class and its bases, in the order of the MRO, but for torch.nn.Module's."""
    for owner in kind.__mro__:
        if owner not in (object, Module):
            yield from _own_methods(owner)


def _own_methods(owner: type) -> Iterator[Method]:
    for name, value in vars(owner).items():
        function = value.fget if isinstance(value, property) else value
        dunder = name.startswith("__") and name.endswith("__") and name != "__call__"
        if isinstance(function, types.FunctionType) and not dunder:
            yield Method(owner, name, function)


# ---- one method --------------------------------------------------------------------------------

_SEQUENTIAL = torch.nn.Sequential.forward


def _function(method: Method, roles: Roles, frozen: bool) -> Callable[..., Any] | None:
    """The method with its sites; None where it has none. Raises Left."""
    function, wrappers = source.unwrapped(method.function)
    is_property = isinstance(vars(method.owner)[method.name], property)
    guarded = not wrappers

    def guard(prefix: str, arguments: str) -> str:
        """First of all: if the class has another method by now, that one; and Dynamo, which cannot
        look into a site, is given functions that it can."""
        lines = []
        if guarded:
            current = f"{prefix}_class.{method.name}"
            call = f"{current}.__get__" if is_property else current
            lines += [f"if {current} is not {prefix}_member:", f"    return {call}({arguments})"]
        if function is _SEQUENTIAL:
            return "\n".join(
                [
                    *lines,
                    f"if {prefix}_dynamo():",
                    f"    return {prefix}_python({arguments}, {frozen})",
                    f"return {prefix}_run({arguments}, {frozen})",
                ]
            )
        lines += [f"if {prefix}_dynamo():", f"    return {prefix}_traced({arguments})"]
        return "\n".join(lines)

    if function is _SEQUENTIAL:
        made = source.replaced(function, guard, frozen)
    else:
        made = source.rewritten(function, roles, frozen, guard)
        if not made.plans:
            return None
    names = {
        "_class": method.owner,
        "_member": vars(method.owner)[method.name],
        "_run": _C.run_sequence,
        "_python": _run_sequence,
    }
    traced = types.CellType()
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))

    def closed(site: Callable[..., Any], is_traced: bool) -> types.FunctionType:
        names["_dynamo"] = _no if is_traced else is_dynamo_compiling
        own = {name: types.CellType(site(plan)) for name, plan in made.plans.items()}
        own |= {
            name: traced
            if name.endswith("_traced")
            else types.CellType(names["_" + name.rpartition("_")[2]])
            for name in made.extra
        }
        closure = tuple((cells | own)[name] for name in made.code.co_freevars)
        return _dressed(made.code, closure, function)

    scope = function.__globals__
    traced.cell_contents = closed(lambda plan: Site(plan, scope).__call__, True)
    result: Callable[..., Any] = closed(lambda plan: _C.Site(Site(plan, scope)), False)
    for wrapper in reversed(wrappers):
        result = _rewrapped(wrapper, result)
    if wrappers:
        result = _while_current(method, result)
    return result


def _run_sequence(sequential: torch.nn.Sequential, value: Any, frozen: bool) -> Any:
    return run_sequence(iter(sequential), value, frozen)


def _no() -> bool:
    return False


def _dressed(
    code: types.CodeType, closure: tuple[Any, ...], like: types.FunctionType
) -> types.FunctionType:
    made = types.FunctionType(code, like.__globals__, like.__name__, like.__defaults__, closure)
    for name in ("__kwdefaults__", "__annotations__", "__doc__", "__module__", "__qualname__"):
        setattr(made, name, getattr(like, name))
    made.__dict__.update(like.__dict__)
    return made


def _rewrapped(wrapper: source.Wrapper, inner: Any) -> types.FunctionType:
    """The same wrapper around another function."""
    function, held = wrapper
    closure = tuple(types.CellType(inner) if c is held else c for c in function.__closure__ or ())
    made = _dressed(function.__code__, closure, function)
    made.__wrapped__ = inner  # type: ignore[attr-defined]
    return made


def _while_current(method: Method, made: Callable[..., Any]) -> Callable[..., Any]:
    """made, as long as the class has the method that it was made of."""
    owner, name, member = method.owner, method.name, vars(method.owner)[method.name]

    @functools.wraps(made)
    def current(*args: Any, **kwargs: Any) -> Any:
        now = getattr(owner, name)
        if now is member:
            return made(*args, **kwargs)
        return now.__get__(*args) if isinstance(member, property) else now(*args, **kwargs)

    return current


# ---- classes -----------------------------------------------------------------------------------

# In the __dict__ of a class made here.
BASE, FROZEN = "_fastact_base", "_fastact_frozen"


class _Quiet:
    """First among the bases, so that nobody's register of subclasses hears of ours."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        pass


# Alive as long as a module has them.
_classes: weakref.WeakValueDictionary[Any, type] = weakref.WeakValueDictionary()


def base_of(module: Module) -> type | None:
    """The class of a converted module before; None for any other."""
    return vars(type(module)).get(BASE)


def is_frozen(module: Module) -> bool:
    return vars(type(module)).get(FROZEN, False)


def class_for(kind: type, roles: Roles, frozen: bool, turns: bool = False) -> type | None:
    """The class of a converted module of that kind; None where no method has a site. `turns`: its
    images lie channels last within it."""
    key = kind, frozen, turns, frozenset(roles.items())
    made = _classes.get(key)
    if made is None:
        order = [c for c in kind.__mro__ if c not in (object, Module)]
        shadows = {c: _shadow(c, roles, frozen) for c in order}
        with_sites = [i for i, c in enumerate(order) if shadows[c] is not None]
        if not with_sites and not turns:
            return None
        last = max(with_sites, default=0)
        bases = [c for k in order[: last + 1] for c in (shadows[k], k) if c is not None]
        made = _classes[key] = _made(kind, (_Quiet, *bases), roles, frozen, turns)
    return made


# ---- images that lie channels last within a model ----------------------------------------------


def _is_of_planes(value: Any) -> bool:
    """Whether it is images, one channel behind the other."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.dim() == 4
        and value.is_contiguous()
        and not value.is_contiguous(memory_format=torch.channels_last)
    )


def _channels_last(value: Any) -> Any:
    is_turned = _is_of_planes(value)
    return value.contiguous(memory_format=torch.channels_last) if is_turned else value


def _contiguous(value: Any) -> Any:
    is_turned = (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.dim() == 4
        and value.is_contiguous(memory_format=torch.channels_last)
    )
    return value.contiguous() if is_turned else value


def _turning(made: list[Any]) -> Callable[..., Any]:
    """The forward of the class in that list, which turns its images, and its results back."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        turns = any(map(_is_of_planes, tree_leaves((args, kwargs))))
        if turns:
            args, kwargs = tree_map(_channels_last, (args, kwargs))
        result = super(made[0], self).forward(*args, **kwargs)
        return tree_map(_contiguous, result) if turns else result

    return forward


def _shadow(owner: type, roles: Roles, frozen: bool) -> type | None:
    """The methods of this one class that have sites."""
    members: dict[str, Any] = {}
    if owner in RECURRENT:
        members["forward"] = recurrent_forward(owner)
    for method in _own_methods(owner):
        if method.name in members:
            continue
        try:
            function = _function(method, roles, frozen)
        except Left:
            continue
        value = vars(owner)[method.name]
        if function is not None:
            members[method.name] = (
                property(function, value.fset, value.fdel, value.__doc__)
                if isinstance(value, property)
                else function
            )
    if not members:
        return None
    return type(owner.__name__, (), {"__module__": owner.__module__, **members})


def _made(kind: type, bases: tuple[type, ...], roles: Roles, frozen: bool, turns: bool) -> type:
    def __reduce_ex__(self: Any, protocol: Any) -> tuple[Any, ...]:
        function, arguments, *rest = super(made, self).__reduce_ex__(protocol)
        arguments = tuple(kind if argument is made else argument for argument in arguments)
        plain = {path: role.value for path, role in roles.items()}
        return _rebuild, (plain, frozen, turns, function, arguments), *rest

    members = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__reduce_ex__": __reduce_ex__,
        BASE: kind,
        FROZEN: frozen,
    }
    itself: list[Any] = []
    if turns:
        members["forward"] = _turning(itself)
    # Past a metaclass of the user's, but for what makes a class abstract.
    creator = abc.ABCMeta if issubclass(type(kind), abc.ABCMeta) else type
    made: Any = creator.__new__(type(kind), kind.__name__, bases, members)
    itself.append(made)
    return made


def _rebuild(
    plain: Mapping[Path, int],
    frozen: bool,
    turns: bool,
    function: Callable[..., Any],
    arguments: Any,
) -> Module:
    """A copy's or a pickle's: the class is made where it is loaded, from its source there."""
    module = function(*arguments)
    roles = {path: Role(value) for path, value in plain.items()}
    module.__class__ = class_for(type(module), roles, frozen, turns) or type(module)
    return module
