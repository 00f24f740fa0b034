"""The rules: a table, an entry each.

A rule looks at the run and yields what it found. Where it cannot know, it is silent: what an
operation of Kind.OTHER does to a value is not guessed at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastact.advice import merging
from fastact.advice.measuring import RECTIFIERS
from fastact.advice.observation import Operation, Run, Value
from fastact.advice.operations import (
    ALONG_DIMENSION,
    LOG_PROBABILITIES,
    LOG_SIGMOIDS,
    LOSSES,
    PROBABILITIES,
    SIGMOIDS,
    SOFTMAXES,
    Kind,
    LinearMap,
    Loss,
    share,
    softmax_dimension,
)


@dataclass(frozen=True)
class Finding:
    """What a rule found: where, what is the case there, and the figures that show it."""

    operation: Operation
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        name: what ``ignore=`` takes.
        severity: "error": the result is wrong or training fails; "warning": the network is likely
            not what was meant; "info": it works, and there is something better.
        reason: why, for the guide.
        remedy: what to do.
        find: decides.
    """

    name: str
    severity: str
    reason: str
    remedy: str
    find: Callable[[Run], Iterator[Finding]]


# ---- walking through a run ---------------------------------------------------------------------

_KEEPING = frozenset({Kind.SHAPE})
_KEEPING_OR_DROPOUT = frozenset({Kind.SHAPE, Kind.DROPOUT})
_LINEAR_BETWEEN = frozenset({Kind.SHAPE, Kind.DROPOUT, Kind.SCALING, Kind.RESAMPLING})


def _source(value: Value, through: frozenset[Kind]) -> Operation | None:
    """The operation that made the value, seen through those of these kinds."""
    while value.producer is not None and value.producer.kind in through:
        value = value.producer.inputs[0]
    return value.producer


@dataclass
class _Reached:
    """Who reads a value."""

    readers: list[Operation] = field(default_factory=list)
    between: list[Operation] = field(default_factory=list)
    is_output: bool = False


def _reached(value: Value, through: frozenset[Kind]) -> _Reached:
    """Every reader of the value, seen through operations of these kinds."""
    found, pending, seen = _Reached(), [value], set()
    while pending:
        value = pending.pop()
        found.is_output |= value.is_output
        for reader in value.readers:
            if id(reader) in seen:
                continue
            seen.add(id(reader))
            if reader.kind in through and reader.inputs[0] is value:
                found.between.append(reader)
                pending.extend(reader.outputs)
            else:
                found.readers.append(reader)
    return found


def _is_factorisation(first: LinearMap, second: LinearMap) -> bool:
    """Whether the two are meant as one linear map with fewer weights: through a bottleneck, by
    channel and then across channels, or along one axis and then the other."""
    if first.outputs < min(first.inputs, second.outputs):
        return True
    if first.groups > 1 or second.groups > 1:
        return True
    one, other = first.kernel, second.kernel
    if len(one) != len(other):
        return False
    crossing = [(a > 1) - (b > 1) for a, b in zip(one, other, strict=True)]
    return 1 in crossing and -1 in crossing


def _is_linear_bottleneck(first: LinearMap, second: LinearMap) -> bool:
    """Whether batch norm between them is that of an inverted residual: its narrow end has no
    activation, and may be as wide as what it narrows."""
    pointwise = first.kernel and second.kernel and {*first.kernel, *second.kernel} == {1}
    expanding = first.outputs <= first.inputs and first.outputs < second.outputs
    return bool(pointwise and expanding) or _is_factorisation(first, second)


