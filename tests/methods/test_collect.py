"""Which subnets are measured, and what is written of them."""

import itertools

import pytest
import torch

from apq.space import PAPER_SPACE
from elastic_nn.networks import OnceForAllNet
from methods.prediction.collect import collect, random_quotas
from methods.prediction.draws import draw_subnets
from methods.prediction.images import Measurer
from methods.prediction.pairs import read_pairs
from methods.prediction.settings import MeasuringSettings


def test_a_pair_holds_the_measured_accuracy_in_percent(tiny_space, toy_data, randomize, tmp_path):
    torch.manual_seed(0)
    net = randomize(OnceForAllNet(tiny_space, 4))
    settings = MeasuringSettings(n_bn_images=16, batch_size=8)
    path = tmp_path / "pairs.json"
    assert collect(net, toy_data, path, random_quotas(tiny_space, 2, 3, 5), {}, settings)
    pairs, measurer = read_pairs(path, tiny_space), Measurer(net, toy_data, settings)
    assert len(set(pairs.values())) > 1
    for subnet, accuracy in pairs.items():
        assert accuracy == pytest.approx(100 * measurer.top1(subnet), abs=1e-4)


def test_pairs_of_the_two_kinds_are_of_different_architectures():
    full, quantized = (
        {subnet.full_precision() for subnet in itertools.islice(draws, 100)}
        for draws in (draw_subnets(PAPER_SPACE, 3, kind) for kind in (False, True))
    )
    assert len(full) == len(quantized) == 100
    assert not full & quantized
