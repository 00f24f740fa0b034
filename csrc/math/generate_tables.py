#!/usr/bin/env python3
"""Writes math/tables.h: the coefficients and tables of the formulas in this folder.

    python3 csrc/math/generate_tables.py > csrc/math/tables.h

Needs mpmath and numpy. The output depends on nothing else, neither on the processor nor on their
versions: of numpy only what IEEE 754 defines is used (+, -, *, /, sqrt, comparisons), since its
exp, its powers and LAPACK's least squares round as the processor lets them. So a changed line here
shows as changed coefficients there, and tests/test_math_tables.py tells when they are not this file's.
"""

import math
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
    for i in range(0, len(coefficients), 4):
        print("    " + ", ".join(float(c).hex() for c in coefficients[i : i + 4]) + ",")
    print("};")


def emit_table(name, comment, rows):
    """A member array of rows of floats, each aligned to a register."""
    print("\n" + "\n".join(f"  // {line}" for line in comment.split("\n")))
    print(f"  alignas(64) static constexpr float {name}[{len(rows)}][{len(rows[0])}] = {{")
    for row in rows:
        lines = [row[i : i + 5] for i in range(0, len(row), 5)]
        text = ",\n       ".join(", ".join(float_literal(v) for v in line) for line in lines)
        print(f"      {{{text}}},")
    print("  };")


def emit_list(name, comment, values):
    print(f"\n  // {comment}")
    print(f"  static constexpr float {name}[] = {{{', '.join(map(float_literal, values))}}};")


def emit_constant(kind, name, value):
    print(f"  static constexpr {kind} {name} = {value};")


def float_literal(v):
    mantissa, exponent = float(np.float32(v)).hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}f"


def to_float(v):
    return float(np.float32(float(v)))


def ulp(v):
    """The distance between floats at |v|."""
    return math.ldexp(1.0, max(math.frexp(float(v))[1] - 1, -126) - 23)


def bits_of(error):
    return f"2^{float(mp.log(mp.mpf(error), 2)):.1f}"


def series(x, order):
    """(e^x - sum of x^k / k! for k < order) / x^order, without cancellation."""
    return mp.polyval([1 / mp.factorial(k + order) for k in range(40, -1, -1)], x)


def exp_polynomials():
    half = mp.log(2) / 2 * mp.mpf("1.0001")
    for name, degree in (("kExpShort", 5), ("kExpFull", 9)):
        c = chebyshev_fit(lambda r: series(r, 2), -half, half, degree)
        error = worst(lambda r: r * r * (mp.polyval(c[::-1], r) - series(r, 2)), -half, half)
        bits = mp.nstr(mp.log(error, 2), 4)
        emit(name, f"(e^r - 1 - r) / r^2 on |r| <= ln(2)/2; the error in e^r is 2^{bits}.", c)


def log_polynomials():
    top = ((mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)) ** 2 * mp.mpf("1.0001")

    terms = [mp.mpf(2) / (2 * k + 3) for k in range(60, -1, -1)]

    def f(z):
        return mp.polyval(terms, z)

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


def erf_polynomial():
    terms = [1 / mp.factorial(k) / (2 * k + 1) for k in range(40, -1, -1)]

    def f(z):
        return mp.polyval(terms, -z / 2) / mp.sqrt(2 * mp.pi)

    c = chebyshev_fit(f, mp.mpf(0), mp.mpf(1), 11)
    error = worst(lambda z: mp.polyval(c[::-1], z) / f(z) - 1, mp.mpf(0), mp.mpf(1))
    bits = mp.nstr(mp.log(error, 2), 4)
    emit("kNormalSmall", f"(Phi(x) - 1/2) / x in x^2, |x| <= 1; relative error 2^{bits}.", c)


