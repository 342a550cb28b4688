"""Reading what finetuning has left, or the authors: whose weights they are."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apq import ApqError, Experiment
from apq.space import PAPER_SPACE
from apq.subnet import largest
from elastic_nn.networks import OnceForAllNet
from imagenet_codebase.run_manager import finetune as module
from imagenet_codebase.run_manager.finetune import finetune, load_trained
from imagenet_codebase.run_manager.recipes import FinetuneSettings
from imagenet_codebase.run_manager.trainer import Trainer
from tests.imagenet_codebase.helpers import (
    CPU,
)
from utils import checkpoint

SETTINGS = FinetuneSettings(n_epochs=2, batch_size=8, lr=0.02)


def test_an_authors_folder_reads_through_the_supernet(tmp_path, supernet_file, toy_data):
    folder = tmp_path / "theirs"
    rng = np.random.default_rng(0)
    subnet = PAPER_SPACE.decode(PAPER_SPACE.sample(rng, 1))[0]
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "arch").write_text(json.dumps(subnet.to_paper()))
    (folder / "lat").write_text("[12.8]")
    content = checkpoint.load(supernet_file)["state_dict"]
    torch.save({"state_dict": content}, folder / "checkpoint" / "model_best.pth.tar")
    experiment = Experiment.open(folder)
    trained = load_trained(experiment)
    net = OnceForAllNet(n_classes=4).eval()
    net.load_paper_state_dict(content)
    net.activate(subnet)
    images = next(iter(toy_data.loader("val", 4)))[0]
    torch.testing.assert_close(trained.net.eval()(images), net(images), atol=1e-5, rtol=0)
    assert experiment.report() == {}


def test_a_folder_without_a_checkpoint_has_no_network(experiment):
    assert load_trained(experiment) is None


def test_a_checkpoint_of_another_subnet_is_refused(experiment):
    other = module.MobileNet.from_subnet(largest().with_bits(8), 4)
    for state, message in (
        (other.state_dict(), "not of this experiment's subnet"),
        ({"x": torch.zeros(1)}, "lacks the tensor 'classifier.linear.weight'"),
        ({"classifier.linear.weight": torch.tensor(1.0)}, "lacks the tensor"),
        ({3: torch.zeros(1)}, "3 is no tensor's name"),
    ):
        checkpoint.save(experiment.best_checkpoint, {"state_dict": state})
        with pytest.raises(ApqError, match=f"model_best.pth.tar: .*{message}") as error:
            load_trained(experiment)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


def test_a_checkpoint_of_other_bits_is_refused(experiment):
    subnet = experiment.subnet()
    state = module.MobileNet.from_subnet(subnet, 4).state_dict()
    idle = next(b.index for b in PAPER_SPACE.blocks if b not in subnet.active_blocks)
    kernels = [*subnet.kernels]
    kernels[idle] = 7
    same = replace(subnet, kernels=tuple(kernels))
    for arch in (subnet.to_json(), same.to_json(), "resnet50", 7):  # others name a network
        checkpoint.save(experiment.best_checkpoint, {"state_dict": state, "arch": arch})
        assert load_trained(experiment).facts["arch"] == arch
    for other in (subnet.with_bits(4), subnet.full_precision()):
        content = {"state_dict": state, "arch": other.to_json()}
        checkpoint.save(experiment.best_checkpoint, content)
        with pytest.raises(ApqError, match=r"model_best.pth.tar: .*trained as another subnet"):
            load_trained(experiment)


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("dataset", 5),
        ("dataset", ["x"]),
        ("class_names", "cats"),
        ("image_size", "64"),
        ("image_size", 32.5),
        ("image_size", True),
        ("image_size", 10**7),
    ],
)
def test_a_checkpoint_that_tells_nonsense_of_its_data_is_refused(experiment, fact, value):
    state = module.MobileNet.from_subnet(experiment.subnet(), 4).state_dict()
    checkpoint.save(experiment.best_checkpoint, {"state_dict": state, fact: value})
    with pytest.raises(ApqError, match=f"model_best.pth.tar: its {fact} is"):
        load_trained(experiment)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda p: p.write_bytes(b"PK")])
def test_lost_weights_of_a_run_that_has_ended_are_told(experiment, supernet_file, toy_data, damage):
    finetune(experiment, supernet_file, toy_data, SETTINGS, CPU)
    damage(experiment.best_checkpoint)
    with pytest.raises(ApqError, match=r"model_best.*the run has ended: begin anew with --restart"):
        finetune(experiment, supernet_file, toy_data, SETTINGS, CPU)


def test_lost_weights_are_replaced_by_the_best_of_the_epochs_left(
    experiment, supernet_file, toy_data, monkeypatch, capsys
):
    figures = iter([0.5, 0.9, 0.3, 0.7, 0.6])  # the first is from before the first step
    accuracy = SimpleNamespace(loss=1.0)

    def evaluate(*args, **options):
        accuracy.top1 = next(figures)
        return accuracy

    monkeypatch.setattr(module, "evaluate_split", evaluate)
    run_epoch = Trainer._run_epoch

    def stop_in_third(trainer, interrupted):
        interrupted.requested = trainer.epoch == 2
        return run_epoch(trainer, interrupted)

    settings = replace(SETTINGS, n_epochs=4)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run_epoch", stop_in_third)
        result = finetune(experiment, supernet_file, toy_data, settings, CPU)
    assert (result.finished, result.best_top1) == (False, 0.9)
    experiment.best_checkpoint.unlink()
    result = finetune(experiment, supernet_file, toy_data, settings, CPU)
    assert "what is kept is the best epoch from here on" in capsys.readouterr().out
    assert (result.finished, result.best_top1) == (True, 0.7)
    assert checkpoint.load(experiment.best_checkpoint)["epoch"] == 3
    # Later calls tell of the weights that are there.
    assert finetune(experiment, supernet_file, toy_data, settings, CPU).best_top1 == 0.7
