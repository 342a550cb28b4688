"""The training loop: cosine schedule, validation each epoch, resumable to the step."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apq import files
from apq.errors import ApqError
from apq.progress import deferred_interrupt, track
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.run_manager.evaluate import to_device
from imagenet_codebase.run_manager.settings import TrainingSettings
from utils import checkpoint

# Forward and backward of one batch: (images, labels, key) -> (loss, right answers). The key names
# the step, so that whatever is drawn at random is the same after a resume.
Step = Callable[[torch.Tensor, torch.Tensor, tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]]

# What may differ between a run and its resumption without changing a single weight.
FREE_SETTINGS = ("n_workers", "save_every_s")
# The file that a run goes on from.
LAST_NAME = "last.pth.tar"
LOG_EVERY = 20  # steps between two looks at the loss: each one waits for the device


class Trainer:
    """Trains one network in one folder, which holds its last state, its figures and its best."""

    def __init__(
        self,
        net: nn.Module,
        data: DataProvider,
        settings: TrainingSettings,
        step: Step,
        validate: Callable[[], dict[str, float]],
        folder: Path,
        facts: dict[str, Any],
        keep_best: bool = True,
    ) -> None:
        """Prepare a run.

        `validate` returns figures of which the first decides what is best; `facts` are plain
        values stored beside the weights.
        """
        self.net, self.data, self.settings = net, data, settings
        self.step, self.validate, self.folder, self.facts = step, validate, folder, facts
        self.keep_best = keep_best
        self.device = next(net.parameters()).device
        self.optimizer = make_optimizer(net, settings)
        self.epoch = self.next_step = 0
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.history: list[dict[str, float]] = []

    @property
    def last_path(self) -> Path:
        """Where the run goes on from."""
        return self.folder / LAST_NAME

    @property
    def done(self) -> bool:
        """Whether every epoch has run."""
        return self.epoch >= self.settings.n_epochs

    def save(self) -> None:
        """Save all that the next step depends on."""
        checkpoint.save(
            self.last_path,
            {
                "state_dict": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "next_step": self.next_step,
                "sums": self.sums,
                "history": self.history,
                "settings": asdict(self.settings),
                **self.facts,
            },
        )

    def resume(self) -> bool:
        """Go on from the last save, if there is one.

        Raises ApqError when it was made with other settings or of another subnet.
        """
        if not self.last_path.exists():
            return False
        state = checkpoint.load(self.last_path, self.device)
        saved = {**state, **state.get("settings", {})}
        expected = {**asdict(self.settings), **self.facts}
        for name, value in expected.items():
            if name not in FREE_SETTINGS and saved.get(name) != value:
                raise ApqError(
                    f"{self.last_path} was saved with another {name}: repeat the "
                    f"settings of that run to go on, or begin anew with --restart"
                )
        try:
            self.net.load_state_dict(state["state_dict"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.next_step = state["epoch"], state["next_step"]
            self.sums, self.history = state["sums"], state["history"]
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError):
            raise ApqError(
                f"{self.last_path} is no state of this run: begin anew with --restart"
            ) from None
        return True

    def forget(self) -> None:
        """Drop an earlier run's state."""
        self.last_path.unlink(missing_ok=True)

    def run(self) -> bool:
        """Train to the last epoch; return False when Ctrl-C stopped it, with everything saved."""
        with deferred_interrupt() as interrupted:
            while not self.done:
                started = time.perf_counter()
                self._run_epoch(interrupted)
                if interrupted:
                    self._check_finite()
                    self.save()
                    return False
                self._end_epoch(time.perf_counter() - started)
        return True

    def _run_epoch(self, interrupted: Any) -> None:
        settings = self.settings
        loader = self.data.loader(
            "train",
            settings.batch_size,
            n_workers=settings.n_workers,
            seed=settings.seed,
            epoch=self.epoch,
            first_batch=self.next_step,
        )
        first, saved_at = self.next_step, time.monotonic()
        n_steps = first + len(loader)
        bar = track(
            loader, f"epoch {self.epoch + 1}/{settings.n_epochs}", initial=first, total=n_steps
        )
        self.net.train()
        for i, (images, labels) in enumerate(bar, start=first):
            self._run_step(images, labels, i, n_steps)
            self.next_step = i + 1
            if i % LOG_EVERY == 0 and hasattr(bar, "set_postfix"):
                loss, right, n_images = self.sums.tolist()
                bar.set_postfix(loss=f"{loss / n_images:.3f}", top1=f"{right / n_images:.1%}")
            if interrupted:
                return
            if time.monotonic() - saved_at > settings.save_every_s:
                self._check_finite()
                self.save()
                saved_at = time.monotonic()

    def _run_step(self, images: torch.Tensor, labels: torch.Tensor, i: int, n_steps: int) -> None:
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr_at(self.epoch, i, n_steps)
        images = to_device(images, self.device)
        labels = labels.to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        loss, right = self.step(images, labels, (settings.seed, self.epoch, i))
        if settings.grad_clip:
            nn.utils.clip_grad_norm_(self.net.parameters(), settings.grad_clip)
        self.optimizer.step()
        count = torch.full_like(loss, len(labels))
        self.sums += torch.stack([loss * len(labels), right.to(loss.dtype), count])

    def _end_epoch(self, seconds: float) -> None:
        self._check_finite()
        loss, right, n_images = self.sums.tolist()
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
        self.sums.zero_()
        files.write_text(self.folder / "summary.csv", _csv(self.history))
        key = next(iter(figures))
        if self.keep_best and figures[key] >= max(r[key] for r in self.history):
            checkpoint.save(
                self.folder / "model_best.pth.tar",
                {
                    "state_dict": self.net.state_dict(),
                    "epoch": self.epoch,
                    **figures,
                    **self.facts,
                },
            )
        self.save()
        shown = "  ".join(
            f"{k} {v:.2%}" if "top" in k else f"{k} {v:.3f}"
            for k, v in row.items()
            if k not in ("epoch", "seconds")
        )
        print(
            f"epoch {self.epoch:3d}/{self.settings.n_epochs}  {shown}  {seconds:.1f} s", flush=True
        )

    def _check_finite(self) -> None:
        if not math.isfinite(self.sums[0].item()):
            raise ApqError(
                f"the loss is no longer a number in epoch {self.epoch + 1}; {self.last_path} keeps "
                f"the last good state; lower --lr"
            )


def make_optimizer(net: nn.Module, settings: TrainingSettings) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum; only filters decay.

    Decay would pull kernel transforms away from the identity and ranges away from the data.
    """
    parameters = list(net.named_parameters())
    decays = [p.dim() > 1 and not name.endswith("_matrix") for name, p in parameters]
    groups = [
        {
            "params": [p for (_, p), d in zip(parameters, decays, strict=True) if d == decayed],
            "weight_decay": settings.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    nesterov = settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)


def _csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
