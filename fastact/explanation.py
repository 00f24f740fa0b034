"""Which engine runs each operation of a model, and why: explain."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastact import conversion, functional
from fastact.activations import KERNEL_DTYPES
from fastact.conversion import site
from fastact.conversion.links import (
    LAYER_TYPES,
    RECURRENT,
    TWINS,
    layer_obstacle,
    recurrent_obstacle,
)
from fastact.module_stack import ModuleStack
from fastact.nn.epilogue import observer

# What torch.ops.fastact.linear_algorithm() returns.
_ALGORITHMS = {
    "skinny": "a few rows of input, the weight read once as it lies",
    "transposed": "the input packed, the weight read as it lies",
    "in_place": "the weight's rows read as they lie",
    "pack_b": "the weight packed for this call",
    "packed_b": "the weight packed by fastact.convert",
    "aten": "PyTorch's matrix product",
}

# ATen operators that are called otherwise than the function of fastact.functional.
_FUNCTIONS = {
    "_log_softmax": "log_softmax",
    "_prelu_kernel": "prelu",
    "_softmax": "softmax",
    "addmm": "linear",
    "log_sigmoid_forward": "logsigmoid",
    "mm": "linear",
    "rrelu_with_noise": "rrelu",
} | {name: name for name in functional.__all__}

# What fastact computes in their place, and classes derived from it.
_LAYERS, _ACTIVATIONS, _RECURRENT = tuple(LAYER_TYPES), tuple(TWINS), tuple(RECURRENT)

# Called by kernels of fastact too: they compute nothing.
_FACTORIES = ("empty", "new_empty", "new_zeros", "zeros")


@dataclass(frozen=True)
class Row:
    """One operation.

    Attributes:
        operation: the operator, as "fastact.linear" or "aten.addmm".
        where: the path of the module that called it or holds its weight; "" where that is the model
            itself or not known.
        shapes: of its tensors.
        dtype: of its first tensor.
        engine: "fastact" where its own kernel ran, "PyTorch", or another library's name; the class
            of a tensor that computes by itself; "none" for meta tensors.
        reason: why that engine, and how.
    """

    operation: str
    where: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    engine: str
    reason: str


@dataclass(frozen=True)
class SiteCall:
    """One call of a site of a converted model.

    Attributes:
        where: the path of the layer.
        source: the chain as it is written; "" for a torch.nn.Sequential.
        line: file and line.
        fused: what ran in the layer's operator: "norm", "dropout", "residual", the activation's
            name.
        engine: "fastact" where the layer ran as an operator of ours; "PyTorch" where it was called
            as it is written.
        reason: why no more was fused; "" where all was.
    """

    where: str
    source: str
    line: str
    fused: tuple[str, ...]
    engine: str
    reason: str


def _table(cells: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`explain` returns. Printed, two tables; ``rows`` and ``sites`` are for
    programs."""

    rows: tuple[Row, ...]
    sites: tuple[SiteCall, ...] = ()

    def __str__(self) -> str:
        cells = [("operation", "where", "shapes", "dtype", "engine", "reason")]
        for row in self.rows:
            shapes = ", ".join("x".join(map(str, shape)) or "()" for shape in row.shapes)
            dtype = _name_of(row.dtype)
            cells.append((row.operation, row.where, shapes, dtype, row.engine, row.reason))
        own = sum(row.engine == "fastact" for row in self.rows)
        lines = [*_table(cells), f"{own} of {len(self.rows)} operations on fastact's kernels"]
        if self.sites:
            cells = [("site", "where", "engine", "fused with", "why not more")]
            for one in self.sites:
                place = "torch.nn.Sequential" if not one.source else one.source
                cells.append((place, one.where, one.engine, ", ".join(one.fused), one.reason))
            fused = sum(one.engine == "fastact" for one in self.sites)
            lines += ["", *_table(cells), f"{fused} of {len(self.sites)} calls of sites fused"]
        return "\n".join(lines)

    __repr__ = __str__


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


def _name_of(constant: torch.dtype | torch.layout) -> str:
    return str(constant).removeprefix("torch.")


