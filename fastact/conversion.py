"""Whole models: convert and revert.

Conversion keeps every module object. A layer changes its class to fastact's subclass of it. A
module whose forward calls a layer and then its activation changes its class to a subclass made for
it, whose forward makes one call of the pair; both modules stay in their places. That forward is the
module's own as recorded (:mod:`fastact.recording`), with the pairs that :mod:`fastact.patterns`
recognises put together.
"""

from __future__ import annotations

import copy
import inspect
import operator
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from fastact import _C
from fastact.activations import REGISTRY
from fastact.nn.epilogue import READERS, FusedActivation, computed_by, has_hooks, slope_of
from fastact.nn.frozen import FrozenLinear
from fastact.nn.linear import Linear
from fastact.patterns import TWINS, epilogue_of
from fastact.recording import (
    Recorder,
    Unrecordable,
    base_of,
    class_of,
    dotted,
    is_sequential,
    rewritten,
)

_MODES = ("inference", "training")
# In the __dict__ of a layer that a training-mode conversion changed.
_CONVERTED = "_fastact_converted"

_LAYERS = {torch.nn.Linear, Linear, *TWINS, *TWINS.values()}

# ---- what a rewritten forward calls in training mode -------------------------------------------


_NO_RESIDUAL = object()


def _fused_linear(
    linear: torch.nn.Module,
    input: Tensor,
    name: str | None,
    parameters: Any,
    slope: Tensor | None,
    residual: Any,
    residual_first: bool,
) -> Tensor | None:
    """None where the layer has since become one that must run on its own, or the residual is one
    that the operator would not add as it was written."""
    if residual is _NO_RESIDUAL:
        residual = None
    elif not isinstance(residual, Tensor) or (
        # The first operand decides the strides of a sum.
        residual_first and not (residual.layout is torch.strided and residual.is_contiguous())
    ):
        return None
    if type(linear) is FrozenLinear:
        return linear.with_epilogue(input, name, parameters, slope, residual)
    own = linear._parameters
    if type(linear) is not Linear or linear.fused.name or "weight" not in own or has_hooks(linear):
        return None
    if is_dynamo_compiling():
        return torch.ops.fastact.linear(
            input, own["weight"], own["bias"], name, parameters, slope, residual
        )
    return _C.linear(input, own["weight"], own["bias"], name, parameters, slope, residual)


def _unfused_linear(
    linear: torch.nn.Module, input: Tensor, residual: Any, residual_first: bool
) -> Tensor:
    output = linear(input)
    if residual is _NO_RESIDUAL:
        return output
    return residual + output if residual_first else output + residual


def linear_then_module(
    linear: torch.nn.Module,
    activation: torch.nn.Module,
    input: Tensor,
    residual: Any = _NO_RESIDUAL,
    residual_first: bool = False,
) -> Tensor:
    """activation(linear(input) + residual), in one operator unless a hook, a parametrization or
    another module has come between since the conversion."""
    epilogue = computed_by(activation)
    if epilogue is not None:
        slope = slope_of(activation) if epilogue[0] == "prelu" else None
        output = _fused_linear(linear, input, *epilogue, slope, residual, residual_first)
        if output is not None:
            return output
    return activation(_unfused_linear(linear, input, residual, residual_first))


def linear_then_function(
    linear: torch.nn.Module,
    input: Tensor,
    name: str | None,
    parameters: tuple[float, ...],
    slope: Tensor | None = None,
    residual: Any = _NO_RESIDUAL,
    residual_first: bool = False,
) -> Tensor:
    """The same with an activation that is a call of a function, or with none."""
    output = _fused_linear(linear, input, name, parameters, slope, residual, residual_first)
    if output is None:
        output = _unfused_linear(linear, input, residual, residual_first)
        if name is not None:
            arguments = parameters if slope is None else (slope,)
            output = REGISTRY[name].operator(output, *arguments)
    return output


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


@dataclass(frozen=True)
class _Activation:
    """A node that calls an activation: registry name, parameters, and where PReLU's slope lies."""

    node: torch.fx.Node
    name: str | None
    parameters: tuple[float, ...]
    slope: str | None


