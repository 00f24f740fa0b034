"""One run of a model as a graph of values: which call made each, and which calls read it.

Nothing is symbolic: the model runs, and a TorchFunctionMode sees each call of PyTorch with its
tensors. A value is what a tensor held at a time; a tensor written in place holds another value
afterwards. Where something was not seen (NumPy, TorchScript), a value has no producer, and rules
say nothing about it.
"""

from __future__ import annotations

import dis
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from fastact.advice.measuring import RECTIFIERS, measure, measure_target
from fastact.advice.operations import (
    LOSS_CLASSES,
    LOSSES,
    Call,
    Kind,
    LinearMap,
    name_of,
    steps,
    tensors_in,
)
from fastact.advice.preservation import Preservation, eager, storage_of
from fastact.module_stack import ModuleStack

_LIBRARIES = tuple(
    os.path.dirname(os.path.abspath(str(module.__file__))) + os.sep
    for module in (torch, sys.modules["fastact"])
)

# Calls that ask for a property or a tensor of the same size: they read no value.
_READ_NOTHING = frozenset(
    {f"{name}_like" for name in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")}
    | {f"new_{name}" for name in ("empty", "zeros", "ones", "full", "tensor")}
    | {"size", "shape"}
)


_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]  # tensor.data = ...

# They return some of the values along a dimension.
_PARTS = frozenset({"split", "chunk", "tensor_split", "narrow"})


@dataclass(eq=False)
class Value:
    """What a tensor held.

    Attributes:
        producer: the operation that made it, or None for an input, a constant or what was not seen.
        constant: it depends on no example input.
        learned: a constant that depends on a parameter.
        features: the dimension along which the units of the layer lie, where that is known.
        readers: the operations that read it, in order.
        is_input, is_output: of the whole model.
    """

    shape: tuple[int, ...]
    producer: Operation | None = None
    constant: bool = False
    learned: bool = False
    features: int | None = None
    readers: list[Operation] = field(default_factory=list)
    is_input: bool = False
    is_output: bool = False


@dataclass(eq=False)
class Operation:
    """One call of PyTorch, or one step of a fused operator.

    Attributes:
        name, kind, named, linear: see :class:`fastact.advice.operations.Call`.
        module: the qualified name of the innermost module.
        owner: that module.
        file, line: of the code that called PyTorch or one of its modules; None where PyTorch's own
            containers did.
        inputs: the values read that depend on the example inputs, the main one first.
        outputs: the values made.
        measured: shares of values, of an activation.
    """

    call: Call
    module: str
    owner: torch.nn.Module | None
    file: str | None
    line: int | None
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.call.name

    @property
    def module_class(self) -> str:
        return "" if self.owner is None else type(self.owner).__name__

    @property
    def kind(self) -> Kind:
        return self.call.kind

    @property
    def linear(self) -> LinearMap:
        assert self.call.linear is not None
        return self.call.linear

    @property
    def output(self) -> Value:
        return self.outputs[0]

    def __str__(self) -> str:
        return f"{self.module} ({self.module_class})" if self.module else self.name


@dataclass
class Run:
    """What was seen.

    Attributes:
        operations: in the order of their calls.
        inputs: the values of the example inputs.
        output: the value that a loss would be given, or None.
        batch: the size of the first dimension of the first input, or None.
        overwritten: an activation in place, and the later reader of the value that it overwrote,
            or None where the model returned that.
    """

    operations: list[Operation] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    output: Value | None = None
    batch: int | None = None
    overwritten: list[tuple[Operation, Operation | None]] = field(default_factory=list)

    def of_kind(self, *kinds: Kind) -> Iterator[Operation]:
        """The operations of these kinds."""
        return (operation for operation in self.operations if operation.kind in kinds)


def observe(
    model: Callable[..., Any], example_inputs: tuple[Any, ...], loss: Any
) -> tuple[Run, Exception | None]:
    """Runs the model once, and a loss that is a function of its output.

    Returns:
        The run, and what the loss raised, if it did.

    Raises:
        Exception: whatever the model raises. In any case the model, its inputs and the random
        state are as they were.
    """
    owner = getattr(model, "__self__", model)
    root = owner if isinstance(owner, torch.nn.Module) else None
    inputs = tensors_in(example_inputs)
    modules = list(root.modules()) if root is not None else []
    modules += _modules_in_closure(model)
    if isinstance(loss, torch.nn.Module):
        modules += loss.modules()
    preservation = Preservation(dict.fromkeys(modules), inputs)
    raised: Exception | None = None
    try:
        watch = _Watch(root, inputs, preservation)
        with eager(), watch.modules.following(), watch:
            output = model(*example_inputs)
            if inspect.isgenerator(output):  # until it is asked, it has not run
                output = list(output)
        watch.finish(output)
        if loss is not None:
            function = _known_loss(loss)
            if function is not None:
                watch.add_loss(function)
            else:
                try:
                    with eager(), watch.modules.following(), watch:
                        loss(output)
                except Exception as error:
                    raised = error
    finally:
        preservation.restore()
    return watch.run, raised


