"""Quantization-aware finetuning of an experiment's subnet, and reading what it left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from apq import files
from apq.errors import ApqError
from apq.experiment import Experiment
from apq.subnet import Subnet
from elastic_nn.networks import MobileNet
from elastic_nn.networks.batch_statistics import center_streams
from elastic_nn.networks.files import load_supernet, supernet_from
from elastic_nn.networks.folded import fold
from elastic_nn.quantizer_kinds import find_quantizer
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.run_manager.averaging import RunningAverage
from imagenet_codebase.run_manager.classes import knows_classes_of
from imagenet_codebase.run_manager.compiling import compile_where_it_pays
from imagenet_codebase.run_manager.distributed import data_parallel, from_first, is_first
from imagenet_codebase.run_manager.evaluate import evaluate_split
from imagenet_codebase.run_manager.measuring import bn_batches
from imagenet_codebase.run_manager.recipes import FinetuneSettings
from imagenet_codebase.run_manager.states import LAST_NAME
from imagenet_codebase.run_manager.teacher import Teacher, read_teacher
from imagenet_codebase.run_manager.trainer import Trainer
from lut.layers import MAX_IMAGE_SIZE
from utils import checkpoint

N_BN_IMAGES, BN_BATCH_SIZE = 1024, 64


@dataclass(frozen=True)
class FinetuneResult:
    """How a finetuning run ended."""

    finished: bool
    initial_top1: float | None
    """Validation accuracy before the first step; None when an earlier run was resumed."""
    best_top1: float | None
    history: list[dict[str, float]]


def starting_network(
    subnet: Subnet,
    supernet_path: Path,
    data: DataProvider,
    statistics: list[torch.Tensor],
    device: torch.device,
    quantizer: str = "paper",
) -> MobileNet:
    """Cut the subnet out of a supernet, ready to be finetuned.

    A supernet of other classes than the data's lends everything but the classifier. Batch
    statistics are taken anew, from `statistics`, batches of training images; so are ranges, where
    the supernet has none or the quantizer starts from others than the paper's. Raises ApqError
    when the file holds no supernet of the subnet's space.
    """
    loaded = load_supernet(supernet_path, subnet.space)
    loaded.net.activate(subnet)
    net = loaded.net.extract()
    if not knows_classes_of(supernet_path, net.n_classes, data):
        print(
            f"{supernet_path} knows other classes ({net.n_classes}) than {data.name} "
            f"({data.n_classes}): the classifier starts afresh"
        )
        net.replace_classifier(data.n_classes)
    net = net.to(device, memory_format=torch.channels_last)
    net.set_quantizer(quantizer)
    if loaded.has_ranges:
        net.reset_bn_statistics(statistics)
    else:  # statistics of values that wrong ranges clip would mislead the calibration
        with net.full_precision():
            net.reset_bn_statistics(statistics)
    if net.quantize and not (loaded.has_ranges and quantizer == "paper"):
        net.calibrate(statistics[0])
        if find_quantizer(quantizer).full:
            center_streams(net)
            net.calibrate(statistics[0], weights=False)
        net.reset_bn_statistics(statistics)
    return net


def finetune(
    experiment: Experiment,
    supernet_path: Path,
    data: DataProvider,
    settings: FinetuneSettings,
    device: torch.device,
    restart: bool = False,
) -> FinetuneResult:
    """Finetune an experiment's subnet; goes on from `checkpoint/last.pth.tar` where it is.

    The best epoch on the validation split is kept as `checkpoint/model_best.pth.tar`. Raises
    ApqError when the supernet does not fit the subnet's space, when the saved state was made with
    other settings or data, when another process is at work on it, and when the loss explodes.
    """
    torch.manual_seed(settings.seed)
    trainer = _trainer(experiment, supernet_path, data, settings, device, restart)
    if trainer.net.quantize:
        quantizer = find_quantizer(settings.quantizer)
        print(f"quantizer {quantizer.name}: the accelerator needs {quantizer.needs}", flush=True)
        compile_where_it_pays(settings, quantizer, data.n_images("train"), device)
    initial_top1 = None
    if restart:
        from_first(trainer.states.lock.check)  # before time is spent
    if not restart and trainer.resume():
        print(f"going on after epoch {trainer.epoch}, step {trainer.next_step}", flush=True)
    else:
        initial_top1 = trainer.validate()["val_top1"]
        print(f"before finetuning: val_top1 {initial_top1:.2%}", flush=True)
        if restart:
            trainer.forget()
        if is_first():
            trainer.best.set_aside()
    finished = trainer.run()
    return FinetuneResult(finished, initial_top1, trainer.best.figure, trainer.history)


def _trainer(
    experiment: Experiment,
    supernet_path: Path,
    data: DataProvider,
    settings: FinetuneSettings,
    device: torch.device,
    restart: bool,
) -> Trainer:
    """Return the trainer of an experiment's subnet, whose states lie beside its best weights."""
    subnet, folder = experiment.subnet(), experiment.checkpoint_dir
    facts = {
        "arch": subnet.to_json(),
        **data.facts(),
        "quantizer": settings.quantizer,
        "supernet_sha256": files.sha256(supernet_path) if supernet_path.is_file() else "",
    }
    n_workers = settings.n_workers
    statistics = bn_batches(data, N_BN_IMAGES, BN_BATCH_SIZE, device, n_workers=n_workers)
    if (folder / LAST_NAME).exists() and not restart:  # its weights replace all that is here
        net = MobileNet.from_subnet(subnet, data.n_classes)
        net = net.to(device, memory_format=torch.channels_last)
        net.set_quantizer(settings.quantizer)
    else:
        net = starting_network(subnet, supernet_path, data, statistics, device, settings.quantizer)
    average = RunningAverage(net, settings.ema) if settings.ema else None
    teacher = None
    if settings.distill:
        teacher = read_teacher(
            supernet_path,
            data,
            statistics,
            device,
            settings.distill,
            settings.label_smoothing,
            space=subnet.space,
        )
    result = average.module if average else net

    def validate() -> dict[str, float]:
        if settings.reset_bn:
            result.reset_bn_statistics(statistics)
        accuracy = evaluate_split(fold(result), data, "val", n_workers=n_workers)
        return {"val_top1": accuracy.top1, "val_loss": accuracy.loss}

    step = FinetuneStep(data_parallel(net), settings, teacher)
    return Trainer(net, data, settings, step, validate, folder, facts, average=average)


