"""Measures many subnets, as they are or finetuned under one recipe, and remembers each outcome."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apq import files
from apq.errors import ApqError
from apq.experiment import Experiment
from apq.subnet import Subnet
from elastic_nn.networks import OnceForAllNet
from elastic_nn.networks.files import load_supernet
from elastic_nn.networks.folded import fold
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.run_manager import distributed
from imagenet_codebase.run_manager.classes import check_classes
from imagenet_codebase.run_manager.evaluate import evaluate_split
from imagenet_codebase.run_manager.finetune import finetune, load_trained
from imagenet_codebase.run_manager.measuring import bn_batches, ready_to_measure
from imagenet_codebase.run_manager.recipes import FinetuneSettings
from imagenet_codebase.run_manager.settings import FREE_SETTINGS

N_BN_IMAGES = 1024
"""Twice as many as of a pair: a few subnets are measured here, and compared one by one."""
BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One subnet's accuracies, shares in 0..1."""

    direct_top1: float | None
    """On the validation images, with the supernet's weights; None where nobody asked."""
    val_top1: float
    """On the validation images, of the best epoch of finetuning where there is any."""
    test_top1: float
    """On the test images, with the same weights as `val_top1`."""


class Bench(ABC):
    """One supernet, one data set; `folder` holds what was measured so far.

    Several processes measure each subnet together; the first one writes.
    """

    makes_weights = False
    """Whether measuring makes weights that an experiment may keep."""
    with_direct = True
    """Whether direct accuracy is asked for."""

    def __init__(
        self,
        supernet: Path,
        data: DataProvider,
        folder: Path,
        device: torch.device,
        n_workers: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.supernet, self.data, self.folder, self.device = supernet, data, folder, device
        self.n_workers = n_workers
        self._net: OnceForAllNet | None = None  # the supernet, once it is needed
        facts = {
            "supernet_sha256": files.sha256(supernet),
            "settings": settings,
            "test_images": data.test.digest(),
            **data.facts(),
        }
        distributed.from_first(lambda: self._check_facts(facts))

    def _check_facts(self, facts: dict) -> None:
        if not files.write_once(self.folder / "recipe.json", facts):
            raise ApqError(
                f"{self.folder} holds results of another supernet, other images or another "
                f"recipe: repeat that command to go on, or remove the folder"
            )

    def measure(
        self, name: str, subnet: Subnet, experiment: Experiment | None = None
    ) -> Outcome | None:
        """Measure a subnet, or return what an earlier call measured.

        An `experiment` without a checkpoint gets the finetuned weights, where there are some;
        other weights are dropped. Returns None when Ctrl-C stopped it: the same call goes on from
        there. Raises ApqError when `name` stands for another subnet.
        """
        path, arch = self.folder / f"{name}.json", subnet.to_json()

        def lacks_weights() -> bool:
            wants = self.makes_weights and experiment is not None
            return wants and not experiment.checkpoint_dir.exists()

        def known() -> dict[str, Any] | None:
            if not path.exists():
                return None
            content = files.read_json(path)
            figures = {field.name for field in fields(Outcome)}
            if (
                not isinstance(content, dict)
                or content.keys() != figures | {"arch"}
                or not all(map(_is_share_or_none, map(content.get, figures)))
            ):
                raise ApqError(f"{path} is damaged: remove it, to measure that subnet again")
            if content.pop("arch") != arch:
                raise ApqError(f"{path} is of another subnet: remove {self.folder} to begin anew")
            lacks_direct = self.with_direct and content["direct_top1"] is None
            return None if lacks_weights() or lacks_direct else content

        if earlier := distributed.from_first(known):
            return Outcome(**earlier)
        working = Experiment(self.folder / name)
        outcome = self._measure(subnet, working)
        if outcome:
            top1 = f"val_top1 {outcome.val_top1:.2%}, test_top1 {outcome.test_top1:.2%}"
            print(f"{name}: {top1}", flush=True)
            if distributed.is_first():
                if lacks_weights():
                    shutil.move(working.checkpoint_dir, experiment.checkpoint_dir)
                files.write_json(path, {"arch": arch, **asdict(outcome)})
                shutil.rmtree(working.dir, ignore_errors=True)  # 15 MB that nobody asked for
        return outcome

    @abstractmethod
    def _measure(self, subnet: Subnet, working: Experiment) -> Outcome | None:
        """Measure a subnet, with a folder to work in; None when Ctrl-C stopped it."""

    def _direct(self, subnet: Subnet) -> nn.Module:
        """Return the subnet with the supernet's weights and batch statistics of its own."""
        if self._net is None or self._net.space != subnet.space:
            net = load_supernet(self.supernet, subnet.space).net
            check_classes(self.supernet, net.n_classes, self.data, "name another with --supernet")
            self._net = net.to(self.device)
        return ready_to_measure(self._net, subnet, self._statistics)

    @cached_property
    def _statistics(self) -> list[torch.Tensor]:
        """Batches of training images, for batch statistics."""
        return bn_batches(self.data, N_BN_IMAGES, BATCH_SIZE, self.device, n_workers=self.n_workers)

    def _top1(self, net: nn.Module, split: str, name: str) -> float:
        description = f"{name}, {split} images"
        return evaluate_split(net, self.data, split, BATCH_SIZE, self.n_workers, description).top1


def _is_share_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and 0 <= value <= 1)


class DirectBench(Bench):
    """Measures subnets with the supernet's weights, without finetuning."""

    def _measure(self, subnet: Subnet, working: Experiment) -> Outcome:
        net = self._direct(subnet)
        val, test = (self._top1(net, split, working.dir.name) for split in ("val", "test"))
        return Outcome(direct_top1=val, val_top1=val, test_top1=test)


class FinetuningBench(Bench):
    """Finetunes subnets under one recipe; `with_direct` measures them before, too."""

    makes_weights = True

    def __init__(
        self,
        supernet: Path,
        data: DataProvider,
        settings: FinetuneSettings,
        folder: Path,
        device: torch.device,
        with_direct: bool = True,
    ) -> None:
        what_counts = {k: v for k, v in asdict(settings).items() if k not in FREE_SETTINGS}
        super().__init__(supernet, data, folder, device, settings.n_workers, what_counts)
        self.settings, self.with_direct = settings, with_direct

    def _measure(self, subnet: Subnet, working: Experiment) -> Outcome | None:
        arch = subnet.to_json() + "\n"
        distributed.from_first(lambda: files.write_text(working.dir / "arch", arch))
        direct = None
        if self.with_direct:
            direct = self._top1(self._direct(subnet), "val", working.dir.name)
        result = finetune(working, self.supernet, self.data, self.settings, self.device)
        if not result.finished:
            return None
        net = fold(load_trained(working).net.to(self.device))
        test = self._top1(net, "test", working.dir.name)
        return Outcome(direct_top1=direct, val_top1=result.best_top1, test_top1=test)
