"""What tests of data and training do with small things, and the settings that they share."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imagenet_codebase.run_manager.measuring import bn_batches
from imagenet_codebase.run_manager.settings import TrainingSettings

CPU = torch.device("cpu")
TRAINING = TrainingSettings(n_epochs=3, batch_size=8, lr=0.05, seed=1)


def write_tree(folder: Path, n_images: dict[str, int], size: tuple[int, int] = (32, 32)) -> Path:
    """Write noise as PNG files, n_images of each class; no two images are alike."""
    rng = np.random.default_rng(sum(map(ord, folder.name)))
    for class_name, n in n_images.items():
        (folder / class_name).mkdir(parents=True)
        for i in range(n):
            noise = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / class_name / f"{i}.png")
    return folder


def batches(loader):
    """Everything that a loader yields."""
    return [(images.clone(), labels.clone()) for images, labels in loader]


def same_batches(a, b) -> bool:
    return len(a) == len(b) and all(
        torch.equal(a[i][j], b[i][j]) for i in range(len(a)) for j in range(2)
    )


def statistics(data):
    """All 24 training images of the toy data, in batches."""
    return bn_batches(data, 24, 12, CPU)


def weights(trainer):
    """A copy of the weights as they are now."""
    return {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}


def same_weights(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)