def _residual_beside(node: torch.fx.Node) -> torch.fx.Node | None:
    """The tensor that is added to the value of node at once, so that nothing may have written to it
    in between; whose only reader that sum is."""
    [user] = node.users
    following = node.next
    while following.op == "get_attr":
        following = following.next
    plus = (
        user.target in (operator.add, torch.add)
        if user.op == "call_function"
        else (user.op == "call_method" and user.target == "add")
    )
    if following is not user or not plus or len(user.args) != 2 or user.kwargs:
        return None
    first, second = user.args
    other = second if first is node else first
    return other if isinstance(other, torch.fx.Node) and other is not node else None


class _Fuser:
    """Puts one call in the place of every linear layer with what follows it, a residual or an
    activation or both, in the forward of one module."""

    def __init__(
        self, root: torch.nn.Module, frozen: bool, linears: set[int], activations: set[int]
    ) -> None:
        self.frozen = frozen
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.linears = linears  # by id
        self.activations = activations
        self.pairs: dict[str, str] = {}  # a layer's path: what it is fused with

    def fuse(self, graph: torch.fx.Graph, settings: dict[tuple[str, str], Any]) -> bool:
        """Whether there was a pair. Adds to the settings that the graph takes for granted."""
        for node in reversed(graph.nodes):
            if node.op == "call_method" and node.target in _QUERIES and not node.users:
                graph.erase_node(node)
        if self.frozen:
            self._leave_out_dropout(graph, settings)
        calls = Counter(id(self._callee(node)) for node in graph.nodes)
        found = False
        for node in list(graph.nodes):
            linear = self._callee(node)
            if id(linear) not in self.linears or calls[id(linear)] > 1 or len(node.users) != 1:
                continue
            if _only_input(node) is None:
                continue
            residual = _residual_beside(node)
            value = node if residual is None else next(iter(node.users))
            # Where the layer was called: what comes between may write to its input.
            with graph.inserting_before(node):
                last, fused = self._fused(graph, node, value, residual)
            if fused is not None:
                found = True
                last.replace_all_uses_with(fused)
                for erased in dict.fromkeys((last, value, node)):
                    graph.erase_node(erased)
        if found:
            for node in reversed(graph.nodes):
                if node.op == "get_attr" and not node.users:
                    graph.erase_node(node)
                elif node.op == "call_module":
                    with graph.inserting_before(node):
                        arguments = (_lookup(graph, node.target), *node.args)
                        call = graph.call_method("__call__", arguments, node.kwargs)
                    node.replace_all_uses_with(call)
                    graph.erase_node(node)
        return found

    def _leave_out_dropout(
        self, graph: torch.fx.Graph, settings: dict[tuple[str, str], Any]
    ) -> None:
        """In evaluation it returns its input. Between a layer and a residual it mostly is."""
        for node in list(graph.nodes):
            module = self._callee(node)
            if node.target is F.dropout:
                known = inspect.signature(F.dropout).bind(*node.args, **node.kwargs).arguments
                idle = known.get("training") is False
            else:
                kept = module is None or has_hooks(module) or "forward" in vars(module)
                idle = type(module) is torch.nn.Dropout and not kept
            source = node.args[0] if node.args else None
            if idle and isinstance(source, torch.fx.Node):
                if module is not None:
                    settings[node.target, "training"] = False
                node.replace_all_uses_with(source)
                graph.erase_node(node)

    def _callee(self, node: torch.fx.Node) -> torch.nn.Module | None:
        return self.modules[node.target] if node.op == "call_module" else None

    def _epilogue(self, value: torch.fx.Node) -> _Activation | None:
        """The activation that alone reads value."""
        if len(value.users) != 1:
            return None
        [user] = value.users
        if not _reads_once(user, value):
            return None
        module = self._callee(user)
        if module is None:
            epilogue = epilogue_of(user)
            if epilogue is None:
                return None
            name, parameters, slope = epilogue
            return _Activation(user, name, parameters, slope and slope.target)
        if id(module) not in self.activations or _only_input(user) is None:
            return None
        epilogue = READERS[type(module)](module)
        if epilogue is None:
            return None
        slope = f"{user.target}.weight" if epilogue[0] == "prelu" else None
        return _Activation(user, *epilogue, slope)

    def _fused(
        self,
        graph: torch.fx.Graph,
        node: torch.fx.Node,
        value: torch.fx.Node,
        residual: torch.fx.Node | None,
    ) -> tuple[torch.fx.Node, torch.fx.Node | None]:
        """The node whose value the fused call has, and that call; None where there is nothing to
        fuse with."""
        activation = self._epilogue(value)
        if activation is None and residual is None:
            return value, None
        input, linear = _only_input(node), _lookup(graph, node.target)
        partners, keywords = [], {}
        if residual is not None:
            partners.append("a residual")
            keywords = {"residual": residual, "residual_first": value.args[0] is residual}
            if residual.op == "get_attr":  # it may lie behind the layer's call
                keywords["residual"] = graph.create_node("get_attr", residual.target)
        if activation is None:
            activation = _Activation(value, None, (), None)
        elif activation.node.op == "call_module":
            partners.append(activation.node.target)
        else:
            partners.append(activation.name)
        self.pairs[node.target] = " and ".join(partners)
        last = activation.node
        if last.op == "call_module" and not self.frozen:
            module = _lookup(graph, last.target)
            return last, graph.call_function(linear_then_module, (linear, module, input), keywords)
        arguments = (
            linear,
            input,
            activation.name,
            tuple(map(_plain_number, activation.parameters)),
        )
        if activation.slope is not None and last.op == "call_module":
            arguments += (graph.call_function(slope_of, (_lookup(graph, last.target),)),)
        elif activation.slope is not None:
            arguments += (graph.create_node("get_attr", activation.slope),)
        if self.frozen and residual is None:  # else only the call tells what the residual is
            return last, graph.call_method("with_epilogue", arguments)
        return last, graph.call_function(linear_then_function, arguments, keywords)


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
        if frozen and has_hooks(module):
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
    if is_sequential(module) or isinstance(module, torch.fx.GraphModule):
        return True
    return not (kind.__module__.startswith("torch.") or kind.forward is torch.nn.Module.forward)


