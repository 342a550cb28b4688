"""What a run saves: going on, crashes, damage, full disks, a folder for one run."""

import errno
import os
from dataclasses import asdict, fields, replace

import pytest
import torch

from apq import ApqError, files
from apq.provenance import card_path, write_card
from imagenet_codebase.run_manager.settings import first_difference
from imagenet_codebase.run_manager.states import SavedStates
from tests.imagenet_codebase.helpers import (
    TRAINING,
    same_weights,
    weights,
)
from utils import checkpoint


def test_a_crash_goes_on_from_the_last_save(start):
    class Crash(Exception):
        pass

    def crash(key):
        if key[1:] == (1, 2):
            raise Crash

    settings = replace(TRAINING, save_every_s=1e-9)  # after every step
    undisturbed = start("undisturbed", settings)
    undisturbed.run()
    with pytest.raises(Crash):
        start("crashed", settings, crash).run()
    resumed = start("crashed", settings)
    assert resumed.resume()
    assert (resumed.epoch, resumed.next_step) == (1, 2)
    resumed.run()
    assert same_weights(weights(resumed), weights(undisturbed))


def test_a_finished_run_stays_as_it_is(start):
    first = start()
    first.run()
    again = start()
    assert again.resume()
    assert again.done
    again.reports.plot = None  # the folder may be one that nobody writes to any more
    assert again.run()
    assert same_weights(weights(again), weights(first))


def test_a_card_does_not_outlive_the_weights_that_it_tells_of(start):
    crash = replace(TRAINING, n_epochs=2)
    trainer = start(settings=crash)
    trainer.validate = lambda: {"val_top1": 0.1 * trainer.epoch}
    trainer.best.path.parent.mkdir(parents=True, exist_ok=True)
    trainer.best.path.write_bytes(b"of an earlier epoch")
    write_card(trainer.best.path, test_top1=0.5)
    trainer.run()
    assert not card_path(trainer.best.path).exists()


def test_other_images_do_not_go_on_from_a_run(start):
    facts = {"train_images": "a", "val_images": "b"}
    start(**facts).run()
    for changed, told in (("train_images", "training"), ("val_images", "validation")):
        with pytest.raises(ApqError, match=f"saved with other {told} images: put them back to go"):
            start(**{**facts, changed: "c"}).resume()
    older = start("older", train_images="a")
    older.run()
    again = start("older", **facts)
    assert again.resume()  # versions before this one did not tell


def test_other_settings_do_not_go_on_from_a_run(start):
    start(arch="a").run()
    for settings, facts, name in (
        (replace(TRAINING, lr=0.1), {"arch": "a"}, "lr"),
        (TRAINING, {"arch": "b"}, "arch"),
    ):
        with pytest.raises(ApqError, match=f"another {name}: .*--restart"):
            start(settings=settings, **facts).resume()
    free = replace(TRAINING, n_workers=3, save_every_s=1.0)
    assert start(settings=free, arch="a").resume()
    trainer = start(arch="b")
    trainer.forget()
    assert not trainer.resume()
    assert not trainer.best.path.exists()


def test_a_run_with_randaugment_goes_on_with_it_only(start):
    for before, now in ((True, False), (False, True)):
        start(f"{before}", randaugment=before).run()
        with pytest.raises(ApqError, match="another randaugment"):
            start(f"{before}", randaugment=now).resume()
    start("old").run()  # older states do not tell
    assert start("old", randaugment=False).resume()


def test_a_restart_keeps_weights_that_no_state_belongs_to(start):
    trainer = start()
    trainer.folder.mkdir()
    trainer.best.path.write_bytes(b"shipped")
    trainer.forget()
    trainer.best.set_aside()
    assert (trainer.folder / "model_best.earlier.pth.tar").read_bytes() == b"shipped"
    trainer.best.path.write_bytes(b"mine")
    trainer.best.set_aside()
    assert (trainer.folder / "model_best.earlier.pth.tar").read_bytes() == b"shipped"
    assert (trainer.folder / "model_best.earlier-2.pth.tar").read_bytes() == b"mine"


def test_fewer_processes_take_as_many_more_steps(start):
    trainer = start()
    trainer.next_step = 3
    trainer.save()
    state = {**trainer.states.load(), "n_processes": 2}
    trainer.restore(state)
    assert trainer.next_step == 6