def _list(operations: list[Operation]) -> str:
    names = list(dict.fromkeys(map(str, operations)))
    if len(names) > 3:
        names[3:] = [f"{len(names) - 3} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


# ---- linear maps -------------------------------------------------------------------------------


def _collapsing_linear_maps(run: Run) -> Iterator[Finding]:
    for first in run.of_kind(Kind.LINEAR):
        reached = _reached(first.output, _LINEAR_BETWEEN)
        seconds = reached.readers
        if reached.is_output or not seconds:
            continue
        if any(second.kind is not Kind.LINEAR for second in seconds):
            continue
        if any(second.inputs[0].constant for second in seconds):
            continue
        if any(_is_factorisation(first.linear, second.linear) for second in seconds):
            continue
        # Along another axis than the first: two maps for want of one with far more weights.
        reordered = any(operation.call.reorders for operation in reached.between)
        if reordered and any(first.linear.outputs != s.linear.inputs for s in seconds):
            continue
        between = [o for o in reached.between if o.kind in (Kind.SCALING, Kind.RESAMPLING)]
        via = f" but {_list(between)}, which is linear too" if between else ""
        yield Finding(
            first,
            f"{first} and {_list(seconds)} are linear maps with nothing between them{via}: "
            "together they compute one linear map",
            {
                "first": first.module,
                "second": [second.module for second in seconds],
                "between": [operation.name for operation in reached.between],
                "merging": _merging(first, seconds, reached.between),
            },
        )


def _merging(first: Operation, seconds: list[Operation], between: list[Operation]) -> str:
    """What fastact.merge_linear makes of them: "exact", or why it cannot."""
    others = [operation.name for operation in between if operation.kind is not Kind.DROPOUT]
    if others:
        return f"{', '.join(others)} between them"
    if first.owner is None or any(second.owner is None for second in seconds):
        return "no module's call"
    obstacles = (merging.obstacle(first.owner, second.owner) for second in seconds)
    return next(filter(None, obstacles), "exact")


# ---- the end of the network and its loss -------------------------------------------------------


def _losses(run: Run, *expects: Loss) -> Iterator[tuple[Operation, Operation | None]]:
    """The losses that expect this, each with what made its first argument."""
    for operation in run.of_kind(Kind.LOSS):
        if LOSSES[operation.name] in expects and operation.inputs:
            yield operation, _source(operation.inputs[0], _KEEPING)


def _activation_before(
    run: Run, names: frozenset[str], *expects: Loss
) -> Iterator[tuple[Operation, Operation]]:
    for loss, made in _losses(run, *expects):
        if made is not None and made.kind is Kind.ACTIVATION and made.name in names:
            yield loss, made


def _activation_on_regression_output(run: Run) -> Iterator[Finding]:
    for loss, made in _losses(run, Loss.NUMBERS):
        if made is not None and made.kind is Kind.ACTIVATION:
            yield Finding(
                made,
                f"{made.name} is the last operation before {loss.name}: the prediction cannot "
                "leave its range",
                {"activation": made.name, "loss": loss.name},
            )


def _applied_twice(
    names: frozenset[str], expects: Loss, applied: str
) -> Callable[[Run], Iterator[Finding]]:
    """Activations of these names before losses that expect this, and apply such a one."""

    def find(run: Run) -> Iterator[Finding]:
        for loss, made in _activation_before(run, names, expects):
            yield Finding(
                made,
                f"{made.name} before {loss.name}, which applies {applied} itself",
                {"activation": made.name, "loss": loss.name},
            )

    return find


def _lacks(made: Operation, range_of_result: frozenset[str]) -> bool:
    """Whether an operation is known to make something else than numbers of this range."""
    if made.kind is Kind.ACTIVATION:
        return made.name not in range_of_result
    return made.kind in (Kind.LINEAR, Kind.BATCH_NORM, Kind.NORMALIZATION)


def _without(range_of_result: frozenset[str], expects: Loss) -> Callable[[Run], Iterator[Finding]]:
    """What goes into losses that expect numbers of this range, and is of another."""

    def find(run: Run) -> Iterator[Finding]:
        for loss, made in _losses(run, expects):
            if made is not None and _lacks(made, range_of_result):
                yield Finding(
                    made,
                    f"{made} goes into {loss.name}, which expects {expects}",
                    {"last": made.name, "loss": loss.name},
                )

    return find


def _sigmoid_on_exclusive_classes(run: Run) -> Iterator[Finding]:
    for loss, made in _activation_before(run, SIGMOIDS, Loss.LOGITS):
        yield Finding(
            made,
            f"{made.name} before {loss.name}, whose classes exclude each other",
            {"activation": made.name, "loss": loss.name},
        )
    for loss, source in _losses(run, Loss.LOG_PROBABILITIES):
        if source is not None and (source.name in LOG_SIGMOIDS or _is_log_of_sigmoid(source)):
            yield Finding(
                source,
                f"the logarithm of a sigmoid goes into {loss.name}, whose classes exclude each "
                "other: such probabilities do not add up to 1",
                {"activation": "sigmoid", "loss": loss.name},
            )
    for loss, source in _losses(run, Loss.PROBABILITIES, Loss.INDEPENDENT_LOGITS):
        if source is not None and loss.measured.get("one_of_each_row"):
            classes = int(loss.measured["classes"])
            yield Finding(
                source,
                f"every row of {loss.name}'s target has one 1 in {classes} classes: they seem to "
                "exclude each other",
                {"loss": loss.name, **loss.measured},
            )


def _is_log_of_sigmoid(made: Operation) -> bool:
    source = _source(made.inputs[0], _KEEPING)
    return made.name == "log" and source is not None and source.name == "sigmoid"


# ---- softmax -----------------------------------------------------------------------------------


def _softmaxes(run: Run) -> Iterator[tuple[Operation, int]]:
    for operation in run.of_kind(Kind.ACTIVATION):
        if operation.name in ALONG_DIMENSION and not operation.inputs[0].constant:
            shape = operation.inputs[0].shape
            dim = softmax_dimension(operation.call.named, len(shape))
            if shape and dim is not None:
                yield operation, dim


def _softmax_over_one(run: Run) -> Iterator[Finding]:
    for operation, dim in _softmaxes(run):
        before = operation.inputs[0]
        shape = before.shape
        if shape[dim] != 1 or _are_scores(before):
            continue
        # Not the units of a layer, but positions, of which an example may have one.
        positions = before.features is not None and before.features != dim
        if not positions or _reached(operation.output, _KEEPING).is_output:
            value = 0 if operation.name in LOG_PROBABILITIES else 1
            yield Finding(
                operation,
                f"{operation.name} over dimension {dim} of {list(shape)}, of size 1: the result "
                f"is {value} whatever the input",
                {"dim": dim, "shape": list(shape)},
            )


def _are_scores(value: Value) -> bool:
    """Whether these are scores of positions, as in attention: of which an example may have one."""
    operation = value.producer
    for _ in range(8):  # scaled, masked
        if operation is None or operation.kind is Kind.LINEAR:
            return False
        if operation.kind is Kind.PRODUCT:
            return True
        operation = operation.inputs[0].producer
    return False


def _softmax_over_batch(run: Run) -> Iterator[Finding]:
    for operation, dim in _softmaxes(run):
        shape, output = operation.inputs[0].shape, operation.output
        if operation.inputs[0].features == 0:  # one example, without a batch
            continue
        # One number an example is mostly a weight, by which the examples of a bag are added up.
        if math.prod(shape[1:]) == 1 and not _reached(output, _KEEPING).is_output:
            continue
        if dim == 0 and len(shape) > 1 and shape[0] == run.batch and shape[0] > 1:
            guessed = operation.call.named.get("dim") is None
            how = " (PyTorch's guess: no dim was given)" if guessed else ""
            yield Finding(
                operation,
                f"{operation.name} over dimension 0 of {list(shape)}{how}, which is the batch: "
                "examples compete with each other",
                {"dim": dim, "shape": list(shape), "batch": run.batch},
            )


# ---- units that do not learn -------------------------------------------------------------------

# At most 1/4 of a gradient passes a sigmoid; all of it may pass a tanh, at 0 only.
_DEEP = {"sigmoid": 3, "hardsigmoid": 3, "tanh": 5, "softsign": 5, "hardtanh": 5}
_PLAIN = frozenset({*_LINEAR_BETWEEN, Kind.MAX_POOLING, Kind.LINEAR})


def _deep_saturating_stack(run: Run) -> Iterator[Finding]:
    depth: dict[int, list[Operation]] = {}
    deepest: dict[int, Operation] = {}
    for operation in run.of_kind(Kind.ACTIVATION):
        if operation.name not in _DEEP:
            continue
        before = _source(operation.inputs[0], _PLAIN)
        linear = _source(operation.inputs[0], _LINEAR_BETWEEN | {Kind.MAX_POOLING})
        if linear is None or linear.kind is not Kind.LINEAR:
            continue
        chain = [*depth.get(id(before), []), operation]
        depth[id(operation)] = chain
        deepest[id(chain[0])] = operation
    for operation in deepest.values():
        chain = depth[id(operation)]
        if len(chain) >= min(_DEEP[link.name] for link in chain):
            yield Finding(
                operation,
                f"{len(chain)} saturating activations follow each other from {chain[0]} on, with "
                "neither a normalisation nor a residual between them",
                {"depth": len(chain), "activations": [link.name for link in chain]},
            )


_NORMALIZED = frozenset({Kind.SHAPE, Kind.DROPOUT, Kind.BATCH_NORM, Kind.NORMALIZATION})


def _dead_relu(run: Run) -> Iterator[Finding]:
    rectifiers = [o for o in run.of_kind(Kind.ACTIVATION) if o.name in RECTIFIERS and o.measured]
    for operation in rectifiers:
        units, dead = operation.measured["units"], operation.measured["dead"]
        always_on = operation.measured["always_on"]
        # Examples that are alike give each unit of a random layer one sign for all of them; as many
        # are then always on. What is dead beyond that is a property of the layer.
        chance = _chance_of_at_least(int(dead), int(dead + always_on))
        # Behind anything but a layer and its normalisation, signs may be uneven from the start.
        made = _source(operation.inputs[0], _NORMALIZED)
        least = 0.1 if made is not None and made.kind is Kind.LINEAR else 0.5
        if share(dead, units) >= least and chance < 0.01 / len(rectifiers):
            yield Finding(
                operation,
                f"{dead} of {units} units are 0 for all {operation.measured['examples']} values "
                f"that they took ({share(dead, units):.0%}); {always_on} were never 0",
                dict(operation.measured),
            )


def _chance_of_at_least(heads: int, tosses: int) -> float:
    """Of a fair coin."""
    if tosses > 200:  # by the normal distribution
        deviations = (heads - 0.5 - tosses / 2) / (tosses**0.5 / 2)
        return 0.5 * math.erfc(deviations / 2**0.5)
    return sum(math.comb(tosses, k) for k in range(heads, tosses + 1)) / 2**tosses


def _saturated_units(run: Run) -> Iterator[Finding]:
    for operation in run.of_kind(Kind.ACTIVATION):
        measured = operation.measured
        if "saturated" not in measured or not _is_hidden(operation):
            continue
        if measured["saturated"] >= 0.5 or share(measured["stuck"], measured["units"]) >= 0.25:
            yield Finding(
                operation,
                f"{measured['saturated']:.0%} of {operation.name}'s values are saturated, "
                f"{measured['stuck']} of {measured['units']} units on the whole batch: almost no "
                "gradient passes",
                dict(measured),
            )


def _is_hidden(operation: Operation) -> bool:
    """Whether a layer with weights lies behind it: a confident output may saturate."""
    pending, seen = list(operation.outputs), set()
    while pending:
        value = pending.pop()
        for reader in value.readers:
            if reader.kind is Kind.LINEAR:
                return True
            if id(reader) not in seen:
                seen.add(id(reader))
                pending.extend(reader.outputs)
    return False


# ---- BatchNorm ---------------------------------------------------------------------------------


def _batch_norm_without_activation(run: Run) -> Iterator[Finding]:
    for norm in run.of_kind(Kind.BATCH_NORM):
        first = _source(norm.inputs[0], _KEEPING_OR_DROPOUT)
        if first is None or first.kind is not Kind.LINEAR:
            continue
        if _reached(first.output, _KEEPING_OR_DROPOUT).readers != [norm]:
            continue  # a residual needs the first on its own
        reached = _reached(norm.output, _LINEAR_BETWEEN)
        seconds = reached.readers
        if reached.is_output or not seconds:
            continue
        if any(second.kind is not Kind.LINEAR for second in seconds):
            continue
        if any(_is_linear_bottleneck(first.linear, second.linear) for second in seconds):
            continue
        yield Finding(
            norm,
            f"{norm} is followed by {_list(seconds)} with no activation between: with {first} "
            "before it, they are one linear map in evaluation mode",
            {"first": first.module, "second": [second.module for second in seconds]},
        )


def _activation_before_batch_norm(run: Run) -> Iterator[Finding]:
    for norm in run.of_kind(Kind.BATCH_NORM):
        activation = _source(norm.inputs[0], _KEEPING_OR_DROPOUT)
        if activation is None or activation.kind is not Kind.ACTIVATION:
            continue
        linear = _source(activation.inputs[0], _KEEPING)
        if linear is not None and linear.kind is Kind.LINEAR:
            yield Finding(
                norm,
                f"{activation.name} stands between {linear} and {norm}",
                {"linear": linear.module, "activation": activation.name},
            )


def _bias_before_batch_norm(run: Run) -> Iterator[Finding]:
    for norm in run.of_kind(Kind.BATCH_NORM):
        linear = _source(norm.inputs[0], _KEEPING)
        if linear is None or linear.kind is not Kind.LINEAR or linear.linear.bias is None:
            continue
        if _reached(linear.output, _KEEPING).readers == [norm]:
            yield Finding(
                linear,
                f"{linear} has a bias, and {norm} subtracts it with the mean",
                {"norm": norm.module, "elements": linear.linear.bias.numel()},
            )


# ---- autoencoders ------------------------------------------------------------------------------


def _activation_on_code(run: Run) -> Iterator[Finding]:
    output = run.output
    if output is None or all(value.shape != output.shape for value in run.inputs):
        return
    chain = _plain_chain(output)
    if chain is None:
        return
    examples = run.batch if run.batch and output.shape[0] == run.batch else 1
    sizes = [math.prod(operation.output.shape) // examples for operation in chain]
    code, whole = min(sizes), math.prod(output.shape) // examples
    if code >= whole:
        return
    for operation, size in zip(chain, sizes, strict=True):
        if size == code and operation.kind is Kind.ACTIVATION and operation.name in RECTIFIERS:
            linear = _source(operation.inputs[0], _KEEPING | {Kind.BATCH_NORM})
            after = _reached(operation.output, _KEEPING_OR_DROPOUT)
            if linear is None or linear.kind is not Kind.LINEAR:
                continue
            if after.readers and all(o.kind is Kind.LINEAR for o in after.readers):
                yield Finding(
                    operation,
                    f"{operation.name} on the narrowest layer, {code} numbers of {whole}, of a "
                    "network whose output has its input's shape: the code is never negative",
                    {"code": code, "input": whole},
                )


def _plain_chain(output: Value) -> list[Operation] | None:
    """The operations from an input to this value, if each reads the one before it alone."""
    chain: list[Operation] = []
    value = output
    while value.producer is not None:
        operation = value.producer
        if len(dict.fromkeys(operation.inputs)) != 1:
            return None
        chain.append(operation)
        value = operation.inputs[0]
        if len({id(reader) for reader in value.readers}) != 1:
            return None  # a skip connection
    return chain[::-1] if value.is_input else None


# ---- activations in place ----------------------------------------------------------------------


def _inplace_on_shared_value(run: Run) -> Iterator[Finding]:
    for activation, reader in run.overwritten:
        if reader is None:
            by = "the model returns it"
        else:
            line = f" in line {reader.line}" if reader.line is not None else ""
            by = f"{reader}{line} reads it"
        yield Finding(
            activation,
            f"{activation.name} in place overwrites its input, and {by} afterwards",
            {"reader": None if reader is None else reader.name},
        )


# ---- the table ---------------------------------------------------------------------------------

_ROWS = [
    Rule(
        "collapsing-linear-maps",
        "warning",
        "A linear map of a linear map is a linear map: without a non-linearity between them two "
        "layers compute no more than one, and dropout, scaling, pooling and reshaping do not "
        "change that. Not meant are layers that are one map with fewer weights on purpose: a "
        "bottleneck narrower than both ends, a depthwise and a pointwise convolution, a 1xN and an "
        "Nx1.",
        "put an activation between them, or merge them for inference with fastact.merge_linear",
        _collapsing_linear_maps,
    ),
    Rule(
        "activation-on-regression-output",
        "warning",
        "A regression predicts numbers of any size. Behind a ReLU it can predict no negative one, "
        "behind a sigmoid or tanh none outside a unit interval, and where the activation is flat a "
        "wrong prediction gets no gradient.",
        "return the last linear layer's result; keep the activation only where every target lies "
        "in its range",
        _activation_on_regression_output,
    ),
    Rule(
        "softmax-before-cross-entropy",
        "error",
        "CrossEntropyLoss takes logits and applies log_softmax itself. Applied twice, softmax "
        "flattens the probabilities: the loss cannot come near 0, and gradients shrink. A "
        "log_softmax before it changes nothing and costs time.",
        "return the logits, and apply softmax only where probabilities are shown",
        _applied_twice(SOFTMAXES, Loss.LOGITS, "log_softmax"),
    ),
    Rule(
        "sigmoid-before-bce-with-logits",
        "error",
        "BCEWithLogitsLoss applies sigmoid itself. Applied twice, it confines the prediction to "
        "0.5 ... 0.73: no example can be predicted as negative.",
        "return the logits, or use BCELoss",
        _applied_twice(PROBABILITIES, Loss.INDEPENDENT_LOGITS, "sigmoid"),
    ),
    Rule(
        "missing-sigmoid",
        "error",
        "BCELoss takes the logarithm of its input and of 1 minus its input: outside 0 ... 1 it "
        "raises or has no meaning.",
        "use BCEWithLogitsLoss on the logits, which is also more precise, or put a sigmoid before "
        "BCELoss",
        _without(PROBABILITIES, Loss.PROBABILITIES),
    ),
    Rule(
        "missing-log-softmax",
        "error",
        "NLLLoss returns minus the entry of the right class: on logits it has no lower bound, and "
        "training makes them grow. KLDivLoss too takes logarithms of probabilities.",
        "use CrossEntropyLoss on the logits, or put log_softmax before NLLLoss",
        _without(LOG_PROBABILITIES, Loss.LOG_PROBABILITIES),
    ),
    Rule(
        "sigmoid-on-exclusive-classes",
        "warning",
        "Where exactly one class is right, the probabilities depend on each other and add up to 1: "
        "that is softmax. A sigmoid for each class answers independent questions.",
        "return logits and use CrossEntropyLoss; keep the sigmoids where several labels may be "
        "right at once",
        _sigmoid_on_exclusive_classes,
    ),
    Rule(
        "softmax-over-one-element",
        "error",
        "The probabilities of a single class add up to 1, so the one is 1, and its gradient 0.",
        "for a yes or no use sigmoid; else give softmax the dimension of the classes",
        _softmax_over_one,
    ),
    Rule(
        "softmax-over-batch",
        "error",
        "Softmax makes what lies along its dimension compete. Along the batch these are the "
        "examples, whose results then depend on what else is in the batch.",
        "give softmax the dimension of the classes, mostly dim=-1 (dim=1 for images)",
        _softmax_over_batch,
    ),
    Rule(
        "deep-saturating-stack",
        "warning",
        "Each sigmoid passes at most a quarter of a gradient, each tanh all of it at 0 and next to "
        "nothing beyond 4: the first layers of a deep plain stack hardly learn, unless the weights "
        "start at the right size. Normalisation keeps values where the derivative is large; a "
        "residual lets the gradient go round.",
        "use ReLU, GELU or SiLU in hidden layers, or put normalisation or residuals between",
        _deep_saturating_stack,
    ),
    Rule(
        "dead-relu",
        "warning",
        "Where a ReLU returns 0 for every example, its gradient is 0 too, and the unit learns no "
        "more. Too large a learning rate or a large negative bias does it. A rule of chance "
        "decides: in a random layer as many units are always on as are always off.",
        "lower the learning rate, look at the biases, or use LeakyReLU, ELU or GELU, whose "
        "derivative is not 0 there",
        _dead_relu,
    ),
    Rule(
        "saturated-units",
        "warning",
        "A sigmoid or tanh far from 0 has a derivative below 0.001: almost no gradient passes, and "
        "the unit is little more than a constant.",
        "normalise the inputs, initialise with smaller weights (xavier_uniform_), or normalise "
        "before the activation",
        _saturated_units,
    ),
    Rule(
        "batch-norm-without-activation",
        "warning",
        "In evaluation mode batch norm is a scaling: a linear map, batch norm and a linear map "
        "with no activation between them compute no more than one linear map.",
        "put an activation behind the batch norm, or leave out one of the layers",
        _batch_norm_without_activation,
    ),
    Rule(
        "activation-before-batch-norm",
        "info",
        "Batch norm directly behind a linear map keeps the activation's input where it is neither "
        "dead nor saturated, and fastact.convert folds it into the weights for inference. Behind "
        "an activation it does neither. Networks that were designed so work.",
        "order them linear, batch norm, activation",
        _activation_before_batch_norm,
    ),
    Rule(
        "bias-before-batch-norm",
        "info",
        "Batch norm subtracts the mean, and with it the bias; its own bias takes over. The "
        "layer's is a parameter to store and to update, without effect.",
        "construct the layer with bias=False",
        _bias_before_batch_norm,
    ),
    Rule(
        "activation-on-code",
        "warning",
        "The code of an autoencoder is what the decoder knows of the input. A ReLU throws away "
        "half of its range, and dead units of it for good.",
        "let the encoder end in a linear layer",
        _activation_on_code,
    ),
    Rule(
        "inplace-on-shared-value",
        "error",
        "An activation in place writes its result over its input. Whoever reads the input "
        "afterwards, such as a residual, gets the activation's result.",
        "use the activation with inplace=False there",
        _inplace_on_shared_value,
    ),
]

RULES: Mapping[str, Rule] = {rule.name: rule for rule in _ROWS}
SEVERITIES = ("error", "warning", "info")
