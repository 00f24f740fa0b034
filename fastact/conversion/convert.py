"""Whole models: convert and revert."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastact.conversion import source
from fastact.conversion.links import (
    LAYER_TYPES,
    LEFT_OUT,
    RECURRENT,
    TWINS,
    WINOGRAD,
    Role,
    layer_obstacle,
    recurrent_obstacle,
)
from fastact.conversion.shadow import BASE, Method, base_of, class_for, is_frozen, methods_of
from fastact.conversion.source import Left, Path, Rewritten
from fastact.convolution import WINOGRAD_SETTINGS

Module = torch.nn.Module
_MODES = ("inference", "training")
# What a conversion leaves in the __dict__ of modules.
_MARKS = (LEFT_OUT, WINOGRAD)

# ---- what is to be done with a model -----------------------------------------------------------


@dataclass
class _Class:
    """A class of the model with its modules."""

    kind: type
    names: list[str] = field(default_factory=list)
    modules: list[Module] = field(default_factory=list)
    roles: dict[Path, Role] = field(default_factory=dict)
    found: dict[Method, Rewritten] = field(default_factory=dict)
    left: dict[Method, str] = field(default_factory=dict)
    made: type | None = None


@dataclass
class Survey:
    """What a conversion does with a model, without having touched it."""

    classes: list[_Class]
    left_out: list[Module]
    # What becomes of a module, and what cannot be done with one, by name.
    fates: dict[str, list[str]]
    failures: dict[str, str]
    kinds: dict[str, str]

    def __str__(self) -> str:
        """One line a module that something happens to, or that it should have happened to."""
        rows = [
            (name or "(the model)", kind, "; ".join(self.fates[name]))
            for name, kind in self.kinds.items()
            if name in self.fates
        ]
        if not rows:
            return "nothing to convert"
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows)


def survey(model: Module, frozen: bool, accepts: Callable[[str], Any]) -> Survey:
    """Looks for sites in the source of the model's classes, and makes classes that have them."""
    modules = dict(model.named_modules())
    fates: dict[str, list[str]] = {}
    failures: dict[str, str] = {}
    left_out: list[Module] = []
    replaced: tuple[type[Module], ...] = (*LAYER_TYPES, *TWINS)
    for name, module in modules.items():
        if not isinstance(module, replaced):
            continue
        if not accepts(name):
            left_out.append(module)
            fates.setdefault(name, []).append("left out by filter_fn")
        elif isinstance(module, tuple(LAYER_TYPES)) and (reason := layer_obstacle(module)):
            failures[name] = reason
            fates.setdefault(name, []).append(f"left as it is: {reason}")

    classes: dict[type, _Class] = {}
    for name, module in modules.items():
        if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
            if any(type(child) in LAYER_TYPES for child in module.children()):
                failures[name] = "it has no methods of Python code; convert what it was made of"
                fates.setdefault(name, []).append(f"left as it is: {failures[name]}")
            continue
        if is_recurrent(type(module)) and (reason := recurrent_obstacle(module)):
            failures[name] = reason
            fates.setdefault(name, []).append(f"left as it is: {reason}")
            continue
        entry = classes.setdefault(type(module), _Class(type(module)))
        entry.names.append(name)
        entry.modules.append(module)
    excluded = set(map(id, left_out))
    for entry in classes.values():
        _survey_class(entry, frozen, excluded)
        asked = entry.made is not None and not all(accepts(name) for name in entry.names)
        kept = [i for i, name in enumerate(entry.names) if not asked or accepts(name)]
        for i in set(range(len(entry.names))) - set(kept):
            fates.setdefault(entry.names[i], []).append("left out by filter_fn")
        entry.names = [entry.names[i] for i in kept]
        entry.modules = [entry.modules[i] for i in kept]
        for name in entry.names:
            fates_of = fates.setdefault(name, [])
            fates_of += _fates(entry)
            reasons = [f"{m.name}: {why}" for m, why in entry.left.items()]
            if reasons:
                failures[name] = "; ".join(reasons)
                fates_of += [f"left as it is: {reason}" for reason in reasons]
            if not fates_of:
                del fates[name]
    kinds = {name: type(module).__name__ for name, module in modules.items()}
    return Survey(list(classes.values()), left_out, fates, failures, kinds)


