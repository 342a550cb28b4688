"""Trains the supernet in phases: the largest subnet, then all sizes, then all bit widths."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apq.space import PAPER_SPACE, SearchSpace
from apq.subnet import Subnet, largest, smallest
from elastic_nn.importance import sort_channels
from elastic_nn.networks import OnceForAllNet
from elastic_nn.networks.files import start_from
from elastic_nn.networks.folded import fold
from elastic_nn.training import SandwichSettings, SandwichStep, calibrate_activations
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.run_manager import distributed
from imagenet_codebase.run_manager.compiling import compile_where_it_pays
from imagenet_codebase.run_manager.evaluate import (
    Accuracy,
    evaluate,
    evaluate_split,
    to_device,
)
from imagenet_codebase.run_manager.run_folder import RunFolder
from imagenet_codebase.run_manager.settings import SupernetSettings, TrainingSettings
from imagenet_codebase.run_manager.trainer import Trainer


def phases(
    settings: SupernetSettings,
) -> list[tuple[str, TrainingSettings, SandwichSettings]]:
    """Return name, recipe and sandwich of the phases that have epochs."""
    small = {
        "small_image_size": settings.small_image_size,
        "small_epochs": round(settings.small_share * settings.elastic_epochs),
    }
    plan = [
        ("largest", settings.largest_epochs, settings.lr, {"elastic": False}),
        ("elastic", settings.elastic_epochs, settings.lr, small),
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
        (
            name,
            replace(settings.training, n_epochs=n_epochs, lr=lr),
            SandwichSettings(**common, **options),
        )
        for name, n_epochs, lr, options in plan
        if n_epochs
    ]


def measure(
    net: OnceForAllNet,
    subnet: Subnet,
    bn_batches: Iterable[torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> Accuracy:
    """Return a subnet's accuracy with the supernet's weights and batch statistics of its own."""
    return evaluate(ready_to_measure(net, subnet, bn_batches), batches)


def ready_to_measure(
    net: OnceForAllNet, subnet: Subnet, bn_batches: Iterable[torch.Tensor]
) -> nn.Module:
    """Return a subnet alone, for evaluation, with the batch statistics of the batches."""
    net.activate(subnet)
    compact = net.extract().to(memory_format=torch.channels_last)
    compact.reset_bn_statistics(bn_batches)
    return fold(compact)


def data_facts(data: DataProvider) -> dict[str, Any]:
    """Return plain values that tell whether two runs saw the same data."""
    return {
        "dataset": data.name,
        "image_size": data.image_size,
        "class_names": list(data.class_names),
        "n_train": data.n_images("train"),
    }


def bn_batches(
    data: DataProvider,
    n_images: int,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
    n_workers: int = 0,
) -> list[torch.Tensor]:
    """Return batches of unaugmented training images, at most `n_images` of them in whole batches.

    A last batch of a single image is left out where there are others: it may have no variance.
    """
    loader = data.loader("train_unaugmented", batch_size, n_workers, shuffle=True, seed=seed)
    n_batches = max(1, -(-n_images // batch_size))
    batches = [to_device(images, device) for images, _ in itertools.islice(loader, n_batches)]
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches


def train_supernet(
    data: DataProvider,
    settings: SupernetSettings,
    folder: Path,
    device: torch.device,
    space: SearchSpace = PAPER_SPACE,
) -> tuple[OnceForAllNet, list[dict[str, float]]] | None:
    """Train a supernet in `folder`, going on where it was stopped.

    Several processes share each batch. Returns the network and a row of figures for each epoch of
    all phases, which are drawn in the folder too, or None when Ctrl-C stopped it.
    """
    torch.manual_seed(settings.training.seed)
    net = OnceForAllNet(space, data.n_classes).to(device, memory_format=torch.channels_last)
    n_workers = settings.training.n_workers
    statistics = bn_batches(
        data, settings.n_bn_images, settings.training.batch_size, device, n_workers=n_workers
    )
    history: list[dict[str, float]] = []
    for number, (name, recipe, sandwich) in enumerate(phases(settings), start=1):
        trainer = Trainer(
            net,
            data,
            recipe,
            SharedSandwichStep(net, sandwich),
            _Validation(net, data, statistics, name, n_workers),
            folder / f"{number}-{name}",
            {"sandwich": asdict(sandwich), "init": settings.init, **data_facts(data)},
            keep_best=False,
        )
        if trainer.resume():
            print(f"{name}: going on after epoch {trainer.epoch} of {recipe.n_epochs}", flush=True)
        else:
            if number == 1 and settings.init:
                normalize = data.train.source.normalize
                start_from(net, settings.init, statistics, normalize.mean, normalize.std)
            _prepare(net, name, statistics)
            print(f"{name}: {recipe.n_epochs} epochs", flush=True)
        if name == "quantized":
            compile_where_it_pays(recipe, data.n_images("train"), device)
        if not trainer.run():
            return None
        earlier = len(history)
        history += [{**row, "epoch": earlier + row["epoch"]} for row in trainer.history]
    # Running statistics were overwritten by every subnet in turn: leave those of the largest.
    net.activate(largest(space))
    net.reset_bn_statistics(statistics)
    if distributed.is_first():
        RunFolder(folder).plot(history)
    return net, history


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
        self.subnets = {"largest": largest(net.space)}
        if phase != "largest":
            self.subnets["smallest"] = smallest(net.space)
        if phase == "quantized":
            for bits in (8, 4):
                for size, subnet in (("largest", largest), ("smallest", smallest)):
                    self.subnets[f"{size}_w{bits}a{bits}"] = subnet(net.space).with_bits(bits)

    def __call__(self) -> dict[str, float]:
        figures = {}
        for name, subnet in self.subnets.items():
            ready = ready_to_measure(self.net, subnet, self.statistics)
            accuracy = evaluate_split(ready, self.data, "val", n_workers=self.n_workers)
            figures[f"{name}_top1"] = accuracy.top1
        return figures
