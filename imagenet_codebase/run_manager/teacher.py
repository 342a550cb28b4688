"""A supernet's largest subnet as a teacher, whose answers others learn from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from apq.space import PAPER_SPACE, SearchSpace
from elastic_nn.networks.files import load_supernet
from elastic_nn.networks.folded import fold
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.data_providers.memory import resize
from imagenet_codebase.run_manager.classes import check_classes


class Teacher:
    """A network that only answers, and may see images larger than its pupils do.

    Enlarging adds no detail, but networks answer better the closer objects are to the size that
    their features were learned at.
    """

    def __init__(
        self, net: nn.Module, share: float, label_smoothing: float, image_size: int
    ) -> None:
        """Take a network in evaluation mode, and its share of what pupils learn from."""
        self.net, self.share, self.label_smoothing = net, share, label_smoothing
        self.image_size = image_size

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return what to learn from images (N, 3, S, S) and labels (N,): probabilities (N, C).

        They lie between the network's answers and the smoothed labels.
        """
        answers = self.net(resize(images, self.image_size)).softmax(1)
        other = self.label_smoothing / answers.size(1)
        # Not by F.one_hot, which looks at the labels and so waits for them.
        smooth = torch.full_like(answers, other)
        smooth.scatter_(1, labels[:, None], 1 - self.label_smoothing + other)
        return smooth.lerp_(answers, self.share)


def read_teacher(
    supernet_path: Path,
    data: DataProvider,
    statistics: list[torch.Tensor],
    device: torch.device,
    share: float,
    label_smoothing: float,
    image_size: int = 0,
    remedy: str = "give --distill=0, or another --supernet",
    space: SearchSpace = PAPER_SPACE,
) -> Teacher:
    """Return the supernet's largest subnet in full precision as a teacher.

    `statistics` are batches of training images as pupils see them, from which its batch statistics
    are taken anew; an `image_size` of 0 is theirs. Raises ApqError, with the remedy, when the
    supernet knows other classes.
    """
    net = load_supernet(supernet_path, space).net
    check_classes(supernet_path, net.n_classes, data, f"it cannot teach; {remedy}")
    net = net.extract().to(device, memory_format=torch.channels_last)
    image_size = image_size or statistics[0].shape[-1]
    net.reset_bn_statistics([resize(images, image_size) for images in statistics])
    return Teacher(fold(net), share, label_smoothing, image_size)