def root_polynomials():
    """Near the root r of a derivative f: f(x) = (x - r) times a polynomial in x - r."""
    for name, f, guess in (
        ("Silu", silu_slope, -1.28),
        ("Gelu", gelu_slope, -0.75),
        ("GeluTanh", gelu_tanh_slope, -0.75),
        ("Mish", mish_slope, -1.19),
    ):
        root = mp.findroot(f, guess)
        high = mp.mpf(float(root))
        low = root - high
        half = mp.mpf("0.5")
        fit = chebyshev_fit(lambda t: f(high + t) / (t - low), -half, half, 15)

        def error(t):
            return mp.polyval(fit[::-1], t) * (t - low) / f(high + t) - 1

        bits = mp.nstr(mp.log(worst(error, -half, half), 2), 4)
        comment = (
            f"The root of {name.lower()}'s derivative in two parts, and the derivative over x less "
            f"the root\n// in x - kRoot[0], |x - kRoot[0]| <= 1/2; relative error 2^{bits}."
        )
        emit(f"k{name}Root", comment, [high, low])
        emit(f"k{name}AtRoot", "As above.", fit)


def gelu_tail():
    """sqrt(2 pi) a e^(a^2/2) Phi(-a) = 1 - P(t) / Q(t) with t = -a^2/2, by weighted linear fits."""

    def f(t):
        a = mp.sqrt(-2 * t)
        return 1 - mp.sqrt(2 * mp.pi) * a * mp.exp(-t) * phi(a)

    # The nodes are spread in 1/t, in which the function is nearly a straight line.
    first, last, nodes = 1 / mp.mpf(-6.9), 1 / mp.mpf(-110), 60
    t = [
        1 / ((first + last) / 2 + (last - first) / 2 * mp.cos((k + 0.5) * mp.pi / nodes))
        for k in range(nodes)
    ]
    y = [f(x) for x in t]
    weight = [mp.mpf(1)] * nodes
    for _ in range(30):
        rows = mp.matrix(
            [
                [w / x**2 * v for v in (1, x, x * x, -z, -z * x, -z * x * x)]
                for x, z, w in zip(t, y, weight)
            ]
        )
        right = mp.matrix([w / x**2 * z * x**3 for x, z, w in zip(t, y, weight)])
        c = list(mp.lu_solve(rows.T * rows, rows.T * right))
        p, q = c[:3], c[3:] + [mp.mpf(1)]
        error = [mp.polyval(p[::-1], x) / mp.polyval(q[::-1], x) - z for x, z in zip(t, y)]
        top = max(abs(e) for e in error)
        weight = [w * mp.sqrt(abs(e) / top + mp.mpf("1e-3")) for w, e in zip(weight, error)]
    bits = mp.nstr(mp.log(top, 2), 4)
    print(
        f"\n// 1 - sqrt(2 pi) a e^(a^2/2) Phi(-a) as the quotient of two polynomials in t = -a^2/2,"
    )
    print(f"// the denominator monic, 3.72 <= a <= 14.8; error 2^{bits}.")
    for name, values in (("Numerator", p), ("Denominator", q[:3])):
        literals = ", ".join(float_literal(v) for v in values)
        print(f"constexpr float kGeluTail{name}[] = {{{literals}}};")


# Cells: an interval is cut into as many cells as a register (or two) has entries, and in each the
# function is a polynomial in d = a - m, m a point of the cell. All coefficients are floats, found from the lowest up, so that each makes good
# what rounding those before it spoilt.


def powers(x, count):
    """1, x, x^2, ...: by multiplications."""
    result = [x * 0 + 1.0]
    while len(result) < count:
        result.append(result[-1] * x)
    return result


def total(values):
    """The sums along the last but one dimension, in one order everywhere."""
    while values.shape[-2] > 1:
        half = values.shape[-2] // 2
        rest = values[..., 2 * half :, :]
        values = values[..., :half, :] + values[..., half : 2 * half, :]
        if rest.shape[-2]:
            values = np.concatenate([values, rest], -2)
    return values


def least_squares(columns, target):
    """The first of the coefficients with which the columns come nearest to the target, and what is
    left of it; by modified Gram-Schmidt, which is stable where the target is taken along."""
    left = np.concatenate([columns[::-1], target[None]])
    for _ in range(len(columns)):
        column, left = left[0], left[1:]
        square = total(column * column)
        along = total(column * left) / square
        left = left - column * along
    return along[-1, 0], left[0]