def _survey_class(entry: _Class, frozen: bool, excluded: set[int]) -> None:
    kind = entry.kind
    possible: set[Path] = set()
    methods: list[Method] = []
    # Of a method that a subclass overrides, super() may still find the other.
    for method in methods_of(kind):
        if method.function is torch.nn.Sequential.forward:  # its loop is one site
            possible.add(source.CHILD)
            continue
        try:
            paths = source.callees(method.function)
        except Left as reason:
            if _holds_layers(entry.modules) and method.name == "forward":
                entry.left[method] = str(reason)
            continue
        possible |= paths
        methods.append(method)
    for path in possible:
        role = Role.NOTHING
        for module in entry.modules:
            role |= source.role_at(module, path)
        if role:
            entry.roles[path] = role
    if not any(role & Role.LAYER for role in entry.roles.values()):
        if is_recurrent(kind):
            entry.roles.clear()
            entry.made = class_for(kind, entry.roles, frozen)
        return
    for method in methods:
        try:
            function, _ = source.unwrapped(method.function)
            made = source.rewritten(function, entry.roles, frozen, lambda *_: "")
        except Left as reason:
            entry.left[method] = str(reason)
            continue
        if made.plans:
            entry.found[method] = made
    entry.made = class_for(kind, entry.roles, frozen)


def is_recurrent(kind: type) -> bool:
    """Whether the class is one of torch.nn's recurrent ones, or derived from one; fastact's own
    compute so as they are."""
    return any(c in RECURRENT for c in kind.__mro__) and not any(
        c.__module__ == "fastact.nn" for c in kind.__mro__
    )


def _holds_layers(modules: Iterable[Module]) -> bool:
    return any(type(child) in LAYER_TYPES for module in modules for child in module.children())


def _fates(entry: _Class) -> list[str]:
    """The sites of a class, in words."""
    lines = []
    if issubclass(entry.kind, torch.nn.Sequential) and entry.made is not None:
        lines.append("each layer with what follows it")
    if is_recurrent(entry.kind) and entry.made is not None:
        owner = next(c for c in entry.kind.__mro__ if c in RECURRENT)
        lines.append(f"all steps by the operator of fastact.nn.{owner.__name__}")
    for method, made in entry.found.items():
        for plan in made.plans.values():
            line = plan.where.rpartition(":")[2]
            lines.append(f"{method.name}, line {line}: {plan.source}")
    return lines


# ---- the public functions ----------------------------------------------------------------------


