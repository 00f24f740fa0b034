#!/usr/bin/env python3
"""Writes math/tables.h: the coefficients and tables of the formulas in this folder.

    python3 csrc/math/generate_tables.py > csrc/math/tables.h

Needs mpmath and numpy. The output depends on nothing else, so that a changed line here shows as
changed coefficients there.
"""

import sys

import mpmath as mp
import numpy as np

mp.mp.prec = 150


def chebyshev_fit(f, low, high, degree):
    """Coefficients of the polynomial through f at the Chebyshev nodes of [low, high]."""
    n = degree + 1
    nodes = [
        (low + high) / 2 + (high - low) / 2 * mp.cos((2 * k + 1) * mp.pi / (2 * n))
        for k in range(n)
    ]
    rows = mp.matrix([[x**j for j in range(n)] for x in nodes])
    return list(mp.lu_solve(rows, mp.matrix([f(x) for x in nodes])))


def worst(error, low, high, steps=400):
    return max(abs(error(low + (high - low) * mp.mpf(i) / steps)) for i in range(steps + 1))


def emit(name, comment, coefficients):
    print(f"\n// {comment}")
    print(f"constexpr double {name}[] = {{")
    for c in coefficients:
        print(f"    {float(c).hex()},")
    print("};")


def emit_floats(name, comment, rows):
    """An array of rows of floats, each aligned to a register."""
    print(f"\n// {comment}")
    size = f"[{len(rows)}][{len(rows[0])}]" if len(rows) > 1 else "[]"
    print(f"alignas(64) constexpr float {name}{size} = {{")
    for row in rows:
        lines = [
            "    " + ", ".join(float_literal(v) for v in row[i : i + 5]) + ","
            for i in range(0, len(row), 5)
        ]
        if len(rows) > 1:
            lines = ["    {"] + lines + ["    },"]
        print("\n".join(lines))
    print("};")


def float_literal(v):
    mantissa, exponent = float(np.float32(v)).hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}f"


def to_float(v):
    return float(np.float32(float(v)))


def ulp(v):
    """The distance between floats at |v|."""
    return 2.0 ** (max(int(np.floor(np.log2(abs(float(v))))), -126) - 23)


def series(x, order):
    """(e^x - sum of x^k / k! for k < order) / x^order, without cancellation."""
    return mp.nsum(lambda k: x**k / mp.factorial(k + order), [0, 40])


def exp_polynomials():
    half = mp.log(2) / 2 * mp.mpf("1.0001")
    for name, degree in (("kExpShort", 5), ("kExpFull", 9)):
        c = chebyshev_fit(lambda r: series(r, 2), -half, half, degree)
        error = worst(lambda r: r * r * (mp.polyval(c[::-1], r) - series(r, 2)), -half, half)
        bits = mp.nstr(mp.log(error, 2), 4)
        emit(name, f"(e^r - 1 - r) / r^2 on |r| <= ln(2)/2; the error in e^r is 2^{bits}.", c)


def log_polynomials():
    top = ((mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)) ** 2 * mp.mpf("1.0001")

    def f(z):
        return mp.nsum(lambda k: 2 * z**k / (2 * k + 3), [0, 60])

    for name, degree in (("kLogShort", 3), ("kLogFull", 6)):
        c = chebyshev_fit(f, mp.mpf(0), top, degree)
        error = worst(lambda z: z * (mp.polyval(c[::-1], z) - f(z)) / 2, mp.mpf(0), top)
        bits = mp.nstr(mp.log(error, 2), 4)
        emit(name, f"(2 atanh(s) - 2 s) / s^3 in s^2; the relative error in log is 2^{bits}.", c)