class _Watch(TorchDispatchMode):
    """Notes every operator below autograd. Not a TorchFunctionMode too, before which some modules
    of PyTorch (TransformerEncoderLayer) take another path than without."""

    def __init__(self, root: Any) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.sites: list[SiteCall] = []
        self._left: dict[int, str] = {}  # layers that a site called as written, by id, and why
        self._instruction_set = torch.ops.fastact.instruction_set()
        self._enabled = torch.ops.fastact.enabled()
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
        if not isinstance(layer, _LAYERS):
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
        if library == "fastact" and foreign is None:
            result, inside = _run_watched(func, tensors, args, kwargs)
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
            engine, reason = self._own(operator, named, packed, inside)
        elif operator == "_to_copy":
            reason = f"a conversion to {_name_of(results[0].dtype)}"
        elif (caller := _caller()) is not None:
            reason = self.obstacle(operator, named, caller)
        else:
            reason = self._alternative(operator, module)
        self.rows.append(
            Row(
                f"{library}.{operator}",
                self._paths.get(module, ""),
                tuple(map(_shape_of, tensors)),
                tensors[0].dtype,
                engine,
                reason,
            )
        )
        return result

    def _own(
        self, operator: str, named: Mapping[str, Any], packed: Tensor | None, inside: list[str]
    ) -> tuple[str, str]:
        """Engine and reason of an operator of ours, inside which these operators ran."""
        # A residual that does not fit the tiles is added to the kernels' product.
        residual = named.get("residual")
        added = residual is not None and "aten.add" in inside
        if any(
            not name.startswith("fastact.") for name in inside if not (added and name == "aten.add")
        ):
            ran = ", ".join(dict.fromkeys(inside))
            return "PyTorch", f"{self.obstacle(operator, named)}: runs {ran}"
        reasons = [f"{self._instruction_set} kernel"]
        if operator in ("linear", "linear_training", "linear_packed"):
            use_packed = packed is not None and packed.numel() > 0
            algorithm = torch.ops.fastact.linear_algorithm(
                named["input"], named["weight"], use_packed
            )
            reasons.append(f"{algorithm}: {_ALGORITHMS[algorithm]}")
            activation = named.get("activation")
            if residual is not None and not added:
                reasons.append("residual on its tiles")
            if activation is not None and not inside:
                by_rows = activation in ("softmax", "log_softmax")
                reasons.append(f"{activation} on its {'rows' if by_rows else 'tiles'}")
        if inside:
            reasons.append(f"with {', '.join(inside)}")
        return "fastact", "; ".join(reasons)

    def _alternative(self, operator: str, module: torch.nn.Module | None) -> str:
        """What fastact has in place of an operator that nobody asked it for."""
        kind = type(module)
        public = getattr(torch.nn, kind.__name__, None) is kind
        name = f"torch.nn.{kind.__name__}" if public else kind.__qualname__
        if isinstance(module, _LAYERS):
            if id(module) in self._left:
                return f"its site calls {name} as written: {self._left[id(module)]}"
            obstacle = layer_obstacle(module)
            if obstacle is None or "hooks" in obstacle:
                return f"fastact.convert replaces {name}"
            return f"fastact.convert leaves {name}: {obstacle}"
        if isinstance(module, _RECURRENT):
            obstacle = recurrent_obstacle(module)
            if obstacle is None:
                return f"fastact.convert replaces {name}"
            return f"fastact.convert leaves {name}: {obstacle}"
        if isinstance(module, _ACTIVATIONS) and public:
            return f"fastact.nn.{kind.__name__} computes it"
        if "_backward" in operator:
            return "a gradient of an operation that PyTorch runs, or of a higher order"
        function = _FUNCTIONS.get(operator, _FUNCTIONS.get(operator.removesuffix("_")))
        if function == "linear":
            return "fastact.functional.linear computes it where it is a linear layer"
        if function is not None:
            return f"fastact.functional.{function} computes it"
        return "fastact has no kernel for it"

    def obstacle(self, operator: str, named: Mapping[str, Any], caller: str = "") -> str:
        """Why a call of ours, by this module of the package, ran as a composition of PyTorch's."""
        if not self._enabled:
            return "FASTACT_DISABLE=1"
        if caller == "fastact.nn.recurrent":
            return "first states, dropout's noise or the form of a PackedSequence"
        # A mask may be boolean, and lengths are integers.
        others = ("mask", "lengths", "reserve")
        tensors = {k: t for k, t in named.items() if isinstance(t, Tensor) and k not in others}
        tensors |= {f"weights[{i}]": t for i, t in enumerate(named.get("weights") or ())}
        for t in tensors.values():
            if t.device.type != "cpu":
                return f"no kernel for tensors on {t.device.type}"
            if t.is_nested:
                return "no kernel for nested tensors"
            if t.layout != torch.strided:
                return f"no kernel for {_name_of(t.layout)} tensors"
            if t.dtype not in KERNEL_DTYPES:
                return f"no kernel for {_name_of(t.dtype)}"
        if len({t.dtype for t in tensors.values()}) > 1:
            return "no kernel for tensors of different dtypes"
        if forward_ad._current_level >= 0:
            return "no kernel for forward-mode derivatives"
        weight, bias, slope = (tensors.get(name) for name in ("weight", "bias", "slope"))
        if operator.startswith("linear") and weight is not None:
            if weight.dim() != 2:
                return f"no kernel for a weight of {weight.dim()} dimension"
            if bias is not None and tuple(bias.shape) != (weight.shape[0],):
                return f"no kernel for a bias of shape {list(bias.shape)}"
            residual, input = tensors.get("residual"), tensors["input"]
            if residual is not None and residual.shape != (*input.shape[:-1], weight.shape[0]):
                return f"no kernel for a residual of shape {list(residual.shape)}"
            if slope is not None and slope.numel() > 1:
                return "prelu's slopes lie along dimension 1, which is not the last"
        if caller == "fastact.vmap":
            return "no kernel for this under torch.func.vmap"
        return "no kernel for these arguments"


def _computes_by_itself(tensor: Tensor) -> bool:
    return type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer) and (
        type(tensor).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
    )


def _caller() -> str | None:
    """The module of fastact whose call PyTorch answers with the operator being dispatched."""
    frame = sys._getframe(2)
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
        super().__init__()
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
) -> tuple[Any, list[str]]:
    """Calls the kernel itself, so that what it calls is seen: a composition by its operators."""
    keys = torch._C._dispatch_keys(tensors[0])
    for tensor in tensors[1:]:
        keys = keys | torch._C._dispatch_keys(tensor)
    keys = keys & torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.Python)
    with _Inside() as inside:
        return func.redispatch(keys, *args, **kwargs), inside.names


__all__ = ["Report", "Row", "SiteCall", "explain"]
