"""The command line: ``python -m fastact {info, plot, advise, selftest, convert}``.

Exit codes: 0 done, and nothing to report; 1 findings (advise) or failures (selftest); 2 the command
could not be carried out: bad arguments, a file that is missing or cannot be written, a model that
raised.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.util
import inspect
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import fastact
from fastact.activations import REGISTRY

EXIT_CODES = """\
exit codes: 0 done, nothing to report; 1 findings (advise) or failures (selftest); 2 could not be
carried out"""


class _Failure(Exception):
    """What ends a command with exit code 2; its text is for the user."""


# ---- info --------------------------------------------------------------------------------------


def _info(arguments: argparse.Namespace) -> int:
    facts = fastact.info()
    if arguments.json:
        _print_json(facts)
        return 0
    for name, value in facts.items():
        print(f"{name:22} {', '.join(value) if isinstance(value, list) else value}")
    return 0


# ---- plot --------------------------------------------------------------------------------------


def _parameters() -> list[str]:
    """Of all activations that can be plotted."""
    return sorted({name for row in REGISTRY.values() for name in row.settings})


def _plot(arguments: argparse.Namespace) -> int:
    given = {p: getattr(arguments, p) for p in _parameters() if getattr(arguments, p) is not None}
    options: dict[str, Any] = {"domain": tuple(arguments.domain), "logits": arguments.logits}
    if arguments.json:
        from fastact.curves import cases_of, curve_or_bars

        cases = cases_of("plot", arguments.names, given)
        facts = [curve_or_bars(case, **options).as_dict() for case in cases]
    fastact.plot(arguments.names, arguments.out, theme=arguments.theme, **options, **given)
    if arguments.json:
        _print_json({"file": str(arguments.out), "activations": facts})
    else:
        print(f"wrote {arguments.out}")
    return 0


# ---- advise ------------------------------------------------------------------------------------


def _advise(arguments: argparse.Namespace) -> int:
    from fastact import advice

    if arguments.rules:
        for rule in advice.RULES.values():
            print(f"{rule.severity:8} {rule.name}\n         {rule.reason}")
        return 0
    if arguments.model is None:
        raise _Failure("FILE:MODEL is required, unless --rules is given")
    model, module = _load_model(arguments.model)
    inputs, loss = _example_inputs(module, arguments), _loss(arguments.loss, module)
    with _raising_its_own_error():
        found = fastact.advise(model, *inputs, loss=loss, ignore=arguments.ignore)
    if arguments.json:
        _print_json([one.as_dict() for one in found])
    else:
        print(found)
    return 1 if found else 0


def _example_inputs(module: ModuleType, arguments: argparse.Namespace) -> tuple[Any, ...]:
    if arguments.shape:
        torch.manual_seed(0)
        return tuple(map(_random_input, arguments.shape))
    name = arguments.inputs or "example_inputs"
    if not hasattr(module, name):
        if arguments.inputs:
            raise _Failure(f"--inputs: {_no_such_name(module, name)}")
        raise _Failure(
            f"example inputs: expected --shape, --inputs, or a name example_inputs in "
            f"{module.__file__}"
        )
    inputs = getattr(module, name)
    if callable(inputs) and not isinstance(inputs, torch.Tensor):
        inputs = inputs()
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _random_input(text: str) -> torch.Tensor:
    sizes, _, kind = text.partition(":")
    try:
        shape = [int(size) for size in sizes.split("x")]
        dtype = getattr(torch, kind or "float32")
        if not isinstance(dtype, torch.dtype) or min(shape) < 0:
            raise ValueError
    except (AttributeError, ValueError):
        raise _Failure(
            f"--shape: expected sizes and, after a colon, a dtype, such as 8x3x32x32 or "
            f"8x16:int64, got {text!r}"
        ) from None
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape).to(dtype)
    return torch.randint(2, shape).to(dtype)


def _loss(name: str | None, module: ModuleType) -> Any:
    """A name in the model's file, or of torch.nn or torch.nn.functional."""
    for place in (module, torch.nn, torch.nn.functional):
        if name is not None and hasattr(place, name):
            loss = getattr(place, name)
            return loss() if place is torch.nn else loss
    if name is None:
        return None
    losses = [known for known in dir(torch.nn) if known.endswith("Loss")]
    nearest = difflib.get_close_matches(name, losses, n=1, cutoff=0.0)[0]
    raise _Failure(
        f"--loss: expected a name in {module.__file__}, torch.nn or torch.nn.functional, "
        f"got {name!r}; nearest: {nearest}"
    )


# ---- selftest ----------------------------------------------------------------------------------


def _selftest(arguments: argparse.Namespace) -> int:
    from fastact.selftest import selftest

    checks = selftest(arguments.device)
    failed = [check for check in checks if not check.passed]
    if arguments.json:
        _print_json(
            {
                "device": arguments.device,
                "torch": torch.__version__,
                "version": fastact.__version__,
                "passed": len(checks) - len(failed),
                "failed": [check.as_dict() for check in failed],
            }
        )
    else:
        for check in failed:
            print(f"FAILED {check.name} {check.dtype}: {check.detail}")
        print(f"{len(checks) - len(failed)} of {len(checks)} checks passed on {arguments.device}")
    return 1 if failed else 0


# ---- convert -----------------------------------------------------------------------------------