def minimax(columns, target, rounds=12):
    """Least squares reweighted towards the smallest maximum (Lawson's algorithm). Returns the first
    column's coefficient."""
    weight = np.ones(target.shape)
    for _ in range(rounds):
        root = np.sqrt(weight)
        first, rest = least_squares(columns * root, target * root)
        error = np.abs(rest / root)
        weight = weight * (error / (error.max(axis=0) + 1e-300) + 1e-3)
        weight = weight / weight.max(axis=0)
    return first


NODES = 48


def fit_cell(f, low, high, tries, degree, scale=None):
    """For each of (centre, the first coefficients): the coefficients c0..c_degree, and their error
    relative to scale."""
    t = np.array([float(mp.cos((i + mp.mpf(0.5)) * mp.pi / NODES)) for i in range(NODES)])
    a = (low + high) / 2 + (high - low) / 2 * t
    exact = [f(mp.mpf(x)) for x in a]
    scales = exact if scale in (None, f) else [scale(mp.mpf(x)) for x in a]
    weight = 1 / np.abs(np.array([float(s) for s in scales]))[:, None]
    # A column for each try.
    centres = np.array([centre for centre, _ in tries])
    d = a[:, None] - centres
    fits = [list(fixed) for _, fixed in tries]
    rest = np.array(
        [
            [float(y - mp.polyval(fit[::-1] or [0], mp.mpf(x))) for fit, x in zip(fits, row)]
            for y, row in zip(exact, d)
        ]
    )
    reach = np.maximum(np.abs(low - centres), np.abs(high - centres))
    known, count = len(fits[0]), degree + 1
    columns = np.stack(powers(d / reach, count)) * weight
    for k in range(known, count):
        first = minimax(columns[k:], rest * weight)
        c = (first / powers(reach, count)[k]).astype(np.float32).astype(np.float64)
        for fit, coefficient in zip(fits, c):
            fit.append(float(coefficient))
        rest = rest - c * powers(d, count)[k]
    return fits, np.max(np.abs(rest) * weight, axis=0)


def lucky_centres(f, low, high, rng, position=0.5, tries=6):
    """Points near a place in the cell whose function value is nearly a float (Gal, 1986), and the value."""
    found = []
    for _ in range(50 * tries):
        m = to_float(low + (high - low) * (position + 0.16 * (rng.random() - 0.5)))
        value = f(mp.mpf(m))
        found.append((float(abs(value - to_float(value))) / ulp(value), m, [to_float(value)]))
    return [(m, fixed) for _, m, fixed in sorted(found)[:tries]]


def exact_centres(f, low, high, rng, position=0.5, tries=6):
    """Likewise, and a - value is exact for every a in the cell. f takes arrays, too."""
    step = ulp(high * (1 - 1e-7))
    m = low + (high - low) * (position + 0.16 * (rng.random(400000) - 0.5))
    m = m.astype(np.float32).astype(np.float64)
    value = f(m) / step
    # numpy's exp chooses more than are wanted, of which the exact function chooses.
    best = np.argsort(np.abs(value - np.round(value)))[: 8 * tries]
    found = []
    for k in best:
        value = f(mp.mpf(m[k])) / step
        found.append((abs(value - mp.nint(value)), float(m[k]), [float(mp.nint(value) * step)]))
    return [(m, fixed) for _, m, fixed in sorted(found)[:tries]]


