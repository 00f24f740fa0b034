"""Do the CUDA kernels of recurrent cells compute what PyTorch's cells do, forward and backward? Run
on the host by an emulator (tools/cuda_emulator.py)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from emulated import complaints, each_dtype, each_fault, numbers

from tools.cuda_emulator import DTYPES, SEEDS, Fault, Session, build

# Rows and units: whole accesses, others, more than a block.
SHAPES = [(3, 24), (5, 7), (33, 40), (1, 1)]


@pytest.fixture(scope="module")
def library():
    return build("recurrent")


def close(result, truth):
    epsilon = torch.finfo(result.dtype).eps
    torch.testing.assert_close(result.double(), truth, rtol=16 * epsilon, atol=8 * epsilon)


def sums_of(session, rows, units, gates, dtype):
    from_x = session.input("from_x", numbers(rows, gates * units, dtype=dtype))
    from_h = session.input("from_h", numbers(rows, gates * units, dtype=dtype, seed=1))
    wide = [t.double().requires_grad_() for t in (from_x, from_h)]
    return from_x, from_h, *wide


def check_rnn(library, index, shape, seed, is_tanh):
    dtype, (rows, units) = DTYPES[index], shape
    session = Session(library, seed, seed // 4)
    from_x, from_h, x, w = sums_of(session, rows, units, 1, dtype)
    h = session.output("h", (rows, units), dtype)
    library.call("test_rnn", index, from_x, from_h, h, rows, units, is_tanh)
    assert not session.reports()
    assert session.traffic() == {"from_x": (1, 0), "from_h": (1, 0), "h": (0, 1)}
    truth = (x + w).tanh() if is_tanh else (x + w).relu()
    close(h, truth.detach())

    session = Session(library, seed, seed // 4)
    h = session.input("h", h)
    dh = session.input("dh", numbers(rows, units, dtype=dtype, seed=2))
    gradients = session.output("gradients", h.shape, dtype)
    library.call("test_rnn_backward", index, dh, h, gradients, rows, units, is_tanh)
    assert not session.reports()
    assert session.traffic() == {"h": (1, 0), "dh": (1, 0), "gradients": (0, 1)}
    slope = 1 - h.double() ** 2 if is_tanh else (h > 0).double()
    close(gradients, dh.double() * slope)


def check_lstm(library, index, shape, seed):
    dtype, (rows, units) = DTYPES[index], shape
    session = Session(library, seed, seed // 4)
    from_x, from_h, x, w = sums_of(session, rows, units, 4, dtype)
    c_before = session.input("c_before", numbers(rows, units, dtype=dtype, seed=3))
    h, c = (session.output(name, (rows, units), dtype) for name in "hc")
    kept = session.output("activated", from_x.shape, dtype) if seed % 2 == 0 else None
    library.call("test_lstm", index, from_x, from_h, c_before, h, c, kept, rows, units)
    assert not session.reports()
    expected = {"from_x": (1, 0), "from_h": (1, 0), "c_before": (1, 0), "h": (0, 1), "c": (0, 1)}
    assert session.traffic() == expected | ({} if kept is None else {"activated": (0, 1)})
    before = c_before.double().requires_grad_()
    i, f, g, o = (x + w).chunk(4, -1)
    cell = f.sigmoid() * before + i.sigmoid() * g.tanh()
    hidden = o.sigmoid() * cell.tanh()
    close(c, cell.detach())
    close(h, hidden.detach())
    if kept is None:
        return
    close(kept, torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], -1).detach())

    # Of what was kept, in float64: rounding it counts as the truth's own.
    activated = kept.clone()
    session = Session(library, seed, seed // 4)
    dh = session.input("dh", numbers(rows, units, dtype=dtype, seed=4))
    dc = session.input("dc", numbers(rows, units, dtype=dtype, seed=5)) if seed % 4 else None
    activated, before, now = (
        session.input(*named)
        for named in (("activated", activated), ("c_before", c_before), ("c", c))
    )
    gradients = session.output("gradients", activated.shape, dtype)
    dc_before = session.output("dc_before", (rows, units), dtype)
    library.call(
        "test_lstm_backward",
        index,
        dh,
        dc,
        activated,
        before,
        now,
        gradients,
        dc_before,
        rows,
        units,
    )
    assert not session.reports()
    traffic = session.traffic()
    assert set(traffic.values()) == {(1, 0), (0, 1)}
    i, f, g, o = activated.double().chunk(4, -1)
    t = now.double().tanh()
    own = dh.double() * o * (1 - t * t) + (0 if dc is None else dc.double())
    truth = [own * g * i * (1 - i), own * before.double() * f * (1 - f), own * i * (1 - g * g)]
    close(gradients, torch.cat([*truth, dh.double() * t * o * (1 - o)], -1))
    close(dc_before, own * f)


def check_gru(library, index, shape, seed):
    dtype, (rows, units) = DTYPES[index], shape
    session = Session(library, seed, seed // 4)
    from_x, from_h, x, w = sums_of(session, rows, units, 3, dtype)
    before = session.input("h_before", numbers(rows, units, dtype=dtype, seed=3))
    h = session.output("h", (rows, units), dtype)
    kept = session.output("activated", (rows, 4 * units), dtype) if seed % 2 == 0 else None
    library.call("test_gru", index, from_x, from_h, before, h, kept, rows, units)
    assert not session.reports()
    expected = {"from_x": (1, 0), "from_h": (1, 0), "h_before": (1, 0), "h": (0, 1)}
    assert session.traffic() == expected | ({} if kept is None else {"activated": (0, 1)})
    (r_x, z_x, n_x), (r_h, z_h, n_h) = x.chunk(3, -1), w.chunk(3, -1)
    r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
    n = (n_x + r * n_h).tanh()
    close(h, (n + z * (before.double() - n)).detach())
    if kept is None:
        return
    close(kept, torch.cat([r, z, n, n_h], -1).detach())

    activated = kept.clone()
    session = Session(library, seed, seed // 4)
    dh = session.input("dh", numbers(rows, units, dtype=dtype, seed=4))
    activated = session.input("activated", activated)
    before = session.input("h_before", before)
    gradients = session.output("gradients", activated.shape, dtype)
    dh_before = session.output("dh_before", before.shape, dtype)
    library.call(
        "test_gru_backward", index, dh, activated, before, gradients, dh_before, rows, units
    )
    assert not session.reports()
    assert set(session.traffic().values()) == {(1, 0), (0, 1)}
    r, z, n, n_h = activated.double().chunk(4, -1)
    d = dh.double()
    dn = d * (1 - z) * (1 - n * n)
    dz = d * (before.double() - n) * z * (1 - z)
    close(gradients, torch.cat([dn * n_h * r * (1 - r), dz, dn * r, dn], -1))
    close(dh_before, d * z)


@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rnn(library, index, shape):
    for seed in SEEDS:
        check_rnn(library, index, shape, seed, is_tanh=seed % 2 == 0)


@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lstm(library, index, shape):
    for seed in SEEDS:
        check_lstm(library, index, shape, seed)


@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gru(library, index, shape):
    for seed in SEEDS:
        check_gru(library, index, shape, seed)


def test_in_place(library):
    """The cell's state and its gradient may be overwritten."""
    rows, units = 3, 24
    for seed in SEEDS:
        session = Session(library, seed)
        from_x, from_h, x, w = sums_of(session, rows, units, 4, torch.float32)
        c = session.both("c", numbers(rows, units, dtype=torch.float32, seed=3))
        before = c.double()
        h = session.output("h", c.shape, c.dtype)
        library.call("test_lstm", 0, from_x, from_h, c, h, c, None, rows, units)
        assert not session.reports()
        i, f, g, _ = (x + w).detach().chunk(4, -1)
        close(c, f.sigmoid() * before + i.sigmoid() * g.tanh())


