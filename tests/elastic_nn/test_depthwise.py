"""Depthwise convolution: the same values and gradients as torch's, at every size and stride."""

import pytest
import torch
import torch.nn.functional as F

from elastic_nn.modules import depthwise

SIZES = [(1, 1), (2, 2), (3, 3), (4, 4), (2, 5), (6, 4), (8, 8)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_are_those_of_torch(size, kernel, stride):
    torch.manual_seed(0)
    x = torch.randn(3, 5, *size, dtype=torch.float64).to(memory_format=torch.channels_last)
    weight = torch.randn(5, 1, kernel, kernel, dtype=torch.float64)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    ours = depthwise.depthwise_conv2d(x, weight, stride)
    theirs = F.conv2d(x, weight, None, stride, kernel // 2, groups=5)
    assert torch.equal(ours, theirs)
    grad = torch.randn_like(ours)
    expected = torch.autograd.grad(theirs, (x, weight), grad)
    torch.testing.assert_close(torch.autograd.grad(ours, (x, weight), grad), expected)
    # The pairs of positions give it at sizes, too, where they are not the faster way.
    by_pairs = depthwise.weight_gradient(x.detach(), grad, kernel, stride)
    torch.testing.assert_close(by_pairs, expected[1])


def test_the_centre_alone_learns_on_one_pixel():
    weight = torch.zeros(2, 1, 3, 3, requires_grad=True)
    x = torch.tensor([[[[2.0]], [[3.0]]]])
    depthwise.depthwise_conv2d(x, weight, 1).backward(torch.tensor([[[[5.0]], [[7.0]]]]))
    expected = torch.zeros(2, 1, 3, 3)
    expected[:, 0, 1, 1] = torch.tensor([10.0, 21.0])
    assert torch.equal(weight.grad, expected)


@pytest.mark.parametrize(
    ("size", "is_ours"), [(2, True), (4, True), (5, False), (8, False)], ids=str
)
def test_the_own_gradient_serves_images_smaller_than_the_kernel(size, is_ours):
    x, weight = torch.randn(2, 4, size, size), torch.randn(4, 1, 5, 5, requires_grad=True)
    graph = type(depthwise.depthwise_conv2d(x, weight, 1).grad_fn).__name__
    assert graph.startswith("_DepthwiseConv2d") == is_ours


def test_images_that_need_no_gradient_get_none_and_the_filter_learns():
    x, weight = torch.randn(2, 4, 2, 2), torch.randn(4, 1, 3, 3, requires_grad=True)
    depthwise.depthwise_conv2d(x, weight, 1).sum().backward()
    assert x.grad is None
    assert weight.grad.abs().sum() > 0


def test_mixed_precision_is_left_to_torch():
    x = torch.randn(2, 4, 2, 2, requires_grad=True)
    weight = torch.randn(4, 1, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = depthwise.depthwise_conv2d(x, weight, 1)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


def test_gradients_lie_in_memory_as_the_images_do():
    x = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, 1, 5, 5, requires_grad=True)
    depthwise.depthwise_conv2d(x, weight, 1).sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_precision_reads_no_memory_of_before_on_one_pixel(stride):
    x = torch.full((8, 96, 1, 1), 1.5).contiguous(memory_format=torch.channels_last)
    # As a network in channels_last has its filters.
    filters = torch.ones(96, 1, 3, 3).as_strided((96, 1, 3, 3), (9, 1, 3, 1))
    for _ in range(4):
        before = [torch.full((2**e,), float("nan")) for e in range(6, 20)]
        del before
        weight = filters.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = depthwise.depthwise_conv2d(x, weight, stride)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        expected = torch.zeros(96, 1, 3, 3)
        expected[..., 1, 1] = 8 * 1.5
        assert torch.equal(weight.grad, expected)
