"""Training a supernet: phases, what they go on from, its teacher."""

from dataclasses import replace

import pytest
import torch

from apq import ApqError
from elastic_nn.networks import OnceForAllNet
from elastic_nn.networks.files import StartingWeights, save_supernet
from imagenet_codebase.run_manager import measuring, supernet
from imagenet_codebase.run_manager.settings import SupernetSettings, TrainingSettings
from imagenet_codebase.run_manager.supernet import phases, train_supernet
from tests.imagenet_codebase.helpers import (
    CPU,
)

LARGEST_ALONE = SupernetSettings(
    largest_epochs=1,
    elastic_epochs=0,
    quantized_epochs=0,
    training=TrainingSettings(batch_size=8),
    n_bn_images=16,
)


def test_a_supernet_learns_from_its_teacher_and_goes_on_with_the_same_only(
    tiny_space, supernet_file, toy_data, tmp_path
):
    settings = replace(LARGEST_ALONE, teacher=str(supernet_file), teacher_image_size=48)
    net, history = train_supernet(toy_data, settings, tmp_path / "taught", CPU, tiny_space)
    alone = replace(settings, teacher="", teacher_image_size=0)
    _, other = train_supernet(toy_data, alone, tmp_path / "alone", CPU, tiny_space)
    assert history[0]["train_loss"] != other[0]["train_loss"]
    tested = measuring.measure_on_test(net, toy_data, settings.n_bn_images, elastic=False)
    assert set(tested) == {"largest_top1", "largest_w8a8_top1", "largest_w4a4_top1"}
    for changed in (
        alone,
        replace(settings, teacher_image_size=64),
        replace(settings, distill=0.5),
    ):
        with pytest.raises(ApqError, match="holds a run with other settings, starting weights"):
            train_supernet(toy_data, changed, tmp_path / "taught", CPU, tiny_space)


def test_supernet_phases_run_once_each_and_resume(tiny_space, toy_data, tmp_path, capsys):
    settings = SupernetSettings(
        largest_epochs=2,
        elastic_epochs=1,
        quantized_epochs=1,
        training=TrainingSettings(batch_size=8, warmup_epochs=1.0),
        n_bn_images=16,
    )
    net, history = train_supernet(toy_data, settings, tmp_path, CPU, tiny_space)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert {"largest_top1", "smallest_top1", "smallest_w4a4_top1"} <= set(history[-1])
    assert {"top1.png", "loss.png"} <= {path.name for path in tmp_path.iterdir()}
    tested = measuring.measure_on_test(net, toy_data, settings.n_bn_images)
    for size in ("largest", "smallest", "random"):
        for bits in ("", "_w8a8", "_w4a4"):
            n = 12 * (measuring.N_TESTED if size == "random" else 1)  # of 12 images each
            hits = n * tested.pop(f"{size}{bits}_top1")
            assert hits == pytest.approx(round(hits))
    assert not tested
    again, same = train_supernet(toy_data, settings, tmp_path, CPU, tiny_space)
    assert history == same
    assert "going on after epoch 2 of 2" in capsys.readouterr().out
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, msg=name)


def test_a_phase_does_not_go_on_from_another_plan(tiny_space, toy_data, tmp_path, monkeypatch):
    started, copy_into = [], StartingWeights.copy_into
    monkeypatch.setattr(StartingWeights, "copy_into", lambda *a: started.append(a) or copy_into(*a))
    settings = replace(LARGEST_ALONE, largest_epochs=0, elastic_epochs=1, quantized_epochs=1)
    folder, init = tmp_path / "run", tmp_path / "init.pth.tar"
    save_supernet(OnceForAllNet(tiny_space, 4), init)
    settings = replace(settings, init=str(init))
    assert train_supernet(toy_data, settings, folder, CPU, tiny_space)
    assert len(started) == 1  # the second phase goes on from the first
    free = replace(settings, training=replace(settings.training, save_every=3, n_workers=0))
    assert train_supernet(toy_data, free, folder, CPU, tiny_space)
    # The second phase's own settings are the same.
    other = replace(settings, largest_epochs=1, elastic_epochs=0)
    with pytest.raises(ApqError, match="holds a run with other settings"):
        train_supernet(toy_data, other, folder, CPU, tiny_space)
    save_supernet(OnceForAllNet(tiny_space, 4), init)  # of the same name
    with pytest.raises(ApqError, match="other settings, starting weights or images"):
        train_supernet(toy_data, settings, folder, CPU, tiny_space)
    supernet.forget_run(folder)
    assert train_supernet(toy_data, settings, folder, CPU, tiny_space)


