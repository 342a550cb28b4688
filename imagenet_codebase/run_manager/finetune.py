"""Quantization-aware finetuning of an experiment's subnet, and reading what it left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from apq import files
from apq.errors import ApqError
from apq.experiment import Experiment
from apq.subnet import Subnet
from elastic_nn.modules import QuantizedLinear
from elastic_nn.networks import MobileNet
from elastic_nn.networks.files import load_supernet, supernet_from
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.run_manager.evaluate import evaluate
from imagenet_codebase.run_manager.settings import TrainingSettings
from imagenet_codebase.run_manager.supernet import bn_batches, data_facts
from imagenet_codebase.run_manager.trainer import LAST_NAME, Trainer
from utils import checkpoint

N_BN_IMAGES = 1024


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
    device: torch.device,
    n_workers: int = 0,
) -> MobileNet:
    """Cut the subnet out of a supernet, ready to be finetuned on the data.

    A supernet of other classes lends everything but the classifier; one without activation
    ranges gets them from training images. Batch statistics are taken anew.
    """
    loaded = load_supernet(supernet_path, subnet.space)
    loaded.net.activate(subnet)
    net = loaded.net.extract()
    if net.n_classes != data.n_classes:
        print(
            f"{supernet_path} knows {net.n_classes} classes and {data.name} has "
            f"{data.n_classes}: the classifier starts afresh"
        )
        net.n_classes = data.n_classes
        linear = QuantizedLinear(net.space.feature_channels, data.n_classes)
        linear.set_bits(net.classifier.linear.w_bits, net.classifier.linear.a_bits)
        torch.nn.init.normal_(linear.weight, std=0.01)
        torch.nn.init.zeros_(linear.bias)
        net.classifier.linear = linear
    net = net.to(device, memory_format=torch.channels_last)
    statistics = bn_batches(data, N_BN_IMAGES, 64, device, n_workers=n_workers)
    net.reset_bn_statistics(statistics)
    if net.quantize and not loaded.has_ranges:
        net.calibrate(statistics[0])
        net.reset_bn_statistics(statistics)
    return net


def finetune(
    experiment: Experiment,
    supernet_path: Path,
    data: DataProvider,
    settings: TrainingSettings,
    device: torch.device,
    restart: bool = False,
) -> FinetuneResult:
    """Finetune an experiment's subnet; goes on from `checkpoint/last.pth.tar` where it is.

    The best epoch on the validation split is kept as `checkpoint/model_best.pth.tar`.
    """
    torch.manual_seed(settings.seed)
    subnet = experiment.subnet()
    facts = {
        "arch": subnet.to_json(),
        **data_facts(data),
        "supernet_sha256": files.sha256(supernet_path) if supernet_path.is_file() else "",
    }
    last = experiment.checkpoint_dir / LAST_NAME
    if last.exists() and not restart:  # its weights replace whatever the network starts with
        net = MobileNet.from_subnet(subnet, data.n_classes)
        net = net.to(device, memory_format=torch.channels_last)
    else:
        net = starting_network(subnet, supernet_path, data, device, settings.n_workers)

    def step(images, labels, key):
        logits = net(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        loss.backward()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    def validate() -> dict[str, float]:
        accuracy = evaluate(net, data.loader("val", 256, n_workers=settings.n_workers))
        return {"val_top1": accuracy.top1, "val_loss": accuracy.loss}

    trainer = Trainer(net, data, settings, step, validate, experiment.checkpoint_dir, facts)
    initial_top1 = None
    if restart:
        trainer.forget()
    if trainer.resume():
        print(f"going on after epoch {trainer.epoch}, step {trainer.next_step}", flush=True)
    else:
        initial_top1 = validate()["val_top1"]
        print(f"before finetuning: val_top1 {initial_top1:.2%}", flush=True)
    finished = trainer.run()
    best = max((row["val_top1"] for row in trainer.history), default=None)
    return FinetuneResult(finished, initial_top1, best, trainer.history)


@dataclass(frozen=True)
class TrainedSubnet:
    """The network of an experiment's checkpoint and what is known of its training."""

    net: MobileNet
    facts: dict[str, Any]


def load_trained(experiment: Experiment) -> TrainedSubnet | None:
    """Read an experiment's best checkpoint, ours or an authors' (supernet-shaped) one.

    Returns None where there is no checkpoint; raises ApqError when it does not fit the subnet.
    """
    path = experiment.best_checkpoint
    if not path.exists():
        return None
    subnet = experiment.subnet()
    content = checkpoint.load(path)
    facts = {k: v for k, v in content.items() if isinstance(v, str | int | float | list)}
    with files.naming(path):
        state_dict = checkpoint.state_dict(content)
        if any(name.endswith("7to5_matrix") for name in state_dict):
            loaded = supernet_from(state_dict, subnet.space)
            loaded.net.activate(subnet)
            return TrainedSubnet(loaded.net.extract(), facts)
        return TrainedSubnet(_compact_network(subnet, state_dict), facts)


def _compact_network(subnet: Subnet, state_dict: dict[str, torch.Tensor]) -> MobileNet:
    classifier = state_dict.get("classifier.linear.weight")
    if classifier is None or classifier.dim() != 2:
        raise ApqError("it lacks the tensor 'classifier.linear.weight'")
    net = MobileNet.from_subnet(subnet, classifier.size(0))
    try:
        net.load_state_dict(state_dict)
    except RuntimeError as error:
        first = str(error).split("\n\t")[1] if "\n\t" in str(error) else str(error)
        raise ApqError(f"the weights are not of this experiment's subnet: {first}") from None
    return net
