"""Ordinary programs: models whose forwards do what Python allows. Converted or not, each must do
the same.

A row is a class of modules with the calls to try, and what its sites fuse in inference, where that
is known. The input is WIDTH features wide.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import random
import warnings
from collections import namedtuple
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH = 6
# What programs write to outside of themselves, read by the tests.
LOG: list[Any] = []
COUNTS = {"calls": 0}
SCALE = 1.0


class Program(NamedTuple):
    """One row.

    Attributes:
        make: returns the model.
        calls: positional and keyword arguments of each call, made anew by a function.
        fused: what each call of a site fuses at the first call in inference; None: not said.
        compiles: whether torch.compile(fullgraph=True) takes the original.
    """

    make: Callable[[], nn.Module]
    calls: tuple[Callable[[], tuple[tuple[Any, ...], dict[str, Any]]], ...]
    fused: tuple[str, ...] | None = None
    compiles: bool = False


PROGRAMS: dict[str, Program] = {}


def features(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (3, WIDTH)), generator=generator)


def call(*args: Any, **kwargs: Any) -> Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Tensors are copied for every call, as a program may write to them; one that is there twice
    stays the same one."""

    def arguments() -> tuple[tuple[Any, ...], dict[str, Any]]:
        copies: dict[int, Tensor] = {}

        def copied(value: Any) -> Any:
            if isinstance(value, Tensor):
                return copies.setdefault(id(value), value.detach().clone())
            return value

        return tuple(map(copied, args)), {name: copied(value) for name, value in kwargs.items()}

    return arguments


X, Y = features(), features(seed=1)


def program(
    *calls: Callable[[], Any],
    fused: tuple[str, ...] | None = None,
    compiles: bool = False,
    make: Callable[[type], nn.Module] | None = None,
) -> Callable[[type], type]:
    def note(kind: type) -> type:
        maker = kind if make is None else functools.partial(make, kind)
        PROGRAMS[kind.__name__] = Program(maker, calls or (call(X),), fused, compiles)
        return kind

    return note


