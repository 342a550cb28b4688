"""Order and augmentation of training images: the seed and the epoch both decide them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from imagenet_codebase.data_providers import open_dataset
from imagenet_codebase.data_providers.memory import MemorySource
from imagenet_codebase.data_providers.normalization import Normalization
from imagenet_codebase.data_providers.splits import Split
from imagenet_codebase.run_manager.settings import TrainingSettings
from imagenet_codebase.run_manager.trainer import Trainer

SEEDS_AND_EPOCHS = list(itertools.product((0, 1), (0, 1)))


@pytest.fixture
def photos(tmp_path):
    """A data set of eight photographs in files."""
    rng = np.random.default_rng(0)
    for i, (part, name) in enumerate(itertools.product(("train", "val"), ("cat", "dog"))):
        (tmp_path / part / name).mkdir(parents=True)
        for n in range(4 if part == "train" else 1):
            noise = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / part / name / f"{i}{n}.png")
    return open_dataset("folder", tmp_path, image_size=32)


def test_each_epoch_of_each_seed_has_an_order_of_its_own(toy_data):
    orders = set()
    for seed, epoch in SEEDS_AND_EPOCHS:
        # Without augmentation an image is known by its pixels.
        loader = toy_data.loader("train_unaugmented", 8, shuffle=True, seed=seed, epoch=epoch)
        orders.add(tuple(image.sum().item() for images, _ in loader for image in images))
    assert len(orders) == 4
    assert len({frozenset(order) for order in orders}) == 1


@pytest.mark.parametrize("kept_in", ["memory", "files"])
def test_each_epoch_of_each_seed_augments_otherwise(kept_in, toy_data, photos):
    data = {"memory": toy_data, "files": photos}[kept_in]
    seen = [data.train.at(*key).pixels(range(4))[0] for key in SEEDS_AND_EPOCHS]
    assert len({pixels.numpy().tobytes() for pixels in seen}) == 4


def test_randaugment_changes_each_image_by_seed_epoch_and_its_number():
    image = torch.arange(32 * 32 * 3, dtype=torch.int64).remainder(251).to(torch.uint8)
    source = MemorySource(
        read=lambda: image.reshape(1, 32, 32, 3).repeat(12, 1, 1, 1),
        labels=np.zeros(12, dtype=np.int64),
        image_size=32,
        normalize=Normalization(mean=(0.5,) * 3, std=(0.25,) * 3),
        augmentation=lambda images, draws: images,  # nothing else changes them
    )
    split = Split(source=source, indices=np.arange(12), augment=True, randaugment=True)
    seen = [split.at(*key).pixels(range(12))[0].numpy() for key in SEEDS_AND_EPOCHS]
    assert len({pixels.tobytes() for pixels in seen}) == 4
    for pixels in seen:
        assert len({one.tobytes() for one in pixels}) > 6
    # By the number in the source: what else is in the split changes nothing.
    part = replace(split, indices=np.arange(5, 12)).at(*SEEDS_AND_EPOCHS[-1])
    assert (part.pixels(range(7))[0].numpy() == seen[-1][5:]).all()


def test_a_run_never_repeats_an_epoch_nor_another_seeds(toy_data, tmp_path):
    net, seen = torch.nn.Linear(1, 1), {}

    def step(images, labels, key):
        seen.setdefault(key[:2], []).append(images.numpy().tobytes())
        loss = net(torch.ones(1, 1)).sum()
        loss.backward()
        return loss.detach(), torch.tensor(0)

    for seed in (0, 1):
        settings = TrainingSettings(n_epochs=2, batch_size=8, seed=seed)
        assert Trainer(net, toy_data, settings, step, dict, tmp_path / f"{seed}", {}).run()
    assert list(seen) == SEEDS_AND_EPOCHS
    assert len(set(map(tuple, seen.values()))) == 4
    # Not even the same batches in another order.
    assert len(set(itertools.chain(*seen.values()))) == 12
