"""Finetunes many subnets under one recipe and remembers what came of each."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apq import files
from apq.errors import ApqError
from apq.experiment import Experiment
from apq.subnet import Subnet
from elastic_nn.networks.files import load_supernet
from elastic_nn.networks.folded import fold
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.run_manager import distributed
from imagenet_codebase.run_manager.evaluate import evaluate_split
from imagenet_codebase.run_manager.finetune import finetune, load_trained
from imagenet_codebase.run_manager.measuring import bn_batches, ready_to_measure
from imagenet_codebase.run_manager.recipes import FinetuneSettings

N_BN_IMAGES = 1024
BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One subnet's accuracies, shares in 0..1."""

    direct_top1: float
    """On the validation images, with the supernet's weights."""
    val_top1: float
    """On the validation images, of the best epoch of finetuning."""
    test_top1: float
    """On the test images, with the weights of that epoch."""


class FinetuningBench:
    """One supernet, one data set, one recipe; `folder` holds what was measured so far.

    Several processes finetune and measure each subnet together; the first one writes.
    """

    def __init__(
        self,
        supernet: Path,
        data: DataProvider,
        settings: FinetuneSettings,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.supernet, self.data, self.settings = supernet, data, settings
        self.folder, self.device = folder, device
        facts = {"supernet_sha256": files.sha256(supernet), "settings": asdict(settings)}
        facts |= {"dataset": data.name, "image_size": data.image_size}
        distributed.from_first(lambda: self._check_facts(facts))

    def _check_facts(self, facts: dict) -> None:
        path = self.folder / "recipe.json"
        if not path.exists():
            files.write_json(path, facts)
        elif files.read_json(path) != facts:
            raise ApqError(
                f"{self.folder} holds results of another supernet, data set or recipe: repeat "
                f"that command to go on, or remove the folder"
            )

    def measure(
        self, name: str, subnet: Subnet, experiment: Experiment | None = None
    ) -> Outcome | None:
        """Finetune a subnet and measure it, or return what an earlier call measured.

        An `experiment` without a checkpoint gets the finetuned weights; other weights are dropped.
        Returns None when Ctrl-C stopped it: the same call goes on from there. Raises ApqError when
        `name` stands for another subnet.
        """
        path, arch = self.folder / f"{name}.json", subnet.to_json()
        working = Experiment(self.folder / name)

        def begin() -> dict[str, Any] | None:
            if path.exists() and (experiment is None or experiment.checkpoint_dir.exists()):
                return files.read_json(path)
            files.write_text(working.dir / "arch", arch + "\n")
            return None

        if known := distributed.from_first(begin):
            if known.pop("arch") != arch:
                raise ApqError(f"{path} is of another subnet: remove {self.folder} to begin anew")
            return Outcome(**known)
        direct = self._direct(subnet)
        result = finetune(working, self.supernet, self.data, self.settings, self.device)
        if not result.finished:
            return None
        test = self._top1(fold(load_trained(working).net.to(self.device)), "test")
        outcome = Outcome(direct_top1=direct, val_top1=result.best_top1, test_top1=test)
        if distributed.is_first():
            if experiment and not experiment.checkpoint_dir.exists():
                shutil.move(working.checkpoint_dir, experiment.checkpoint_dir)
            files.write_json(path, {"arch": arch, **asdict(outcome)})
            shutil.rmtree(working.dir)  # 15 MB of weights that nobody asked for
        return outcome

    def _direct(self, subnet: Subnet) -> float:
        net = load_supernet(self.supernet, subnet.space).net.to(self.device)
        n_workers = self.settings.n_workers
        statistics = bn_batches(
            self.data, N_BN_IMAGES, BATCH_SIZE, self.device, n_workers=n_workers
        )
        return self._top1(ready_to_measure(net, subnet, statistics), "val")

    def _top1(self, net: nn.Module, split: str) -> float:
        n_workers = self.settings.n_workers
        return evaluate_split(net, self.data, split, BATCH_SIZE, n_workers).top1
