"""What a supernet's subnets are measured with: their weights, and batch statistics of their own."""

import pytest
import torch

from apq.subnet import largest, smallest
from elastic_nn.networks import OnceForAllNet
from imagenet_codebase.run_manager.measuring import bn_batches, ready_to_measure


@pytest.fixture
def net(tiny_space, randomize):
    torch.manual_seed(0)
    return randomize(OnceForAllNet(tiny_space, 4))


@torch.no_grad()
def test_what_the_supernet_holds_of_other_subnets_statistics_does_not_count(net):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(24, 3, 32, 32, generator=generator)
    batches, subnets = images.split(12), (largest(net.space), smallest(net.space).with_bits(4))
    before = [ready_to_measure(net, subnet, batches)(images) for subnet in subnets]
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.add_(1)
        norm.running_var.mul_(3)
    after = [ready_to_measure(net, subnet, batches)(images) for subnet in subnets]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
    # Other images than these are of account, and the supernet stays as it is.
    others = ready_to_measure(net, subnets[0], [images[:12] + 1])(images)
    assert not torch.allclose(others, before[0], rtol=1e-3)
    assert norms[0].running_var.min() > 3 * 0.9


def test_batch_statistics_are_of_random_training_images_as_they_are(toy_data):
    whole, _ = toy_data.train_unaugmented.batch(range(24))

    def numbers(**options):
        batches = bn_batches(toy_data, 10, 4, torch.device("cpu"), **options)
        assert [len(batch) for batch in batches] == [4, 4, 2]
        same = (torch.cat(batches)[:, None] == whole[None]).flatten(2).all(dim=2)
        assert (same.sum(dim=1) == 1).all()
        return same.int().argmax(dim=1).tolist()

    first = numbers()
    assert len(set(first)) == 10
    # Not the first ones: images lie class by class in most folders.
    assert max(first) >= 15
    assert first == numbers() != numbers(seed=1)
