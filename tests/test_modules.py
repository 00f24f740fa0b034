"""Is every module its torch.nn twin in all but speed?"""

import copy
import io
import pickle

import pytest
import torch

from fastact import nn
from fastact.testing.cases import CASES, DEFAULT_CASES, DTYPES, pairs
from fastact.testing.inputs import random_tensor
from fastact.testing.samples import (
    EXPECTED_MODULE_SAMPLES,
    EXPECTED_RECURRENT_SAMPLES,
    module_info,
)

# torch.testing's, but for a derivative that comes from an output rounded to 16 bits.
TOLERANCES = {
    torch.float64: {},
    torch.float32: {},
    torch.bfloat16: {"rtol": 2**-6, "atol": 2**-5},
    torch.float16: {"rtol": 2**-9, "atol": 2**-8},
}
# torch.nn.Hardtanh refuses min_val == max_val, which the function takes.
MODULE_CASES = [case for case in CASES if case.row.module and case.values != (1.0, 1.0)]
# Where torch.nn's module has the defaults of the registry.
DEFAULTED = [case for case in MODULE_CASES if case.row.family == "unary" and case.parameters]


def _samples(info, dtype, training):
    """PyTorch's samples: (fastact's module, its twin with the same parameters, forward input)."""
    for sample in info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=training
    ):
        args, kwargs = sample.constructor_input.args, dict(sample.constructor_input.kwargs)
        mine = info.module_cls(*args, **kwargs).to(dtype).train(training)
        twin = getattr(torch.nn, info.module_cls.__name__)(*args, **kwargs)
        twin = twin.to(dtype).train(training)
        twin.load_state_dict(mine.state_dict())
        yield mine, twin, sample.forward_input


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name, dtype", pairs(EXPECTED_MODULE_SAMPLES, DTYPES))
def test_samples(name, dtype, training):
    """Output and every gradient, over PyTorch's own samples."""
    count = 0
    for mine, twin, forward in _samples(module_info(name), dtype, training):
        results = []
        for module in (mine, twin):
            args, kwargs = copy.deepcopy((forward.args, forward.kwargs))
            output = module(*args, **kwargs)
            output.backward(torch.linspace(-1, 2, output.numel(), dtype=dtype).view_as(output))
            inputs = [*args, *kwargs.values()]
            leaves = [t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad]
            results.append((output, [t.grad for t in [*leaves, *module.parameters()]]))
        torch.testing.assert_close(results[0], results[1], **TOLERANCES[dtype])
        count += 1
    assert count == EXPECTED_MODULE_SAMPLES[name]


def test_every_module_is_sampled():
    """PyTorch's generators lack one of the modules here; RReLU is tested in test_rrelu.py, the
    recurrent ones in test_recurrent_modules.py."""
    sampled = {*EXPECTED_MODULE_SAMPLES, *EXPECTED_RECURRENT_SAMPLES}
    assert set(nn.__all__) - sampled == {"Hardsigmoid", "RReLU"}


@pytest.mark.parametrize("case", MODULE_CASES, ids=str)
def test_forward_and_backward(case):
    """What the samples leave out: every setting of the parameters."""
    x = random_tensor([2, 4, 6])
    mine, twin = case.module(), case.twin_module()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(mine(a), twin(b))
    mine(a).sum().backward()
    twin(b).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("case", MODULE_CASES, ids=str)
def test_is_its_twin(case):
    mine, twin = case.module(), case.twin_module()
    assert isinstance(mine, type(twin))
    assert type(mine).__module__ == "fastact.nn"
    assert repr(mine) == repr(twin)
    mine.load_state_dict(twin.state_dict(), strict=True)
    twin.load_state_dict(mine.state_dict(), strict=True)
    own = {name: value for name, value in vars(mine).items() if not name.startswith("_")}
    assert own == {name: value for name, value in vars(twin).items() if not name.startswith("_")}


def _through_torch_save(module):
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    result = copy.deepcopy(module)
    result.load_state_dict(torch.load(buffer, weights_only=True))
    return result


COPIES = {
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "torch.save": _through_torch_save,
}


@pytest.mark.parametrize("case", MODULE_CASES, ids=str)
@pytest.mark.parametrize("how", COPIES)
def test_copies(case, how):
    x = random_tensor([2, 4])
    module = case.module()
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter)
    twin = COPIES[how](module)
    assert type(twin) is type(module)
    assert repr(twin) == repr(module)
    torch.testing.assert_close(twin(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize("case", DEFAULTED, ids=str)
def test_attributes_set_after_construction(case):
    x = random_tensor([64])
    module = type(case.module())(*case.row.parameters.values())
    before = module(x)
    for name, value in case.parameters.items():
        setattr(module, name, value)
    torch.testing.assert_close(module(x), case.twin(x))
    assert not torch.equal(module(x), before)


@pytest.mark.parametrize("case", [case for case in MODULE_CASES if case.row.inplace], ids=str)
def test_inplace(case):
    x = random_tensor([64])
    expected = case.twin(x)
    module = case.module(inplace=True)
    written = x.clone()
    assert module(written) is written
    torch.testing.assert_close(written, expected)
    module.inplace = False
    kept = x.clone()
    torch.testing.assert_close(module(kept), expected)
    assert torch.equal(kept, x)


@pytest.mark.parametrize("case", [c for c in DEFAULT_CASES if c.row.module], ids=str)
def test_hooks_and_containers(case):
    calls = []
    module = case.module()
    module.register_forward_pre_hook(lambda *_: calls.append("before"))
    module.register_forward_hook(lambda *_: calls.append("after"))
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), module)
    x = random_tensor([3, 6])
    twin = torch.nn.Sequential(model[0], case.twin_module())
    torch.testing.assert_close(model(x), twin(x))
    assert calls == ["before", "after"]


def test_prelu_trains():
    x = random_tensor([8, 5, 3])
    mine, twin = nn.PReLU(5), torch.nn.PReLU(5)
    for module in (mine, twin):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(mine.weight, twin.weight)
    assert not torch.equal(mine.weight, torch.full((5,), 0.25))
