"""Trains the supernet in phases: the largest subnet, then all sizes, then all bit widths."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apq import files
from apq.errors import ApqError
from apq.space import PAPER_SPACE, SearchSpace
from apq.subnet import largest, smallest
from elastic_nn.importance import sort_channels
from elastic_nn.modules.kernels import compile_kernels
from elastic_nn.networks import OnceForAllNet
from elastic_nn.networks.files import StartingWeights
from elastic_nn.quantizer_kinds import PAPER
from elastic_nn.training import SandwichSettings, SandwichStep, calibrate_activations
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.run_manager import distributed
from imagenet_codebase.run_manager.compiling import compile_where_it_pays
from imagenet_codebase.run_manager.evaluate import evaluate_split
from imagenet_codebase.run_manager.measuring import bn_batches, by_bits, ready_to_measure
from imagenet_codebase.run_manager.run_folder import RunFolder
from imagenet_codebase.run_manager.settings import (
    FREE_SETTINGS,
    SupernetSettings,
    TrainingSettings,
)
from imagenet_codebase.run_manager.states import SavedStates
from imagenet_codebase.run_manager.teacher import Teacher, read_teacher
from imagenet_codebase.run_manager.trainer import Trainer

PLAN_NAME = "plan.json"
"""In a run's folder: what all of its phases were asked for, and what they started from."""


@dataclass(frozen=True)
class Phase:
    """A part of a supernet's training: its recipe, and what its steps run."""

    name: str
    recipe: TrainingSettings
    sandwich: SandwichSettings


def phases(settings: SupernetSettings) -> list[Phase]:
    """Return the phases that have epochs."""
    plan = [
        (
            "largest",
            settings.largest_epochs,
            settings.lr,
            # A run without them noted none here when this phase never had any.
            {"elastic": False}
            | (_small(settings, settings.largest_epochs) if settings.small_image_size else {}),
        ),
        (
            "elastic",
            settings.elastic_epochs,
            settings.lr,
            _small(settings, settings.elastic_epochs),
        ),
        (
            "quantized",
            settings.quantized_epochs,
            settings.quantized_lr,
            {"quantized_share": settings.quantized_share},
        ),
    ]
    common = {
        "n_random": settings.n_random,
        "sandwich_every": settings.sandwich_every,
        "label_smoothing": settings.training.label_smoothing,
    }
    return [
        Phase(
            name,
            replace(
                settings.training,
                n_epochs=n_epochs,
                lr=lr,
                seed=_phase_seed(settings.training.seed, place),
                # A short phase has to come down again.
                warmup_epochs=min(settings.training.warmup_epochs, n_epochs / 2),
            ),
            SandwichSettings(**common, **options),
        )
        for place, (name, n_epochs, lr, options) in enumerate(plan)
        if n_epochs
    ]


def _small(settings: SupernetSettings, n_epochs: int) -> dict[str, int]:
    """Return a full-precision phase's size of small images, and how many epochs see them."""
    return {
        "small_image_size": settings.small_image_size,
        "small_epochs": round(settings.small_share * n_epochs),
    }


def _phase_seed(seed: int, place: int) -> int:
    """Return the seed of one of the phases, whichever others are left out.

    With one for all, each would begin with the crops, the order and the subnets of the one before.
    """
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0])


def train_supernet(
    data: DataProvider,
    settings: SupernetSettings,
    folder: Path,
    device: torch.device,
    space: SearchSpace = PAPER_SPACE,
    restart: bool = False,
) -> tuple[OnceForAllNet, list[dict[str, float]]] | None:
    """Train a supernet in `folder`, going on where it was stopped.

    With `restart` it begins anew; an earlier run is dropped once all that this one asks for has
    been found.

    Several processes share each batch. Returns the network and a row of figures for each epoch of
    all phases, which are drawn in the folder too, or None when Ctrl-C stopped it. Raises ApqError
    when the settings do not suit the data or a phase, when a state in the folder was made with
    others, when another process is at work there, and when the loss explodes.
    """
    if settings.small_image_size >= data.image_size:
        raise ApqError(
            f"small_image_size is {settings.small_image_size}: images of {data.image_size} px "
            f"cannot be shrunk to that; leave it out, or take a smaller one"
        )
    plan = phases(settings)
    if settings.training.compile and plan[-1].name == "quantized":
        compile_kernels(PAPER, device)  # or it fails when the phases before have been trained
    torch.manual_seed(settings.training.seed)
    net = OnceForAllNet(space, data.n_classes).to(device, memory_format=torch.channels_last)
    n_workers = settings.training.n_workers
    statistics = bn_batches(
        data, settings.n_bn_images, settings.training.batch_size, device, n_workers=n_workers
    )
    teacher, teacher_facts = _teacher(settings, data, statistics, device)
    start = StartingWeights.read(settings.init, space) if settings.init else None
    if restart:
        distributed.from_first(lambda: forget_run(folder))
    facts = {"init": _init_fact(settings.init), "teacher": teacher_facts, **data.facts()}
    distributed.from_first(lambda: _check_plan(folder, settings, facts))
    history: list[dict[str, float]] = []
    for number, phase in enumerate(plan, start=1):
        trainer = Trainer(
            net,
            data,
            phase.recipe,
            SharedSandwichStep(net, phase.sandwich, teacher),
            _Validation(net, data, statistics, phase.name, n_workers),
            folder / f"{number}-{phase.name}",
            {"sandwich": asdict(phase.sandwich), **facts},
            best_by="",
        )
        if not _run_phase(phase, trainer, statistics, start if number == 1 else None):
            return None
        earlier = len(history)
        history += [{**row, "epoch": earlier + row["epoch"]} for row in trainer.history]
    # Running statistics were overwritten by every subnet in turn: leave those of the largest.
    net.activate(largest(space))
    net.reset_bn_statistics(statistics)
    if distributed.is_first():
        RunFolder(folder).plot(history)
    return net, history


