"""Random modules: the source of a class, drawn from a seed, and edits to make of its instances.

Weights and inputs are small integers in float64, so that whatever is drawn is exact, fused or not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastact.testing import programs
from fastact.testing.conversion import defined

WIDTH = programs.WIDTH


@dataclass(frozen=True)
class Drawn:
    """A class with its source, and edits, each a function of an instance."""

    kind: type[nn.Module]
    source: str
    edits: list[tuple[str, Callable[[Any], Any]]]


_LAYERS = ["self.a", "self.b", "self.c", "self.layers[0]", "self.layers[1]", "self.named['k']"]
# Of values that stay small integers.
_ACTIVATIONS = [
    "F.relu({})",
    "torch.relu({})",
    "{}.relu()",
    "F.relu({}, inplace=True)",
    "F.hardtanh({}, -self.bound, self.bound)",
    "F.leaky_relu({}, 2.0)",
    "F.leaky_relu({}, negative_slope=self.slope)",
    "F.threshold({}, 1.0, -2.0)",
    "F.softshrink({}, 1.0)",
    "F.hardshrink({}, STEP)",
    "self.relu({})",
    "self.relu_({})",
    "self.leaky({})",
    "self.hard({})",
    "self.function({})",
]
_IDLE = ["self.drop({})", "F.dropout({}, 0.5, False)", "F.dropout({}, 0.5, self.dropping)"]
_OTHERS = ["-{}", "{} * 2", "{}.clone()", "self.other({})", "self.body({})", "self.step({})"]
_CONDITIONS = ["x.sum() > 0", "self.flag", "self.training", "len(LOG) % 2", "x.grad_fn is None"]


class _Writer:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines: list[str] = []

    def pick(self, options: list[str]) -> str:
        return self.random.choice(options)

    def expression(self, names: list[str], depth: int = 0) -> str:
        """Of one or more layers, activations and sums."""
        value, draw = self.pick(names), self.random.random()
        if depth > 2 or draw < 0.15:
            return value
        inner = self.expression(names, depth + 1)
        if draw < 0.45:
            return f"{self.pick(_LAYERS)}({inner})"
        if draw < 0.75:
            return self.pick(_ACTIVATIONS).format(f"{self.pick(_LAYERS)}({inner})")
        if draw < 0.85:
            sums = ["{} + {}", "{1} + {0}", "torch.add({}, {})", "({}).add({})"]
            return "(" + self.pick(sums).format(f"{self.pick(_LAYERS)}({inner})", value) + ")"
        if draw < 0.92:
            return self.pick(_IDLE).format(f"{self.pick(_LAYERS)}({inner})")
        return "(" + self.pick(_OTHERS).format(inner) + ")"

    def run(self, indent: str, names: list[str]) -> None:
        """Statements on one value, perhaps with something between."""
        target = self.pick(["x", "y", "z", "w"])
        source = self.pick(names)
        self.lines.append(f"{indent}{target} = {self.pick(_LAYERS)}({source})")
        names.append(target)
        for _ in range(self.random.randrange(4)):
            draw = self.random.random()
            if draw < 0.45:
                line = f"{target} = {self.pick(_ACTIVATIONS).format(target)}"
            elif draw < 0.55:
                line = f"{target} += {self.pick(names)}"
            elif draw < 0.65:
                line = f"{target} = {self.pick(names)} + {target}"
            elif draw < 0.75:
                line = f"{target} = {self.pick(_IDLE).format(target)}"
            elif draw < 0.85:
                line = f"LOG.append({target}.detach().clone())"
            elif draw < 0.92:
                line = self.pick([f"{target}.mul_(2)", f"{target}[0] = 1", f"{target}.add_(1)"])
            else:
                other = self.pick(["x", "y", "z", "w"])
                line = f"{other} = {self.pick(_ACTIVATIONS).format(target)}"
                names.append(other)
                target = other
            self.lines.append(indent + line)

    def block(self, indent: str, names: list[str], depth: int) -> None:
        for _ in range(self.random.randrange(1, 4)):
            draw = self.random.random()
            if draw < 0.4 or depth > 2:
                self.run(indent, names)
            elif draw < 0.6:
                target = self.pick(["x", "y", "z"])
                self.lines.append(f"{indent}{target} = {self.expression(names)}")
                names.append(target)
            else:
                self.compound(indent, names, depth)

    def compound(self, indent: str, names: list[str], depth: int) -> None:
        inner, deeper = indent + "    ", [*names]
        kind = self.random.randrange(7)
        if kind == 0:
            self.lines.append(f"{indent}if {self.pick(_CONDITIONS)}:")
            self.block(inner, deeper, depth + 1)
            self.lines.append(f"{indent}else:")
            self.block(inner, [*names], depth + 1)
        elif kind == 1:
            self.lines.append(f"{indent}for layer in self.layers:")
            activation = self.pick(_ACTIVATIONS).format("layer(x)")
            self.lines.append(f"{inner}x = {activation}")
            self.block(inner, deeper, depth + 2)
        elif kind == 2:
            context = self.pick(
                [
                    "torch.no_grad()",
                    "torch.enable_grad()",
                    "torch.autocast('cpu', enabled=False)",
                    "contextlib.suppress(ZeroDivisionError)",
                ]
            )
            self.lines.append(f"{indent}with {context}:")
            self.block(inner, deeper, depth + 1)
        elif kind == 3:
            self.lines.append(f"{indent}try:")
            self.block(inner, deeper, depth + 1)
            self.lines.append(f"{inner}{self.pick(['x = x + 0', 'x = self.missing(x)', '1 / 0'])}")
            self.lines.append(f"{indent}except (AttributeError, ZeroDivisionError):")
            self.lines.append(f"{inner}LOG.append(x.detach().clone())")
        elif kind == 4:
            activation = self.pick(_ACTIVATIONS).format("layer(x)")
            self.lines.append(f"{indent}x = sum([{activation} for layer in self.layers])")
        elif kind == 5:
            activation = self.pick(_ACTIVATIONS).format("self.a(v)")
            self.lines.append(f"{indent}x = (lambda v: {activation})({self.pick(names)})")
        else:
            self.lines.append(f"{indent}self.count += 1")
            self.lines.append(f"{indent}x = x + self.count")

    def module(self) -> str:
        result = self.pick(["x", "x, LOG[-1:]", "{'out': x}"])
        self.lines = ["class Module(Parts):", "    def forward(self, x):"]
        self.block("        ", ["x"], 0)
        self.block("        ", ["x"], 0)
        self.lines += [f"        return {result}", "", "    def step(self, x):"]
        self.run("        ", ["x"])
        self.lines += ["        return x", ""]
        return "\n".join(self.lines)


class Parts(nn.Module):
    """What a drawn forward may call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH, bias=i > 0) for i in range(3))
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])
        self.named = nn.ModuleDict({"k": nn.Linear(WIDTH, WIDTH)})
        self.relu, self.relu_ = nn.ReLU(), nn.ReLU(inplace=True)
        self.leaky, self.hard = nn.LeakyReLU(0.5), nn.Hardtanh(-3, 3)
        self.drop, self.other = nn.Dropout(0.0), nn.Identity()
        self.body = nn.Sequential(
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Dropout(0.0),
            nn.Linear(WIDTH, WIDTH),
            nn.Hardtanh(),
        )
        self.function = F.relu
        self.bound, self.slope, self.flag, self.count, self.dropping = 4.0, 0.5, True, 0, False
        self.double()
        for tensor in self.parameters():
            nn.init.uniform_(tensor, -1.5, 1.5).data.round_()


