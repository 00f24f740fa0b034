"""Where a model's use of activations departs from good practice.

``operations`` knows what a call of PyTorch is, ``observation`` runs the model and sees which value
flows where, ``rules`` is the table of what is looked for, ``merging`` makes one layer of two that
have no activation between them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fastact.advice.merging import merge_linear
from fastact.advice.observation import observe
from fastact.advice.rules import RULES, SEVERITIES, Finding, Rule


@dataclass(frozen=True)
class Advice:
    """One finding.

    Attributes:
        rule: the rule's name, which ``ignore=`` takes.
        severity: "error", "warning" or "info".
        module: the qualified name of the module; empty where no module of the model made the call.
        module_class: its class.
        file, line: of the code that made the call, or None where PyTorch's own containers did.
        message: what is the case there.
        reason: why that matters.
        remedy: what to do.
        evidence: the figures and names that show it, by name.
    """

    rule: str
    severity: str
    module: str
    module_class: str
    file: str | None
    line: int | None
    message: str
    reason: str
    remedy: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Module, file and line, as far as they are known."""
        module = f"{self.module} ({self.module_class})" if self.module else self.module_class
        position = f"{_short(self.file)}:{self.line}" if self.file else ""
        return ", ".join(filter(None, [module, position])) or "the model"

    def __str__(self) -> str:
        return f"{self.severity}: {self.rule}: {self.place}: {self.message}; {self.remedy}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def _short(file: str) -> str:
    """Relative to the working folder, where it lies in that."""
    here = os.path.join(os.getcwd(), "")
    return file.removeprefix(here)


class AdviceList(list[Advice]):
    """What :func:`advise` returns: a list that prints as a table, in which findings of one rule in
    one line of code share a row.

    Attributes:
        operations: how many calls of PyTorch were watched, on values that depend on the inputs.
    """

    operations: int = 0

    def __str__(self) -> str:
        if not self:
            return f"nothing to advise ({self.operations} operations watched)"
        alike: dict[tuple[Any, ...], list[Advice]] = {}
        for advice in self:
            key = (advice.rule, advice.file, advice.line) if advice.file else (id(advice),)
            alike.setdefault(key, []).append(advice)
        rows = [("severity", "rule", "where", "what")]
        for first, *others in alike.values():
            more = f" (and {len(others)} more like it)" if others else ""
            rows.append((first.severity, first.rule, first.place, first.message + more))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        rules = dict.fromkeys(a.rule for a in self)
        remedies = [f"{name}: {RULES[name].remedy}" for name in rules]
        counts = [(s, sum(a.severity == s for a in self)) for s in SEVERITIES]
        summary = ", ".join(f"{n} {s}{'s' * (n != 1 and s != 'info')}" for s, n in counts if n)
        summary += f" ({self.operations} operations watched)"
        return "\n".join([*lines, "", "What to do", *remedies, "", summary])

    __repr__ = __str__


def advise(
    model: Callable[..., Any],
    *example_inputs: Any,
    loss: Any = None,
    ignore: Iterable[str] = (),
) -> list[Advice]:
    """Where the model's use of activations departs from good practice.

    The model runs once on the inputs, in the mode in which it is, under the caller's grad mode and
    autocast, and every call of PyTorch is watched; what torch.compile compiled runs as it was
    written. Afterwards the model, its attributes, gradients and buffers, the inputs and the random
    state are as they were. The rules, each with its reason, are listed in docs/activations.md.

    Args:
        model: a module, or any function of tensors.
        example_inputs: what it is called with; a batch of real examples says most, since dead and
            saturated units are measured on it.
        loss: what the output is trained with: a loss of torch.nn or torch.nn.functional, which is
            only looked at; or any function of the model's output, which is called, such as
            ``lambda output: F.cross_entropy(output, target)``. None: rules about the output are
            applied to losses that the model itself calls.
        ignore: names of rules to leave out.

    Returns:
        A list of :class:`Advice`, errors first, that prints as a table; empty where there is
        nothing to say.

    Raises:
        TypeError: the model or the loss is of a kind that cannot be watched.
        ValueError: ``ignore`` names no rule; the model has parameters that its first call makes.
        Exception: whatever the model raises, or the loss, unless a rule says why.

    Example:
        >>> layers = [torch.nn.Linear(4, 8), torch.nn.Linear(8, 3), torch.nn.Softmax(dim=-1)]
        >>> model = torch.nn.Sequential(*layers)
        >>> found = fastact.advise(model, torch.randn(16, 4), loss=torch.nn.CrossEntropyLoss())
        >>> [(advice.severity, advice.rule, advice.module) for advice in found]
        [('error', 'softmax-before-cross-entropy', '2'), ('warning', 'collapsing-linear-maps', '0')]
    """
    rules = _chosen(ignore)
    _check(model, loss)
    run, raised = observe(model, example_inputs, loss)
    found = AdviceList(_advice(rule, finding) for rule in rules for finding in rule.find(run))
    found.operations = len(run.operations)
    if raised is not None and not any("loss" in advice.evidence for advice in found):
        raise raised
    found.sort(key=lambda advice: SEVERITIES.index(advice.severity))
    return found


def _advice(rule: Rule, finding: Finding) -> Advice:
    operation = finding.operation
    return Advice(
        rule.name,
        rule.severity,
        operation.module,
        operation.module_class,
        operation.file,
        operation.line,
        finding.message,
        rule.reason,
        rule.remedy,
        finding.evidence,
    )


def _chosen(ignore: Iterable[str]) -> list[Rule]:
    ignored = [ignore] if isinstance(ignore, str) else list(ignore)
    for name in ignored:
        if name not in RULES:
            nearest = difflib.get_close_matches(str(name), RULES, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"fastact.advise(): ignore: expected names of rules, got {name!r}; "
                f"nearest: {nearest}"
            )
    return [rule for rule in RULES.values() if rule.name not in ignored]


def _check(model: Any, loss: Any) -> None:
    if not callable(model):
        raise TypeError(
            f"fastact.advise(): model: expected a module or a function, got {type(model).__name__}"
        )
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise TypeError(
            "fastact.advise(): model: expected Python code, which can be watched, got TorchScript; "
            "advise what it was made of"
        )
    if loss is not None and not callable(loss):
        raise TypeError(
            "fastact.advise(): loss: expected a loss of torch.nn or torch.nn.functional, or a "
            f"function of the model's output, got {type(loss).__name__}"
        )
    modules = model.named_modules() if isinstance(model, torch.nn.Module) else ()
    for name, module in modules:
        tensors = (*module._parameters.values(), *module._buffers.values())
        if any(torch.nn.parameter.is_lazy(tensor) for tensor in tensors):
            raise ValueError(
                "fastact.advise(): model: expected initialised parameters, got a lazy "
                f"{type(module).__name__}, {name or 'the model'}; call the model once before"
            )


__all__ = ["RULES", "Advice", "Rule", "advise", "merge_linear"]
