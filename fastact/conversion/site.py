"""What a site does when it is called.

A site stands in the place of one layer's call with what follows it. It is handed the objects that
the source names, in the source's order. First it looks: which of the following links it knows, as
they are now. Looking runs no code but ours. Then either the layer and those links run as one
operator, or the calls are made that the source makes. Should the operator raise, they are made too,
and it is they that raise.
"""

from __future__ import annotations

import functools
import itertools
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling, is_exporting
from torch.nn.modules import module as module_globals

from fastact import _C
from fastact.activations import REGISTRY
from fastact.conversion import packing
from fastact.conversion.geometry import (
    fits_result,
    geometry_of,
    is_channels_last,
    lies_as_pytorchs,
)
from fastact.conversion.links import (
    ACTIVATION_TYPES,
    BARE,
    IDLE,
    IDLE_TYPES,
    LAYER_TYPES,
    LEFT_OUT,
    METHODS,
    NORM_TYPES,
    POOL_TYPES,
    SUMS,
    WINOGRAD,
    Epilogue,
    Pool,
    born,
    calls_replaced,
    epilogue_of,
    foreign,
    interference,
    is_plain,
    layer_obstacle,
    of_call,
    pool_of,
    pool_of_call,
    unknown_layer,
    untouched_function,
)
from fastact.layers import LAYERS, Layer
from fastact.overrides import traced

# ---- what a site is ----------------------------------------------------------------------------

CALL, METHOD, SUM = "call", "method", "sum"
MISSING = object()


class Operand(NamedTuple):
    """A value that a site reads: a constant; or one that it is handed; or a global of the function;
    or an attribute of one of those."""

    slot: int = -1
    name: str = ""  # of the global
    path: tuple[str, ...] = ()
    constant: Any = None

    def now(self, values: Sequence[Any], scope: dict[str, Any]) -> Any:
        """As Python reads it."""
        if self.slot < 0 and not self.name:
            return self.constant
        root = values[self.slot] if self.slot >= 0 else _global(scope, self.name)
        return functools.reduce(getattr, self.path, root)

    def peek(self, values: Sequence[Any], scope: dict[str, Any]) -> Any:
        """The same without running anybody's code; MISSING where that cannot be."""
        if self.slot < 0 and not self.name:
            return self.constant
        root = values[self.slot] if self.slot >= 0 else _global(scope, self.name)
        for name in self.path:
            root = peek(root, name)
        return root


class Link(NamedTuple):
    """One call after the layer's, or a sum."""

    kind: str
    callee: Operand | None = None  # of a call; of a sum, the function, if it is written as one
    name: str = ""  # of a method
    args: tuple[Operand, ...] = ()  # after the value; the other operand of a sum
    kwargs: tuple[tuple[str, Operand], ...] = ()
    first: bool = False  # the other operand stands first
    statement: int = 0  # in which of the joined statements it is written


class Plan(NamedTuple):
    """A site as the source shows it. Slots of its links count what the chain evaluates in order,
    before the layer is called."""

    order: tuple[Operand, ...]  # where that lies in what the site is handed
    layer: int
    input: int
    links: tuple[Link, ...]
    statements: int  # how many are joined; of more than one, a site also tells how many it has done
    frozen: bool  # whether weights may be packed
    where: str  # file and line
    source: str  # the chain, as written


def _global(scope: dict[str, Any], name: str) -> Any:
    if name in scope:
        return scope[name]
    builtins = scope.get("__builtins__", {})
    return (builtins if isinstance(builtins, dict) else vars(builtins)).get(name, MISSING)


_MODULE_TYPE = type(torch)
_get_attribute: Any = object.__getattribute__
_get_missing = torch.nn.Module.__getattr__