def convert(
    model: Module,
    *,
    mode: str = "inference",
    filter_fn: Callable[[Module, str], bool] | None = None,
    inplace: bool = False,
    dry_run: bool = False,
    use_fallback: bool = True,
    winograd: str | None = None,
    memory_format: torch.memory_format | None = None,
) -> Module:
    """The model, with each Linear and what follows it computed by one operator, and each recurrent
    layer and cell.

    In the source of the model's classes, every call of a layer becomes the call of a site, together
    with the BatchNorm, the sum and the activation around it: ``F.relu(self.fc(x))``, ``x +
    self.fc(y)``, statements on one value, the children of a torch.nn.Sequential. Every other line
    stays as it is. At each call a site fuses what it knows, as it is at that moment, and else makes
    the calls that were written. So hooks, replaced layers, weights and forwards, branches, side
    effects and exceptions are the original's. torch.nn's RNN, GRU, LSTM and their cells stay where
    they are, with fastact's forward. See docs/conversion.md.

    "inference" returns a model in evaluation mode whose parameters do not require gradients; sites
    keep packed weights, with BatchNorm folded in, beside the modules, and make them anew where a
    weight was given anew or written to. What leaves no trace, a write through ``.data`` or a NumPy
    view, they do not see.

    "training" returns a model that shares its parameters and buffers with the original: an
    optimizer made for one trains both. Undone by :func:`revert`.

    Args:
        model: any module; without inplace it is not touched.
        mode: "inference" or "training".
        filter_fn: called as ``filter_fn(module, name)`` for each layer and activation, and for each
            module whose methods have sites; False leaves that module as it is, though not those
            inside it.
        inplace: changes the model itself instead of a copy.
        dry_run: prints what would be done, and returns the model untouched.
        use_fallback: False raises where a layer or a method must be left as it is.
        winograd: "off", "safe" or "fast", what 3x3 convolutions of this model may use in place of
            what :func:`fastact.set_winograd` says; for inference.
        memory_format: ``torch.channels_last`` lays contiguous images, [N, C, H, W], so that the
            model is called with, and puts what it returns back: once, at its edges. Code of the
            model sees them so, as after ``model.to(memory_format=torch.channels_last)``; a
            ``view`` that takes channels and pixels together does not take such images.

    Returns:
        The converted model, an instance of the model's class.

    Raises:
        TypeError: model is not a module, or is a compiled one; filter_fn is not callable.
        ValueError: an unknown mode or memory_format, or winograd that is none, or is given for
            training.
        RuntimeError: use_fallback is False and something would be left; model cannot be copied;
            mode is "training" and model was converted for inference.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> x = torch.randn(2, 4)
        >>> fast = fastact.convert(model)
        >>> torch.allclose(fast(x), model(x), atol=1e-6)
        True
        >>> _ = fastact.convert(model, dry_run=True)
        (the model)  Sequential  each layer with what follows it
    """
    if not isinstance(model, Module):
        raise TypeError(
            f"fastact.convert(): model: expected a torch.nn.Module, got {type(model).__name__}"
        )
    if is_compiled(model):
        raise TypeError(
            "fastact.convert(): model: expected a module of Python code, got a compiled one, "
            f"{type(model).__name__}; convert the model first and compile the result"
        )
    if mode not in _MODES:
        raise ValueError(
            f"fastact.convert(): mode: expected 'inference' or 'training', got {mode!r}"
        )
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(
            "fastact.convert(): filter_fn: expected a function of (module, name) or None, "
            f"got {type(filter_fn).__name__}"
        )
    frozen = mode == "inference"
    if winograd not in (None, *(WINOGRAD_SETTINGS if frozen else ())):
        names = "'off', 'safe', 'fast' or None" if frozen else "None where mode is 'training'"
        raise ValueError(f"fastact.convert(): winograd: expected {names}, got {winograd!r}")
    if memory_format not in (None, torch.channels_last):
        raise ValueError(
            "fastact.convert(): memory_format: expected torch.channels_last or None, got "
            f"{memory_format!r}"
        )
    if not frozen:
        _check_not_frozen("convert", model, "convert the original")

    # filter_fn may compare with the modules that the caller knows.
    modules = dict(model.named_modules())
    answers: dict[str, Any] = {}

    def accepts(name: str) -> Any:
        if filter_fn is None:
            return True
        if name not in answers:
            answers[name] = filter_fn(modules[name], name)
        return answers[name]

    # A dry run works on a copy too, of the modules alone.
    result = model if inplace and not dry_run else _copy(model, share=dry_run or not frozen)
    restore = _state_of(result)
    _undo(result)
    try:
        plan = survey(result, frozen, accepts)
        if plan.failures and not use_fallback:
            listed = "; ".join(
                f"{name or 'the model'} ({plan.kinds[name]}): {reason}"
                for name, reason in plan.failures.items()
            )
            raise RuntimeError(
                "fastact.convert(): use_fallback: expected a model that can be converted "
                f"throughout, got {len(plan.failures)} to be left as they are: {listed}"
            )
        if not dry_run:
            _carry_out(plan, result, frozen, winograd)
            if memory_format is not None:
                _turn(plan, result, frozen)
    except BaseException:
        restore()
        raise
    if dry_run:
        print(plan)
        return model
    return result