class FinetuneStep:
    """One step: forward and backward of the network on labels, and on a teacher's answers."""

    def __init__(
        self, net: nn.Module, settings: FinetuneSettings, teacher: Teacher | None = None
    ) -> None:
        self.net, self.settings, self.teacher = net, settings, teacher

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, key: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradients of one batch; return its loss and number of right answers."""
        settings = self.settings
        with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.bf16):
            logits = self.net(images)
        logits = logits.float()
        if self.teacher is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        else:
            loss = F.cross_entropy(logits, self.teacher(images, labels))
        loss.backward()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()


@dataclass(frozen=True)
class TrainedSubnet:
    """The network of an experiment's checkpoint, ready to predict, and what is known of it."""

    net: MobileNet
    facts: dict[str, Any]


def load_trained(experiment: Experiment) -> TrainedSubnet | None:
    """Read an experiment's best checkpoint, ours or an authors' (supernet-shaped) one.

    Returns None where there is no checkpoint; raises ApqError when it does not fit the subnet, or
    tells that it was trained as another one, with other bits say.
    """
    path = experiment.best_checkpoint
    if not path.exists():
        return None
    subnet = experiment.subnet()
    content = checkpoint.load(path)
    facts = {k: v for k, v in content.items() if isinstance(v, str | int | float | list)}
    with files.naming(path):
        _check_data(facts)
        _check_subnet(facts.get("arch"), subnet)
        state_dict = checkpoint.state_dict(content)
        if any(name.endswith("7to5_matrix") for name in state_dict):
            loaded = supernet_from(state_dict, subnet.space)
            loaded.net.activate(subnet)
            return TrainedSubnet(loaded.net.extract().eval(), facts)
        quantizer = facts.get("quantizer", "paper")
        return TrainedSubnet(_compact_network(subnet, state_dict, quantizer).eval(), facts)


def _check_data(facts: dict[str, Any]) -> None:
    """Raise ApqError when what is told of the data is not of its kind; it may tell nothing."""
    for name, kind in (("dataset", str), ("class_names", list)):
        if name in facts and not isinstance(facts[name], kind):
            raise ApqError(f"its {name} is {facts[name]!r}; expected a {kind.__name__}")
    size = facts.get("image_size", 1)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_IMAGE_SIZE:
        raise ApqError(f"its image_size is {size!r}; expected an integer up to {MAX_IMAGE_SIZE}")


def _check_subnet(arch: object, subnet: Subnet) -> None:
    """Raise ApqError when weights were trained as another subnet than the experiment's.

    `arch` is the paper's JSON; others keep something else there, or nothing. No shape of a weight
    tells its bits.
    """
    space = subnet.space
    try:
        trained = Subnet.from_json(arch, space)
    except ApqError:
        return
    # Blocks that the depths leave out do not count.
    ours, theirs = space.canonical(space.encode([subnet, trained]))
    if trained.quantized != subnet.quantized or not np.array_equal(ours, theirs):
        raise ApqError(
            "the weights were trained as another subnet than the experiment's 'arch': finetune it "
            "anew, with --restart"
        )


def _compact_network(
    subnet: Subnet, state_dict: dict[str, torch.Tensor], quantizer: str
) -> MobileNet:
    classifier = state_dict.get("classifier.linear.weight")
    if classifier is None or classifier.dim() != 2:
        raise ApqError("it lacks the tensor 'classifier.linear.weight'")
    net = MobileNet.from_subnet(subnet, classifier.size(0))
    net.set_quantizer(quantizer)
    try:
        net.load_state_dict(state_dict)
    except RuntimeError as error:
        first = str(error).partition("\n\t")[2].partition(",")[0] or str(error)
        raise ApqError(f"the weights are not of this experiment's subnet: {first}") from None
    return net