def _modules_in_closure(function: Any) -> list[torch.nn.Module]:
    """Those that a lambda around a model refers to, so that they too are left unchanged."""
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function):
        return []
    names = function.__code__.co_names
    referred = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    referred += [function.__globals__[name] for name in names if name in function.__globals__]
    return [m for value in referred if isinstance(value, torch.nn.Module) for m in value.modules()]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _known_loss(loss: Any) -> str | None:
    """The function's name, of one of PyTorch's losses that stands for itself."""
    loss = getattr(loss, "func", loss)  # of functools.partial
    for kind, function in LOSS_CLASSES.items():
        if isinstance(loss, kind) or (isinstance(loss, type) and issubclass(loss, kind)):
            return function
    name = getattr(loss, "__name__", "")
    own = getattr(torch.nn.functional, name, None) is loss
    return name if own and name in LOSSES else None


class _Watch(TorchFunctionMode):
    """Notes the calls of one thread."""

    def __init__(
        self, root: torch.nn.Module | None, inputs: list[Tensor], preservation: Preservation
    ) -> None:
        super().__init__()
        self.run = Run()
        self._preservation = preservation
        self._values = WeakTensorKeyDictionary()  # of (value, version)
        self._overwritten = WeakTensorKeyDictionary()  # of (the activation, which elements)
        self._paths: dict[torch.nn.Module, str] = {}
        self._holders: dict[int, torch.nn.Module] = {}  # of parameters and buffers, by id
        self.modules = ModuleStack(self._note_module)
        if root is not None:
            self._add(root, "")
        for tensor in inputs:
            if id(tensor) not in self._holders and tensor not in self._values:
                value = Value(tuple(tensor.shape), is_input=True)
                self.run.inputs.append(value)
                self._remember(tensor, value)
        self.run.batch = next((t.shape[0] for t in inputs if t.dim()), None)

    # ---- where an operation is ----

    def _add(self, root: torch.nn.Module, prefix: str) -> None:
        for name, module in root.named_modules(prefix=prefix):
            # torch.compile wraps a module in one that has it as _orig_mod.
            parts = (part for part in name.split(".") if part != "_orig_mod")
            self._paths.setdefault(module, ".".join(parts))
            tensors = (*module._parameters.values(), *module._buffers.values())
            for tensor in tensors:
                if tensor is not None:
                    self._holders.setdefault(id(tensor), module)

    def _note_module(self, module: torch.nn.Module) -> None:
        if module not in self._paths:
            self._add(module, type(module).__name__)

    def _operation(self, call: Call) -> Operation:
        module = self.modules.innermost
        if call.kind is Kind.LINEAR and (module is None or any(module.children())):
            module = self._holders.get(id(call.named["weight"]), module)  # of a fused pair
        frame = _users_frame()
        # Without tensors: the run keeps no value alive.
        settings = {k: v for k, v in call.named.items() if not isinstance(v, Tensor)}
        return Operation(
            replace(call, named=settings),
            module="" if module is None else self._paths.get(module, ""),
            owner=module,
            file=frame.f_code.co_filename if frame is not None else None,
            line=frame.f_lineno if frame is not None else None,
        )

    # ---- what a tensor holds ----

    def _remember(self, tensor: Tensor, value: Value) -> None:
        self._values[tensor] = value, _version(tensor)

    def _value_of(self, tensor: Tensor) -> Value:
        entry = self._values.get(tensor)
        if entry is not None and entry[1] == _version(tensor):
            return entry[0]
        # A parameter, or a tensor that no call made, or that was written unseen.
        held = id(tensor) in self._holders
        learned = held and isinstance(tensor, torch.nn.Parameter)
        value = Value(tuple(tensor.shape), constant=held, learned=learned)
        self._remember(tensor, value)
        return value

    def _is_data(self, argument: Any) -> bool:
        return isinstance(argument, Tensor) and not self._value_of(argument).constant

    def _is_learned(self, argument: Any) -> bool:
        return isinstance(argument, Tensor) and self._value_of(argument).learned

    # ---- calls ----

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        calls = steps(func, args, kwargs, self._is_data, self._is_learned)
        if calls[-1].kind is Kind.LOSS:
            return self._loss(calls, tensors, func, args, kwargs)
        self._preservation.before_writing(_may_write(func, args, kwargs, tensors))
        if func == _SET_DATA:
            self._preservation.before_setting_data(args[0])
        before = [_version(tensor) for tensor in tensors]
        read = [self._value_of(tensor) for tensor in tensors]  # what the call may overwrite
        name, measured = calls[-1].name, {}
        if name in RECTIFIERS and len(calls) == 1 and self._is_data(tensors[0]):
            # Now: in place, the values would be gone.
            features = self._value_of(tensors[0]).features
            measured = measure(name, tensors[0], tensors[0], features)
        result = func(*args, **kwargs)
        results = tensors_in((result,))
        if not results and name_of(func) != "setitem":
            return result
        if name_of(func) in _READ_NOTHING:
            for tensor in results:
                self._remember(tensor, Value(tuple(tensor.shape), constant=True))
            return result
        written = [t for t, v in zip(tensors, before, strict=True) if _version(t) != v]
        written = [t for t in written if id(t) not in self._holders]
        operation = self._note(calls, tensors, read, [*results, *written])
        if operation is None or operation.kind is not Kind.ACTIVATION:
            return result
        features = operation.inputs[0].features
        operation.measured = measured or measure(name, None, results[0], features)
        overwritten = next((t for t in written if t is result), None)
        plain = type(result) is Tensor and result.layout is torch.strided
        if overwritten is not None and plain and not _is_discarded():
            return self._renamed(operation, result)
        return result

    def _loss(
        self, calls: list[Call], tensors: list[Tensor], func: Any, args: Any, kwargs: Any
    ) -> Any:
        read = [self._value_of(tensor) for tensor in tensors]
        operation = self._note(calls, tensors, read, [])  # before it may raise
        result = func(*args, **kwargs)
        if operation is not None:
            operation.measured = measure_target(calls[-1].named.get("target"))
            value = Value(tuple(result.shape), operation)
            operation.outputs.append(value)
            self._remember(result, value)
        return result

    def _note(
        self,
        calls: list[Call],
        tensors: list[Tensor],
        values: list[Value],
        results: list[Tensor],
    ) -> Operation | None:
        """The operations of one call, which read these values of its tensors; None where no example
        input reaches it."""
        data = [value for value in values if not value.constant]
        if not data:
            learned = any(value.learned for value in values)
            for tensor in results:
                self._remember(tensor, Value(tuple(tensor.shape), constant=True, learned=learned))
            return None
        by_tensor = {id(tensor): value for tensor, value in zip(tensors, values, strict=True)}
        first = by_tensor.get(id(calls[0].named.get("input")), data[0])
        inputs = [first, *(value for value in data if value is not first)]
        operation: Operation | None = None
        for call in calls:
            if operation is not None:  # a further step of a fused operator
                between = Value(inputs[0].shape, operation, features=_features(operation))
                if results:
                    between.shape = tuple(results[0].shape)
                operation.outputs.append(between)
                inputs = [between]
                if id(call.named.get("other")) in by_tensor:
                    inputs.append(by_tensor[id(call.named["other"])])
            operation = self._operation(call)
            operation.inputs = inputs
            for value in dict.fromkeys(inputs):
                value.readers.append(operation)
            self.run.operations.append(operation)
        assert operation is not None
        for tensor in tensors:
            self._notice_reading(tensor, operation, results)
        for tensor in {id(tensor): tensor for tensor in results}.values():
            value = Value(tuple(tensor.shape), operation)
            value.features = _features(operation, value)
            operation.outputs.append(value)
            self._remember(tensor, value)
        return operation

    # ---- activations in place ----

    def _renamed(self, operation: Operation, result: Tensor) -> Tensor:
        """Another tensor for the same memory as the result: who reads the old one afterwards reads
        what the activation overwrote."""
        if result.requires_grad and not torch.is_grad_enabled():
            return result  # a view made here could not be written to later
        alias = result.view(result.shape) if result.requires_grad else result.detach()
        value = self._values[result][0]
        for tensor in (result, result._base) if result._is_view() else (result,):
            self._overwritten[tensor] = operation, _elements(result)
        self._remember(alias, value)
        return alias

    def _notice_reading(
        self, tensor: Tensor, reader: Operation | None, results: Iterable[Tensor] = ()
    ) -> None:
        operation, elements = self._overwritten.get(tensor, (None, None))
        if operation is None or operation is reader:
            return
        views = [result for result in results if storage_of(result) == storage_of(tensor)]
        if reader is not None and reader.kind is Kind.SHAPE and views:
            # A view reads nothing yet, and it may leave out what was overwritten.
            for view in views:
                if view is not tensor and _overlap(_elements(view), elements):
                    self._overwritten[view] = operation, elements
            return
        self.run.overwritten.append((operation, reader))
        del self._overwritten[tensor]  # said once

    # ---- the end ----

    def finish(self, output: Any) -> None:
        """Notes what the model returned."""
        tensors = tensors_in((output,))
        for tensor in tensors:
            self._value_of(tensor).is_output = True
            self._notice_reading(tensor, None)
        main = _main_output(output, tensors)
        if main is not None:
            self.run.output = self._value_of(main)

    def add_loss(self, function: str) -> None:
        """One of PyTorch's losses of the model's output, which need not be computed."""
        if self.run.output is not None:
            operation = Operation(Call(function, Kind.LOSS, {}), "", None, None, None)
            operation.inputs = [self.run.output]
            self.run.operations.append(operation)


