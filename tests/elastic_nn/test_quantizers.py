"""The paper's quantizers, by hand."""

import pytest
import torch

from elastic_nn.modules.quantizers import fake_quantize, n_levels


def test_levels():
    assert [n_levels(b, signed=False) for b in (4, 6, 8)] == [15, 63, 255]
    assert [n_levels(b, signed=True) for b in (4, 6, 8)] == [7, 31, 127]


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
    x = torch.tensor([-9.0, 1.3, 2.0, 8.0, 9.0], requires_grad=True)
    limit = torch.tensor([7.0], requires_grad=True)
    fake_quantize(x, limit, 4, signed).backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    # Straight through inside; what is clipped above hands its gradient to the limit, below its
    # negative.
    assert x.grad.tolist() == [0.0 if signed else 1.0, 2.0, 3.0, 0.0, 0.0]
    assert limit.grad.tolist() == [9.0 - 1.0 if signed else 9.0]


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