def mills_polynomials():
    for name, k, top, degree in (("kMillsShort", 3, "14.6", 10), ("kMillsFull", 5, "39", 22)):

        def f(q):
            w = (1 - q) / (2 * k)
            a = 1 / w - k
            return mp.exp(a * a / 2) * mp.erfc(a / mp.sqrt(2)) / 2 / w

        low, high = mp.mpf(-1), 1 - mp.mpf(2 * k) / (mp.mpf(top) + k)
        c = chebyshev_fit(f, low, high, degree)
        error = worst(lambda q: mp.polyval(c[::-1], q) / f(q) - 1, low, high)
        bits = mp.nstr(mp.log(error, 2), 4)
        emit(
            name,
            f"(a + {k}) e^(a^2/2) Phi(-a) in q = 1 - {2 * k} / (a + {k}), 0 <= a <= {top}; "
            f"relative error 2^{bits}.",
            c,
        )


# Cells: an interval is cut into 32 cells, and in each the function is a polynomial in d = a - m, m
# the cell's centre. All coefficients are floats, found from the lowest up, so that each makes good
# what rounding those before it spoilt.


def minimax(matrix, target, rounds=12):
    """Least squares reweighted towards the smallest maximum (Lawson's algorithm)."""
    weight = np.ones(len(target))
    for _ in range(rounds):
        root = np.sqrt(weight)
        solution = np.linalg.lstsq(matrix * root[:, None], target * root, rcond=None)[0]
        error = np.abs(matrix @ solution - target)
        weight = weight * (error / (error.max() + 1e-300) + 1e-3)
        weight /= weight.mean()
    return solution


def fit_cell(f, low, high, centre, fixed, degree, scale=None):
    """Coefficients c0..c_degree with the first ones given, and their error relative to scale."""
    nodes = 48
    t = np.cos((np.arange(nodes) + 0.5) * np.pi / nodes)
    a = (low + high) / 2 + (high - low) / 2 * t
    d = a - centre
    exact = [f(mp.mpf(x)) for x in a]
    weight = 1 / np.abs(np.array([float((scale or f)(mp.mpf(x))) for x in a]))
    base = [sum(mp.mpf(c) * mp.mpf(x) ** k for k, c in enumerate(fixed)) for x in d]
    rest = np.array([float(y - b) for y, b in zip(exact, base)])
    reach = max(abs(low - centre), abs(high - centre))
    coefficients = list(fixed)
    for k in range(len(fixed), degree + 1):
        columns = [(d / reach) ** j * weight for j in range(k, degree + 1)]
        solution = minimax(np.stack(columns, 1), rest * weight)
        c = to_float(solution[0] / reach**k)
        coefficients.append(c)
        rest = rest - c * d**k
    return coefficients, float(np.max(np.abs(rest) * weight))


def lucky_centres(f, low, high, rng, tries=6):
    """Points near the middle whose function value is nearly a float (Gal, 1986), and the value."""
    found = []
    for _ in range(50 * tries):
        m = to_float(low + (high - low) * (0.5 + 0.16 * (rng.random() - 0.5)))
        value = f(mp.mpf(m))
        found.append((float(abs(value - to_float(value))) / ulp(value), m, [to_float(value)]))
    return [(m, fixed) for _, m, fixed in sorted(found)[:tries]]


def exact_centres(f, low, high, rng, tries=6):
    """Likewise, and a - value is exact for every a in the cell. f takes arrays, too."""
    step = ulp(high * (1 - 1e-7))
    m = low + (high - low) * (0.5 + 0.16 * (rng.random(400000) - 0.5))
    m = m.astype(np.float32).astype(np.float64)
    value = f(m)
    rounded = np.round(value / step) * step
    best = np.argsort(np.abs(value - rounded))[:tries]
    return [(float(m[k]), [float(rounded[k])]) for k in best]