def cells(
    name,
    comment,
    f,
    edges,
    degree,
    centres="none",
    special=None,
    rotate=0,
    apart=0,
    position=0.5,
    unread=None,
):
    """Prints the table of one function: a row of numbers for each coefficient c0, c1, ...

    centres: "none" where they lie on the grid, so that the formula computes them; else a row of
    them comes first: "middle", "lucky" or "exact" ones, as above. special: {cell: (centre, its first coefficients)}.
    rotate: the cell that stands first. apart: what c1 of the cell of 0 lacks, since the formula adds it.
    position: where lucky and exact points lie in their cell; a number, or one for each cell.
    unread: a cell for whose inputs the formula takes something else: its row is 0.
    """
    rng = np.random.default_rng(1986)
    if isinstance(position, float):
        position = [position] * len(edges)
    table = []
    errors = []
    for j, (low, high) in enumerate(edges):
        middle = 0.0 if low == 0 and centres == "none" else (low + high) / 2
        if special and j in special:
            tries = [special[j]]
        elif centres in ("lucky", "exact"):
            search = lucky_centres if centres == "lucky" else exact_centres
            tries = search(f, low, high, rng, position[j])
        else:
            tries = [(middle, [])]
        at_zero = low <= 0 < high
        if apart and at_zero:
            # The first coefficient that is free then is c1 less `apart`.
            tries = [(0.0, [0.0])]
        first = (lambda a: f(a) - apart * a) if apart and at_zero else f
        fits, fit_errors = fit_cell(first, low, high, tries, degree, f)
        best = int(np.argmin(fit_errors))
        table.append(([tries[best][0]] if centres != "none" else []) + fits[best])
        errors.append(fit_errors[best])
    if unread is not None:
        table[unread] = [0.0] * len(table[unread])
        del errors[unread]
    table = table[rotate:] + table[:rotate]
    rows = [list(row) for row in zip(*table)]
    what = "coefficients" if centres == "none" else "centres, then coefficients"
    bits = bits_of(max(errors))
    emit_table(name, f"{comment} Rows: {what}.\nRelative error of the polynomials {bits}.", rows)


def sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def phi(a):
    """The normal distribution function at -a."""
    return mp.erfc(a / mp.sqrt(2)) / 2


def mish(x):
    return x * mp.tanh(mp.log1p(mp.exp(x)))


def gelu_tanh(x):
    return x * sigmoid(2 * mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))


def silu_slope(x):
    return sigmoid(x) * (1 + x * sigmoid(-x))


def gelu_slope(x):
    return phi(-x) + x * mp.npdf(x)


def gelu_tanh_slope(x):
    k = 2 * mp.sqrt(2 / mp.pi)
    c = k * mp.mpf("0.044715")
    z = k * x + c * x**3
    return sigmoid(z) * (1 + x * (k + 3 * c * x * x) * sigmoid(-z))


def mish_slope(x):
    t = mp.tanh(mp.log1p(mp.exp(x)))
    return t + x * sigmoid(x) * (1 - t * t)


SELU_BELOW = mp.mpf("1.6732632423543772848170429916717") * mp.mpf(
    "1.0507009873554804934193349852946"
)


def silu_below(a):
    return a / (1 + np.exp(a)) if isinstance(a, np.ndarray) else a * sigmoid(-a)


def grid(width, entries):
    """Cells around 0, width, 2 width ...: the first is half as wide."""
    edges = [((j - 0.5) * width, (j + 0.5) * width) for j in range(entries)]
    return [(max(low, 0.0), high) for low, high in edges]


def signed_grid(width, entries):
    """Likewise around 0 on both sides; the table begins with the cell of 0 (rotate by half)."""
    half = entries // 2
    return [((j - 0.5) * width, (j + 0.5) * width) for j in range(-half, half)]


def octaves(top, entries, shift):
    """Cells numbered by the bits of a float shifted right, ending with the one that holds top."""
    last = int(np.float32(top).view(np.int32)) >> shift
    first = last - entries + 1
    bound = [float(np.array(i << shift, np.int32).view(np.float32)) for i in range(first, last + 1)]
    return first, [(0.0, bound[1])] + list(zip(bound[1:], bound[2:] + [top]))


def around_root(f, guess, edges):
    """The cell in which f is 0, centred on that root so that digits remain."""
    root = to_float(mp.findroot(f, guess))
    cell = next(j for j, (low, high) in enumerate(edges) if low <= root < high)
    return {cell: (root, [to_float(f(mp.mpf(root)))])}


