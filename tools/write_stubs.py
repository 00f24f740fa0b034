"""``python tools/write_stubs.py`` writes the type stubs of what is made from the registry.

Type checkers and editors read text, and the functions of the unary activations and most modules
have none: they are made when fastact is imported. Everything in a stub comes from the imported
objects; ``--check`` fails where a stub is not what they say now.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fastact import functional  # noqa: E402
from fastact.nn import activations  # noqa: E402

HEADER = "# Made by tools/write_stubs.py from the imported module. Do not edit.\n"


def _definition(name: str, function: Callable[..., Any], indent: str = "") -> Iterator[str]:
    """One parameter a line, so that a line never is too long."""
    signature = inspect.signature(function, eval_str=True)
    parameters = list(signature.parameters.values())
    yield f"{indent}def {name}("
    keyword_only = False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            yield f"{indent}    *,"
        yield f"{indent}    {str(parameter).replace(chr(39), chr(34))},"
    yield f"{indent}) -> {inspect.formatannotation(signature.return_annotation)}: ..."


def _all(module: ModuleType) -> list[str]:
    return ["__all__ = [  # noqa: RUF022", *(f'    "{name}",' for name in module.__all__), "]"]


def functions() -> str:
    lines = [HEADER, "from typing import Any", "", "import torch", "", *_all(functional), ""]
    for name in functional.__all__:
        lines += _definition(name, getattr(functional, name))
    return "\n".join(lines) + "\n"


def modules() -> str:
    lines = [HEADER, "import torch", "", *_all(activations)]
    for name in activations.__all__:
        module = getattr(activations, name)
        lines += ["", f"class {name}(torch.nn.{module.__base__.__name__}):"]
        lines += _definition("forward", module.forward, "    ")
    return "\n".join(lines) + "\n"


STUBS: dict[Path, Callable[[], str]] = {
    ROOT / "fastact" / "functional.pyi": functions,
    ROOT / "fastact" / "nn" / "activations.pyi": modules,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where one is out of date")
    arguments = parser.parse_args()
    outdated = False
    for path, text in ((path, make()) for path, make in STUBS.items()):
        name = str(path.relative_to(ROOT))
        if not arguments.check:
            path.write_text(text)
            print(f"wrote {name}")
            continue
        old = path.read_text() if path.exists() else ""
        changes = list(
            difflib.unified_diff(old.splitlines(), text.splitlines(), name, "now", n=0, lineterm="")
        )
        if changes:
            outdated = True
            print(*changes, "Run python tools/write_stubs.py.", sep="\n", file=sys.stderr)
    return int(outdated)


if __name__ == "__main__":
    sys.exit(main())
