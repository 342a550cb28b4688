"""What a supernet's subnets are measured with: their weights, and batch statistics of their own."""

import pytest
import torch

from apq.subnet import largest, smallest
from elastic_nn.networks import OnceForAllNet
from imagenet_codebase.run_manager.measuring import ready_to_measure


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
