"""A module's forward as a graph, and a graph as a module's forward: what conversion rewrites.

A forward is recorded by torch.fx, one module at a time with every submodule as a leaf. The one made
of it runs only while what was recorded still holds (see :class:`Recorder`): else the module's own
does.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import importlib
import inspect
import linecache
import math
import operator
import random
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx  # `import torch` has already loaded it
from torch import Tensor

# ---- recording a forward -----------------------------------------------------------------------


class Unrecordable(Exception):
    """A forward does what a graph cannot repeat. The message says what."""


# What nn.Module keeps for itself. `training` is a setting like any other.
_INTERNALS = frozenset(vars(torch.nn.Module())) - {"training"}
# Constants that have no text, but can be compared.
_COMPARABLE = (
    types.FunctionType,
    types.BuiltinFunctionType,
    type,
    torch.dtype,
    torch.device,
    torch.Size,
    enum.Enum,
)
# Looked up again by the rewritten forward, or not a setting. Proxy first: see _Value.__class__.
_NO_SETTING = (torch.fx.Proxy, Tensor, torch.nn.Module, types.MethodType, types.ModuleType)


def _is_literal(value: Any) -> bool:
    """Whether repr() gives its text."""
    if type(value) is tuple:
        return all(map(_is_literal, value))
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str)


class _Value(torch.fx.Proxy):
    """A value in a forward. To code of torch and fastact it is a Proxy. A forward that asks for its
    class is told Tensor where it is an argument (the rewritten forward checks that), and stopped
    elsewhere: a Proxy would lead it into the branch for everything that is not a tensor."""

    @property
    def __class__(self) -> type:
        if sys._getframe(1).f_globals.get("__name__", "").startswith(("torch.", "fastact.")):
            return _Value
        if self.node.op == "placeholder":
            return Tensor
        raise Unrecordable("it asks for the class of an intermediate value")


def _in_place(name: str) -> Callable[[_Value, Any], _Value]:
    function = getattr(operator, name)

    def method(self: _Value, other: Any) -> _Value:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


# A Proxy lacks them, and Python takes x + y for x += y then: who else holds x would miss the write.
for _name in torch.fx.graph.inplace_methods:
    setattr(_Value, f"__{_name}__", _in_place(_name))


class Recorder(torch.fx.Tracer):
    """Records one forward, with every submodule as a leaf.

    Torch.fx runs the forward once and keeps what happened to tensors, so everything else that it
    did would be repeated for ever. Hence:

    - arguments with a default keep it, and the others are tensors: the rewritten forward checks;
    - settings that the forward read (``self.training``, ``self.dropout.p``), and the lengths of
      containers, are noted in `settings` and compared at each call;
    - setting an attribute, drawing random numbers without a tensor, changing grad mode or autocast
      for a part, and constants made on the way, end the recording.
    """

    proxy_buffer_attributes = True

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.frozen = frozen
        self.settings: dict[tuple[str, str], Any] = {}

    def record(self, module: torch.nn.Module) -> torch.fx.Graph:
        """Raises whatever the forward, run on placeholders, raises."""
        with contextlib.ExitStack() as stack:
            if self.frozen:
                # no_grad in a part then changes nothing.
                stack.enter_context(torch.no_grad())
            self._surroundings = _surroundings()
            stack.enter_context(_known_random_state())
            stack.enter_context(self._watching(module))
            graph = self.trace(module)
        [output] = (node for node in graph.nodes if node.op == "output")
        output.type = None  # an annotation, which may name what is not importable
        return graph

    @contextlib.contextmanager
    def _watching(self, root: torch.nn.Module) -> Iterator[None]:
        """Notes the settings that are read and stops what is written, in this thread."""
        paths = {id(module): path for path, module in root.named_modules()}
        thread = threading.get_ident()
        original = torch.nn.Module.__setattr__

        def __getattribute__(module: torch.nn.Module, name: str) -> Any:
            value = object.__getattribute__(module, name)
            if name.startswith("__") or thread != threading.get_ident() or id(module) not in paths:
                return value
            reader = sys._getframe(1).f_globals.get("__name__", "")
            if name == "_modules" and reader == torch.nn.Sequential.__module__:
                self.settings[paths[id(module)], name] = len(value)
            elif name not in _INTERNALS and not reader.startswith("torch.fx."):
                self._note(paths[id(module)], name, value)
            return value

        def __setattr__(module: torch.nn.Module, name: str, value: Any) -> None:
            if thread == threading.get_ident() and id(module) in paths:
                raise Unrecordable(f"it sets self.{dotted(paths[id(module)], name)}")
            original(module, name, value)

        torch.nn.Module.__getattribute__ = __getattribute__
        torch.nn.Module.__setattr__ = __setattr__
        try:
            yield
        finally:
            del torch.nn.Module.__getattribute__
            torch.nn.Module.__setattr__ = original

    def _note(self, path: str, name: str, value: Any) -> None:
        if isinstance(value, _NO_SETTING):
            return
        simple = _is_literal(value) or isinstance(value, _COMPARABLE)
        # A forward may keep values in these, even in one that is to be frozen.
        if isinstance(value, (list, dict, set)) or not (simple or self.frozen):
            raise Unrecordable(
                f"it reads self.{dotted(path, name)}, a {type(value).__name__} that may change"
            )
        if simple:
            self.settings[path, name] = value

    def is_leaf_module(self, module: torch.nn.Module, name: str) -> bool:
        return True

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Value(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> torch.fx.Node:
        if _surroundings() != self._surroundings:
            raise Unrecordable("a part of it runs in another grad mode, autocast or the like")
        return super().create_node(*args, **kwargs)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        positional, keywords = [], {}
        for parameter in _required(root_fn):
            value = self.create_proxy("placeholder", parameter.name, (), {})
            if parameter.kind is parameter.KEYWORD_ONLY:
                keywords[parameter.name] = value
            else:
                positional.append(value)
        return functools.partial(root_fn, self.root, **keywords), positional


def dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _parameters_of(forward: Callable[..., Any]) -> list[inspect.Parameter]:
    """All but self."""
    return list(inspect.signature(forward).parameters.values())[1:]


def _required(forward: Callable[..., Any]) -> list[inspect.Parameter]:
    return [
        parameter
        for parameter in _parameters_of(forward)
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _surroundings() -> tuple[Any, ...]:
    """What a `with` may change for the tensor operations in it."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        *(torch.get_autocast_dtype(device) for device in ("cpu", "cuda")),
        # Activation checkpointing and offloading.
        torch._C._autograd._top_saved_tensors_default_hooks(True),
    )