def _main_output(output: Any, tensors: list[Tensor]) -> Tensor | None:
    """What a loss would be given: what is called logits, else the first floating-point tensor."""
    logits = output.get("logits") if isinstance(output, Mapping) else None
    logits = getattr(output, "logits", logits)
    if isinstance(logits, Tensor):
        return logits
    return next((t for t in tensors if t.is_floating_point() or t.is_complex()), None)


def _features(operation: Operation, value: Value | None = None) -> int | None:
    """Along which dimension of its result the units of a layer lie."""
    rank = len((value or operation.inputs[0]).shape)
    if operation.kind is Kind.LINEAR:
        spatial = len(operation.linear.kernel)
        return rank - 1 - spatial
    if operation.kind is Kind.BATCH_NORM:
        return min(1, rank - 1)
    before = operation.inputs[0]
    kept = value is None or before.shape == value.shape
    if operation.kind in (Kind.RESAMPLING, Kind.MAX_POOLING) or operation.name in _PARTS:
        kept = len(before.shape) == rank
    if operation.call.reorders:
        kept = False
    return before.features if kept else None


class _Elements(NamedTuple):
    """Which elements of its memory a tensor has."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def _elements(tensor: Tensor) -> _Elements:
    return _Elements(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))


def _overlap(one: _Elements, other: _Elements) -> bool:
    """Whether an element is among both."""
    if 0 in one.size or 0 in other.size:
        return False
    ends = [e.offset + sum((n - 1) * s for n, s in zip(*e[:2], strict=True)) for e in (one, other)]
    if max(ends) > 1 << 26:
        return False  # not worth the memory
    marked = torch.zeros(max(ends) + 1, dtype=torch.bool, device="cpu")
    marked.as_strided(*one).fill_(True)
    return bool(marked.as_strided(*other).any())


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _may_write(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor]
) -> Iterable[Tensor]:
    """The tensors that the call may write to."""
    name = getattr(func, "__name__", "")
    suspect = name.endswith("_") or "out" in kwargs or any(a is True for a in args)
    suspect = suspect or name in ("embedding", "embedding_bag") or "setitem" in name
    return tensors if suspect or any(value is True for value in kwargs.values()) else ()


# ---- frames ------------------------------------------------------------------------------------


def _callers() -> Iterator[FrameType]:
    """The frames between the call being watched and observe()."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not observe.__code__:
        yield frame
        frame = frame.f_back


def _users_frame() -> FrameType | None:
    return next((frame for frame in _callers() if not _is_library(frame)), None)


def _is_library(frame: FrameType) -> bool:
    # What fastact.convert and torch.fx write has such names.
    return frame.f_code.co_filename.startswith((*_LIBRARIES, "<fastact", "<eval_with_key>"))


_NEXT: dict[tuple[CodeType, int], str] = {}


def _is_discarded() -> bool:
    """Whether nobody uses the result of the call: ``x.relu_()`` as a statement, after which x is
    meant to be read."""
    for frame in _callers():
        if _is_library(frame):
            continue
        following = _instruction_after(frame.f_code, frame.f_lasti)
        if following != "RETURN_VALUE":
            return following == "POP_TOP"
    return False


def _instruction_after(code: CodeType, position: int) -> str:
    if (code, position) not in _NEXT:
        names = (i.opname for i in dis.get_instructions(code) if i.offset > position)
        _NEXT[code, position] = next(names, "")
    return _NEXT[code, position]
