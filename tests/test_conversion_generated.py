"""Do random modules do the same converted, bit for bit, also after they are edited?

`pytest -m slow tests/test_conversion_generated.py` tries 10,000.
"""

import copy

import pytest
import torch

import fastact
from fastact.testing import generated
from fastact.testing.conversion import MODES, assert_same, gradients, outcome

BATCHES, PER_BATCH = 20, 10


def compare(seed, mode):
    drawn = generated.draw(seed)
    torch.manual_seed(seed)
    model = drawn.kind().train(seed % 2 == 0)
    # Of the gradients of a model for inference only those of its input are compared.
    converted = fastact.convert(copy.deepcopy(model), mode=mode)
    if mode == "inference":
        model.eval().requires_grad_(False)
    for number, (name, edit) in enumerate([("", lambda m: None), *drawn.edits]):
        edit(model), edit(converted)
        seen = []
        for one in (model, converted):
            x = generated.small(1 + number, generated.WIDTH, seed=number).requires_grad_(
                number % 2 == 1
            )

            def run(one=one, x=x):
                return one(x * 1)

            one.zero_grad()
            result = outcome(run)
            if "value" in result:
                result["gradients"] = gradients(result["value"], [x, *one.parameters()])
            result["state"], result["count"] = dict(one.state_dict()), one.count
            seen.append(result)
        try:
            assert_same(seen[1], seen[0], rtol=0, atol=0)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, after {name!r}:\n{drawn.source}\n{error}") from None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_modules(batch, mode):
    for seed in range(batch * PER_BATCH, (batch + 1) * PER_BATCH):
        compare(seed, mode)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(100))
def test_more_random_modules(batch):
    for seed in range(1000 + batch * 100, 1000 + (batch + 1) * 100):
        compare(seed, MODES[seed % 2])


def test_what_is_drawn_has_sites():
    """Else nothing was compared."""
    from fastact.testing.conversion import fused

    found = []
    for seed in range(40):
        converted = fastact.convert(generated.draw(seed).kind())
        x = generated.small(3, generated.WIDTH, seed=seed)
        found += fused(lambda model=converted, x=x: outcome(lambda: model(x)))
    assert len(found) > 300
    assert len(set(found)) > 12