class Parts(nn.Module):
    """Two layers, and what may follow one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.act, self.drop, self.norm = nn.GELU(), nn.Dropout(0.5), nn.BatchNorm1d(WIDTH)
        self.slope, self.p = 0.2, 0.5
        nn.init.uniform_(self.norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.weight, 0.5, 2)


# ---- the forms of a chain ----------------------------------------------------------------------


@program(fused=("relu", ""), compiles=True)
class Nested(Parts):
    def forward(self, x):
        return self.fc2(F.relu(self.fc(x)))


@program(fused=("relu", "sigmoid"), compiles=True)
class Methods(Parts):
    def forward(self, x):
        return self.fc(x).relu() + torch.sigmoid(self.fc2(x))


@program(fused=("residual relu", "residual gelu"), compiles=True)
class Sums(Parts):
    def forward(self, x):
        return F.relu(x + self.fc(x)) + self.act(self.fc2(x) + x)


@program(fused=("norm dropout residual gelu", "leaky_relu"), compiles=True)
class Statements(Parts):
    def forward(self, x):
        out = self.fc(x)
        out = self.norm(out)
        out = self.drop(out)
        out += x
        out = self.act(out)
        h = self.fc2(out)
        y = F.leaky_relu(h, self.slope)
        return y


@program(fused=("tanh", "gelu"), compiles=True)
class Returned(Parts):
    def forward(self, x):
        x = self.fc(x)
        x = torch.tanh(x)
        x = self.fc2(x)
        return self.act(x)


@program(fused=("dropout residual", "dropout tanh"), compiles=True)
class Dropouts(Parts):
    def forward(self, x):
        x = F.dropout(self.fc(x), self.p, training=self.training) + x
        return torch.tanh(self.drop(self.fc2(x)))


@program(call(X), call(X, dim=0, slope=0.9), fused=("leaky_relu", "softmax"), compiles=True)
class Arguments(Parts):
    def forward(self, x, *, dim=-1, slope=0.3):
        y = F.leaky_relu(self.fc(x), slope)
        return F.softmax(self.fc2(y), dim=dim)


@program(fused=("", ""), compiles=True)
class ReadTwice(Parts):
    def forward(self, x):
        h = self.fc(x)
        y = F.relu(h)
        z = self.fc2(y)
        y = torch.tanh(z)
        return h + y + z


@program(fused=("residual", "residual"), compiles=True)
class FunctionSums(Parts):
    def forward(self, x):
        y = torch.add(x, self.fc(x))
        return self.fc2(y).add(y)


@program(compiles=True)
class ScaledSums(Parts):
    def forward(self, x):
        y = torch.add(x, self.fc(x), alpha=2)
        return self.fc2(y).add(y, alpha=0.5) + 1


@program(fused=("", ""), compiles=True)
class SumsOfOtherKinds(Parts):
    def forward(self, x):
        return F.relu(self.fc(x) + x.size(0)) + F.relu(self.fc2(x) + x[0])


@program(compiles=True)
class Integers(Parts):
    """A residual of another dtype."""

    def forward(self, x):
        return self.fc(x) + x.double(), x.double() + self.fc2(x)


@program(fused=("relu",), compiles=True)
class InPlaceActivation(Parts):
    def forward(self, x):
        return F.relu_(self.fc(x))


@program()
class WritesItsInput(Parts):
    def forward(self, x):
        x += self.fc(x)
        y = self.fc2(x)
        x.mul_(2)
        return F.relu(y) + x


@program(compiles=True)
class WritesItsResult(Parts):
    def forward(self, x):
        out = F.leaky_relu(self.fc(x), 0.1)
        out += x
        out.mul_(2)
        out[0] = 1.0
        return out


@program(compiles=True)
class WritesBetween(Parts):
    """The residual changes after the sum was written down, and before."""

    def forward(self, x):
        r = x * 1
        out = self.fc(x)
        r.add_(1)
        out = out + r
        r.mul_(3)
        out = self.act(out)
        return out + r


@program(fused=("relu", "relu"), compiles=True)
class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


@program(fused=("relu", "tanh"), compiles=True)
class Indexed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])
        self.named = nn.ModuleDict({"act": nn.Tanh()})

    def forward(self, x):
        x = F.relu(self.layers[0](x))
        return self.named["act"](self.layers[1](x))


@program(
    fused=("relu", "norm dropout tanh", "softmax"),
    compiles=True,
    make=lambda kind: kind(
        nn.Linear(WIDTH, 5),
        nn.ReLU(),
        nn.Linear(5, 4),
        nn.BatchNorm1d(4),
        nn.Dropout(),
        nn.Tanh(),
        nn.LayerNorm(4),
        nn.Linear(4, 3),
        nn.Softmax(-1),
    ),
)
class Sequence(nn.Sequential):
    pass


@program(fused=("relu",), make=lambda kind: kind(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.ReLU()))
class Backwards(nn.Sequential):
    """Iterates in an order of its own."""

    def __iter__(self):
        return iter(list(self._modules.values())[:2])


@program(fused=("relu", ""), compiles=True)
class Attributes(nn.Module):
    """Callables that are no modules, on the instance."""

    def __init__(self):
        super().__init__()
        self.fc, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.f, self.g = F.relu, lambda x: torch.tanh(x) * 2

    def forward(self, x):
        x = self.f(self.fc(x))
        x = self.fc2(x)
        x = self.g(x)
        return x


@program(fused=("prelu", "prelu"), compiles=True)
class Slopes(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.act, self.slopes = nn.PReLU(), nn.Parameter(torch.linspace(-1, 1, WIDTH))

    def forward(self, x):
        return F.prelu(self.fc2(self.act(self.fc(x))), self.slopes)


# ---- what asks about values --------------------------------------------------------------------


@program(call(X), call(X, X), call(X, Y), fused=("relu",))
class Asks(Parts):
    def forward(self, x, key=None):
        y = F.relu(self.fc(x))
        if hasattr(x, "tensors") or callable(x) or getattr(x, "mask", None) is not None:
            return y * 0
        if x.dtype is torch.float32 and type(x) is Tensor and x.grad_fn is None:
            y = y * {torch.float32: 2.0}.get(x.dtype, 1.0)
        if hasattr(y, "logits"):
            y = y.logits
        return y * 3 if key is x else y


@program(call(X), call([X, X]))
class TensorOrList(Parts):
    def forward(self, x):
        x = x if isinstance(x, Tensor) else x[0]
        return F.relu(self.fc(x))


@program(call(X), call(-X.abs()))
class Branches(Parts):
    def forward(self, x):
        if x.sum() > 0:
            return self.act(self.fc(x))
        x = self.fc2(x)
        return torch.tanh(x)


@program(call(X), call(X, "text"), call(X, None))
class Raises(Parts):
    def forward(self, x, what=0):
        y = F.relu(self.fc(x))
        if what:
            raise KeyError(what)
        try:
            h = self.fc2(y)
            h = F.relu(h)
            n = int(h.sum() * 0 + len(what or "abc"))
        except TypeError:
            n = 1
        with contextlib.suppress(Exception):
            if bool(y.max() > -1):
                y = y + n
        return y


@program()
class SwallowedHalfway(Parts):
    """Between the statements something raises: the first of them must have happened."""

    def forward(self, x):
        out = x
        try:
            out = self.fc(out)
            out = self.act(out, 1, 2, 3)
        except TypeError:
            pass
        with contextlib.suppress(TypeError):
            out = self.fc2(out)
            out = self.act(out, 1)
        try:
            out = self.fc(out)
            out = F.softmax(out, dim=7)
        except IndexError:
            out = out * 2
        return out


@program(call(X[:, :4]), call(X.long()), call(X.double()), call(None), call(X[:0]))
class Refused(Parts):
    def forward(self, x):
        y = F.relu(self.fc(x))
        y = self.fc2(y)
        return torch.tanh(y)


@program()
class LineOfAnError(Parts):
    def forward(self, x):
        y = F.relu(self.fc(x))
        z = self.fc2(y)
        z = self.drop(z)
        z = self.bad(z)
        return F.relu(z)

    def bad(self, z):
        raise KeyError("mine")


# ---- regions -----------------------------------------------------------------------------------


@program(fused=("softmax",))
class AutocastOff(Parts):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            z = self.fc(x.float())
            z = F.softmax(z, -1)
        return z if torch.is_autocast_enabled("cpu") else z * 2


@program(fused=("relu", "residual"))
class AutocastOn(Parts):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = F.relu(self.fc(x)) + 0
        return z.float() + self.fc2(x)


@program()
class AutocastDecorated(Parts):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return torch.sigmoid(self.fc(x.float()))


@program(fused=("relu", "relu"))
class GradModes(Parts):
    def forward(self, x):
        with torch.no_grad():
            z = F.relu(self.fc(x))
        with torch.set_grad_enabled(self.training):
            z = F.relu(self.fc2(z))
        return z * (2 if torch.is_grad_enabled() else 3)


@program(fused=("relu",))
class NoGradDecorated(Parts):
    @torch.no_grad()
    def forward(self, x):
        return F.relu(self.fc(x))


@program()
class InferenceRegion(Parts):
    def forward(self, x):
        with torch.inference_mode():
            z = F.relu(self.fc(x))
        return z.clone() + 1


@program()
class Checkpointed(Parts):
    def forward(self, x):
        return checkpoint(lambda y: F.relu(self.fc(y)), x, use_reentrant=False)


@program()
class RecordedRegion(Parts):
    def forward(self, x):
        with torch.profiler.record_function("my_region"):
            y = self.fc(x)
            return F.relu(y)


# ---- side effects ------------------------------------------------------------------------------


@program(call(X), call(Y))
class Effects(Parts):
    def forward(self, x):
        COUNTS["calls"] += 1
        LOG.append("called")
        y = F.relu(self.fc(x))
        LOG.append(y.detach())
        self.last = y
        return y * SCALE * COUNTS["calls"] / np.sqrt(x.size(-1)) / np.prod(x.shape)


@program(call(X), call(Y), call(X))
class Caches(Parts):
    def __init__(self):
        super().__init__()
        self.seen, self.cache = [], {}

    def forward(self, x):
        key = tuple(x.shape)
        if key not in self.cache:
            self.cache[key] = F.relu(self.fc(x)).detach()
        self.seen.append(x.mean().item())
        return torch.tanh(self.fc2(x)) + self.cache[key] + len(self.seen)


@program(call(X), call(X))
class Draws(Parts):
    def forward(self, x):
        y = F.relu(self.fc(x))
        if random.random() < 0.5:
            y = y + torch.rand(())
        y = y * float(np.random.rand())
        return F.dropout(y, 0.5, True)


@program(call(X), call(X))
class OwnGenerator(Parts):
    def __init__(self):
        super().__init__()
        self.state = 1

    def forward(self, x):
        self.state = self.state * 16807 % 2147483647
        return F.relu(self.fc(x)) * (self.state % 10)


@program()
class Warns(Parts):
    def forward(self, x):
        warnings.warn("mine", stacklevel=2)
        return F.relu(self.fc(x))


@program()
class UsesNumpy(Parts):
    def forward(self, x):
        y = F.relu(self.fc(x))
        return y + torch.from_numpy(np.clip(y.detach().numpy(), 0, 0.5))


@program(call(X), call(X))
class BuffersWritten(Parts):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x):
        y = torch.tanh(self.fc(x))
        self.mean.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
        return y - self.mean


# ---- names and signatures ----------------------------------------------------------------------


@program(call(X, Y), call(X, len=Y), call(X, 2))
class NamedAsBuiltin(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])

    def forward(self, x, len):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x * len


@program(call(X, Y, Y))
class NamedAsModule(Parts):
    def forward(self, torch, operator, getattr):
        return F.relu(self.fc(torch)) + operator + getattr


@program(call(X, Y, Y, max=Y))
class NamedInput(Parts):
    def forward(self, input, type, id, *, max):
        return F.relu(self.fc(input)) + type + id + max


@program(call(X))
class NamedSelf(Parts):
    def forward(this, self):
        return F.relu(this.fc(self))


@program(call(X, Y, Y))
class NamedAsSites(Parts):
    def forward(self, _site0, _site_done, _site):
        y = self.fc(_site0)
        y = F.relu(y)
        return y + _site_done + _site


@program(call(X), call(X, Y, flag=True), call(X, Y, 1, 2, k=3), call(X, wrong=1), call())
class Signature(Parts):
    def forward(self, x, /, y=None, *args, flag: bool = False, **kw):
        x = F.relu(self.fc(x))
        return (x if y is None else x + y) * (2 if flag else 1) + len(args) + len(kw)


@program(call(X))
class Rebinds(Parts):
    """Names change their meaning inside the function."""

    def forward(self, x):
        layer = self.fc
        self_again, fc = self, self.fc2
        x = F.relu(layer(x))
        layer = fc
        x = torch.tanh(layer(x))
        self = nn.Module()
        self.fc = nn.Identity()
        return F.relu(self.fc(x)) + self_again.fc(x)


# ---- the language ------------------------------------------------------------------------------


@program(fused=None)
class Flow(Parts):
    def forward(self, x):
        for layer in (self.fc, self.fc2):
            x = layer(x)
            x = F.relu(x)
            if x.sum() < 0:
                break
        else:
            x = x + 1
        while (y := F.relu(self.fc(x))).sum() < -1:
            x = y
        z = [F.relu(layer(y)) for layer in (self.fc, self.fc2)]
        g = sum(torch.tanh(self.fc(v)) for v in z)
        f = lambda v: F.gelu(self.fc2(v))  # noqa: E731

        def inner(v):
            v = self.fc(v)
            v = self.act(v)
            return v

        match x.shape:
            case (_, 6):
                w = self.fc(x)
                w = F.relu(w)
            case _:
                w = x
        return (f(x) if self.p else x) + inner(g) + w + F.relu(self.fc(x := x + 1)) + x


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.__hidden = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def step(self, x):
        return F.relu(self.fc(x))

    def forward(self, x):
        return F.relu(self.__hidden(x))

    @property
    def twice(self):
        return F.relu(self.fc(X))


class Mixin:
    def step(self, x):
        return super().step(x) * 2


@program(fused=("relu", "relu", "relu", "relu"))
class Derived(Mixin, Base):
    def forward(self, x):
        first = super().forward(x)
        return self.step(first) + super().step(x) + self.twice + self.own(x)

    @staticmethod
    def doubled(x):
        return x * 2

    @classmethod
    def named(cls, x):
        return x + len(cls.__name__)

    def own(self, x):
        return self.doubled(self.named(x))


class Abstract(Base, abc.ABC):
    @abc.abstractmethod
    def name(self): ...


@program(fused=("relu",))
class Concrete(Abstract):
    def name(self):
        return "concrete"

    def forward(self, x):
        return torch.tanh(super().forward(x)) + len(self.name())


class Registry(type):
    """A metaclass that keeps a register of classes."""

    known: ClassVar[dict[str, type]] = {}

    def __new__(mcs, name, bases, body, **options):
        kind = super().__new__(mcs, name, bases, body)
        Registry.known[name] = kind
        return kind


@program(fused=("relu",))
class Registered(Parts, metaclass=Registry):
    known: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, *, tag="", **options):
        Registered.known[cls.__name__] = cls

    def forward(self, x):
        return F.relu(self.fc(x))


@program(fused=("relu",))
@dataclasses.dataclass(eq=False)
class Data(nn.Module):
    width: int = WIDTH
    __scale = 2.0

    def __post_init__(self):
        super().__init__()
        self.fc = nn.Linear(self.width, WIDTH)

    def forward(self, x):
        if not isinstance(self, Data):
            return x
        return F.relu(self.fc(x)) * self.__scale


def closed_over(kind: Any) -> nn.Module:
    bonus = 10

    class Closure(kind):
        def forward(self, x, /, y=None, *args, scale: float = 2.0, **kwargs):
            nonlocal bonus
            bonus += 0
            return F.relu(self.fc(x)) * bonus + len(args) + len(kwargs) + scale

    return Closure()


@program(call(X), call(X, 1, 2, scale=3.0, k=1), make=closed_over)
class Closed(Parts):
    pass


def plus_one(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs) + 1

    return wrapper


@program(fused=("relu",))
class TwiceDecorated(Parts):
    @plus_one
    @torch.enable_grad()
    def forward(self, x):
        return F.relu(self.fc(x))


@program(fused=())
class Frames(Parts):
    def forward(self, x):
        y = F.relu(self.fc(x))
        return y * len(locals())


@program(fused=())
class Suspended(Parts):
    async def step(self, x):
        return F.relu(self.fc(x))

    def parts(self, x):
        yield F.relu(self.fc(x))

    def forward(self, x):
        return next(self.parts(x))


Result = namedtuple("Result", "logits features")


@program(call(X), fused=("", "elu"))
class Structured(Parts):
    def forward(self, x):
        out = {"a": self.fc(x)}
        out["b"], rest = F.elu(self.fc2(out["a"])), [out["a"]]
        return Result(out, rest)


@program(call(X), call(X))
class Getter(Parts):
    """Its layer is a property that counts."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    @property
    def layer(self):
        self.asked += 1
        return self.fc

    def forward(self, x):
        x = self.layer(x)
        x = F.relu(x)
        x = self.fc2(x)
        x = F.leaky_relu(x, self.steepness)
        return x * self.asked

    @property
    def steepness(self):
        self.asked += 10
        return 0.1