def peek(owner: Any, name: str) -> Any:
    """An attribute, where reading it runs nobody's code; else MISSING."""
    kind = type(owner)
    if kind is _MODULE_TYPE:
        return owner.__dict__.get(name, MISSING)
    if not isinstance(owner, torch.nn.Module) or kind.__getattribute__ is not _get_attribute:
        return MISSING
    inherited = _of_class(kind, name)
    if inherited is not MISSING and hasattr(type(inherited), "__set__"):
        return MISSING
    own = owner.__dict__
    if name in own:
        return own[name]
    if inherited is not MISSING:
        return MISSING if hasattr(type(inherited), "__get__") else inherited
    if kind.__getattr__ is not _get_missing and not is_exporting():
        return MISSING
    for registered in ("_parameters", "_buffers", "_modules"):
        if name in own[registered]:
            return own[registered][name]
    return MISSING


def _of_class(kind: type, name: str) -> Any:
    for base in kind.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return MISSING


# ---- whether anybody watches -------------------------------------------------------------------

_function_mode = torch._C._is_torch_function_mode_enabled
_dispatch_modes = torch._C._len_torch_dispatch_stack
_functorch_level = torch._C._functorch.maybe_current_level
_tracing_state = torch._C._get_tracing_state
_is_autocast = torch.is_autocast_enabled


class Observer(NamedTuple):
    """Who is told what sites do, and is itself no reason to leave a call as it is: explain."""

    thread: int
    told: Callable[..., None]


_observer: Observer | None = None


@contextmanager
def observing(told: Callable[..., None]) -> Iterator[None]:
    """Inside, told(plan, layer, taken links, why not more) is called for each call of a site in
    this thread. Whoever observes may have one dispatch mode."""
    global _observer
    before, _observer = _observer, Observer(threading.get_ident(), told)
    _C.observe_sites(True)
    try:
        yield
    finally:
        _observer = before
        _C.observe_sites(before is not None)


def _observed() -> Observer | None:
    """Who observes this thread."""
    if _observer is not None and _observer.thread == threading.get_ident():
        return _observer
    return None


def disturbance() -> str | None:
    """Why no call may be left out now: somebody watches operators or functions, or has replaced
    what calls modules."""
    if is_dynamo_compiling():  # which lets nobody else watch, and cannot ask
        return None
    if (_function_mode() or _dispatch_modes() > (_observed() is not None)) and not is_exporting():
        return "a mode watches every operator"
    if _tracing_state() is not None:
        return "torch.jit.trace records it"
    return calls_replaced()


# ---- a fusion ----------------------------------------------------------------------------------

# What PyTorch's backward reads of an activation is its result, so that eager does not allow writing
# to that. Of all others it is their input: a fused one then keeps the pre-activation.
KEEPS_RESULT = frozenset(row.name for row in REGISTRY.values() if row.twin_saves_output)
# Not elementwise: after a convolution, their result may have other strides than PyTorch's.
ALONG_DIMENSION = frozenset(row.name for row in REGISTRY.values() if row.along_dimension)