def exp_tables(entries, degree):
    exact = [mp.power(2, mp.mpf(j) / entries) for j in range(entries)]
    for name, factor, comment in (
        ("kExp", mp.mpf(1), f"2^(j/{entries}) rounded to float, and what the rounding lost."),
        ("kGaussian", 1 / mp.sqrt(2 * mp.pi), f"Likewise of 2^(j/{entries}) / sqrt(2 pi)."),
    ):
        high = [to_float(v * factor) for v in exact]
        low = [to_float(v * factor - h) for v, h in zip(exact, high)]
        emit_table(name, comment, [high, low])
    reach = float(mp.log(2) / (2 * entries)) * 1.001
    # For the error of e^r, which is about 1, and for the relative one of e^r - 1, about r.
    for name, function, more, scale in (
        ("kExpPolynomial", "e^r", 0, lambda r: mp.mpf(1)),
        ("kExpm1Polynomial", "e^r - 1", 1, mp.expm1),
    ):
        tries = [(0.0, [0.0, 1.0])]
        [fit], [error] = fit_cell(mp.expm1, -reach, reach, tries, degree + more, scale)
        comment = (
            f"({function} less its terms up to r) / r^2, |r| <= ln(2)/{2 * entries}; "
            f"error {bits_of(error)}."
        )
        emit_list(name, comment, fit[2:])


