"""Whole models: convert and revert.

Conversion keeps every module object. A layer changes its class to fastact's subclass of it. A
module whose forward calls a layer and then its activation changes its class to a subclass made for
it, whose forward makes one call of the pair; both modules stay in their places. That forward is the
module's own as torch.fx recorded it, one module at a time with every submodule as a leaf, and it
runs only while what was recorded still holds (see :class:`_Recorder`): else the module's own does.
"""

from __future__ import annotations

import contextlib
import copy
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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx  # `import torch` has already loaded it
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from fastact import _C, functional, nn
from fastact.activations import REGISTRY, resolve
from fastact.nn.frozen import FrozenLinear
from fastact.nn.linear import FusedActivation, Linear

_MODES = ("inference", "training")
# In the __dict__ of a layer that a training-mode conversion changed.
_CONVERTED = "_fastact_converted"

TWINS = {getattr(torch.nn, name): getattr(nn, name) for name in nn.activations.__all__}
_LAYERS = {torch.nn.Linear, Linear, *TWINS, *TWINS.values()}

# ---- what an activation module computes --------------------------------------------------------

# A registry name with its parameters.
_Epilogue = tuple[str, tuple[float, ...]]


def _reader(name: str) -> Callable[[torch.nn.Module], _Epilogue]:
    """Reads off a module what it computes now: it may have been edited since the conversion."""
    names = tuple(REGISTRY[name].parameters)
    if not names:
        constant = (name, ())
        return lambda module: constant
    return lambda module: (name, tuple([getattr(module, parameter) for parameter in names]))


def _softmax_reader(name: str, *rest: float) -> Callable[[torch.nn.Module], _Epilogue | None]:
    # Without dim PyTorch warns, and guesses from the number of dimensions.
    return lambda module: None if module.dim is None else (name, (module.dim, *rest))


# By fastact's class; None where the module cannot be fused as it is. RReLU draws random numbers and
# Softmax2d asks for a number of dimensions, so neither is here.
_READERS: dict[type, Callable[[torch.nn.Module], _Epilogue | None]] = {
    TWINS[getattr(torch.nn, row.module)]: _reader(row.name)
    for row in REGISTRY.values()
    if row.module and row.name != "gelu_tanh"
} | {
    nn.GELU: lambda module: ({"none": "gelu", "tanh": "gelu_tanh"}[module.approximate], ()),
    nn.Softmax: _softmax_reader("softmax", 1.0),
    nn.Softmin: _softmax_reader("softmax", -1.0),
    nn.LogSoftmax: _softmax_reader("log_softmax"),
}


