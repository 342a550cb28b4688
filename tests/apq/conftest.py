"""What the tests of the command line share: a working folder, and a command run in it."""

import pytest
import torch

import methods.run
from apq import cli
from apq.provenance import write_card
from utils.accuracy_predictor import AccuracyPredictor


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working folder whose `models/` holds a predictor with random weights."""
    torch.manual_seed(0)
    path = tmp_path / "models" / "acc_quant.pt"
    AccuracyPredictor().save(path)
    write_card(path, dataset="digits", image_size=64)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capsys):
    """Run a command; return exit status, standard output and standard error."""

    def run(command, *flags):
        status = cli.run(command, flags, f"apq {command}")
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def stopped_call(call, monkeypatch):
    """A command that Ctrl-C stops after a step of a search."""

    def run(at_step: int, *flags: str):
        record = methods.run.SearchRecord

        def interrupt(**fields):
            if fields["step"] == at_step:
                raise KeyboardInterrupt
            return record(**fields)

        with monkeypatch.context() as patch:
            patch.setattr(methods.run, "SearchRecord", interrupt)
            return call(*flags)

    return run