def revert(model: Module) -> Module:
    """Undoes ``convert(mode="training")``, in place.

    Every module has its class again, and the parameters, buffers and hooks that it has now. What
    was not converted is left alone.

    Args:
        model: a converted model, or a part of one.

    Returns:
        The model.

    Raises:
        TypeError: model is not a module.
        RuntimeError: model was converted for inference, or something else has since changed the
            class of a converted module, as a parametrization does.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> fastact.revert(fastact.convert(model, mode="training"))
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): ReLU()
        )
    """
    if not isinstance(model, Module):
        raise TypeError(
            f"fastact.revert(): model: expected a torch.nn.Module, got {type(model).__name__}"
        )
    _check_not_frozen("revert", model, "the original model is what it was made of")
    for name, module in model.named_modules():
        if base_of(module) is None and any(BASE in vars(k) for k in type(module).__mro__):
            raise RuntimeError(
                f"fastact.revert(): {name or 'model'}: expected the class that convert() gave it, "
                f"got {type(module).__name__}; first undo what changed it since"
            )
    _undo(model)
    return model


def _state_of(model: Module) -> Callable[[], None]:
    """What puts back all that a conversion changes."""
    modules = [
        (m, type(m), m.training, {name: vars(m)[name] for name in _MARKS if name in vars(m)})
        for m in model.modules()
    ]
    parameters = [(p, p.requires_grad) for p in model.parameters()]

    def restore() -> None:
        for module, kind, training, marks in modules:
            module.__class__ = kind
            vars(module)["training"] = training
            for name in _MARKS:
                vars(module).pop(name, None)
            vars(module).update(marks)
        for parameter, requires_grad in parameters:
            parameter.requires_grad = requires_grad

    return restore


def _carry_out(plan: Survey, model: Module, frozen: bool, winograd: str | None) -> None:
    if frozen:
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad = False  # of a lazy layer too
    for module in plan.left_out:
        vars(module)[LEFT_OUT] = True
    if winograd is not None:
        for module in model.modules():
            if type(module) in LAYER_TYPES and LAYER_TYPES[type(module)].row.dims:
                vars(module)[WINOGRAD] = winograd
    for entry in plan.classes:
        if entry.made is not None:
            for module in entry.modules:
                module.__class__ = entry.made


def _turn(plan: Survey, model: Module, frozen: bool) -> None:
    """The model alone: what it calls, also others of its class, gets images as it hands them on."""
    kind = base_of(model) or type(model)
    roles = next((entry.roles for entry in plan.classes if entry.kind is kind), {})
    model.__class__ = class_for(kind, roles, frozen, turns=True) or kind


def is_compiled(model: Module) -> bool:
    dynamo = sys.modules.get("torch._dynamo")  # looked up on torch, it would be imported
    return isinstance(model, torch.jit.ScriptModule) or (
        dynamo is not None and isinstance(model, dynamo.OptimizedModule)
    )


def _check_not_frozen(function: str, model: Module, remedy: str) -> None:
    for name, module in model.named_modules():
        if is_frozen(module):
            raise RuntimeError(
                f"fastact.{function}(): model: expected one that was not converted with "
                f"mode='inference', got {name or 'the model'} that was; {remedy}"
            )


def _copy(model: Module, share: bool) -> Module:
    """A copy of the modules and, unless they are to be shared, of parameters and buffers."""
    tensors = (*model.parameters(), *model.buffers()) if share else ()
    memo = {id(tensor): tensor for tensor in tensors}
    # Results that a module keeps, as a pruned one its weight, have no copies of their own.
    results = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    ]
    memo |= {id(value): value if share else value.detach().clone() for value in results}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise RuntimeError(
            f"fastact.convert(): model: expected one that copy.deepcopy copies, got {error}; "
            "inplace=True needs no copy"
        ) from error


def _undo(model: Module) -> None:
    """Gives every converted module its class again."""
    for module in model.modules():
        module.__class__ = base_of(module) or type(module)
        for name in _MARKS:
            vars(module).pop(name, None)