def _has_hooks(module: torch.nn.Module) -> Any:
    return (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


# ---- what a rewritten forward calls in training mode -------------------------------------------


def _fused_linear(
    linear: torch.nn.Module, input: Tensor, name: str, parameters: Any, slope: Tensor | None
) -> Tensor | None:
    """None where the layer has since become one that must run on its own."""
    own = linear._parameters
    if type(linear) is not Linear or linear.fused.name or "weight" not in own or _has_hooks(linear):
        return None
    if is_dynamo_compiling():
        return torch.ops.fastact.linear(input, own["weight"], own["bias"], name, parameters, slope)
    return _C.linear(input, own["weight"], own["bias"], name, parameters, slope)


def linear_then_module(
    linear: torch.nn.Module, activation: torch.nn.Module, input: Tensor
) -> Tensor:
    """activation(linear(input)), in one operator unless a hook, a parametrization or another module
    has come between since the conversion."""
    read = _READERS.get(type(activation))
    epilogue = read(activation) if read and not _has_hooks(activation) else None
    if epilogue is not None:
        slope = activation.weight if epilogue[0] == "prelu" else None
        output = _fused_linear(linear, input, *epilogue, slope)
        if output is not None:
            return output
    return activation(linear(input))


def linear_then_function(
    linear: torch.nn.Module,
    input: Tensor,
    name: str,
    parameters: tuple[float, ...],
    slope: Tensor | None = None,
) -> Tensor:
    """The same with an activation that is a call of a function."""
    output = _fused_linear(linear, input, name, parameters, slope)
    if output is None:
        arguments = parameters if slope is None else (slope,)
        output = REGISTRY[name].operator(linear(input), *arguments)
    return output


# ---- activations as calls in a graph -----------------------------------------------------------


@functools.cache
def _calls() -> dict[Any, tuple[str, tuple[str, ...]]]:
    """What a node may call (a function, or the name of a method of Tensor): the activation's name
    and the names of the arguments after the input."""
    found: dict[Any, tuple[str, tuple[str, ...]]] = {}
    for name, row in REGISTRY.items():
        found[row.operator] = found[row.operator.default] = (
            name,
            ("weight",) if row.family == "prelu" else tuple(row.parameters),
        )
        twin = getattr(functional, name, None)
        if twin is None:
            continue
        arguments = tuple(inspect.signature(twin).parameters)[1:]
        # torch.softmax and Tensor.softmax have no _stacklevel between dim and dtype.
        shorter = tuple(argument for argument in arguments if argument != "_stacklevel")
        for spelling in (name, name + "_"):
            if hasattr(F, spelling):
                found[getattr(F, spelling)] = (name, arguments)
            if hasattr(torch, spelling):
                found[getattr(torch, spelling)] = (name, shorter)
            if hasattr(Tensor, spelling):
                found[spelling] = (name, shorter)
    return found


def _epilogue_of(node: torch.fx.Node) -> tuple[str, tuple[float, ...], torch.fx.Node | None] | None:
    """The activation, its parameters and its slope, if the node calls an activation with literal
    parameters."""
    if node.op not in ("call_function", "call_method") or node.target not in _calls():
        return None
    name, known = _calls()[node.target]
    positional = node.args[1:] if node.args else ()
    given = dict(zip(known, positional, strict=False))
    given |= {key: value for key, value in node.kwargs.items() if key != "input"}
    if len(positional) > len(known) or not given.keys() <= set(known):
        return None
    given.pop("inplace", None)  # of a value that nobody else reads
    given.pop("_stacklevel", None)
    if given.pop("dtype", None) is not None:
        return None
    if name == "prelu":
        slope = given.get("weight")
        # Read where the pair is called, so it must be an attribute rather than a result.
        attribute = isinstance(slope, torch.fx.Node) and slope.op == "get_attr"
        return (name, (), slope) if attribute else None
    if name in ("softmax", "log_softmax") and given.get("dim") is None:
        return None
    if given.get("approximate") not in (None, "none", "tanh"):
        return None
    numbers = {key: value for key, value in given.items() if key != "approximate"}
    if not all(isinstance(value, (int, float)) for value in numbers.values()):
        return None
    return *resolve("convert", name, given), None


# ---- recording a forward -----------------------------------------------------------------------


class _Unrecordable(Exception):
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
        raise _Unrecordable("it asks for the class of an intermediate value")


class _Recorder(torch.fx.Tracer):
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
                raise _Unrecordable(f"it sets self.{_dotted(paths[id(module)], name)}")
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
            raise _Unrecordable(
                f"it reads self.{_dotted(path, name)}, a {type(value).__name__} that may change"
            )
        if simple:
            self.settings[path, name] = value

    def is_leaf_module(self, module: torch.nn.Module, name: str) -> bool:
        return True

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Value(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> torch.fx.Node:
        if _surroundings() != self._surroundings:
            raise _Unrecordable("a part of it runs in another grad mode, autocast or the like")
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


def _dotted(path: str, name: str) -> str:
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
        raise _Unrecordable(f"it draws from the generator of {drawn[0]}")


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


def _class_of(base: type, rewrite: _Rewrite) -> type:
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
    module.__class__ = _class_of(base, rewrite)
    return module


def _base_of(module: torch.nn.Module) -> type | None:
    """The class of a rewritten module before; None for any other."""
    return vars(type(module)).get("_fastact_base")


def _is_sequential(module: torch.nn.Module) -> bool:
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


def _rewritten(
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
            raise _Unrecordable("in training and in evaluation a name means different things")
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


# ---- fusing in a graph -------------------------------------------------------------------------


def _lookup(graph: torch.fx.Graph, path: str) -> torch.fx.Node:
    """A submodule as a value. Past nn.Module.__getattr__, which takes 0.2 us."""
    modules = graph.create_node("get_attr", "_modules")
    *owners, last = path.split(".")
    for owner in owners:
        modules = graph.call_function(operator.getitem, (modules, owner))
        modules = graph.call_function(getattr, (modules, "_modules"))
    return graph.call_function(operator.getitem, (modules, last))


def _only_input(node: torch.fx.Node) -> Any:
    """The input of a call of a layer, where that is the only argument."""
    if len(node.args) + len(node.kwargs) != 1:
        return None
    return node.args[0] if node.args else node.kwargs.get("input")


def _reads_once(node: torch.fx.Node, value: torch.fx.Node) -> bool:
    """Whether node reads value as its input, and as nothing else."""
    reads = []
    torch.fx.node.map_arg((node.args, node.kwargs), reads.append)
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first is value and reads.count(value) == 1


# Methods that only ask. A result that nobody used is not a second reader.
_QUERIES = ("dim", "size", "numel")


class _Fuser:
    """Puts one call in the place of every pair in the forward of one module."""

    def __init__(
        self, root: torch.nn.Module, frozen: bool, linears: set[int], activations: set[int]
    ) -> None:
        self.frozen = frozen
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.linears = linears  # by id
        self.activations = activations
        self.pairs: dict[str, str] = {}  # a layer's path: its activation

    def fuse(self, graph: torch.fx.Graph) -> bool:
        """Whether there was a pair."""
        for node in reversed(graph.nodes):
            if node.op == "call_method" and node.target in _QUERIES and not node.users:
                graph.erase_node(node)
        calls = Counter(id(self._callee(node)) for node in graph.nodes)
        found = False
        for node in list(graph.nodes):
            linear = self._callee(node)
            if id(linear) not in self.linears or calls[id(linear)] > 1 or len(node.users) != 1:
                continue
            [user] = node.users
            if _only_input(node) is None or not _reads_once(user, node):
                continue
            # Where the layer was called: what comes between may write to its input.
            with graph.inserting_before(node):
                pair = self._pair(graph, node, user)
            if pair is not None:
                found = True
                user.replace_all_uses_with(pair)
                graph.erase_node(user)
                graph.erase_node(node)
        if found:
            for node in list(graph.nodes):
                if node.op == "call_module":
                    with graph.inserting_before(node):
                        arguments = (_lookup(graph, node.target), *node.args)
                        call = graph.call_method("__call__", arguments, node.kwargs)
                    node.replace_all_uses_with(call)
                    graph.erase_node(node)
        return found

    def _callee(self, node: torch.fx.Node) -> torch.nn.Module | None:
        return self.modules[node.target] if node.op == "call_module" else None

    def _pair(
        self, graph: torch.fx.Graph, node: torch.fx.Node, user: torch.fx.Node
    ) -> torch.fx.Node | None:
        input, module = _only_input(node), self._callee(user)
        slope = None
        if module is None:
            epilogue = _epilogue_of(user)
            if epilogue is None:
                return None
            name, parameters, slope_node = epilogue
            slope = slope_node.target if slope_node is not None else None
            self.pairs[node.target] = name
        else:
            if id(module) not in self.activations or _only_input(user) is None:
                return None
            epilogue = _READERS[TWINS.get(type(module), type(module))](module)
            if epilogue is None:
                return None
            name, parameters = epilogue
            if name == "prelu":
                slope = f"{user.target}.weight"
            self.pairs[node.target] = user.target
        linear = _lookup(graph, node.target)
        if module is not None and not self.frozen:
            activation = _lookup(graph, user.target)
            return graph.call_function(linear_then_module, (linear, activation, input))
        arguments = (linear, input, name, tuple(map(_plain_number, parameters)))
        if slope is not None:
            arguments += (graph.create_node("get_attr", slope),)
        if self.frozen:
            return graph.call_method("with_activation", arguments)
        return graph.call_function(linear_then_function, arguments)


def _plain_number(value: float) -> float:
    """Not NumPy's, whose text needs NumPy."""
    return int(value) if isinstance(value, int) else float(value)


# ---- what is to be done with a model -----------------------------------------------------------


@dataclass
class _Plan:
    """What a conversion does with a model, without having touched it."""

    frozen: bool
    replaced: list[torch.nn.Module] = field(default_factory=list)
    rewritten: list[tuple[torch.nn.Module, type]] = field(default_factory=list)
    # What becomes of a module, and what could not be done with one, by name.
    fates: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, fate: str) -> None:
        self.fates.setdefault(name, []).append(fate)

    def fail(self, name: str, reason: str) -> None:
        self.failures[name] = reason
        self.note(name, f"left as it is: {reason}")

    def carry_out(self) -> None:
        for module in self.replaced:
            if isinstance(module, torch.nn.Linear) and self.frozen:
                FrozenLinear.freeze(module)
                continue
            if not self.frozen:
                vars(module)[_CONVERTED] = True
            if isinstance(module, torch.nn.Linear):
                module.fused = FusedActivation("nn.Linear", None, {})
                module.__class__ = Linear
            else:
                module.__class__ = TWINS[type(module)]
        for module, kind in self.rewritten:
            module.__class__ = kind

    def __str__(self) -> str:
        """One line a module that something happens to, or that it should have happened to."""
        rows = [
            (name or "(the model)", kind, "; ".join(self.fates[name]))
            for name, kind in self.classes.items()
            if name in self.fates
        ]
        if not rows:
            return "nothing to convert"
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows)


def obstacle(module: torch.nn.Module, frozen: bool) -> str | None:
    """Why a layer, or a module derived from one, must stay what it is."""
    if type(module) not in _LAYERS:
        if torch.nn.utils.parametrize.is_parametrized(module):
            return "it is parametrized"
        return "its class is derived from a layer's, and may compute something else"
    if "forward" in vars(module):
        return "its forward was set on the instance"
    if isinstance(module, torch.nn.Linear):
        if frozen and _has_hooks(module):
            return "it has hooks, which may change its weight"
        # A pruned layer sets its weight, from another parameter, in a hook.
        if not _has_plain_weight(module) and (frozen or "weight" in module._parameters):
            return "its weight or bias is not a plain parameter"
    return None


def _has_plain_weight(linear: torch.nn.Module) -> bool:
    own = linear._parameters
    weight, bias = own.get("weight"), own.get("bias")
    return (
        type(weight) is torch.nn.Parameter
        and weight.layout is torch.strided
        and "bias" in own
        and (bias is None or type(bias) is torch.nn.Parameter)
    )


def _has_own_forward(module: torch.nn.Module) -> bool:
    """Whether pairs are looked for in its forward: a Sequential's, and those of users' classes."""
    kind = type(module)
    if _is_sequential(module) or isinstance(module, torch.fx.GraphModule):
        return True
    return not (kind.__module__.startswith("torch.") or kind.forward is torch.nn.Module.forward)


def _record(
    module: torch.nn.Module, fuser: _Fuser, frozen: bool
) -> list[tuple[torch.fx.Graph, Mapping[Any, Any]]]:
    """The graphs of its forward that have pairs, with these fused: in evaluation where it is to be
    frozen, else as the module is now and, where it asks for that, as it may become."""
    if isinstance(module, torch.fx.GraphModule):
        raise _Unrecordable("it is a torch.fx.GraphModule: convert what that was made of")
    if "forward" in vars(module):
        raise _Unrecordable("it was set on the instance")
    was = module.training
    found = []
    for training in (False,) if frozen else (was, not was):
        recorder = _Recorder(frozen)
        module.__dict__["training"] = training
        try:
            graph = recorder.record(module)
        finally:
            module.__dict__["training"] = was
        if fuser.fuse(graph):
            found.append((graph, recorder.settings))
        if ("", "training") not in recorder.settings:
            break
    return found


def _plan(model: torch.nn.Module, frozen: bool, accepts: Callable[[str], Any]) -> _Plan:
    plan = _Plan(frozen)
    modules = dict(model.named_modules())
    plan.classes = {name: type(module).__name__ for name, module in modules.items()}
    places = Counter(
        id(child)
        for module in modules.values()
        for child in module._modules.values()
        if child is not None
    )
    linears, activations = set(), set()  # what may be part of a pair, by id

    for name, module in modules.items():
        if not isinstance(module, (torch.nn.Linear, *TWINS)) or type(module) is FrozenLinear:
            continue
        if not accepts(name):
            plan.note(name, "left out by filter_fn")
            continue
        reason = obstacle(module, frozen)
        if reason is not None:
            plan.fail(name, reason)
            continue
        kind = type(module)
        becomes = TWINS.get(kind, kind)
        if isinstance(module, torch.nn.Linear):
            becomes = FrozenLinear if frozen else Linear
            own_activation = kind is Linear and module.fused.name is not None
            if _has_plain_weight(module) and not own_activation and places[id(module)] == 1:
                linears |= set() if _has_hooks(module) else {id(module)}
        elif becomes in _READERS and not _has_hooks(module):
            activations.add(id(module))
        if becomes is not kind:
            plan.replaced.append(module)
            plan.note(name, f"{becomes.__module__}.{becomes.__name__}")

    # The innermost first: what is called by its own container is not looked for further out.
    for name, module in reversed(modules.items()):
        within = linears.intersection(map(id, module.modules()))
        if not within or not _has_own_forward(module) or _base_of(module) is not None:
            continue
        if not accepts(name):
            plan.note(name, "left out by filter_fn")
            continue
        fuser = _Fuser(module, frozen, within, activations)
        try:
            recordings = _record(module, fuser, frozen)
            if recordings:
                rewrite = _rewritten(module, recordings, frozen)
                plan.rewritten.append((module, _class_of(type(module), rewrite)))
        except Exception as error:  # it is the user's forward that ran
            reason, *_ = str(error).splitlines() or [type(error).__name__]
            plan.fail(name, f"its forward cannot be recorded: {reason}")
            continue
        for path, activation in fuser.pairs.items():
            plan.note(_dotted(name, path), f"fused with {activation}")
            linears.remove(id(fuser.modules[path]))
    return plan


# ---- the public functions ----------------------------------------------------------------------


def convert(
    model: torch.nn.Module,
    *,
    mode: str = "inference",
    filter_fn: Callable[[torch.nn.Module, str], bool] | None = None,
    inplace: bool = False,
    dry_run: bool = False,
    use_fallback: bool = True,
) -> torch.nn.Module:
    """The model on fastact's layers, with each Linear and the activation after it fused.

    Replaced are torch.nn.Linear and every activation module of torch.nn. A pair is fused in a
    torch.nn.Sequential, and in a forward such as ``F.relu(self.fc(x))`` that torch.fx can trace,
    each module on its own. Whatever else the model has stays as it is: other layers, classes
    derived from the layers, parametrized ones. A pair stays apart where its Linear is called twice
    or has a second reader, where either module has hooks, and in a forward that cannot be traced.
    Every module stays in its place, so that ``model[0]`` and the state_dict's keys are unchanged.

    "inference" returns a model in evaluation mode with frozen weights, each also held as the kernel
    reads it. Its state_dict holds the plain weights; to load or to edit them do so in the original,
    and convert again. Copies, pickles and exports carry the plain weights.

    "training" returns a model that shares its parameters and buffers with the original: an
    optimizer made for one trains both. Weights, settings, hooks and modules edited afterwards are
    honoured, except that a forward is as it was traced until a setting that it read changes; then
    it runs unfused. Undone by :func:`revert`.

    Args:
        model: any module; without inplace it is not touched.
        mode: "inference" or "training".
        filter_fn: called as ``filter_fn(module, name)`` for each layer to be replaced, and for each
            module whose forward would be rewritten; False leaves that module as it is, though not
            those inside it.
        inplace: changes the model itself instead of a copy.
        dry_run: prints what would be done, and returns the model untouched.
        use_fallback: False raises where a layer cannot be replaced or a forward cannot be traced.

    Returns:
        The converted model, of the same class, or of one derived from it where its own forward
        calls a pair.

    Raises:
        TypeError: model is not a module, or is a compiled one; filter_fn is not callable.
        ValueError: an unknown mode.
        RuntimeError: use_fallback is False and something would be left; model cannot be copied;
            mode is "training" and model is frozen.

    Forwards of the model's own classes are run once on placeholders. Not to be called while other
    threads run modules: torch.fx traces by patching torch.nn.Module.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> x = torch.randn(2, 4)
        >>> fast = fastact.convert(model)
        >>> torch.allclose(fast(x), model(x), atol=1e-6)
        True
        >>> _ = fastact.convert(model, dry_run=True)
        0  Linear  fastact.nn.frozen.FrozenLinear; fused with 1
        1  ReLU    fastact.nn.ReLU
    """
    if not isinstance(model, torch.nn.Module):
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
    if not frozen:
        _check_not_frozen("convert", model, "convert the original")

    # filter_fn may compare with the modules that the caller knows.
    modules = dict(model.named_modules())

    def accepts(name: str) -> Any:
        return filter_fn is None or filter_fn(modules[name], name)

    # A dry run works on a copy too, of the modules alone.
    result = model if inplace and not dry_run else _copy(model, share=dry_run or not frozen)
    _undo(result)
    training = [(module, module.training) for module in result.modules()]
    if frozen:
        result.eval()
    plan = _plan(result, frozen, accepts)
    if plan.failures and not use_fallback:
        for module, flag in training:
            module.training = flag
        listed = "; ".join(
            f"{name or 'the model'} ({plan.classes[name]}): {reason}"
            for name, reason in plan.failures.items()
        )
        raise RuntimeError(
            "fastact.convert(): use_fallback: expected a model that can be converted throughout, "
            f"got {len(plan.failures)} to be left as they are: {listed}"
        )
    if dry_run:
        print(plan)
        return model
    if frozen:
        result.requires_grad_(False)
    plan.carry_out()
    return result


def revert(model: torch.nn.Module) -> torch.nn.Module:
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
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"fastact.revert(): model: expected a torch.nn.Module, got {type(model).__name__}"
        )
    _check_not_frozen("revert", model, "the original model is what it was made of")
    for name, module in model.named_modules():
        if _CONVERTED in vars(module) and type(module) not in (Linear, *TWINS.values()):
            raise RuntimeError(
                f"fastact.revert(): {name or 'model'}: expected the class that convert() gave it, "
                f"got {type(module).__name__}; first undo what changed it since"
            )
    _undo(model)
    return model


def is_compiled(model: torch.nn.Module) -> bool:
    dynamo = sys.modules.get("torch._dynamo")  # looked up on torch, it would be imported
    return isinstance(model, torch.jit.ScriptModule) or (
        dynamo is not None and isinstance(model, dynamo.OptimizedModule)
    )


def _check_not_frozen(function: str, model: torch.nn.Module, mend: str) -> None:
    for name, module in model.named_modules():
        if isinstance(module, FrozenLinear):
            raise RuntimeError(
                f"fastact.{function}(): model: expected no frozen layer, got {name or 'model'}, "
                f"converted with mode='inference'; {mend}"
            )


def _copy(model: torch.nn.Module, share: bool) -> torch.nn.Module:
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


def _undo(model: torch.nn.Module) -> None:
    """Gives every module that a training-mode conversion changed its class again."""
    for module in model.modules():
        base = _base_of(module)
        if base is not None and not vars(type(module))["_fastact_frozen"]:
            module.__class__ = base
        if vars(module).pop(_CONVERTED, False):
            if type(module) is Linear:
                del module.fused
            module.__class__ = type(module).__base__