@program(call(X))
class Dynamic(Parts):
    """Attributes that are made when they are missing."""

    def __getattr__(self, name):
        if name == "gate":
            return torch.tanh
        return super().__getattr__(name)

    def forward(self, x):
        return self.gate(self.fc(x))


@program(call(X), call(X))
class Replaces(Parts):
    """A forward that replaces its own layer."""

    def forward(self, x):
        y = F.relu(self.fc(x))
        self.fc, self.fc2 = self.fc2, self.fc
        return y


@program(call(X))
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.decode = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.decode.weight = self.fc.weight

    def forward(self, x):
        x = x.to(next(self.parameters()).device)
        return torch.sigmoid(self.decode(self.fc(x)))


class Doubled(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


@program(call(X), fused=())
class DerivedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = Doubled(WIDTH, WIDTH)

    def forward(self, x):
        return F.relu(self.fc(x))


@program(call(features(2, 3, WIDTH)))
class Block(nn.Module):
    """torch.nn's own code."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 16, 0.0, activation="gelu", batch_first=True, norm_first=True
        )

    def forward(self, x):
        return self.layer(x)


@program(call(features(2, 3, 5, 5)))
class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(3, 2)

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out += identity
        out = self.relu(out)
        return self.relu(self.head(out.mean((2, 3))))


@program(call(features(2, 5, WIDTH)))
class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.norm = nn.LSTM(WIDTH, 5, batch_first=True), nn.LayerNorm(4)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        outputs, (hidden, _) = self.lstm(x)
        return self._head(outputs[:, -1]), hidden

    def _head(self, x):
        return self.norm(F.elu(self.fc(x)))