@pytest.mark.parametrize("name", [field.name for field in fields(TRAINING)])
def test_every_setting_that_changes_weights_is_told_apart(name):
    value, free = getattr(TRAINING, name), ("n_workers", "save_every_s", "save_every", "compile")
    others = {str: "adamw", bool: True, int: 5, float: 0.5, type(None): True}
    changed = replace(TRAINING, **{name: others[type(value)]})
    assert getattr(changed, name) != value
    told = first_difference({"settings": asdict(TRAINING)}, changed, {})
    assert told == (None if name in free else name)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_a_malicious_state_runs_nothing(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = start()
    trainer.folder.mkdir()
    torch.save({"state_dict": Evil()}, trainer.last_path)
    with pytest.raises(ApqError, match="refused"):
        trainer.resume()
    assert not (tmp_path / "evil").exists()


def test_a_file_that_is_no_state_of_the_run_is_named(start):
    trainer = start(arch="a")
    trainer.save()
    state = checkpoint.load(trainer.last_path)
    for change in ({"state_dict": {}}, {"optimizer": 3}, {"optimizer": {}}, {"settings": "x"}):
        checkpoint.save(trainer.last_path, {**state, **change})
        with pytest.raises(ApqError, match="is no state of this run"):
            start(arch="a").resume()


@pytest.mark.parametrize("call", ["fsync", "fdopen"])
def test_a_full_disk_keeps_the_last_checkpoint(start, monkeypatch, call):
    trainer = start()
    trainer.save()
    before = trainer.last_path.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(ApqError, match=r"cannot write .*: No space left.*nothing was changed"):
        trainer.run()
    monkeypatch.undo()
    assert trainer.last_path.read_bytes() == before
    again = start()
    assert again.resume()
    assert again.run()


def test_a_damaged_state_is_named_and_the_one_before_it_used(start, capsys):
    undisturbed = start("undisturbed")
    undisturbed.run()
    trainer = start()
    trainer.run()
    last, previous = trainer.last_path, trainer.folder / "previous.pth.tar"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content)
    resumed = start()
    assert resumed.resume()
    told = capsys.readouterr().out.splitlines()[-1]
    assert "last.pth.tar is damaged" in told
    assert "going on from previous.pth.tar" in told
    assert (resumed.epoch, resumed.next_step) == (2, 0)
    resumed.run()
    assert same_weights(weights(resumed), weights(undisturbed))
    # The damaged file did not take the place of a good one.
    assert checkpoint.load(previous)["epoch"] == 2
    assert (trainer.folder / "last.pth.tar.damaged").exists()
    for path in (last, previous):
        path.write_bytes(b"PK" + bytes(content[2:50]))
    with pytest.raises(ApqError, match=r"last\.pth\.tar .*; begin anew with --restart"):
        start().resume()


@pytest.mark.parametrize("at", [1, 2])
def test_dying_between_two_renames_loses_nothing(tmp_path, monkeypatch, at):
    states = SavedStates(tmp_path)
    for i in range(2):
        states.save({"i": i})
    calls, real = [], os.replace

    def die(*arguments):
        if str(arguments[0]).endswith(("next.pth.tar", "last.pth.tar")):
            calls.append(arguments)
            if len(calls) == at:
                raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        states.save({"i": 2})
    monkeypatch.undo()
    (tmp_path / ".next.pth.tar.abcdefgh").write_bytes(b"cut off")
    assert SavedStates(tmp_path).load() == {"i": 2}
    assert not (tmp_path / ".next.pth.tar.abcdefgh").exists()
    states.save({"i": 3})
    assert SavedStates(tmp_path).load() == {"i": 3}
    states.forget()
    assert SavedStates(tmp_path).load() is None


def test_saves_come_every_so_many_steps(start, monkeypatch):
    saved = []
    monkeypatch.setattr(
        SavedStates, "save", lambda self, state: saved.append((state["epoch"], state["next_step"]))
    )
    settings = replace(TRAINING, n_epochs=2, batch_size=4, save_every=4)
    start(settings=settings).run()
    assert saved == [(0, 0), (0, 4), (1, 0), (1, 4), (2, 0)]


def test_two_runs_do_not_share_a_folder(start, monkeypatch):
    monkeypatch.setattr("apq.lock.PATIENCE_S", 0.2)
    seen = []

    def come_between(key):
        if not seen:
            with pytest.raises(ApqError, match=r"another process trains in .*run: wait") as told:
                start().resume()
            seen.append(told)
            with pytest.raises(ApqError, match="another process trains"):
                start().run()

    assert start(on_step=come_between).run()
    assert seen
    assert start().resume()


def test_a_run_older_than_a_setting_goes_on(start):
    trainer = start(arch="a")
    trainer.save()
    state = checkpoint.load(trainer.last_path)
    # The state holds something under the name `optimizer`, too: it is not the setting.
    for name in ("sync_bn", "scale_lr", "save_every", "optimizer"):
        del state["settings"][name]
    for name in ("random", "n_processes"):
        del state[name]
    checkpoint.save(trainer.last_path, state)
    assert start(arch="a").resume()
    with pytest.raises(ApqError, match="another optimizer"):
        start(settings=replace(TRAINING, optimizer="adamw"), arch="a").resume()