class Fusion:
    """A layer with those links after it that one operator computes."""

    def __init__(self, row: Layer, layer: Any, value: Tensor, frozen: bool) -> None:
        own = layer._parameters
        self.row, self.layer, self.value, self.frozen = row, layer, value, frozen
        self.weight, self.bias = own["weight"], own["bias"]
        self.geometry = geometry_of(row, layer) or ()
        # After the other operands of a convolution, where its weight is packed.
        self.setting = (layer.__dict__.get(WINOGRAD),) if row.dims else ()
        self.norm: torch.nn.Module | None = None
        self.residual: Tensor | None = None
        self.epilogue: Epilogue | None = None
        self.pool: Pool | None = None
        # The input lies channels last, where it would not as the program is written.
        self.is_turned = False
        self.taken: list[str] = []

    def take(self, link: Link, values: Sequence[Any], scope: dict[str, Any]) -> str | None:
        """Adds a link, or says why not."""
        callee = None if link.callee is None else link.callee.peek(values, scope)
        args = tuple([operand.peek(values, scope) for operand in link.args])
        kwargs = {name: operand.peek(values, scope) for name, operand in link.kwargs}
        if any(value is MISSING for value in (callee, *args, *kwargs.values())):
            return "an attribute is not a plain one"
        if self.pool is not None:
            return "it follows a pool"
        if link.kind == SUM:
            return self._add(link, callee, args[0])
        if link.kind == METHOD:
            if getattr(Tensor, link.name) is not METHODS[link.name]:
                return f"torch.Tensor.{link.name} was replaced"
            if link.name == "add":
                alone = len(args) == 1 and not kwargs
                return self._add(link, None, args[0]) if alone else "it is a scaled sum"
            epilogue = of_call(link.name, args, kwargs) or "its arguments are others than numbers"
        elif type(callee) in NORM_TYPES and not (args or kwargs):
            return self._fold(callee)
        elif (pool := pool_of(callee, args, kwargs)) is not None:
            return self._pool(pool) if isinstance(pool, Pool) else pool
        else:
            epilogue = epilogue_of(callee, args, kwargs)
        if epilogue is IDLE:
            self.taken.append("dropout")
            return None
        return self._activate(epilogue) if isinstance(epilogue, Epilogue) else epilogue

    def _add(self, link: Link, function: Any, other: Any) -> str | None:
        if function is not None and function not in SUMS:
            return "it is no sum that fastact knows"
        if self.residual is not None or self.epilogue is not None:
            return "a second sum"
        if not is_plain(other) or other.layout is not torch.strided:
            return "what is added is no plain tensor"
        if not other.dtype == self.value.dtype == self.weight.dtype:
            return "what is added has another shape or dtype"
        if self.row.dims:
            if not fits_result(other, self.value, self.weight, self.geometry):
                return "what is added has another shape or other strides"
        elif other.shape != (*self.value.shape[:-1], *self.weight.shape[:1]):
            return "what is added has another shape or dtype"
        # The first operand decides the strides of a sum.
        elif link.first and not other.is_contiguous():
            return "what is added has other strides"
        # A sum of two dtypes promotes, where an operator of autocast casts.
        if _is_autocast("cpu"):
            return "a sum under autocast"
        self.residual = other
        self.taken.append("residual")
        return None

    def _fold(self, norm: Any) -> str | None:
        reason = interference(norm, NORM_TYPES[type(norm)])
        if reason is not None:
            return reason
        if LEFT_OUT in norm.__dict__:
            return "left out by filter_fn"
        if not self.frozen:
            return "norms are folded for inference alone"
        if type(norm) is not self.row.norm:
            return "it is not the norm of such a layer"
        if self.taken or self.epilogue is not None:
            return "it does not follow the layer at once"
        own, buffers = norm._parameters, norm._buffers
        tensors: list[Any] = [own.get("weight", norm), own.get("bias", norm)]
        running = [buffers.get("running_mean"), buffers.get("running_var")]
        features, dtype = self.weight.shape[:1], self.weight.dtype
        fits = all(
            t is None or (is_plain(t) and t.shape == features and t.dtype == dtype)
            for t in (*tensors, *running)
        )
        if norm.training or None in running or not fits or self.value.dim() != self.row.dims + 2:
            return "it is not a norm of features by statistics that it keeps"
        if (
            dtype not in (torch.float32, torch.float64)
            or not untouched_function(F, "batch_norm")
            or not self.may_pack(*tensors, *running)
            or _is_autocast("cpu")
        ):
            return "it cannot be folded here"
        self.norm = norm
        self.taken.append("norm")
        return None

    def _pool(self, pool: Pool) -> str | None:
        if not self.may_turn():
            return "pools are fused for inference alone, after images that are not channels last"
        self.pool = pool
        self.taken.append("max_pool2d")
        return None

    def may_turn(self) -> bool:
        """Whether the images may lie channels last meanwhile, where they would not as the program
        is written: in inference. Convolutions are 1.05 to 4 times as fast so, PyTorch's max pool 6
        to 25 times (2 threads, Zen 5)."""
        return (
            self.row.dims == 2
            and self.may_pack(self.epilogue and self.epilogue.slope)
            and not self.weight.is_inference()
            and not _is_autocast("cpu")
            and (self.is_turned or not is_channels_last(self.value, self.weight))
        )

    def _activate(self, epilogue: Epilogue) -> str | None:
        if self.epilogue is not None:
            return "a second activation"
        if self.row.dims and epilogue.name in ALONG_DIMENSION:
            return "it is not fused with convolutions"
        keeps = epilogue.name in KEEPS_RESULT or not epilogue.inplace
        if not keeps and self._needs_grad(epilogue.slope):
            return "in place, its backward reads the result"
        self.epilogue = epilogue
        self.taken.append(epilogue.name)
        return None

    def _needs_grad(self, *others: Tensor | None) -> bool:
        tensors = (self.value, self.weight, self.bias, self.residual, *others)
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)

    def may_pack(self, *others: Tensor | None) -> bool:
        return (
            self.frozen
            and not is_compiling()
            and self.weight.is_cpu
            and _functorch_level() is None
            and not self._needs_grad(*others)
        )

    def run(self, saves_output: bool = False, stays_turned: bool = False) -> Tensor:
        """saves_output: nobody can write to the result, so that backward may read it. stays_turned:
        what comes next takes it channels last; only if may_turn()."""
        weight, bias, geometry = self.weight, self.bias, self.geometry
        name, parameters, slope, _ = self.epilogue or (None, (), None, False)
        rest = name, parameters, slope, self.residual
        if self.may_pack(slope):
            how = *geometry, *self.setting
            if self.norm is None:
                packed = packing.packed(self.row, weight, how)
            else:
                weight, bias, packed = packing.folded(self.row, weight, bias, self.norm, how)
            value = self.value
            turns = self.pool is not None or stays_turned or self.is_turned
            if turns:
                value = value.contiguous(memory_format=torch.channels_last)
            operands = value, packed, weight, bias, *geometry, *rest, *self.setting
            result = _packed[self.row.name](*operands)
            if self.pool is not None:
                result = torch.max_pool2d(result, *self.pool)
            return turned_back(result) if turns and not stays_turned else result
        saves_output = saves_output or name is None or name in KEEPS_RESULT
        operands = self.value, weight, bias, *geometry, *rest, saves_output
        if is_dynamo_compiling():
            return traced(self.row.name, *operands)
        return _plain[self.row.name](*operands)