# ---- what the checks are worth -----------------------------------------------------------------

FAULTS = [
    Fault("recurrent.h", "units * (gates - 1)", "units * gates"),
    Fault("recurrent.h", "divide(i, units) * units * (gates - 1)", "divide(i, units) * gates"),
    Fault("recurrent.h", "w[2].store(to + 3 * units);", "w[2].store(to + 2 * units);"),
    Fault(
        "recurrent.h",
        "      gate[2].at[k] = g.g;\n      gate[3].at[k] = g.o;",
        "      gate[2].at[k] = g.o;\n      gate[3].at[k] = g.g;",
    ),
    Fault("recurrent.h", "cell.store(c + i);", "cell.store(const_cast<T*>(c_before) + i);"),
    Fault("recurrent.h", "V out = V::load(h_before + i);", "V out = V::load(h + i);"),
    Fault("recurrent.h", "dh_before + i);", "dh_before + gate_position(i, units, 2));"),
    Fault("recurrent.h", "d_cell = V::load(dc + i)", "d_cell = V::load(dh + i)"),
    Fault(
        "recurrent.h",
        "return units % kLanes<T> == 0 && (is_aligned(pointers) && ...);",
        "return (is_aligned(pointers) && ...);",
    ),
    Fault("recurrent.h", "const V now = V::load(c + i);", "const V now = V::load(c_before + i);"),
    Fault("recurrent.h", "if (activated) {\n      FASTACT_UNROLL", "{\n      FASTACT_UNROLL"),
    Fault(
        "recurrent.h",
        "gate_tanh(sum) : max(compute_t<T>(0), sum)",
        "gate_tanh(sum) : max(compute_t<T>(0), v.at[k])",
    ),
]


def notice(library) -> str:
    cases = [(0, (3, 24)), (1, (5, 7)), (2, (5, 7)), (3, (3, 24))]
    return complaints(
        check
        for s, shape in cases
        for check in (
            partial(check_rnn, library, 0, shape, s, is_tanh=s == 0),
            partial(check_lstm, library, 0, shape, s),
            partial(check_gru, library, 0, shape, s),
        )
    )


def test_nothing_is_noticed_without_a_fault(library):
    assert not notice(library)


@each_fault(FAULTS)
def test_faults_are_noticed(fault):
    assert notice(build("recurrent", fault, few=True))
