"""Watching a run."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastact import conversion
from fastact.conversion import site
from fastact.explanation import reasons
from fastact.explanation.report import Report, Row, SiteCall, name_of
from fastact.module_stack import ModuleStack
from fastact.nn.epilogue import observer

# Called by kernels of fastact too: they compute nothing.
_FACTORIES = ("empty", "new_empty", "new_zeros", "zeros")


def explain(model_or_callable: Callable[..., Any], *example_inputs: Any) -> Report:
    """The operations of a model, the engine that runs each, and why.

    The model runs once on the inputs, as it is: in its training or evaluation mode, and in the grad
    mode and under the autocast of the caller, which decide what runs. So whatever a call changes,
    such as batch norm's statistics and the random state, changes. Gradients are formed only where a
    callable does so: ``fastact.explain(lambda x: model(x).sum().backward(), x)``.

    Left out is what computes nothing: views, and questions such as whether two sizes agree. What
    torch.compile compiled inside the model runs as it was written.

    Args:
        model_or_callable: a module, or any function of tensors; not a compiled one.
        example_inputs: what it is called with.

    Returns:
        A :class:`Report`: tables to print; ``rows`` has each operation, ``sites`` what each site of
        a converted model fused, and why not more.

    Raises:
        TypeError: the model cannot be called, or is a compiled one.
        Exception: whatever the model raises.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> x = torch.randn(2, 4)
        >>> for row in fastact.explain(model, x).rows:
        ...     print(row.operation, row.where, row.engine, row.reason, sep=" | ")
        aten.addmm | 0 | PyTorch | fastact.convert replaces torch.nn.Linear
        aten.relu | 1 | PyTorch | fastact.nn.ReLU computes it
        >>> [row] = fastact.explain(fastact.convert(model), x).rows
        >>> row.operation, row.where, row.engine
        ('fastact.linear_packed', '0', 'fastact')
        >>> [call] = fastact.explain(fastact.convert(model), x).sites
        >>> call.where, call.fused
        ('0', ('relu',))
    """
    if not callable(model_or_callable):
        raise TypeError(
            "fastact.explain(): model_or_callable: expected a module or a function, "
            f"got {type(model_or_callable).__name__}"
        )
    if is_compiled(model_or_callable):
        raise TypeError(
            "fastact.explain(): model_or_callable: expected a module or a function of Python code, "
            f"got a compiled one, {type(model_or_callable).__name__}; explain what it was made of"
        )
    watch = _Watch(getattr(model_or_callable, "__self__", model_or_callable))
    with watch.modules.following(observer), site.observing(watch.note_site), watch:
        model_or_callable(*example_inputs)
    return Report(tuple(watch.rows), tuple(watch.sites))


def is_compiled(function: Any) -> bool:
    # Dynamo marks what it wraps; torch._dynamo itself may not be imported yet.
    return "_torchdynamo_orig_callable" in getattr(function, "__dict__", ()) or (
        isinstance(function, torch.nn.Module) and conversion.is_compiled(function)
    )


def _shape_of(tensor: Tensor) -> tuple[int, ...]:
    if tensor.is_nested and tensor.layout is torch.strided:
        return (tensor.size(0),)  # the others may differ
    return tuple(tensor.shape)


class _Watch(TorchDispatchMode):
    """Notes every operator below autograd. Not a TorchFunctionMode too, before which some modules
    of PyTorch (TransformerEncoderLayer) take another path than without."""

    def __init__(self, root: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[Row] = []
        self.sites: list[SiteCall] = []
        self._left: dict[int, str] = {}  # layers that a site called as written, by id, and why
        self._paths: dict[torch.nn.Module, str] = {}
        self._holders: dict[int, list[torch.nn.Module]] = {}  # of a parameter or buffer, by id
        self.modules = ModuleStack(self._note_module)
        if isinstance(root, torch.nn.Module):
            self._add(root, "")

    # ---- where an operation is ----

    def _add(self, root: torch.nn.Module, prefix: str) -> None:
        for name, module in root.named_modules(prefix=prefix):
            if self._paths.setdefault(module, name) == name:
                for tensor in (*module._parameters.values(), *module._buffers.values()):
                    self._holders.setdefault(id(tensor), []).append(module)

    def _note_module(self, module: torch.nn.Module) -> None:
        if module not in self._paths:
            self._add(module, type(module).__name__)

    def _module_of(self, library: str, tensors: list[Tensor]) -> torch.nn.Module | None:
        """The innermost module being called. Of a fused pair, and in backward, none is: then the
        one that holds a tensor."""
        caller = self.modules.innermost
        if caller is not None and library != "fastact":
            return caller
        within = self._paths.keys() if caller is None else set(caller.modules())
        for tensor in tensors:
            for holder in self._holders.get(id(tensor), ()):
                if holder in within:
                    return holder
        return caller

    def note_site(
        self, plan: site.Plan | None, layer: Any, taken: list[str] | None, reason: str | None
    ) -> None:
        """Of sites that had a layer before them, or something of its class."""
        if not isinstance(layer, reasons.LAYERS):
            return
        if layer not in self._paths:
            self._add(layer, type(layer).__name__)
        self._left.pop(id(layer), None)
        if taken is None:
            self._left[id(layer)] = reason or ""
        self.sites.append(
            SiteCall(
                self._paths[layer],
                plan.source if plan else "",
                plan.where if plan else "",
                tuple(taken or ()),
                "PyTorch" if taken is None else "fastact",
                reason or "",
            )
        )

    # ---- which engine, and why ----

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        named = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
        packed = named.pop("packed", None)
        tensors = [t for t in tree_leaves(named) if isinstance(t, Tensor)]
        if func.is_view or not tensors:
            return func(*args, **kwargs)
        library, _, operator = func._schema.name.partition("::")
        foreign = next((type(t) for t in tensors if _computes_by_itself(t)), None)
        inside: list[str] = []
        noted = ""
        if library == "fastact" and foreign is None:
            result, inside, noted = _run_watched(func, tensors, args, kwargs)
        else:
            result = func(*args, **kwargs)
        results = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not results and not func._schema.is_mutable:
            return result

        module = self._module_of(library, tensors)
        engine = "PyTorch" if library in ("aten", "prims") else library
        if results and results[0].is_meta:
            engine, reason = "none", "meta tensors have no values"
        elif foreign is not None:
            engine, reason = foreign.__name__, "a tensor of this class computes by itself"
        elif library == "fastact":
            engine, reason = reasons.of_own_operator(operator, named, packed, inside, noted)
        elif operator == "_to_copy":
            reason = f"a conversion to {name_of(results[0].dtype)}"
        elif (caller := _caller()) is not None:
            reason = reasons.obstacle(named, caller=caller)
        else:
            reason = reasons.alternative(operator, module, self._left)
        self.rows.append(
            Row(
                f"{library}.{operator}",
                "" if module is None else self._paths.get(module, ""),
                tuple(map(_shape_of, tensors)),
                tensors[0].dtype,
                engine,
                reason,
            )
        )
        return result


def _computes_by_itself(tensor: Tensor) -> bool:
    return type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer) and (
        type(tensor).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
    )


def _caller() -> str | None:
    """The module of fastact whose call PyTorch answers with the operator being dispatched."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__") or ""
        if name == __name__:  # it called the model
            return None
        if name.startswith("fastact."):
            return name
        if name == "torch._ops":  # torch.ops.fastact.relu(x)
            packet = getattr(frame.f_locals.get("self"), "_qualified_op_name", "")
            return name if packet.startswith("fastact::") else None
        if not name.startswith(("torch._compile", "torch._dynamo")):  # they wrap the mode
            return None
        frame = frame.f_back
    return None


class _Inside(TorchDispatchMode):
    """Notes what a kernel calls of the dispatcher."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        library, _, operator = func._schema.name.partition("::")
        if not func.is_view and not operator.startswith(_FACTORIES):
            self.names.append(f"{library}.{operator}")
        return func(*args, **(kwargs or {}))


def _run_watched(
    func: Any, tensors: list[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, list[str], str]:
    """Calls the kernel itself, so that what it calls is seen, a composition by its operators; and
    what it notes of operands that it does not take."""
    keys = torch._C._dispatch_keys(tensors[0])
    for tensor in tensors[1:]:
        keys = keys | torch._C._dispatch_keys(tensor)
    keys = keys & torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.Python)
    torch.ops.fastact.take_obstacle()  # of an earlier call
    with _Inside() as inside:
        result = func.redispatch(keys, *args, **kwargs)
    return result, inside.names, torch.ops.fastact.take_obstacle()
