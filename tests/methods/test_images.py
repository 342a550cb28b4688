"""What each subnet is measured with."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from elastic_nn.networks import OnceForAllNet
from imagenet_codebase.run_manager.evaluate import evaluate
from imagenet_codebase.run_manager.measuring import ready_to_measure
from methods.prediction import images as module
from methods.prediction.disputed import Disputed
from methods.prediction.images import N_REFERENCES, Measurer, references, sampling_noise
from methods.prediction.settings import MeasuringSettings


@pytest.fixture
def net(tiny_space):
    torch.manual_seed(0)
    return OnceForAllNet(tiny_space, 4)


@pytest.fixture
def subnets(net):
    return net.space.decode(net.space.sample(np.random.default_rng(1), 3))


@pytest.fixture
def measurer(net, toy_data):
    """The function that measures with the toy data under some settings."""
    return lambda **settings: Measurer(net, toy_data, MeasuringSettings(**settings))


@pytest.fixture
def seen(monkeypatch):
    """What a subnet ran on, in a list: training images, validation images and labels.

    It recognises every second image.
    """
    calls = []

    def ready_to_measure(net, subnet, statistics):
        return subnet, torch.cat(statistics)

    def margins_of(ready, images):
        images, labels = map(torch.cat, zip(*images, strict=True))
        calls.append((*ready, images, labels))
        return torch.arange(len(labels)) % 2 - 0.5

    monkeypatch.setattr(module, "ready_to_measure", ready_to_measure)
    monkeypatch.setattr(module, "margins_of", margins_of)
    return calls


def numbers_of(images, data, split):
    """Where in the split each image stands."""
    whole, _ = data.split(split).batch(range(data.n_images(split)))
    same = (images[:, None] == whole[None]).flatten(2).all(dim=2)
    assert (same.sum(dim=1) == 1).all()
    return same.int().argmax(dim=1).tolist()


def drawn(seen, data):
    """The numbers of the training and the validation images of each call."""
    return [
        (numbers_of(statistics, data, "train_unaugmented"), numbers_of(images, data, "val"))
        for _, statistics, images, _ in seen
    ]


def test_each_subnet_has_training_images_of_its_own_whatever_came_before(
    toy_data, subnets, seen, measurer
):
    first = measurer(n_bn_images=10, batch_size=4)
    for subnet in subnets:
        first.top1(subnet)
    again = measurer(n_bn_images=10, batch_size=4)
    for subnet in reversed(subnets):
        again.top1(subnet)
    again.again(subnets[0])
    measurer(n_bn_images=10, batch_size=4, seed=1).top1(subnets[0])
    draws = [numbers for numbers, _ in drawn(seen, toy_data)]
    assert draws[:3] == draws[5:2:-1]
    sets = [frozenset(numbers) for numbers in draws]
    assert all(len(one) == 10 for one in sets)
    # Of three subnets, another draw and another seed, no two are alike.
    assert len({*sets[:3], *sets[6:]}) == 5


def test_an_accuracy_is_the_mean_over_draws(toy_data, net, subnets, monkeypatch, measurer):
    asked = []

    def margins_of(ready, images):
        asked.append(frozenset(numbers_of(ready, toy_data, "train_unaugmented")))
        n = sum(len(labels) for _, labels in images)
        return torch.arange(n) - n + len(asked) - 0.5  # one image more each time

    ready = lambda net, subnet, statistics: torch.cat(statistics)  # noqa: E731
    monkeypatch.setattr(module, "ready_to_measure", ready)
    monkeypatch.setattr(module, "margins_of", margins_of)
    measured = measurer(n_bn_images=8, n_draws=3)
    assert measured.top1(subnets[0]) == pytest.approx(np.mean([0, 1, 2]) / 12)
    assert measured.again(subnets[0]) == pytest.approx((4 / 12, 4 / 12))
    assert len(set(asked)) == 6
    some = measurer(n_bn_images=8, n_draws=2, n_val_images=4)
    some._disputed = Disputed(positions=np.arange(8, 12), n_rest=8, slope=0.0, level=0.5)
    del asked[:]
    assert some.top1(subnets[0]) == pytest.approx((4 + 0.5) / 12)
    assert some.again(subnets[0]) == pytest.approx(((4 + 2.5) / 12, 2.5 / 12))


def test_large_draws_come_from_twice_as_many_images(toy_data, subnets, seen, monkeypatch, measurer):
    monkeypatch.setattr(module, "POOL", 6)
    images = measurer(n_bn_images=12, n_val_images=5, batch_size=4)
    del seen[:]
    for subnet in subnets:
        images.top1(subnet)
        images.again(subnet)
    statistics, validation = zip(*drawn(seen, toy_data), strict=True)
    assert len({frozenset(numbers) for numbers in statistics}) == 6
    assert [len(numbers) for numbers in validation] == [5, 10] * 3  # of twelve there are


@pytest.fixture
def margins(monkeypatch):
    """Margins (12,) of every subnet, on the toy data's twelve validation images."""
    values = {}

    def margins_of(ready, images):
        images = torch.cat([part for part, _ in images])
        return torch.tensor(values[ready.subnet])[numbers_of(images, ready.data, "val")]

    def ready_to_measure(net, subnet, statistics):
        return SimpleNamespace(subnet=subnet, data=values["data"])

    monkeypatch.setattr(module, "ready_to_measure", ready_to_measure)
    monkeypatch.setattr(module, "margins_of", margins_of)
    return values