def tables(name, comment, entries, signed_entries, exp_entries, exp_degree, degrees):
    """One struct with every table; degrees: those of the functions, in the order below."""
    degree = iter(degrees)
    print(f"\n// {comment}\nstruct {name} {{")
    emit_constant("int", "kExpEntries", exp_entries)
    exp_tables(exp_entries, exp_degree)

    # Over a = |x|: where e^-x rules, the cells are twice as wide as where e^(-x^2/2) does.
    width = 8 / entries
    wide, narrow, both = (
        grid(width, entries),
        grid(width / 2, entries),
        signed_grid(16 / signed_entries, signed_entries),
    )
    half = signed_entries // 2
    print()
    for kind, size in (("Wide", width), ("Narrow", width / 2)):
        emit_constant("float", f"k{kind}Cell", float_literal(size))
        emit_constant("float", f"k{kind}Limit", float_literal(size * (entries - 0.5)))
    # At the far end of a large cell gelu_tanh is a fifth of what it is in the middle.
    limit = width / 2 * (entries - 0.5)
    emit_constant("float", "kGeluTanhLimit", float_literal(limit if entries == 32 else 3.5))
    emit_constant("float", "kSignedCell", float_literal(16 / signed_entries))
    emit_constant("float", "kSignedLimit", float_literal(8 - 8 / signed_entries))

    # In large cells e^-a changes so much that the polynomial cancels; less so around a later point.
    position = 0.5 if entries == 32 else 0.6
    cells(
        "kSigmoid",
        "1 / (1 + e^a), wide cells.",
        lambda a: sigmoid(-a),
        wide,
        next(degree),
        "lucky",
        position=position,
    )
    cells(
        "kSoftplus",
        "log(1 + e^-a), wide cells.",
        lambda a: mp.log1p(mp.exp(-a)),
        wide,
        next(degree),
    )
    # The high part of the slope at 0 is added apart, exactly.
    slope = to_float(SELU_BELOW)
    print()
    emit_constant("float", "kSeluSlope", float_literal(slope))
    cells(
        "kSelu",
        "-selu(-a), wide cells; the first lacks the linear term kSeluSlope a.",
        lambda a: -SELU_BELOW * mp.expm1(-a),
        wide,
        next(degree),
        "lucky",
        apart=slope,
        # With many cells, nearer to the lower end, where selu(-a) is smallest.
        position=0.4 if entries == 32 else 0.5,
    )
    cells(
        "kSilu",
        "a / (1 + e^a), wide cells; the first lacks the linear term a/2.",
        silu_below,
        wide,
        next(degree),
        "exact",
        apart=0.5,
    )
    cells(
        "kLogsigmoid",
        "-log(1 + e^-x), signed cells.",
        lambda x: -mp.log1p(mp.exp(-x)),
        both,
        next(degree),
        "lucky",
        rotate=half,
        # Left of 0 there is nothing to cancel, and a - m must stay exact.
        position=[0.5 if low < 0 else position for low, _ in both],
    )
    cells(
        "kMish",
        "x tanh(log(1 + e^x)), signed cells; that of 0 lacks the linear term x/2.",
        mish,
        both,
        next(degree),
        rotate=half,
        apart=0.5,
    )
    cells(
        "kGelu",
        "a Phi(-a), narrow cells.",
        lambda a: a * phi(a),
        narrow,
        next(degree),
        special={0: (0.0, [0.0, 0.5])},
    )
    cells(
        "kGeluTanh",
        "-gelu_tanh(-a), narrow cells.",
        lambda a: -gelu_tanh(-a),
        narrow,
        next(degree),
        special={0: (0.0, [0.0, 0.5])},
    )
    # Both GELUs have a slope of 0 at -0.75, which has to lie inside a cell.
    shift = 0 if entries == 32 else -width / 4
    shifted = [(j * width / 2, (j + 1) * width / 2) for j in range(entries)] if shift else narrow
    print()
    emit_constant("float", "kSlopeShift", float_literal(shift))
    for title, f, guess, edges, what, rotate in (
        ("Silu", lambda a: silu_slope(-a), 1.2, wide, "at -a, wide", 0),
        ("Gelu", lambda a: gelu_slope(-a), 0.75, shifted, "at -a, narrow (shifted)", 0),
        ("GeluTanh", lambda a: gelu_tanh_slope(-a), 0.75, shifted, "at -a, narrow (shifted)", 0),
        ("Mish", mish_slope, -1.2, both, "at x, signed", half),
    ):
        comment = f"The derivative of {title} {what} cells."
        special = around_root(f, guess, edges)
        cells(f"k{title}Slope", comment, f, edges, next(degree), "middle", special, rotate)

    # tanh is odd and near 0 nearly linear: cells that shrink towards 0.
    shift = 23 - (2 if entries == 32 else 0)
    lowest, edges = octaves(9.02, entries, shift)
    print(
        "\n  // tanh's cells are numbered by the bits of a float shifted right, from the lowest up."
    )
    emit_constant("int", "kTanhShift", shift)
    emit_constant("int", "kTanhLowest", lowest)
    rotate = -lowest % entries
    cells(
        "kTanh", "tanh(a).", mp.tanh, edges, next(degree), "lucky", {0: (0.0, [0.0, 1.0])}, rotate
    )
    # It grows with a^3: at the lower end of a large cell what is rounded in its middle weighs most,
    # and in the lowest the function is another polynomial.
    centres, position = ("middle", 0.5) if entries == 32 else ("lucky", 0.3)
    cells(
        "kTanhshrink",
        "a - tanh(a), but 0 in the lowest cell.",
        tanhshrink,
        edges,
        next(degree),
        centres,
        rotate=rotate,
        unread=0,
        position=position,
    )
    first = edges[0][1]
    print("\n  // Where the lowest of them ends, and tanhshrink(a) / a^3 in a^2 up to there.")
    emit_constant("float", "kTanhshrinkFirst", float_literal(first))
    [small], [error] = fit_cell(
        lambda z: tanhshrink(mp.sqrt(z)) / mp.sqrt(z) ** 3,
        1e-4 * first**2,
        first**2,
        [(0.0, [])],
        2 if entries == 32 else 3,
    )
    emit_list("kTanhshrinkPolynomial", f"Relative error {bits_of(error)}.", small)
    print("};")


def tanhshrink(a):
    return a - mp.tanh(a)


def main():
    print(
        """// Generated by math/generate_tables.py; edit that, not this.
// clang-format off
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
    erf_polynomial()
    root_polynomials()
    gelu_tail()
    tables(
        "Tables32",
        "For look-ups in 32 entries (of exp: 16).",
        entries=32,
        signed_entries=32,
        exp_entries=16,
        exp_degree=3,
        degrees=(4, 4, 5, 5, 5, 6, 5, 5, 5, 5, 5, 6, 5, 5),
    )
    tables(
        "Tables8",
        "For look-ups in 8 entries (over both signs: 16).",
        entries=8,
        signed_entries=16,
        exp_entries=8,
        exp_degree=4,
        degrees=(7, 7, 7, 8, 7, 8, 8, 8, 8, 8, 8, 8, 9, 9),
    )
    print(
        """
}  // namespace tables
}  // namespace
}  // namespace FASTACT_ISA
}  // namespace fastact"""
    )


if __name__ == "__main__":
    sys.exit(main())
