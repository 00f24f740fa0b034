"""What was found, as data and as tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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


def name_of(constant: torch.dtype | torch.layout) -> str:
    return str(constant).removeprefix("torch.")


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`explain` returns. Printed, two tables; ``rows`` and ``sites`` are for
    programs."""

    rows: tuple[Row, ...]
    sites: tuple[SiteCall, ...] = ()

    def __str__(self) -> str:
        cells: list[tuple[str, ...]] = [
            ("operation", "where", "shapes", "dtype", "engine", "reason")
        ]
        for row in self.rows:
            shapes = ", ".join("x".join(map(str, shape)) or "()" for shape in row.shapes)
            dtype = name_of(row.dtype)
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