def test_only_what_the_references_disagree_about_is_run(toy_data, net, subnets, margins, measurer):
    everyone = [*references(net.space, 0), *subnets]
    margins |= {"data": toy_data}
    margins |= {subnet: np.array([9.0, -9.0] * 6) for subnet in everyone}
    hard = [2, 5, 6, 11]
    for number, subnet in enumerate(everyone):
        margins[subnet][hard] = np.roll([1.0, -1.0, 2.0, -2.0], number)
    measured = measurer(n_bn_images=8, n_val_images=4)
    assert measured._disputed.positions.tolist() == hard
    # Of the eight others every subnet recognises four: 0, 4, 8 and 10.
    for known in range(5):
        margins[subnets[0]][hard] = [1.0] * known + [-1.0] * (4 - known)
        assert measured.top1(subnets[0]) == pytest.approx((4 + known) / 12)
    # One that recognises none of the others is told apart only when all are run.
    margins[subnets[0]][:] = -1
    assert measured.again(subnets[0]) == pytest.approx((4 / 12, 0))


def test_those_that_choose_are_not_those_that_tell_of_the_rest(
    toy_data, net, subnets, margins, measurer
):
    everyone = references(net.space, 0)
    margins |= {"data": toy_data}
    for number, subnet in enumerate(everyone):
        either = [1.5, -1.0] if number % 2 else [-1.0, 1.5]
        # Every third of each kind knows nothing of the rest: were it to choose, that would be
        # disputed.
        margins[subnet] = np.array([*either, *[-18.0 if number % 6 in (4, 5) else 9.0] * 10])
    margins[subnets[0]] = np.array([1.0, 1.0, *[9.0] * 10])
    measured = measurer(n_bn_images=8, n_val_images=2)
    assert measured._disputed.positions.tolist() == [0, 1]
    assert measured.top1(subnets[0]) == pytest.approx(2 / 12)


def test_sampling_noise_by_hand():
    # The two differ on three of four images, by 1, -1 and 1: variance 11/16 of a difference.
    right = np.array([[1, 0, 1, 1], [0, 1, 0, 1]], dtype=bool)
    assert sampling_noise(right) == pytest.approx(100 * (11 / 16 / 2 / 4) ** 0.5)
    assert sampling_noise(right[[0, 0, 0]]) == 0
    assert np.isnan(sampling_noise(right[:1]))


def test_sampling_noise_is_how_accuracies_on_other_images_differ():
    rng = np.random.default_rng(0)
    hard = rng.random(200_000)  # what is hard for all alike
    right = rng.random((6, 200_000)) < hard
    accuracies = right.reshape(6, 100, 2000).mean(axis=2)
    # By what their differences do from one set of 2,000 images to the next.
    strays = np.std(np.diff(accuracies, axis=0), axis=1).mean() / 2**0.5
    assert sampling_noise(right[:, :2000]) == pytest.approx(100 * strays, rel=0.1)


@pytest.mark.parametrize("n_val_images", [0, 5])
def test_each_kind_has_a_sampling_noise_of_its_own(toy_data, net, margins, n_val_images, measurer):
    wanted = np.random.default_rng(0).random((2 * N_REFERENCES, 12)) < 0.5
    wanted[1::2] = wanted[1]  # the quantized ones agree
    margins |= {"data": toy_data}
    margins |= dict(zip(references(net.space, 0), wanted - 0.5, strict=True))
    found = measurer(n_bn_images=8, n_val_images=n_val_images).sampling_noise()
    assert found == {"full": sampling_noise(wanted[0::2]), "quantized": 0.0}


def test_all_validation_images_need_no_references(toy_data, subnets, seen, measurer):
    for n in (0, 12, 99):
        measured = measurer(n_bn_images=10, n_val_images=n, batch_size=5)
        assert measured.top1(subnets[0]) == 0.5
        assert numbers_of(seen[-1][2], toy_data, "val") == list(range(12))
        assert measured.again(subnets[0]) == (0.5, 0.5)
    assert len(seen) == 6


def test_batch_statistics_never_come_from_one_image(subnets, seen, measurer):
    measurer(n_bn_images=9, batch_size=4).top1(subnets[0])
    measurer(n_bn_images=99, batch_size=23).top1(subnets[0])
    assert [len(call[1]) for call in seen] == [8, 23]


def test_the_references_are_of_both_kinds_and_always_the_same(tiny_space):
    subnets = references(tiny_space, 3)
    assert subnets == references(tiny_space, 3) != references(tiny_space, 4)
    assert [subnet.quantized for subnet in subnets] == [False, True] * N_REFERENCES


def test_it_measures_the_subnet_asked_for(net, toy_data, subnets, measurer):
    measured = measurer(n_bn_images=24)
    statistics = [toy_data.train_unaugmented.batch(range(24))[0]]
    for subnet in subnets:
        ready = ready_to_measure(net, subnet, statistics)
        wanted = evaluate(ready, toy_data.loader("val", 12)).top1
        assert measured.top1(subnet) == pytest.approx(wanted)
