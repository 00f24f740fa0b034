"""``python -m fastact info``: what this installation is and runs on."""

from __future__ import annotations

import argparse

import fastact


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastact", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="version, PyTorch, instruction sets, CUDA, Triton, threads")
    parser.parse_args()
    for name, value in fastact.info().items():
        print(f"{name:22} {', '.join(value) if isinstance(value, list) else value}")


if __name__ == "__main__":
    main()
