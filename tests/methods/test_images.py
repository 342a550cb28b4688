"""The images that each subnet is measured with."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from elastic_nn.networks import OnceForAllNet
from methods.prediction import images as module
from methods.prediction.images import N_REFERENCES, OwnImages, references, sampling_noise
from methods.prediction.settings import MeasuringSettings


@pytest.fixture
def net(tiny_space):
    torch.manual_seed(0)
    return OnceForAllNet(tiny_space, 4)


@pytest.fixture
def subnets(net):
    return net.space.decode(net.space.sample(np.random.default_rng(1), 3))


@pytest.fixture
def own_images(net, toy_data):
    """The function that measures with the toy data under some settings."""
    return lambda **settings: OwnImages(net, toy_data, MeasuringSettings(**settings))


@pytest.fixture
def seen(monkeypatch):
    """What `measure` was called with: training images, validation images and labels."""
    calls = []

    def measure(net, subnet, statistics, images):
        images, labels = map(torch.cat, zip(*images, strict=True))
        calls.append((subnet, torch.cat(statistics), images, labels))
        return SimpleNamespace(top1=0.5)

    monkeypatch.setattr(module, "measure", measure)
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


def test_each_subnet_has_images_of_its_own_whatever_came_before(
    toy_data, subnets, seen, own_images
):
    first = own_images(n_bn_images=10, n_val_images=7, batch_size=4)
    for subnet in subnets:
        first.top1(subnet)
    again = own_images(n_bn_images=10, n_val_images=7, batch_size=4)
    for subnet in reversed(subnets):
        again.top1(subnet)
    again.top1(subnets[0], draw=1)
    own_images(n_bn_images=10, n_val_images=7, batch_size=4, seed=1).top1(subnets[0])
    draws = drawn(seen, toy_data)
    assert draws[:3] == draws[5:2:-1]
    for kind, n in ((0, 10), (1, 7)):
        sets = [frozenset(draw[kind]) for draw in draws]
        assert all(len(one) == n for one in sets)
        # Of three subnets, another draw and another seed, no two are alike.
        assert len({*sets[:3], *sets[6:]}) == 5
    _, _, images, labels = seen[0]
    numbers = numbers_of(images, toy_data, "val")
    assert labels.tolist() == toy_data.val.labels[numbers].tolist()


def test_large_draws_come_from_twice_as_many_images(
    toy_data, subnets, seen, monkeypatch, own_images
):
    monkeypatch.setattr(module, "POOL", 6)
    images = own_images(n_bn_images=12, n_val_images=6, batch_size=4)
    for subnet in subnets:
        images.top1(subnet)
    for kind in (0, 1):
        assert len({frozenset(draw[kind]) for draw in drawn(seen, toy_data)}) == 3


def test_what_is_easy_for_all_does_not_count(net, toy_data, subnets, monkeypatch, own_images):
    hits = torch.arange(12) % 3 > 0  # eight of the twelve validation images
    asked, better = [], [0.0]

    def which_right(ready, images):
        asked.append(sum(len(labels) for _, labels in images))
        return hits

    def measure(net, subnet, statistics, images):
        numbers = numbers_of(torch.cat([part for part, _ in images]), toy_data, "val")
        return SimpleNamespace(top1=float(hits[numbers].float().mean()) + better[-1])

    monkeypatch.setattr(module, "which_right", which_right)
    monkeypatch.setattr(module, "measure", measure)
    own = own_images(n_bn_images=8, n_val_images=5)
    assert asked == [12] * 2 * N_REFERENCES
    # A subnet that recognises what the references do has their accuracy on every draw; one that is
    # better by a tenth, so much more, but never more than all.
    for by, top1 in ((0.0, 8 / 12), (0.1, 8 / 12 + 0.1), (0.9, 1.0), (-0.9, 0.0)):
        better.append(by)
        for subnet in subnets:
            assert own.top1(subnet) == pytest.approx(top1)


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
def test_each_kind_has_a_sampling_noise_of_its_own(monkeypatch, n_val_images, own_images):
    wanted = np.random.default_rng(0).random((2 * N_REFERENCES, 12)) < 0.5
    wanted[1::2] = wanted[1]  # the quantized ones agree
    rows = iter(torch.from_numpy(wanted))

    def which_right(ready, images):
        assert sum(len(labels) for _, labels in images) == 12
        return next(rows)

    monkeypatch.setattr(module, "which_right", which_right)
    found = own_images(n_bn_images=8, n_val_images=n_val_images).sampling_noise()
    assert found == {"full": sampling_noise(wanted[0::2]), "quantized": 0.0}


def test_all_validation_images_need_no_references(toy_data, subnets, seen, monkeypatch, own_images):
    monkeypatch.setattr(module, "which_right", None)
    for n in (0, 12, 99):
        assert own_images(n_bn_images=10, n_val_images=n, batch_size=5).top1(subnets[0]) == 0.5
        assert numbers_of(seen[-1][2], toy_data, "val") == list(range(12))


def test_batch_statistics_never_come_from_one_image(subnets, seen, own_images):
    own_images(n_bn_images=9, batch_size=4).top1(subnets[0])
    own_images(n_bn_images=99, batch_size=23).top1(subnets[0])
    assert [len(call[1]) for call in seen] == [8, 23]


def test_the_references_are_of_both_kinds_and_always_the_same(tiny_space):
    subnets = references(tiny_space, 3)
    assert subnets == references(tiny_space, 3) != references(tiny_space, 4)
    assert len(set(subnets)) == 2 * N_REFERENCES
    assert sum(subnet.quantized for subnet in subnets) == N_REFERENCES


def test_it_measures_the_subnet_asked_for(net, toy_data, subnets, own_images):
    own = own_images(n_bn_images=24)
    statistics = [toy_data.train_unaugmented.batch(range(24))[0]]
    for subnet in subnets:
        wanted = module.measure(net, subnet, statistics, toy_data.loader("val", 12)).top1
        assert own.top1(subnet) == pytest.approx(wanted)