@contextlib.contextmanager
def _known_random_state() -> Iterator[None]:
    """Puts the generators back, and raises where one was drawn from."""
    generators = {
        "torch": (torch.get_rng_state, torch.set_rng_state, Tensor.tolist),
        "random": (random.getstate, random.setstate, tuple),
    }
    if numpy_random := sys.modules.get("numpy.random"):
        generators["numpy.random"] = (
            numpy_random.get_state,
            numpy_random.set_state,
            lambda state: (state[1].tolist(), state[2:]),
        )
    before = {name: get() for name, (get, _, _) in generators.items()}
    drawn = []
    try:
        yield
    finally:
        for name, (get, put, comparable) in generators.items():
            if comparable(get()) != comparable(before[name]):
                drawn.append(name)
                put(before[name])
    if drawn:
        raise Unrecordable(f"it draws from the generator of {drawn[0]}")


# ---- rewriting a forward -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Rewrite:
    """The text of a forward and the objects it names: what copies and pickles of a rewritten module
    carry in place of its class."""

    source: str
    constants: Mapping[str, Any]
    frozen: bool

    def __deepcopy__(self, memo: Any) -> _Rewrite:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        imports = {
            name: value.__name__
            for name, value in self.constants.items()
            if isinstance(value, types.ModuleType)
        }
        others = {name: self.constants[name] for name in self.constants.keys() - imports.keys()}
        return _rewrite_from, (self.source, imports, others, self.frozen)


def _rewrite_from(
    source: str, imports: Mapping[str, str], others: Mapping[str, Any], frozen: bool
) -> _Rewrite:
    modules = {name: importlib.import_module(module) for name, module in imports.items()}
    return _Rewrite(source, {**modules, **others}, frozen)


class _Name(str):
    """A default in the text of a signature."""

    __repr__ = str.__str__


def _default(parameter: inspect.Parameter) -> str:
    return f"_default_{parameter.name}"


# Modules with the same class and text share theirs, and so what torch.compile makes of it.
_classes: weakref.WeakValueDictionary[Any, type] = weakref.WeakValueDictionary()


