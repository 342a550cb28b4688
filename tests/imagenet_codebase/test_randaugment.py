"""RandAugment: what the seed decides, and that images stay images."""

import torch

from imagenet_codebase.data_providers.randaugment import randaugment


def gradient(n, channels):
    """Equal images (n, 32, 32, channels) that grow brighter to the right."""
    row = torch.arange(32, dtype=torch.uint8) * 8
    return row[None, None, :, None].expand(n, 32, 32, channels)


def test_an_images_seed_alone_decides_what_happens_to_it():
    changed = randaugment(gradient(40, 3), range(40))
    assert (changed.shape, changed.dtype) == ((40, 32, 32, 3), torch.uint8)
    assert torch.equal(randaugment(gradient(2, 3), [17, 4]), changed[[17, 4]])
    # 14 kinds of change, two of them drawn: few images look alike.
    assert len({image.numpy().tobytes() for image in changed}) > 20


def test_grey_images_stay_grey_and_are_changed_too():
    changed = randaugment(gradient(20, 1), range(2**32 - 20, 2**32))
    assert (changed.shape, changed.dtype) == ((20, 32, 32, 1), torch.uint8)
    assert sum(not torch.equal(image, gradient(1, 1)[0]) for image in changed) > 10