def _convert(arguments: argparse.Namespace) -> int:
    model, _ = _load_model(arguments.model)
    if not isinstance(model, torch.nn.Module):
        raise _Failure(f"{arguments.model}: expected a torch.nn.Module, got a function")
    plan = io.StringIO()
    with _raising_its_own_error(), contextlib.redirect_stdout(plan):
        fastact.convert(model, mode=arguments.mode, dry_run=True)
    lines = plan.getvalue().rstrip("\n").splitlines()
    if arguments.json:
        _print_json({"mode": arguments.mode, "plan": lines})
    else:
        print(*lines, sep="\n")
    return 0


# ---- models in files ---------------------------------------------------------------------------


def _load_model(place: str) -> tuple[Callable[..., Any], ModuleType]:
    """The model that FILE:MODEL names, and the module of the file. A class or a function without
    required parameters is called."""
    file, _, name = place.rpartition(":")
    if not file or not name:
        raise _Failure(f"expected FILE:MODEL, such as model.py:Net, got {place!r}")
    path = Path(file)
    if not path.is_file():
        raise _Failure(f"{file}: no such file")
    name_of_module = path.stem if path.stem not in sys.modules else f"{__name__}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name_of_module, path)
    if spec is None or spec.loader is None:
        raise _Failure(f"{file}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # as when it is run
    sys.modules[name_of_module] = module
    with _raising_its_own_error(f"{file}: "):
        spec.loader.exec_module(module)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise _Failure(f"{file}: {_no_such_name(found, part)}")
        found = getattr(found, part)
    if isinstance(found, torch.nn.Module):
        return found, module
    if not callable(found):
        raise _Failure(f"{place}: expected a model, got {type(found).__name__}")
    if inspect.isclass(found) or not _takes_arguments(found):
        with _raising_its_own_error(f"{place}: "):
            found = found()
    return found, module


def _takes_arguments(function: Any) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(
        p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters
    )


def _no_such_name(place: Any, name: str) -> str:
    names = [known for known in vars(place) if not known.startswith("_")]
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
    return f"no name {name!r}{hint}"


@contextlib.contextmanager
def _raising_its_own_error(prefix: str = "") -> Iterator[None]:
    """The user's code is not ours: what it raises is shown with its type."""
    try:
        yield
    except Exception as error:
        own = str(error).startswith("fastact.")
        raise _Failure(str(error) if own else f"{prefix}{type(error).__name__}: {error}") from error


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


# ---- arguments ---------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastact",
        description="Fused activations, and the layers they follow, for PyTorch.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, *examples: str
    ) -> argparse.ArgumentParser:
        lines = ["example:" if len(examples) == 1 else "examples:", *(f"  {e}" for e in examples)]
        added = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog="\n".join([*lines, "", EXIT_CODES]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="print JSON")
        return added

    command(
        "info",
        _info,
        "what this installation is and runs on",
        "python -m fastact info",
    )

    plot = command(
        "plot",
        _plot,
        "draw activations: curve, derivative, range, saturation, measured error",
        "python -m fastact plot gelu silu leaky_relu --out curves.png --negative-slope 0.1",
        "python -m fastact plot all --out all.svg --theme dark",
    )
    plot.add_argument("names", nargs="+", metavar="NAME", help="registry names, or all")
    plot.add_argument("--out", required=True, type=Path, help="FILE.png, .svg or .pdf")
    plot.add_argument("--theme", choices=("light", "dark"), default="light")
    plot.add_argument("--domain", nargs=2, type=float, default=[-10.0, 10.0], metavar=("A", "B"))
    plot.add_argument(
        "--logits",
        nargs="+",
        type=float,
        default=[3.0, 2.0, 0.5, 0.0, -1.5],
        help="what softmax and log_softmax are applied to",
    )
    for parameter in _parameters():
        owners = [name for name, row in REGISTRY.items() if parameter in row.settings]
        plot.add_argument(
            f"--{parameter.replace('_', '-')}",
            dest=parameter,
            type=float,
            metavar="X",
            help=f"of {', '.join(owners)}",
        )

    advise = command(
        "advise",
        _advise,
        "run a model once, and say where its use of activations departs from good practice",
        "python -m fastact advise model.py:Net --shape 32x3x64x64 --loss CrossEntropyLoss",
        "python -m fastact advise model.py:net --inputs batch --ignore bias-before-batch-norm",
    )
    _add_model(advise, optional=True)
    advise.add_argument(
        "--shape",
        action="append",
        metavar="8x3x32x32[:DTYPE]",
        help="a random input of this shape; once for each input",
    )
    advise.add_argument(
        "--inputs",
        metavar="NAME",
        help="a name in FILE: the inputs, or a function that returns them "
        "(without --shape: example_inputs)",
    )
    advise.add_argument(
        "--loss", metavar="NAME", help="of torch.nn, torch.nn.functional, or a function in FILE"
    )
    advise.add_argument(
        "--ignore", action="append", default=[], metavar="RULE", help="a rule to leave out"
    )
    advise.add_argument("--rules", action="store_true", help="list the rules and their reasons")

    selftest = command(
        "selftest",
        _selftest,
        "compare every operator with PyTorch, forward and gradient, in every dtype",
        "python -m fastact selftest --device cuda",
    )
    selftest.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")

    convert = command(
        "convert",
        _convert,
        "print what fastact.convert would do with a model",
        "python -m fastact convert model.py:Net --mode training",
    )
    _add_model(convert)
    convert.add_argument("--mode", choices=("inference", "training"), default="inference")
    return parser


def _add_model(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    parser.add_argument(
        "model",
        nargs="?" if optional else None,
        metavar="FILE:MODEL",
        help="a Python file, and in it a model, or a class or function that returns one "
        "when called without arguments",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out a command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (_Failure, ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
        print(f"python -m fastact {arguments.command}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
