"""The training loop: cosine schedule, validation each epoch, resumable to the step."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from apq.errors import ApqError
from apq.interrupts import deferred_interrupt
from apq.progress import track
from imagenet_codebase.data_providers import DataProvider, Loader
from imagenet_codebase.run_manager import distributed, health
from imagenet_codebase.run_manager.averaging import RunningAverage
from imagenet_codebase.run_manager.best import BestWeights
from imagenet_codebase.run_manager.diagnosis import repeat_watched
from imagenet_codebase.run_manager.optimizer import (
    clip_gradients,
    describe_batches,
    lr_factor,
    make_optimizer,
)
from imagenet_codebase.run_manager.run_folder import RunFolder, format_row
from imagenet_codebase.run_manager.settings import OF_IMAGES, TrainingSettings, first_difference
from imagenet_codebase.run_manager.states import SavedStates
from imagenet_codebase.run_manager.sync_bn import synchronize
from utils.devices import to_device

# Forward and backward of one batch: (images, labels, key) -> (loss, right answers). The key names
# the step, so that whatever is drawn at random is the same after a resume.
Step = Callable[[torch.Tensor, torch.Tensor, tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]]

LOG_EVERY = 20  # steps between two looks at the loss: each one waits for the device


class Trainer:
    """Trains one network in one folder, which holds its last states, its figures and its best.

    Among several processes, each one trains on its share of every batch; `step` has to average the
    gradients (`distributed.data_parallel` or `average_gradients`). The first one writes.
    """

    def __init__(
        self,
        net: nn.Module,
        data: DataProvider,
        settings: TrainingSettings,
        step: Step,
        validate: Callable[[], dict[str, float]],
        folder: Path,
        facts: dict[str, Any],
        best_by: str = "val_top1",
        average: RunningAverage | None = None,
    ) -> None:
        """Prepare a run.

        `validate` returns figures, of which `best_by` names the one that decides what is kept as
        the best; without a name nothing is. `facts` are plain values stored beside the weights. An
        `average` of the network follows it step by step, and is then what is kept.
        """
        self.net, self.data, self.settings = net, data, settings
        self.step, self.validate, self.folder, self.facts = step, validate, folder, facts
        self.average = average
        self.best = BestWeights(folder, best_by)
        self.device = next(net.parameters()).device
        if settings.sync_bn:
            synchronize(net)
        self.optimizer = make_optimizer(net, settings)
        self.epoch = self.next_step = 0
        # Loss, right answers and images of the epoch so far, in this process.
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.history: list[dict[str, float]] = []
        self.highest_loss = health.highest_loss(data.n_classes)
        self.states = SavedStates(folder)
        self.reports = RunFolder(folder)
        self._seconds_before = 0.0  # of this epoch, before this sitting
        self._epoch_started = time.perf_counter()
        self._saved_at = (0.0, 0)  # seconds, step
        self._looked_at = (0.0, 0.0)  # loss and images when the loss was last looked at

    @property
    def last_path(self) -> Path:
        """Where the run goes on from."""
        return self.states.last_path

    @property
    def result(self) -> nn.Module:
        """The network that the run is for: the average where there is one."""
        return self.average.module if self.average else self.net

    @property
    def done(self) -> bool:
        """Whether every epoch has run."""
        return self.epoch >= self.settings.n_epochs

    def save(self) -> None:
        """Save all that the next step depends on."""
        sums = distributed.total(self.sums)
        if distributed.is_first():
            self.states.save(
                {
                    "state_dict": self.net.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    **({"average": self.average.state_dict()} if self.average else {}),
                    "epoch": self.epoch,
                    "next_step": self.next_step,
                    "seconds": self._seconds,
                    "n_processes": distributed.shard().n_processes,
                    "random": torch.get_rng_state(),
                    "sums": sums,
                    "history": self.history,
                    "settings": asdict(self.settings),
                    **self.facts,
                }
            )
        self._saved_at = (time.monotonic(), self.next_step)

    def resume(self) -> bool:
        """Go on from the last sound save, if there is one.

        Raises ApqError when it was made with other settings or of another subnet.
        """
        state = distributed.from_first(self.states.load)
        if state is None:
            return False
        try:
            if name := first_difference(state, self.settings, self.facts):
                images = OF_IMAGES.get(name)
                other = f"other {images} images" if images else f"another {name}"
                remedy = "put them back" if images else "repeat that run's settings"
                raise ApqError(
                    f"{self.last_path} was saved with {other}: {remedy} to go on, or begin anew "
                    f"with --restart"
                )
            self.restore(state)
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError):
            raise self._foreign() from None
        if self.best.by and self.history:
            self.best.figure = distributed.from_first(lambda: self.best.read_figure(self.done))
        return True

    def _foreign(self) -> ApqError:
        return ApqError(f"{self.last_path} is no state of this run: begin anew with --restart")

    def restore(self, state: dict[str, Any]) -> None:
        """Take a saved state as one's own."""
        self.net.load_state_dict(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.epoch, self.next_step = state["epoch"], state["next_step"]
        self.history = state["history"]
        self._seconds_before = state.get("seconds", 0.0)  # not in states of older versions
        # They are the sums of all processes.
        self.sums = state["sums"].to(self.device) * distributed.is_first()
        if "random" in state:  # not in states of older versions
            torch.set_rng_state(state["random"])
        before, now = state.get("n_processes", 1), distributed.shard().n_processes
        if before != now:
            self.next_step = self.next_step * before // now
            print(f"note: saved by {before} processes, going on with {now}: batches change")

    def forget(self) -> None:
        """Drop an earlier run: its states, its reports, and its best where a state tells it is its.

        Weights without a state stay, to be set aside: nothing here could make them again.
        Raises ApqError when another process is at work on the run.
        """
        distributed.from_first(self._forget)

    def _forget(self) -> None:
        with self.states.lock.held():
            if self.states:
                self.best.forget()
            self.states.forget()
            self.reports.forget()

    def run(self) -> bool:
        """Train to the last epoch; return False after Ctrl-C, with everything saved.

        Raises ApqError when the loss is no longer a number or has exploded; the last save is from
        before that.
        """
        distributed.from_first(self.states.lock.acquire)
        try:
            return self._run()
        finally:
            self.states.lock.release()

    def _run(self) -> bool:
        with deferred_interrupt(distributed.is_first()) as interrupted:
            self._epoch_started = time.perf_counter()
            if has_more := not self.done:
                self._begin()
            while not self.done:
                stopped = self._run_epoch(interrupted)
                self._check_health()
                if stopped:
                    self.save()
                    break
                self._end_epoch()
            # A validation is never cut short: the last one may have ended since.
            (stopped,) = distributed.any_of(bool(interrupted))
        if has_more and distributed.is_first():
            self.reports.close(self.history)
        return self.done and not stopped

    def _begin(self) -> None:
        settings, n = self.settings, distributed.shard().n_processes
        if n > 1:
            print(describe_batches(settings), flush=True)
        if distributed.is_first():
            facts = {"device": str(self.device), "n_processes": n, **self.facts}
            self.reports.begin(seed=settings.seed, settings=asdict(settings), **facts)
        if not (self.epoch or self.next_step):
            self.save()  # there is a good state from the first step on
        self._saved_at = (time.monotonic(), self.next_step)

    def batches(self) -> tuple[Loader, int]:
        """Return the rest of the epoch's batches, and the number of steps of all of it."""
        settings = self.settings
        loader = self.data.loader(
            "train",
            settings.batch_size,
            n_workers=settings.n_workers,
            seed=settings.seed,
            epoch=self.epoch,
            first_batch=self.next_step,
            shard=distributed.shard(),
            device=self.device,
        )
        n_steps = self.next_step + len(loader)
        if settings.epoch_images:
            whole = settings.batch_size * distributed.shard().n_processes
            n_steps = min(n_steps, max(1, settings.epoch_images // whole))
        return loader, n_steps

    def _run_epoch(self, interrupted: Any) -> bool:
        """Run the rest of an epoch; return whether Ctrl-C has stopped it, in any process."""
        loader, n_steps = self.batches()
        first = self.next_step
        bar = track(
            itertools.islice(loader, max(0, n_steps - first)),
            f"epoch {self.epoch + 1}/{self.settings.n_epochs}" if distributed.is_first() else "",
            initial=first,
            total=n_steps,
        )
        self.net.train()
        for i, (images, labels) in enumerate(bar, start=first):
            self.run_step(images, labels, i, n_steps)
            self.next_step = i + 1
            is_sick = self.next_step % LOG_EVERY == 0 and not self._look(bar)
            stop, save, sick = distributed.any_of(bool(interrupted), self._save_is_due(), is_sick)
            if sick:
                self._give_up()
            if stop:
                return True
            if save:
                self._check_health()
                self.save()
        return False

    def _save_is_due(self) -> bool:
        seconds, step = self._saved_at
        every = self.settings.save_every
        late = time.monotonic() - seconds > self.settings.save_every_s
        return late or bool(every and self.next_step - step >= every)

    def run_step(
        self, images: torch.Tensor, labels: torch.Tensor, i: int, n_steps: int
    ) -> torch.Tensor:
        """Train on one batch, number `i` of its epoch; return its loss, still on the device."""
        settings = self.settings
        factor = lr_factor(settings)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * settings.lr_at(self.epoch, i, n_steps)
        images = to_device(images, self.device)
        labels = labels.to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        loss, right = self.step(images, labels, (settings.seed, self.epoch, i))
        if settings.grad_clip:
            clip_gradients(self.net, settings.grad_clip)
        self.optimizer.step()
        if self.average:
            self.average.follow(self.net)
        count = torch.full_like(loss, len(labels))
        self.sums += torch.stack([loss * len(labels), right.to(loss.dtype), count])
        return loss

    @property
    def _seconds(self) -> float:
        """How long this epoch has taken so far, in all sittings."""
        return self._seconds_before + time.perf_counter() - self._epoch_started

    def _end_epoch(self) -> None:
        seconds = self._seconds
        loss, right, n_images = distributed.total(self.sums).tolist()
        distributed.follow_first(self.result)
        figures = self.validate()
        row = {
            "epoch": self.epoch + 1,
            "train_loss": loss / n_images,
            "train_top1": right / n_images,
            **figures,
            "seconds": seconds,
        }
        self.history.append(row)
        self.epoch, self.next_step = self.epoch + 1, 0
        self._seconds_before, self._epoch_started = 0.0, time.perf_counter()
        self.sums.zero_()
        self._looked_at = (0.0, 0.0)
        is_best = self.best.take(figures)
        if distributed.is_first():
            self.reports.end_epoch(self.history)
            if is_best or not self.best.by:
                self.reports.write_ranges(self.result)
            if is_best:
                self.best.keep(self.result, {"epoch": self.epoch, **figures, **self.facts})
        self.save()
        print(f"epoch {self.epoch:3d}/{self.settings.n_epochs}  {format_row(row)}", flush=True)

    # ---- health ----

    def _look(self, bar: Any = None) -> bool:
        """Return whether the mean loss since the last look is sound; this waits for the device."""
        loss, right, n_images = self.sums.tolist()
        if hasattr(bar, "set_postfix") and n_images:
            bar.set_postfix(loss=f"{loss / n_images:.3f}", top1=f"{right / n_images:.1%}")
        loss_before, n_before = self._looked_at
        self._looked_at = (loss, n_images)
        mean = (loss - loss_before) / max(1.0, n_images - n_before)
        return health.is_sound(mean, self.highest_loss)

    def _check_health(self) -> None:
        # A gradient may have broken the weights in the very last step, and no loss shows it yet.
        is_sound = self._look() and health.has_finite_state(self.net)
        if any(distributed.any_of(not is_sound)):
            self._give_up()

    def _give_up(self) -> NoReturn:
        """Name the layer where it began; the last save, from before that, stays."""
        epoch = self.epoch + 1
        step, loss, cause = repeat_watched(self, self.next_step)
        raise ApqError(
            f"{health.describe(loss, self.highest_loss)} in epoch {epoch}, step {step}: {cause}; "
            f"{self.last_path} keeps the last good state; lower --lr and begin anew with --restart"
        )