def _record(
    module: torch.nn.Module, fuser: _Fuser, frozen: bool
) -> list[tuple[torch.fx.Graph, Mapping[Any, Any]]]:
    """The graphs of its forward that have pairs, with these fused: in evaluation where it is to be
    frozen, else as the module is now and, where it asks for that, as it may become."""
    if isinstance(module, torch.fx.GraphModule):
        raise Unrecordable("it is a torch.fx.GraphModule: convert what that was made of")
    if "forward" in vars(module):
        raise Unrecordable("it was set on the instance")
    was = module.training
    found = []
    for training in (False,) if frozen else (was, not was):
        recorder = Recorder(frozen)
        module.__dict__["training"] = training
        try:
            graph = recorder.record(module)
        finally:
            module.__dict__["training"] = was
        if fuser.fuse(graph, recorder.settings):
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
                linears |= set() if has_hooks(module) else {id(module)}
        elif becomes in READERS and not has_hooks(module):
            activations.add(id(module))
        if becomes is not kind:
            plan.replaced.append(module)
            plan.note(name, f"{becomes.__module__}.{becomes.__name__}")

    # The innermost first: what is called by its own container is not looked for further out.
    for name, module in reversed(modules.items()):
        within = linears.intersection(map(id, module.modules()))
        if not within or not _has_own_forward(module) or base_of(module) is not None:
            continue
        if not accepts(name):
            plan.note(name, "left out by filter_fn")
            continue
        fuser = _Fuser(module, frozen, within, activations)
        try:
            recordings = _record(module, fuser, frozen)
            if recordings:
                rewrite = rewritten(module, recordings, frozen)
                plan.rewritten.append((module, class_of(type(module), rewrite)))
        except Exception as error:  # it is the user's forward that ran
            reason, *_ = str(error).splitlines() or [type(error).__name__]
            plan.fail(name, f"its forward cannot be recorded: {reason}")
            continue
        for path, activation in fuser.pairs.items():
            plan.note(dotted(name, path), f"fused with {activation}")
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
    """The model on fastact's layers, with each Linear fused with the activation after it.

    Replaced are torch.nn.Linear and every activation module of torch.nn. A pair is fused in a
    torch.nn.Sequential, and in a forward such as ``F.relu(self.fc(x))`` that torch.fx can trace,
    each module on its own; so is a residual that is added at once, as in ``x + self.fc(y)``, in
    inference also past a Dropout. Whatever else the model has stays as it is: other layers, classes
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
        base = base_of(module)
        if base is not None and not vars(type(module))["_fastact_frozen"]:
            module.__class__ = base
        if vars(module).pop(_CONVERTED, False):
            if type(module) is Linear:
                del module.fused
            module.__class__ = type(module).__base__