class _Unannounced(torch.nn.Module):
    """First among the bases of a class that no __init_subclass__ is to hear of: one that keeps a
    register of classes by name would offer ours in place of the user's."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        pass


def class_of(base: type, rewrite: _Rewrite) -> type:
    """The subclass of base with this forward."""
    constants = tuple(sorted((name, id(value)) for name, value in rewrite.constants.items()))
    key = (base, rewrite.source, constants, rewrite.frozen)
    made = _classes.get(key)
    if made is not None:
        return made
    scope = {
        "_Tensor": Tensor,
        **rewrite.constants,
        **{
            _default(parameter): parameter.default
            for parameter in _parameters_of(base.forward)
            if parameter.default is not parameter.empty
        },
        "_original": base.forward,
    }
    digest = hashlib.sha256(repr((base, rewrite.source)).encode()).hexdigest()[:8]
    file = f"<fastact {base.__qualname__} {digest}>"
    text = rewrite.source
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    exec(compile(text, file, "exec"), scope)

    def __reduce_ex__(self: torch.nn.Module, protocol: Any) -> tuple[Any, ...]:
        function, arguments, *rest = super(made, self).__reduce_ex__(protocol)
        arguments = tuple(base if argument is made else argument for argument in arguments)
        return _rebuild, (base, rewrite, function, arguments), *rest

    members = {
        "forward": scope["forward"],
        "__reduce_ex__": __reduce_ex__,
        "__doc__": base.__doc__,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "_fastact_base": base,
        "_fastact_frozen": rewrite.frozen,
    }
    made = types.new_class(
        base.__name__, (_Unannounced, base), {}, lambda scope: scope.update(members)
    )
    _classes[key] = made
    return made


def _rebuild(
    base: type, rewrite: _Rewrite, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> torch.nn.Module:
    module = function(*arguments)
    module.__class__ = class_of(base, rewrite)
    return module


def base_of(module: torch.nn.Module) -> type | None:
    """The class of a rewritten module before; None for any other."""
    return vars(type(module)).get("_fastact_base")


def is_sequential(module: torch.nn.Module) -> bool:
    return type(module).forward is torch.nn.Sequential.forward


def _arguments_hold(forward: Callable[..., Any]) -> str:
    """The condition under which what was recorded is right for the arguments."""
    if forward is torch.nn.Sequential.forward:
        return "True"
    conditions = []
    for parameter in _parameters_of(forward):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            conditions.append(f"not {parameter.name}")
        elif parameter.default is parameter.empty:
            conditions.append(f"isinstance({parameter.name}, _Tensor)")
        else:
            conditions.append(f"{parameter.name} is {_default(parameter)}")
    return " and ".join(conditions) or "True"


def _call_of(forward: Callable[..., Any]) -> str:
    """The arguments, handed on."""
    forms = {
        inspect.Parameter.KEYWORD_ONLY: "{0}={0}",
        inspect.Parameter.VAR_POSITIONAL: "*{0}",
        inspect.Parameter.VAR_KEYWORD: "**{0}",
    }
    return ", ".join(
        ["self", *(forms.get(p.kind, "{0}").format(p.name) for p in _parameters_of(forward))]
    )


def _signature_of(forward: Callable[..., Any]) -> str:
    parameters = [
        parameter.replace(
            annotation=parameter.empty,
            default=parameter.empty
            if parameter.default is parameter.empty
            else _Name(_default(parameter)),
        )
        for parameter in inspect.signature(forward).parameters.values()
    ]
    parameters[0] = parameters[0].replace(name="self")
    return str(inspect.Signature(parameters))


def _settings_hold(settings: Mapping[tuple[str, str], Any], constants: dict[str, Any]) -> str:
    """The condition that what the forward read is as it was."""
    conditions = []
    for (path, name), value in settings.items():
        owner = "self" + "".join(f"._modules[{part!r}]" for part in path.split(".") if part)
        if name == "_modules":
            conditions.append(f"len({owner}._modules) == {value}")
        elif value is None or isinstance(value, bool):
            conditions.append(f"{owner}.{name} is {value}")
        elif _is_literal(value):
            conditions.append(f"{owner}.{name} == {value!r}")
        else:
            constant = f"_constant_{len(constants)}"
            constants[constant] = value
            conditions.append(f"{owner}.{name} == {constant}")
    return " and ".join(conditions)


def _trimmed(source: str, constants: Mapping[str, Any], frozen: bool) -> _Rewrite:
    """Without what torch.fx offers every text, and this one does not name."""
    words = set(re.findall(r"\w+", source))
    named = {name: value for name, value in constants.items() if name in words}
    return _Rewrite(source + "\n", named, frozen)


def rewritten(
    module: torch.nn.Module,
    recordings: list[tuple[torch.fx.Graph, Mapping[Any, Any]]],
    frozen: bool,
) -> _Rewrite:
    """A forward that runs the recording whose settings hold, or else the module's own."""
    constants: dict[str, Any] = {}
    forward = type(module).forward
    header = f"def forward{_signature_of(forward)}:"
    own = f"return _original({_call_of(forward)})"
    arguments = _arguments_hold(forward)
    bodies, conditions = [], []
    for graph, settings in recordings:
        code = graph.python_code(root_module="self")
        if any(constants.get(name, value) is not value for name, value in code.globals.items()):
            raise Unrecordable("in training and in evaluation a name means different things")
        constants |= code.globals
        bodies.append(code.src.strip().partition("\n")[2])
        conditions.append(_settings_hold(settings, constants) or "True")
    if len(recordings) == 1:
        guard = f"    if not ({arguments} and {conditions[0]}):\n        {own}"
        return _trimmed("\n".join([header, guard, bodies[0]]), constants, frozen)
    required = ", ".join(["self", *(parameter.name for parameter in _required(forward))])
    texts = [
        f"def _recorded_{number}({required}):\n{body}\n\n" for number, body in enumerate(bodies)
    ]
    branches = [
        f"        if {condition}:\n            return _recorded_{number}({required})"
        for number, condition in enumerate(conditions)
    ]
    text = "\n".join([*texts, header, f"    if {arguments}:", *branches, f"    {own}"])
    return _trimmed(text, constants, frozen)
