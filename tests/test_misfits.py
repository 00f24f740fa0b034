"""Do operators refuse arguments that do not fit before a kernel reads memory that is not theirs?"""

import pytest
import torch

from fastact.testing import misfits
from fastact.testing.cases import UNARY_CASES

ops = torch.ops.fastact
R = torch.randn


def test_random_calls():
    """The long form is `make fuzz`."""
    outcomes, failures = misfits.run(calls=800, seed=3)
    assert not failures, "\n".join(failures)
    assert outcomes.total() == 800
    # Neither only refusals, which would test nothing below the checks, nor only values.
    assert outcomes["value"] > 200
    assert outcomes["RuntimeError"] > 100


DAMAGED = """
import ctypes
from fastact.testing import misfits
run = misfits._Call.run
def damaged(call):
    calls.append(call)
    if call.name == "linear" and len(calls) > 1:
        ctypes.string_at(0)
    return run(call)
calls = []
misfits._Call.run = damaged
misfits.main()
"""


def test_a_crash_is_found():
    """It is reported with how to repeat it, and the calls behind it are made."""
    names = misfits.Generator(0).names
    outcomes, failures = misfits.run(2 * len(names), 0, program=("-c", DAMAGED))
    assert len(failures) == 2
    for failure, index in zip(failures, (0, len(names)), strict=True):
        assert f"--seed 0 --only {index + names.index('linear')}: linear(" in failure
    assert outcomes.total() == 2 * len(names)


FIVE = (True,) * 5
# (operator, arguments, the argument that the message names)
REFUSED = [
    *(
        (case.row.name + "_backward", (R(2, 3), R(2, 4), *case.values), "grad")
        for case in UNARY_CASES
    ),
    ("relu_backward", (R(3), R(2, 3)), "grad"),
    ("relu_backward", (R(2, 3), R(2, 3).double()), "grad"),
    ("relu_backward", (R(2, 3), torch.empty(2, 3, device="meta")), "grad"),
    ("prelu_backward", (R(2, 3), R(2, 3), R(0)), "weight"),
    ("prelu_backward", (R(2, 3), R(2, 3), R(2)), "weight"),
    ("prelu_backward", (R(2, 3), R(2, 3), R(3, 1)), "weight"),
    ("prelu_backward", (R(2, 4), R(2, 3), R(3)), "grad"),
    ("prelu", (R(2, 3), R(3, 1)), "weight"),
    ("prelu", (None, R(3)), "input"),
    ("prelu", (R(2, 3), None), "weight"),
    ("glu_backward", (R(2, 3), R(2, 4), -1), "grad"),
    ("glu_backward", (R(2, 2), R(2, 3), -1), "input"),
    ("softmax_backward", (R(2, 3), R(2, 4), -1, 1.0), "grad"),
    ("log_softmax_backward", (R(1), R(100, 100), 0), "grad"),
    ("masked_softmax_backward", (R(2, 3), R(2, 4), None, -1, 1.0, False), "grad"),
    ("masked_softmax_backward", (R(2, 3), R(2, 3), R(2, 3), -1, 1.0, False), "mask"),
    ("masked_softmax_backward", (R(2, 3), R(2, 3), R(4) > 0, -1, 1.0, False), "mask"),
    ("linear", (None, R(5, 6)), "input"),
    ("linear", (R(4, 6), None), "weight"),
    ("linear", (R(4, 6), R(5, 6), None, "softmax", [0.5]), "dim"),
    ("linear", (R(4, 6), R(5, 6), None, "softmax", [float("nan")]), "dim"),
    ("linear", (R(4, 6), R(5, 6), None, "softmax", [1e300, 1.0]), "dim"),
    ("pack_linear", (R(6),), "weight"),
    ("pack_linear", (torch.empty(6, device="meta"),), "weight"),
    ("linear_packed", (R(4, 6), R(100), R(5, 6)), "packed"),
    ("linear_packed", (R(4, 6), torch.empty(7, dtype=torch.uint8), R(5, 6)), "packed"),
    ("linear_packed", (R(4, 6), ops.pack_linear(R(6, 5)), R(5, 6)), "packed"),
    (
        "linear_packed",
        (R(4, 6), torch.empty(9, dtype=torch.uint8, device="meta"), R(5, 6)),
        "packed",
    ),
]
# linear_backward, of grad [4, 5], saved [4, 5], input [4, 6], weight [5, 6], bias [5].
BACKWARD = {
    "grad": (R(()), R(0)),
    "saved": (None, R(9, 5), R(4, 5).double()),
    "input": (None, R(3, 6), R(6), R(4, 6).double(), torch.empty(4, 6, device="meta")),
    "weight": (None, R(3, 6), R(6), R(5, 6).half(), R(5, 6).to_sparse()),
    "bias": (R(3), R(5).double()),
    "slope": (None, R(3), R(5, 1)),
}
_FITTING = {
    "grad": R(4, 5),
    "saved": R(4, 5),
    "input": R(4, 6),
    "weight": R(5, 6),
    "bias": R(5),
    "slope": R(5),
}
for _name, _values in BACKWARD.items():
    for _value in _values:
        _arguments = (*(_FITTING | {_name: _value}).values(), "prelu", [], FIVE)
        # Where two operands differ in shape, the gradient is the one that is named.
        _other_shape = _name == "saved" and _value is not None and _value.shape != (4, 5)
        REFUSED.append(("linear_backward", _arguments, "grad" if _other_shape else _name))


def _to_meta(arguments):
    return tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments)


def _may_be_on_meta(arguments):
    """A device or a layout that is refused would be another one there."""
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    return not any(t.is_meta or t.layout != torch.strided for t in tensors)


ON_META = [(name, _to_meta(a), argument) for name, a, argument in REFUSED if _may_be_on_meta(a)]


@pytest.mark.parametrize(
    "name, arguments, argument",
    [
        pytest.param(*refused, id=f"{i}-{refused[0]}-{refused[2]}-{device}")
        for device, table in (("cpu", REFUSED), ("meta", ON_META))
        for i, refused in enumerate(table)
    ],
)
def test_refused(name, arguments, argument):
    """By the kernels and by the fake kernels alike."""
    with pytest.raises((RuntimeError, TypeError)) as refusal:
        getattr(ops, name)(*arguments)
    message = str(refusal.value)
    op = "linear" if name == "linear_packed" and argument != "packed" else name
    assert message.startswith(f"fastact.{op}(): {argument}: expected "), message
    assert "got" in message
