"""One step of supernet training."""

import pytest
import torch

from apq.space import BIT_FIELDS
from apq.subnet import largest
from elastic_nn.networks import OnceForAllNet
from elastic_nn.training import SandwichSettings, SandwichStep, calibrate_activations


@pytest.fixture
def net(tiny_space):
    torch.manual_seed(0)
    return OnceForAllNet(tiny_space, n_classes=4)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 4


def test_the_same_key_draws_the_same_subnets(net):
    step = SandwichStep(net, SandwichSettings(quantized_share=0.5, n_random=3))
    first = step.subnets((0, 1, 2))
    assert first == step.subnets((0, 1, 2))
    assert first != step.subnets((0, 1, 3))
    assert len(first) == 4
    assert first[0].full_precision() == step.smallest


@pytest.mark.parametrize(("share", "expected"), [(0.0, {False}), (1.0, {True})])
def test_the_share_of_quantized_subnets(net, share, expected):
    step = SandwichStep(net, SandwichSettings(quantized_share=share))
    drawn = [s for i in range(10) for s in step.subnets((0, 0, i))]
    assert {s.quantized for s in drawn} == expected


def test_of_many_subnets_that_share_is_quantized(net):
    step = SandwichStep(net, SandwichSettings(quantized_share=0.25))
    drawn = [[s.quantized for s in step.subnets((0, 0, i))] for i in range(200)]
    assert sum(map(sum, drawn)) / 600 == pytest.approx(0.25, abs=0.06)
    # Each for itself: in a step of one quantized subnet there are others, of every place.
    assert all(sum(place) > 20 for place in zip(*drawn, strict=True))
    assert {0, 1, 2} <= set(map(sum, drawn))


def test_the_smallest_subnet_meets_all_bits(net):
    step = SandwichStep(net, SandwichSettings(quantized_share=1.0))
    smallest = [step.subnets((0, 0, i))[0] for i in range(50)]
    for name in BIT_FIELDS:
        assert {bits for subnet in smallest for bits in getattr(subnet, name)} == {4, 6, 8}


def test_a_step_without_elasticity_trains_the_largest_alone(net, batch):
    loss, right = SandwichStep(net, SandwichSettings(elastic=False))(*batch, (0, 0, 0))
    largest_alone = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    net.activate(largest(net.space))
    logits = net(batch[0])
    torch.nn.functional.cross_entropy(logits, batch[1], label_smoothing=0.1).backward()
    assert 0 <= right <= 8
    assert loss.isfinite()
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, largest_alone[name])
    assert not [name for name in largest_alone if "matrix" in name]


def test_the_largest_learns_from_labels_and_teaches_the_others(net, batch):
    images, labels = batch
    step = SandwichStep(net, SandwichSettings(n_random=1))
    _, right = step(images, labels, (0, 0, 0))
    got = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    net.activate(step.largest)
    logits = net(images)
    torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).backward()
    assert right == (logits.argmax(1) == labels).sum()
    for subnet in step.subnets((0, 0, 0)):
        net.activate(subnet)
        softened = -logits.detach().softmax(1) * net(images).log_softmax(1)
        softened.sum(1).mean().backward()
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, got[name], msg=name)


@pytest.mark.parametrize("step_number", [0, 1])  # with the largest and the smallest, and without
def test_all_subnets_learn_from_the_teacher_alone(net, batch, step_number, monkeypatch):
    images, labels = batch
    answers = torch.softmax(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), 1)
    settings = SandwichSettings(n_random=1, sandwich_every=2, small_image_size=16, small_epochs=1)
    seen, taught = [], []
    step = SandwichStep(net, settings, lambda x, _: seen.append(x) or answers)
    learn = step._learn
    monkeypatch.setattr(step, "_learn", lambda *a: taught.append(a[2]) or learn(*a))
    loss, _ = step(images, labels, (0, 0, step_number))
    assert len(taught) == (1 if step_number else 3)
    assert all(one is answers for one in taught)
    assert len(seen) == 1
    assert seen[0] is images  # not the shrunk ones of the first epochs
    again, _ = step(images, (labels + 1) % 4, (0, 0, step_number))
    torch.testing.assert_close(loss, again)


def test_the_first_epochs_run_on_smaller_images(net, batch, monkeypatch):
    step = SandwichStep(net, SandwichSettings(small_image_size=16, small_epochs=2))
    sizes = []
    forward = net.forward
    monkeypatch.setattr(net, "forward", lambda x: sizes.append(tuple(x.shape[2:])) or forward(x))
    for epoch in range(3):
        step(*batch, (0, epoch, 0))
    # The largest, the smallest and two random subnets in each of three steps.
    assert sizes == [(16, 16)] * 8 + [(32, 32)] * 4


def test_the_sandwich_runs_in_one_of_several_steps(net, batch, monkeypatch):
    step = SandwichStep(net, SandwichSettings(n_random=2, sandwich_every=3))
    ran = []
    activate = net.activate
    monkeypatch.setattr(net, "activate", lambda s: ran.append(s) or activate(s))
    for i in range(4):
        net.zero_grad()
        loss, _ = step(*batch, (0, 0, i))
        narrow, *drawn = step.subnets((0, 0, i))
        assert ran == ([step.largest, narrow, *drawn] if i in (0, 3) else drawn)
        ran.clear()
    step.settings = SandwichSettings(n_random=1, sandwich_every=3)
    (drawn,) = step.subnets((0, 0, 1))[1:]
    loss, right = step(*batch, (0, 0, 1))
    logits = net(batch[0])  # the random subnet is still active, and learns from the labels
    wanted = torch.nn.functional.cross_entropy(logits, batch[1], label_smoothing=0.1)
    torch.testing.assert_close(loss, wanted.detach())
    assert right == (logits.argmax(1) == batch[1]).sum()


def test_training_lowers_the_loss_of_every_size(net, batch):
    step = SandwichStep(net, SandwichSettings(quantized_share=0.5))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)

    def losses():
        values = []
        for subnet in (step.largest, step.smallest, step.largest.with_bits(4)):
            net.activate(subnet)
            with torch.no_grad():
                values.append(torch.nn.functional.cross_entropy(net(batch[0]), batch[1]).item())
        return values

    before = losses()
    for i in range(40):
        optimizer.zero_grad()
        step(*batch, (0, 0, i))
        optimizer.step()
    assert all(after < 0.5 * first for after, first in zip(losses(), before, strict=True))


def test_calibration_leaves_weight_ranges_open(net, batch):
    calibrate_activations(net, [batch[0]])
    layers = net.quantized_layers().values()
    assert {layer.weight_range.item() for layer, _ in layers} == {0.0}
    assert any(layer.activation_range.item() != 6 for layer, _ in layers)