def test_a_supernets_run_is_forgotten_but_not_while_it_is_at_work(
    tiny_space, toy_data, tmp_path, monkeypatch
):
    monkeypatch.setattr("apq.lock.PATIENCE_S", 0.2)
    settings = replace(LARGEST_ALONE, elastic_epochs=1)
    folder, validate, refused = tmp_path / "run", supernet._Validation.__call__, []

    def come_between(validation):
        with pytest.raises(ApqError, match="another process trains in") as told:
            supernet.forget_run(folder)
        refused.append(str(told.value))
        return validate(validation)

    monkeypatch.setattr(supernet._Validation, "__call__", come_between)
    assert train_supernet(toy_data, settings, folder, CPU, tiny_space)
    assert len(refused) == 2
    assert "1-largest" in refused[0]
    assert "2-elastic" in refused[1]
    assert (folder / "1-largest" / "last.pth.tar").exists()
    supernet.forget_run(folder)
    assert not folder.exists()
    supernet.forget_run(folder)  # nothing is there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"small_image_size": 32}, "small_image_size is 32"),
        ({"init": "other.pth.tar"}, "other.pth.tar"),
        ({"teacher": "other.pth.tar"}, "other.pth.tar"),
        ({"quantized_lr": 1e7}, "lr is 10000000.0"),  # of the last phase
        ({"training": TrainingSettings(compile=True)}, "torch cannot compile here"),
    ],
)
def test_a_restart_that_cannot_begin_drops_nothing(
    tiny_space, toy_data, tmp_path, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch._inductor, "standalone_compile", _no_compiler)
    monkeypatch.setattr("elastic_nn.modules.kernels._compiled", {})
    settings = SupernetSettings(**{"training": TrainingSettings(batch_size=8), **change})
    state = tmp_path / "run" / "1-largest" / "last.pth.tar"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"hours of work")
    with pytest.raises(ApqError, match=message):
        train_supernet(toy_data, settings, tmp_path / "run", CPU, tiny_space, restart=True)
    assert state.read_bytes() == b"hours of work"
    # Nor does one that begins leave a plan behind that the right settings would be refused for.
    with pytest.raises(ApqError, match=message):
        train_supernet(toy_data, settings, tmp_path / "new", CPU, tiny_space)
    assert not (tmp_path / "new").exists()


def _no_compiler(*_, **__):
    raise RuntimeError("no such program: g++")


def test_a_restart_begins_anew(tiny_space, toy_data, tmp_path):
    assert train_supernet(toy_data, LARGEST_ALONE, tmp_path / "run", CPU, tiny_space)
    other = replace(LARGEST_ALONE, lr=0.01)
    _, history = train_supernet(toy_data, other, tmp_path / "run", CPU, tiny_space, restart=True)
    assert len(history) == 1


def test_images_cannot_be_shrunk_to_more_than_they_are(tiny_space, toy_data, tmp_path):
    settings = SupernetSettings(small_image_size=32)
    with pytest.raises(ApqError, match="small_image_size is 32: images of 32 px cannot be shrunk"):
        train_supernet(toy_data, settings, tmp_path, CPU, tiny_space)


def test_a_phase_without_epochs_is_left_out():
    settings = SupernetSettings(largest_epochs=0, elastic_epochs=3, quantized_epochs=0)
    assert [(phase.name, phase.recipe.n_epochs) for phase in phases(settings)] == [("elastic", 3)]


def test_each_phase_draws_anew_whatever_is_left_out():
    training = TrainingSettings(seed=1)
    seeds = [phase.recipe.seed for phase in phases(SupernetSettings(training=training))]
    other = phases(SupernetSettings(training=replace(training, seed=0)))
    assert len({1, *seeds, *(phase.recipe.seed for phase in other)}) == 7
    (last,) = phases(SupernetSettings(largest_epochs=0, elastic_epochs=0, training=training))
    assert last.recipe.seed == seeds[2]


def test_a_short_phase_warms_up_for_half_of_it_at_most():
    settings = SupernetSettings(largest_epochs=1, elastic_epochs=4, quantized_epochs=0)
    warmup = {phase.name: phase.recipe.warmup_epochs for phase in phases(settings)}
    assert warmup == {"largest": 0.5, "elastic": 1.0}
