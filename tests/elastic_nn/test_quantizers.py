"""The paper's quantizers, by hand."""

import pytest
import torch

from apq import ApqError
from elastic_nn.modules import ElasticConv2d
from elastic_nn.modules.quantizers import (
    lowest_level,
    n_levels,
    quantize_relu6,
    quantize_signed,
)
from elastic_nn.quantizer_kinds import find_quantizer


def fake_quantize(x, limit, bits, signed, learned=False):
    return (quantize_signed if signed else quantize_relu6)(x, limit, bits, learned)


def test_levels():
    assert [n_levels(b, signed=False) for b in (4, 6, 8)] == [15, 63, 255]
    assert [n_levels(b, signed=True) for b in (4, 6, 8)] == [7, 31, 127]
    assert [lowest_level(4, signed=True, full=full) for full in (False, True)] == [-7, -8]
    assert lowest_level(4, signed=False, full=True) == 0


def test_unsigned_values_by_hand():
    # 4 bits over [0, 6]: steps of 0.4.
    x = torch.tensor([-1.0, 0.0, 0.19, 0.21, 3.0, 5.9, 7.0])
    expected = torch.tensor([0.0, 0.0, 0.0, 0.4, 3.2, 6.0, 6.0])
    torch.testing.assert_close(fake_quantize(x, torch.tensor([6.0]), 4, False), expected)


def test_signed_values_by_hand():
    # 4 bits over [-7, 7]: steps of 1.
    x = torch.tensor([-9.0, -6.6, -0.4, 0.6, 6.4, 8.0])
    expected = torch.tensor([-7.0, -7.0, 0.0, 1.0, 6.0, 7.0])
    torch.testing.assert_close(fake_quantize(x, torch.tensor([7.0]), 4, True), expected)


@pytest.mark.parametrize("signed", [False, True])
def test_gradients_by_hand(signed):
    x = torch.tensor([-9.0, 1.3, 2.0, 5.5, 9.0], requires_grad=True)
    limit = torch.tensor([5.0], requires_grad=True)
    fake_quantize(x, limit, 4, signed).backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    # Straight through inside; what is clipped above hands its gradient to the limit, below its
    # negative, unless it was ReLU6 that clipped it.
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 0.0, 0.0]
    assert limit.grad.tolist() == [9.0 - 1.0 if signed else 9.0]


@pytest.mark.parametrize("learned", [False, True])
def test_a_range_beyond_the_ceiling_of_relu6_clips_nothing(learned):
    x = torch.tensor([-1.0, 3.0, 6.5, 9.0], requires_grad=True)
    limit = torch.tensor([15.0], requires_grad=True)  # steps of 1
    y = fake_quantize(x, limit, 4, False, learned)
    assert y.tolist() == [0.0, 3.0, 6.0, 6.0]
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert limit.grad.item() == pytest.approx(0.0)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_the_largest_weight_is_never_taken_for_clipped(bits):
    generator = torch.Generator().manual_seed(bits)
    for _ in range(200):
        weight = torch.randn(50, generator=generator).requires_grad_()
        limit = weight.detach().abs().max().reshape(1)
        fake_quantize(weight, limit, bits, True).sum().backward()
        assert weight.grad.eq(1).all()


def test_a_range_at_or_below_zero_stays_finite_and_can_recover():
    assert fake_quantize(torch.zeros(3), torch.zeros(1), 4, True).eq(0).all()
    limit = torch.tensor([-0.1], requires_grad=True)
    fake_quantize(torch.ones(3), limit, 4, False).sum().backward()
    assert limit.grad.item() == 3


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_training_and_evaluation_agree_and_rounding_is_idempotent(bits, signed):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(bits)) * 3
    limit = torch.tensor([2.5])
    with torch.no_grad():
        once = fake_quantize(x, limit, bits, signed)
        assert torch.equal(fake_quantize(once, limit, bits, signed), once)
    assert torch.equal(fake_quantize(x.clone().requires_grad_(), limit, bits, signed), once)
    assert len(once.unique()) <= n_levels(bits, signed) * (2 if signed else 1) + 1
    inside = x.abs() < 2.5 if signed else (x > 0) & (x < 2.5)
    step = 2.5 / n_levels(bits, signed)
    assert (once - x)[inside].abs().max() <= step / 2 * 1.001


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("limit", [2.0, 5.0, 8.0])
def test_gradients_are_those_of_relu6_and_the_plain_formula(signed, limit):
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(4, 50, generator=generator)).requires_grad_()
    weights = torch.randn(4, 50, generator=generator)
    r = torch.tensor([limit], requires_grad=True)
    (fake_quantize(x, r, 4, signed) * weights).sum().backward()

    plain_x, plain_r = x.detach().clone().requires_grad_(), r.detach().clone().requires_grad_()
    levels = n_levels(4, signed)
    low = -plain_r if signed else torch.zeros(1)
    inside = plain_x if signed else torch.relu(plain_x).clamp(max=6)
    clipped = torch.minimum(torch.maximum(inside, low), plain_r)
    step = limit / levels
    rounded = clipped + ((clipped / step).round() * step - clipped).detach()
    (rounded * weights).sum().backward()
    torch.testing.assert_close(x.grad, plain_x.grad)
    torch.testing.assert_close(r.grad, plain_r.grad)


