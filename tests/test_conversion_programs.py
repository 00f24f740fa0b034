"""Does a converted program do what the original does: values, gradients, errors, effects?"""

import copy

import pytest
import torch

from fastact.testing.conversion import MODES, assert_same, fused, gradients, outcome, pair
from fastact.testing.programs import PROGRAMS, Registered, Registry

AUTOCAST = {"rtol": 2**-6, "atol": 2**-6}


def what_is_fused(model, call):
    args, kwargs = call()
    return tuple(fused(lambda: model(*args, **kwargs)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name, mode):
    program = PROGRAMS[name]
    for number, call in enumerate(program.calls):
        model, converted = pair(program.make, mode)
        if number == 0 and program.fused is not None and mode == "inference":
            assert what_is_fused(converted, call) == program.fused
            model, converted = pair(program.make, mode)
        for _again in range(2):
            seen = []
            for one in (model, converted):
                args, kwargs = call()
                result = outcome(lambda one=one, args=args, kwargs=kwargs: one(*args, **kwargs))
                result["arguments"] = args, kwargs
                result["state"] = dict(one.state_dict())
                if "value" in result and mode == "training":
                    result["gradients"] = gradients(result["value"], one.parameters())
                seen.append(result)
            assert_same(seen[1], seen[0], **(AUTOCAST if name == "AutocastOn" else {}))
            assert type(seen[1].get("value")) is type(seen[0].get("value"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_in_the_other_state(name, mode):
    """A model for inference put into training, and one for training put into evaluation; under
    autocast and in inference mode."""
    program = PROGRAMS[name]
    for surroundings in (torch.enable_grad, torch.inference_mode, autocast):
        model, converted = pair(program.make, mode)
        seen = []
        for one in (model, converted):
            one.train(mode != "training")
            args, kwargs = program.calls[0]()
            with surroundings():
                seen.append(outcome(lambda one=one, args=args, kwargs=kwargs: one(*args, **kwargs)))
        if "could not create a primitive" in str(seen[0].get("error")):
            continue  # oneDNN's LSTM of bfloat16 needs AVX-512; ours computes
        loose = surroundings is autocast or name == "AutocastOn"
        assert_same(seen[1], seen[0], **(AUTOCAST if loose else {}))


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_registers_of_classes_do_not_hear_of_ours():
    before = dict(Registry.known), dict(Registered.known)
    pair(PROGRAMS["Registered"].make, "inference")
    assert (Registry.known, Registered.known) == before
    assert Registry.known["Registered"] is Registered


def test_a_global_that_changes(monkeypatch):
    from fastact.testing import programs

    call = PROGRAMS["Effects"].calls[0]
    for mode in MODES:
        model, converted = pair(PROGRAMS["Effects"].make, mode)
        for scale in (1.0, 3.0):
            monkeypatch.setattr(programs, "SCALE", scale)
            seen = [outcome(lambda one=one: one(*call()[0])) for one in (model, converted)]
            assert_same(seen[1], seen[0])


def test_a_copy_of_the_converted_model_is_one_too():
    for name in ("Nested", "Derived", "Sequence", "Data", "TwiceDecorated"):
        model, converted = pair(PROGRAMS[name].make, "inference")
        args, _ = PROGRAMS[name].calls[0]()
        twin = copy.deepcopy(converted)
        assert fused(lambda twin=twin, args=args: twin(*args)) == list(PROGRAMS[name].fused)
        torch.testing.assert_close(twin(*args), model(*args))
