"""What the processes train: a tiny network, on noise."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from apq.space import SearchSpace, Stage
from apq.subnet import smallest
from elastic_nn.networks import MobileNet
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.data_providers.memory import MemorySource, crop_and_flip
from imagenet_codebase.data_providers.normalization import Normalization
from imagenet_codebase.data_providers.splits import Split
from imagenet_codebase.run_manager import distributed
from imagenet_codebase.run_manager.averaging import RunningAverage
from imagenet_codebase.run_manager.evaluate import evaluate_split
from imagenet_codebase.run_manager.trainer import Trainer

SPACE = SearchSpace(
    stem_channels=8,
    first_block_channels=8,
    stages=(Stage(out_channels=16, stride=2, max_depth=2, depths=(1, 2)),),
    feature_channels=32,
)


def data(n_train):
    """Noise of four classes: `n_train` images to learn from, 12 to choose on, 11 to test with."""
    n = n_train + 23
    pixels = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    source = MemorySource(
        read=lambda: torch.from_numpy(pixels),
        labels=np.arange(n) % 4,
        image_size=16,
        normalize=Normalization(mean=(0.5,) * 3, std=(0.25,) * 3),
        augmentation=crop_and_flip,
    )
    ends = np.cumsum([n_train, 12, 11])
    parts = [Split(source=source, indices=part) for part in np.split(np.arange(n), ends)[:3]]
    return DataProvider(
        name="noise",
        image_size=16,
        class_names=tuple("abcd"),
        train=replace(parts[0], augment=True),
        train_unaugmented=parts[0],
        val=parts[1],
        test=parts[2],
    )


def make_trainer(folder, settings, n_train, on_step=lambda key, loss: None, noise=0.0):
    """Return a trainer of a tiny quantized network, with averaged weights."""
    torch.manual_seed(0)
    net = MobileNet.from_subnet(smallest(SPACE).with_bits(8), 4)
    net = net.to(memory_format=torch.channels_last)
    provider, average = data(n_train), RunningAverage(net, 0.9)
    forward = distributed.data_parallel(net)

    def step(images, labels, key):
        images = images + noise * torch.randn(images.shape)  # what a dropout would draw
        logits = forward(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        on_step(key, loss.detach())
        return loss.detach(), (logits.argmax(1) == labels).sum()

    def validate():
        return {"val_top1": evaluate_split(average.module, provider, "val", 5).top1}

    return Trainer(net, provider, settings, step, validate, folder, {}, average=average)
