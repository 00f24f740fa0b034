"""What recurrent layers and cells of torch.nn do once they are converted.

They stay the objects that they are; their class gets fastact's forward, which runs one operator
where nobody could tell the difference, and else the forward that it stands before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from fastact.conversion.links import RECURRENT
from fastact.conversion.site import disturbance
from fastact.nn import recurrent

# What the forwards of torch.nn call of their own: a class that overrides one means it.
_PARTS = (
    "check_forward_args",
    "check_hidden_size",
    "check_input",
    "get_expected_cell_size",
    "get_expected_hidden_size",
    "permute_hidden",
    "_update_flat_weights",
    "_weights_have_changed",
)
_BORN = {
    kind: {name: getattr(kind, name) for name in _PARTS if hasattr(kind, name)}
    for kind in RECURRENT
}


def recurrent_forward(owner: type[Any]) -> Callable[..., Any]:
    """The forward in place of that of a class of torch.nn's."""
    own = RECURRENT[owner]
    parts = _BORN[owner]
    compute = recurrent.cell_forward if owner.__name__.endswith("Cell") else recurrent.forward

    @functools.wraps(own)
    def forward(self: Any, input: Any, hx: Any = None) -> Any:
        kind, now = type(self), owner.forward
        if (
            now is not own
            or any(getattr(kind, name) is not part for name, part in parts.items())
            or disturbance() is not None
        ):
            return now(self, input, hx)
        written = functools.partial(own, self)
        if torch.compiler.is_dynamo_compiling():
            return compute(self, written, input, hx)
        draws = self.training and getattr(self, "dropout", 0)
        state = torch.get_rng_state() if draws else None
        try:
            return compute(self, written, input, hx)
        except Exception:  # whatever it is, the original says it in its own words
            if state is not None:  # which has drawn nothing yet
                torch.set_rng_state(state)
            return own(self, input, hx)

    return forward