def turned_back(images: Tensor) -> Tensor:
    """As the program would have it. Cloned, which gives PyTorch's strides even where a dimension
    has one element."""
    return images.clone(memory_format=torch.contiguous_format)


_plain = {row.name: getattr(_C, row.name) for row in LAYERS.values()}
_packed = {row.name: getattr(_C, f"{row.name}_packed") for row in LAYERS.values()}


def fusion_of(layer: Any, value: Any, frozen: bool) -> tuple[Fusion | None, str | None]:
    """The layer alone, to which links can be added; or why it runs as it is."""
    known = LAYER_TYPES.get(type(layer))
    if known is None:
        return None, unknown_layer(layer)
    reason = disturbance() or layer_obstacle(layer)  # in this order: modes see what is read
    if reason is None and not is_plain(value):
        reason = "its input is no plain tensor"
    if reason is not None:
        return None, reason
    fusion = Fusion(known.row, layer, value, frozen)
    if known.row.dims and (
        not value.dim() == fusion.weight.dim() == known.row.dims + 2
        or value.layout is not torch.strided
        or not lies_as_pytorchs(value, fusion.weight)
    ):
        return None, "its input has no batch, or lies in an order that decides on the result's"
    own = layer.__dict__.get("fused")  # of ours, which may have an activation of its own
    if own is not None and (own.name is not None or own.is_module):
        epilogue = (
            epilogue_of(layer._modules.get("activation"))
            if own.is_module
            else Epilogue(own.name, own.parameters)
        )
        if not isinstance(epilogue, Epilogue) or not fusion.may_pack(epilogue.slope):
            return None, "it is one operator by itself"
        fusion.epilogue = epilogue
    return fusion, None