def _init_fact(init: str) -> str:
    """Return what tells starting weights from others: a name, or a file's hash."""
    return files.sha256(init) if Path(init).is_file() else init


def _check_plan(folder: Path, settings: SupernetSettings, facts: dict[str, Any]) -> None:
    """Note all phases in the folder; raises ApqError when it is of a run with others.

    A phase's own state does not tell what it began with.
    """
    plan = asdict(settings)
    plan["training"] = {k: v for k, v in plan["training"].items() if k not in FREE_SETTINGS}
    del plan["init"], plan["teacher"]  # by their contents, among the facts
    if not files.write_once(folder / PLAN_NAME, {"settings": plan, **facts}):
        raise ApqError(
            f"{folder} holds a run with other settings, starting weights or images: repeat that "
            f"command to go on, begin anew with --restart, or choose another --out"
        )


def _run_phase(
    phase: Phase,
    trainer: Trainer,
    statistics: list[torch.Tensor],
    start: StartingWeights | None,
) -> bool:
    """Train through a phase, or through what is left of it; return False when Ctrl-C stopped it.

    One that begins starts from the weights of `start`, where there are some.
    """
    net, data, n_epochs = trainer.net, trainer.data, phase.recipe.n_epochs
    if trainer.resume():
        print(f"{phase.name}: going on after epoch {trainer.epoch} of {n_epochs}", flush=True)
    else:
        if start:
            normalize = data.train.source.normalize
            start.copy_into(net, statistics, normalize.mean, normalize.std)
        _prepare(net, phase.name, statistics)
        print(f"{phase.name}: {n_epochs} epochs", flush=True)
    if phase.name == "quantized":
        compile_where_it_pays(phase.recipe, PAPER, data.n_images("train"), trainer.device)
    return trainer.run()


def forget_run(folder: Path) -> None:
    """Remove an earlier run; raises ApqError when another process is at work on a phase of it."""
    with contextlib.ExitStack() as held:
        for phase in filter(Path.is_dir, folder.glob("*")):
            held.enter_context(SavedStates(phase).lock.held())
        if folder.exists():
            shutil.rmtree(folder)


def _teacher(
    settings: SupernetSettings,
    data: DataProvider,
    statistics: list[torch.Tensor],
    device: torch.device,
) -> tuple[Teacher | None, dict[str, Any]]:
    """Return the teacher that the settings name, and what a run's facts say of it."""
    if not settings.teacher:
        return None, {}
    path, size, share = Path(settings.teacher), settings.teacher_image_size, settings.distill
    teacher = read_teacher(
        path,
        data,
        statistics,
        device,
        share,
        settings.training.label_smoothing,
        size,
        remedy="name another --teacher",
    )
    return teacher, {"sha256": files.sha256(path), "image_size": size, "distill": share}


def _prepare(net: OnceForAllNet, phase: str, statistics: list[torch.Tensor]) -> None:
    """Do what a phase needs before its first step, the same in all processes."""
    if phase == "elastic":
        sort_channels(net)
    if phase == "quantized":
        calibrate_activations(net, statistics)
    distributed.follow_first(net)


class SharedSandwichStep(SandwichStep):
    """A step of several processes: each one has its share of the images, and the same subnets."""

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, key: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        result = super().__call__(images, labels, key)
        distributed.average_gradients(self.net)
        return result


class _Validation:
    """Validation accuracy of the corners of the space that a phase has trained."""

    def __init__(
        self,
        net: OnceForAllNet,
        data: DataProvider,
        statistics: list[torch.Tensor],
        phase: str,
        n_workers: int,
    ) -> None:
        self.net, self.data, self.statistics, self.n_workers = net, data, statistics, n_workers
        sizes = {"largest": largest(net.space)}
        if phase != "largest":
            sizes["smallest"] = smallest(net.space)
        self.subnets = by_bits(sizes, (None, 8, 4) if phase == "quantized" else (None,))

    def __call__(self) -> dict[str, float]:
        figures = {}
        for name, subnet in self.subnets.items():
            ready = ready_to_measure(self.net, subnet, self.statistics)
            accuracy = evaluate_split(ready, self.data, "val", n_workers=self.n_workers)
            figures[name] = accuracy.top1
        return figures