def small(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator).double()


def _layer(seed: int) -> nn.Linear:
    layer = nn.Linear(WIDTH, WIDTH).double().eval()
    layer.weight.data.copy_(small(WIDTH, WIDTH, seed=seed))
    layer.bias.data.copy_(small(WIDTH, seed=seed + 1))
    return layer


def _hook(module: nn.Module, args: Any, output: Any) -> Any:
    programs.LOG.append(type(module).__name__)
    return output + 1


EDITS: dict[str, Callable[[Any], Any]] = {
    "hook": lambda m: m.a.register_forward_hook(_hook),
    "hook of an activation": lambda m: m.leaky.register_forward_hook(_hook),
    "forward": lambda m: setattr(m.b, "forward", lambda x: x * 2),
    "forward of an activation": lambda m: setattr(m.relu, "forward", lambda x: x - 1),
    "layer": lambda m: setattr(m, "b", _layer(3)),
    "no layer": lambda m: setattr(m, "c", nn.Identity()),
    "activation": lambda m: setattr(m, "relu", nn.Hardtanh(-1, 2)),
    "function": lambda m: setattr(m, "function", torch.neg),
    "written": lambda m: m.a.weight.detach().mul_(-1),
    "new weight": lambda m: setattr(m.a, "weight", nn.Parameter(small(WIDTH, WIDTH, seed=4))),
    "no bias": lambda m: setattr(m.b, "bias", None),
    "settings": lambda m: vars(m).update(slope=2, bound=1, flag=0),
    "setting": lambda m: setattr(m.leaky, "negative_slope", 4.0),
    "dropping": lambda m: setattr(m, "dropping", 0),
    "sequence": lambda m: (m.body.pop(1), m.body.append(nn.Hardtanh(-2, 2))),
    "list": lambda m: m.layers.append(_layer(6)),
    "train": lambda m: m.train(),
    "load": lambda m: m.load_state_dict({k: v.neg() for k, v in m.state_dict().items()}),
    "class": lambda m: setattr(m.layers[0], "__class__", programs.Doubled),
    "requires_grad": lambda m: m.requires_grad_(),
}


def draw(seed: int) -> Drawn:
    writer = _Writer(seed)
    source = writer.module()
    header = "import contextlib, torch\nimport torch.nn.functional as F\n"
    scope = defined(header + source, Parts=Parts, LOG=programs.LOG, STEP=1.0)
    names = writer.random.sample(sorted(EDITS), 3)
    return Drawn(scope["Module"], source, [(name, EDITS[name]) for name in names])
