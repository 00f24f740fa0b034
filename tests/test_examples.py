"""Do the example programs run, and do they show what they claim?"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastact

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def import_as_a_program(monkeypatch):
    """Examples import their neighbours, as what Python runs does."""
    monkeypatch.syspath_prepend(EXAMPLES)


def load(name):
    if name.startswith("digits"):
        pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("activation", ["leaky_relu", "prelu", "tanh"])
def test_digits_trains_alike(activation):
    digits = load("digits")
    reference, mine = digits.train(activation, epochs=5).values()
    assert len(mine.losses) == 5 * 23
    torch.testing.assert_close(
        torch.tensor(mine.losses), torch.tensor(reference.losses), rtol=1e-4, atol=1e-5
    )
    assert mine.losses[-1] < 0.5 < 2 < mine.losses[0]
    _, _, images, labels = digits.load_digits()
    assert len(labels) == 360
    assert mine.accuracy(images, labels) == reference.accuracy(images, labels) > 0.88


@pytest.mark.parametrize("activation", ["leaky_relu", "prelu", "tanh"])
def test_digits_converted_predicts_alike(activation):
    digits = load("digits")
    network = digits.train(activation, epochs=2)["torch.nn"].network
    _, _, images, _ = digits.load_digits()
    converted = fastact.convert(network)
    torch.testing.assert_close(converted(images), network(images).detach())
    assert torch.equal(converted(images).argmax(1), network(images).argmax(1))


@pytest.mark.parametrize("activation", ["relu", "prelu", "tanh"])
def test_digits_cnn_trains_alike(activation):
    digits = load("digits_cnn")
    reference, mine = digits.train(activation, epochs=2).values()
    torch.testing.assert_close(
        torch.tensor(mine.losses), torch.tensor(reference.losses), rtol=1e-2, atol=1e-3
    )
    assert mine.losses[-1] < 1.5 < 2 < mine.losses[0]
    _, _, images, labels = load("digits").load_digits()
    assert abs(mine.accuracy(images, labels) - reference.accuracy(images, labels)) < 0.01
    converted = fastact.convert(reference.network)
    torch.testing.assert_close(converted(images), reference.network(images).detach())


@pytest.mark.parametrize("name", ["digits", "digits_cnn"])
def test_digits_prints_its_table(name):
    pytest.importorskip("sklearn")
    command = [sys.executable, EXAMPLES / f"{name}.py", "--activation", "prelu", "--epochs", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    training, inference = finished.stdout.split("\n\n")
    header, reference, mine, summary = training.splitlines()
    assert header.split() == ["first", "loss", "last", "loss", "accuracy", "epoch"]
    for name, line in (("torch.nn", reference), ("fastact.nn", mine)):
        assert re.fullmatch(rf"{name} +2\.\d+ +\d\.\d+ +\d\d\.\d\d% +\d+\.\d\d ms", line), line
    assert reference.split()[1] == mine.split()[1]  # the first loss, to all digits shown
    assert re.fullmatch(
        r"losses differ by \d\.\de[-+]\d\d at most; \d+\.\d\d times as fast", summary
    ), summary
    header, reference, mine, summary = inference.splitlines()
    assert header.split() == ["accuracy", "360", "images"]
    for name, line in (("torch.nn", reference), ("converted", mine)):
        assert re.fullmatch(rf"{name} +\d+\.\d\d% +\d+\.\d{{3}} ms", line), line
    assert reference.split()[1] == mine.split()[1]  # the accuracy
    assert re.fullmatch(r"0 predictions differ; \d+\.\d\d times as fast", summary), summary


@pytest.mark.parametrize("mode", ["rnn", "gru", "lstm"])
def test_char_rnn_trains_alike(mode):
    reference, mine = load("char_rnn").train(mode, steps=15).values()
    torch.testing.assert_close(
        torch.tensor(mine.losses), torch.tensor(reference.losses), rtol=1e-4, atol=1e-5
    )
    assert mine.losses[-1] < 3.4 < 4.4 < mine.losses[0]


def test_char_rnn_prints_its_table():
    command = [sys.executable, EXAMPLES / "char_rnn.py", "--mode", "gru", "--steps", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    table, written = finished.stdout.split("\n\n", 1)
    header, reference, mine, summary = table.splitlines()
    assert header.split() == ["first", "loss", "last", "loss", "step"]
    for name, line in (("torch.nn", reference), ("fastact.nn", mine)):
        assert re.fullmatch(rf"{name} +\d\.\d+ +\d\.\d+ +\d+\.\d\d ms", line), line
    assert re.fullmatch(
        r"losses differ by \d\.\de[-+]\d\d at most; \d+\.\d\d times as fast", summary
    ), summary
    assert written.startswith("The ")
    assert len(written.removesuffix("\n")) == 64


def test_every_example_is_tested():
    examples = [path.stem for path in EXAMPLES.glob("*.py")]
    assert examples
    assert not [name for name in examples if f'"{name}' not in Path(__file__).read_text()]