def cells(name, comment, f, edges, degree, centres="none", special=None, rotate=0, apart=0):
    """Prints the table of one function: a row of 32 numbers for each coefficient c0, c1, ...

    centres: "none" where they lie on the grid, so that the formula computes them; else a row of
    them comes first: "middle", "lucky" or "exact" ones, as above. special: {cell: (centre, its first coefficients)}.
    rotate: the cell that stands first. apart: what c1 of cell 0 lacks, since the formula adds it.
    """
    rng = np.random.default_rng(1986)
    table = []
    errors = []
    for j, (low, high) in enumerate(edges):
        middle = 0.0 if low == 0 else (low + high) / 2
        if special and j in special:
            tries = [special[j]]
        elif centres in ("lucky", "exact"):
            search = lucky_centres if centres == "lucky" else exact_centres
            tries = search(f, low, high, rng)
        else:
            tries = [(middle, [])]
        if apart and j == 0:
            # The first coefficient that is free then is c1 less `apart`.
            tries = [(0.0, [0.0])]
        first = (lambda a: f(a) - apart * a) if apart and j == 0 else f
        fits = [fit_cell(first, low, high, m, fixed, degree, f) + (m,) for m, fixed in tries]
        coefficients, error, centre = min(fits, key=lambda fit: fit[1])
        table.append(([centre] if centres != "none" else []) + coefficients)
        errors.append(error)
    print(name, *(f"{e * 2**24:.3f}" for e in errors), file=sys.stderr)
    table = table[rotate:] + table[:rotate]
    rows = [list(row) for row in zip(*table)]
    what = "coefficients" if centres == "none" else "centres, then coefficients"
    bits = f"{np.log2(max(errors)):.1f}"
    emit_floats(name, f"{comment}\n// Rows: {what}. Relative error of the polynomials 2^{bits}.", rows)


def grid(width, first=0):
    """32 cells around the multiples of width; a first cell that starts at 0 is half as wide."""
    edges = [((j - 0.5) * width, (j + 0.5) * width) for j in range(first, first + 32)]
    return [(max(low, 0.0), high) if first == 0 else (low, high) for low, high in edges]


def exp_table():
    exact = [mp.power(2, mp.mpf(j) / 16) for j in range(16)]
    high = [to_float(v) for v in exact]
    low = [to_float(v - h) for v, h in zip(exact, high)]
    emit_floats("kExp16", "2^(j/16) rounded to float, and what the rounding lost.", [high, low])
    reach = float(mp.log(2) / 32) * 1.001
    r = reach * np.cos((np.arange(100) + 0.5) * np.pi / 100)
    rest = np.array([float(mp.exp(mp.mpf(x)) - 1 - mp.mpf(x)) for x in r])
    c2 = to_float(minimax(np.stack([r**2, r**3], 1), rest)[0])
    c3 = to_float(minimax(np.stack([r**3], 1), rest - c2 * r**2)[0])
    bits = f"{np.log2(np.max(np.abs(rest - c2 * r**2 - c3 * r**3))):.1f}"
    print(f"\n// e^r = 1 + r + r^2 (c2 + c3 r) on |r| <= ln(2)/32; error 2^{bits}.")
    print(f"constexpr float kExp16Square = {float_literal(c2)};")
    print(f"constexpr float kExp16Cube = {float_literal(c3)};")
    (_, _, *c), error = fit_cell(mp.expm1, -reach, reach, 0.0, [0.0, 1.0], 4)
    print(f"\n// e^r - 1 = r + r^2 (c2 + c3 r + c4 r^2), likewise; relative error 2^{np.log2(error):.1f}.")
    for name, value in zip(("Square", "Cube", "Fourth"), c):
        print(f"constexpr float kExpm1{name} = {float_literal(value)};")


def gelu_tail():
    low, high = 1 / 14.6**2, 1 / 3.9**2
    c, error = fit_cell(
        lambda u: phi(1 / mp.sqrt(u)) * mp.exp(1 / (2 * u)) / mp.sqrt(u), low, high, 0.0, [], 7
    )
    comment = f"a e^(a^2/2) Phi(-a) in 1/a^2, 3.9 <= a <= 14.6; relative error 2^{np.log2(error):.1f}."
    emit_floats("kGeluTail", comment, [c])


def sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def phi(a):
    """The normal distribution function at -a."""
    return mp.erfc(a / mp.sqrt(2)) / 2


def mish(x):
    return x * mp.tanh(mp.log1p(mp.exp(x)))


def gelu_tanh(x):
    return x * sigmoid(2 * mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))


def quarter_octaves(top):
    """32 cells ending with the one that holds top: four to an octave, the first from 0."""
    last = int(np.float32(top).view(np.int32)) >> 21
    bound = [float(np.array(i << 21, np.int32).view(np.float32)) for i in range(last - 31, last + 1)]
    return last - 31, [(0.0, bound[1])] + list(zip(bound[1:], bound[2:] + [top]))


def cell_tables():
    eighth, quarter, half = grid(1 / 8), grid(1 / 4), grid(1 / 2, -16)
    around_0 = 16  # the cell of 0 in a grid that begins at -16
    cells(
        "kSigmoidCells",
        "1 / (1 + e^a), cells of 1/4.",
        lambda a: sigmoid(-a),
        quarter,
        4,
        "lucky",
    )
    cells("kSoftplusCells", "log(1 + e^-a), cells of 1/4.", lambda a: mp.log1p(mp.exp(-a)), quarter, 4)
    selu_scale = mp.mpf("1.6732632423543772848170429916717") * mp.mpf(
        "1.0507009873554804934193349852946"
    )
    # The high part of the slope at 0 is added apart, exactly.
    slope = to_float(selu_scale)
    print(f"\nconstexpr float kSeluSlope = {float_literal(slope)};")
    cells(
        "kSeluCells",
        "-selu(-a), cells of 1/4; without the linear term kSeluSlope a in the first.",
        lambda a: -selu_scale * mp.expm1(-a),
        quarter,
        5,
        "lucky",
        apart=slope,
    )
    cells(
        "kSiluCells",
        "a / (1 + e^a), cells of 1/4; without the linear term a/2 of the first.",
        lambda a: a / (1 + np.exp(a)) if isinstance(a, np.ndarray) else a * sigmoid(-a),
        quarter,
        5,
        "exact",
        apart=0.5,
    )
    cells(
        "kLogsigmoidCells",
        "-log(1 + e^-x), cells of 1/2 around 0, 1/2, ..., 15/2, -8, ..., -1/2.",
        lambda x: -mp.log1p(mp.exp(-x)),
        half,
        5,
        "lucky",
        rotate=16,
    )
    cells(
        "kMishCells",
        "x tanh(log(1 + e^x)), cells of 1/2 as above.",
        mish,
        half,
        6,
        special={around_0: (0.0, [0.0])},
        rotate=16,
    )
    cells("kGeluCells", "a Phi(-a), cells of 1/8.", lambda a: a * phi(a), eighth, 5, special={0: (0.0, [0.0, 0.5])})
    cells(
        "kGeluTanhCells",
        "-gelu_tanh(-a), cells of 1/8.",
        lambda a: -gelu_tanh(-a),
        eighth,
        5,
        special={0: (0.0, [0.0, 0.5])},
    )
    lowest, octaves = quarter_octaves(9.02)
    print(f"\n// The bits of a float shifted right by 21, in the first cell below.")
    print(f"constexpr int kTanhLowest = {lowest};")
    cells(
        "kTanhCells",
        "tanh(a), four cells to an octave.",
        mp.tanh,
        octaves,
        5,
        "lucky",
        {0: (0.0, [0.0, 1.0])},
        rotate=-lowest % 32,
    )


def main():
    print(
        """// Generated by math/generate_tables.py; edit that, not this.
#pragma once

#include "math/config.h"

namespace fastact {
inline namespace FASTACT_ISA {
namespace {
namespace tables {"""
    )
    exp_polynomials()
    log_polynomials()
    mills_polynomials()
    exp_table()
    gelu_tail()
    cell_tables()
    print(
        """
}  // namespace tables
}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact"""
    )


if __name__ == "__main__":
    sys.exit(main())