@pytest.mark.parametrize("learned", [False, True])
def test_a_range_that_starts_at_the_ceiling_of_relu6_is_learned(learned):
    x = torch.tensor([[0.4, 7.0, 9.0]], requires_grad=True)  # the first is a level
    limit = torch.tensor([6.0], requires_grad=True)
    fake_quantize(x, limit, 4, False, learned).sum().backward()
    assert limit.grad.item() == pytest.approx(2 * (15**1.5 / 3**0.5 if learned else 1))


@pytest.mark.parametrize("signed", [False, True])
def test_how_fast_the_range_of_an_input_is_learned_does_not_depend_on_the_batch(signed):
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    gradients = []
    for n in (1, 7):
        layer = ElasticConv2d(3, 2, signed_input=signed)
        torch.nn.init.constant_(layer.weight, 0.3)
        layer.set_quantizer(find_quantizer("lsq"))
        layer.set_bits(8, 4)
        layer.activation_range.data.fill_(1.0)
        layer(image.repeat(n, 1, 1, 1)).square().mean().backward()
        gradients.append(layer.activation_range.grad.item())
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)
    assert abs(gradients[0]) > 1e-3


@pytest.mark.parametrize("signed", [False, True])
def test_the_learned_gradient_by_hand(signed):
    # 4 bits, steps of 1: the range is the number of levels.
    levels = n_levels(4, signed)
    top = min(levels, 6.0)
    x = torch.tensor([[-20.0, 1.25, 2.5, 4.0, 20.0]], requires_grad=True)
    limit = torch.tensor([float(levels)], requires_grad=True)
    y = fake_quantize(x, limit, 4, signed, learned=True)
    assert y.tolist() == [[-7.0 if signed else 0.0, 1.0, 2.0, 4.0, 7.0 if signed else top]]
    y.sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]
    # Inside what rounding adds, in steps, over the levels; clipped, the side (ReLU6 at neither).
    inside = (-0.25 - 0.5) / levels
    by_hand = (inside + 1 - 1 if signed else inside) * levels**1.5 / 5**0.5
    assert limit.grad.item() == pytest.approx(by_hand, rel=0.02)


def test_a_full_grid_has_a_level_more_below():
    # 4 bits, steps of 1, -8 to 7.
    x = torch.tensor([[-20.0, -7.75, -7.0, 2.5, 20.0]], requires_grad=True)
    limit = torch.tensor([7.0], requires_grad=True)
    y = quantize_signed(x, limit, 4, learned=True, full=True)
    assert y.tolist() == [[-8.0, -8.0, -7.0, 2.0, 7.0]]
    assert torch.equal(quantize_signed(x.detach(), limit.detach(), 4, full=True), y)
    y.sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]
    by_hand = ((-0.25 - 0.5) / 7 - 8 / 7 + 1) * 7**1.5 / 5**0.5
    assert limit.grad.item() == pytest.approx(by_hand, rel=0.02)


def test_each_channel_learns_its_own_range():
    x = torch.tensor([[0.4, 9.0], [0.4, 0.2]], requires_grad=True)
    limit = torch.tensor([[7.0], [0.7]], requires_grad=True)
    y = quantize_signed(x, limit, 4, learned=True)
    torch.testing.assert_close(y, torch.tensor([[0.0, 7.0], [0.4, 0.2]]))
    y.sum().backward()
    scale = 7**1.5 / 4**0.5  # LSQ counts the values of the layer
    assert limit.grad[0].item() == pytest.approx((1 - 0.4 / 7) * scale, rel=0.01)
    assert limit.grad[1].item() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("kind", ["lsq", "lsq-channel"])
def test_a_learned_range_keeps_a_share_of_its_largest_weight(kind):
    layer = ElasticConv2d(2, 2).to(memory_format=torch.channels_last)
    layer.weight.data[:] = torch.tensor([[1.6, -0.4], [0.1, -0.8]]).view(2, 2, 1, 1)
    layer.set_quantizer(find_quantizer(kind))
    layer.weight_range.data[:] = -0.5
    layer.keep_ranges()
    expected = [0.2, 0.1] if kind == "lsq-channel" else [0.2]
    assert layer.weight_range.tolist() == pytest.approx(expected)
    layer.weight_range.data[:] = 0.3
    layer.keep_ranges()
    assert layer.weight_range.tolist() == pytest.approx([0.3] * len(expected))


def test_an_unknown_quantizer_is_refused_with_the_closest():
    with pytest.raises(ApqError, match=r"no quantizer 'lqs'.*lsq"):
        find_quantizer("lqs")