# What operators raise for arguments that do not fit. The calls as written raise it too, in eager's
# words.
_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError)


def _raise_if_hooked() -> None:
    """Raises the error at hand where it may be of a hook on saved tensors, as of a checkpoint: it
    has run, and must not run again."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        raise


# ---- calling -----------------------------------------------------------------------------------


class Site:
    """A plan, to be called."""

    def __init__(self, plan: Plan, scope: dict[str, Any]) -> None:
        self.plan, self.scope = plan, scope
        self.own = sum(link.statement == 0 for link in plan.links)  # links of the first statement

    def look(self, handed: Sequence[Any]) -> tuple[Fusion | None, int, str | None]:
        """What can be fused, with how many of the links, and why not with more."""
        plan, scope = self.plan, self.scope
        values = [operand.peek(handed, scope) for operand in plan.order]
        if any([value is MISSING for value in values]):  # noqa: C419
            return None, 0, "an attribute is not a plain one"
        layer, value = values[plan.layer], values[plan.input]
        fusion, reason = fusion_of(layer, value, plan.frozen)
        if fusion is None:
            return None, 0, reason
        count = 0
        for link in plan.links:
            reason = fusion.take(link, values, scope)
            if reason is not None:
                break
            count += 1
        links = plan.links
        whole = count
        # Of a later statement all or nothing.
        while self.own < whole < len(links):
            if links[whole].statement != links[whole - 1].statement:
                break
            whole -= 1
        if whole < count:
            fusion, _ = fusion_of(layer, value, plan.frozen)
            for link in links[:whole]:
                # It is the layer it was, so that it has a fusion again.
                fusion.take(link, values, scope)  # type: ignore[union-attr]
        return fusion, whole, reason

    def __call__(self, *handed: Any) -> Any:
        plan = self.plan
        fusion, count, reason = self.look(handed)
        # In the source's order, before anything is called.
        values = [operand.now(handed, self.scope) for operand in plan.order]
        layer = values[plan.layer]
        if fusion is not None:
            try:
                value = fusion.run()
            except _REFUSALS as error:
                _raise_if_hooked()
                fusion, count, reason = None, 0, f"the operator raises {type(error).__name__}"
        if observer := _observed():
            observer.told(plan, layer, fusion and fusion.taken, reason)
        if fusion is None:
            value = layer(values[plan.input])
        for link in plan.links[count : self.own]:
            value = as_written(link, value, values, self.scope)
        if plan.statements == 1:
            return value
        done = 1 + max([link.statement for link in plan.links[:count]], default=0)
        return value, done


def as_written(link: Link, value: Any, values: Sequence[Any], scope: dict[str, Any]) -> Any:
    """A link of the first statement, as Python runs it."""
    function: Any = None if link.callee is None else link.callee.now(values, scope)
    if link.kind == METHOD:
        function = getattr(value, link.name)
    args = [operand.now(values, scope) for operand in link.args]
    if link.kind == SUM:
        both = (args[0], value) if link.first else (value, args[0])
        return (function or operator.add)(*both)
    kwargs = {name: operand.now(values, scope) for name, operand in link.kwargs}
    return function(*args, **kwargs) if link.kind == METHOD else function(value, *args, **kwargs)


# ---- torch.nn.Sequential -----------------------------------------------------------------------


def run_sequence(modules: Iterator[torch.nn.Module], value: Any, frozen: bool) -> Any:
    """The modules one after the other, each layer with those after it that it can be fused with.
    Between two convolutions nobody sees how the value lies."""
    following: Any = next(modules, None)
    is_turned = False
    while following is not None:
        layer, following = following, None
        fusion, reason = fusion_of(layer, value, frozen)
        if fusion is None:
            if type(layer) in LAYER_TYPES and (observer := _observed()):
                observer.told(None, layer, None, reason)
            value, is_turned = layer(turned_back(value) if is_turned else value), False
            following = next(modules, None)
            continue
        fusion.is_turned = is_turned
        taken: list[Any] = []
        stop = None
        for following in modules:
            if type(following) in LAYER_TYPES:
                break
            stop = fusion.take(_NEXT, (following,), {})
            if stop is not None:
                break
            taken.append(following)
            following = None
        # The next layer's operator does not write to its input.
        quiet = following is not None and layer_obstacle(following) is None
        stays_turned = (
            quiet and LAYER_TYPES[type(following)].row.dims == fusion.row.dims and fusion.may_turn()
        )
        try:
            result = fusion.run(quiet, stays_turned)
        except _REFUSALS as error:
            _raise_if_hooked()
            fusion, stop = None, f"the operator raises {type(error).__name__}"
            result, stays_turned = layer(turned_back(value) if is_turned else value), False
            for module in taken:
                result = module(result)
        if observer := _observed():
            observer.told(None, layer, fusion and fusion.taken, stop)
        value, is_turned = result, stays_turned
    return value


_NEXT = Link(CALL, Operand(slot=0))


def _rest_of_sequence(
    fetched: list[torch.nn.Module], modules: Iterator[torch.nn.Module], value: Any, frozen: bool
) -> Any:
    return run_sequence(itertools.chain(fetched, modules), value, frozen)


# ---- confirming in C++ -------------------------------------------------------------------------


def _born_scope(function: tuple[Any, str] | None) -> Any:
    """What a forward calls: the dict where it looks, the name, and what PyTorch had there."""
    return None if function is None else (vars(function[0]), function[1], born(*function))


def _set_up() -> None:
    """Hands the tables to csrc/bindings/site/, which confirms the common cases."""
    module = torch.nn.Module
    _C.set_up_sites(
        {
            "module": module,
            "call": module.__call__,
            "call_impl": module._call_impl,
            "wrapped_call_impl": module._wrapped_call_impl,
            "getattr": module.__getattr__,
            "getattribute": object.__getattribute__,
            "sequential_iter": torch.nn.Sequential.__iter__,
            "global_hooks": [
                module_globals._global_forward_hooks,
                module_globals._global_forward_pre_hooks,
                module_globals._global_backward_hooks,
                module_globals._global_backward_pre_hooks,
            ],
            "layers": [
                (
                    kind,
                    known.forward,
                    known.helper and (known.row.helper, known.helper),
                    _born_scope((F, known.row.function)) if kind is known.row.module else None,
                    kind is known.row.twin,
                    known.row.function,
                    known.row.dims,
                    known.row.norm,
                )
                for kind, known in LAYER_TYPES.items()
            ],
            "activations": [
                (
                    kind,
                    known.forward,
                    _born_scope(known.function),
                    known.row.name,
                    known.row.attributes,
                    list(known.row.constants),
                    known.row.variant and (known.row.variant[0], dict(known.row.variant[1])),
                    known.has_slope,
                    known.row.takes_dim,
                )
                for kind, known in ACTIVATION_TYPES.items()
            ],
            "idle": [
                (kind, forward, _born_scope((F, "dropout")), kind is torch.nn.Dropout)
                for kind, forward in IDLE_TYPES.items()
            ],
            "norms": [
                (kind, forward, _born_scope((F, "batch_norm")))
                for kind, forward in NORM_TYPES.items()
            ],
            "pools": [
                (kind, forward, _born_scope((F, "max_pool2d")))
                for kind, forward in POOL_TYPES.items()
            ],
            "functions": [
                (target, known.name, known.parameters, known.inplace)
                for target, known in BARE.items()
                if known is not None and not isinstance(target, str)
            ],
            "methods": METHODS,
            "sums": list(SUMS),
            "keeps_result": list(KEEPS_RESULT),
            "along_dimension": list(ALONG_DIMENSION),
            "asks_python": lambda kind: foreign(kind) is not None,
            "classify": lambda *call: of_call(*call) or pool_of_call(*call),
            "pack": lambda function, *operands: packing.packed(LAYERS[function], *operands),
            "fold": lambda function, *operands: packing.folded(LAYERS[function], *operands),
            "run_sequence": _rest_of_sequence,
        }
    )


_set_up()
