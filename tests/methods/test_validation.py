"""Finetuning many subnets: resumed, compared at equal cost, correlated."""

import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from apq import ApqError, Experiment
from apq.space import PAPER_SPACE
from apq.subnet import largest, smallest
from elastic_nn.networks import OnceForAllNet
from elastic_nn.networks.files import save_supernet
from imagenet_codebase.run_manager.evaluate import evaluate
from imagenet_codebase.run_manager.finetune import load_trained
from imagenet_codebase.run_manager.recipes import FinetuneSettings
from methods.validation.bench import DirectBench, FinetuningBench, Outcome
from methods.validation.compare import Contest, ContestResult, compare, random_subnets
from methods.validation.correlate import correlate, measure_random
from utils.latency_predictor import LatencyPredictor

SETTINGS = FinetuneSettings(n_epochs=1, batch_size=8, lr=0.05)


@pytest.fixture
def supernet(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "supernet.pth.tar"
    save_supernet(OnceForAllNet(n_classes=4), path)
    return path


@pytest.fixture
def bench(supernet, toy_data, tmp_path):
    def make(settings=SETTINGS, data=toy_data, **options):
        cpu = torch.device("cpu")
        return FinetuningBench(supernet, data, settings, tmp_path / "run", cpu, **options)

    return make


def test_what_was_measured_is_not_measured_again(bench, tmp_path):
    subnet = smallest(PAPER_SPACE).with_bits(8)
    first = bench().measure("a", subnet)
    for share, n in ((first.direct_top1, 12), (first.val_top1, 12), (first.test_top1, 12)):
        assert share * n == pytest.approx(round(share * n))
    assert not (tmp_path / "run" / "a").exists()  # its weights
    kept = tmp_path / "run" / "a.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "test_top1": 0.125}))
    assert bench().measure("a", subnet).test_top1 == 0.125


def test_the_last_images_to_be_measured_on_are_those_of_the_test(bench, monkeypatch):
    splits, measure = [], FinetuningBench._top1
    monkeypatch.setattr(
        FinetuningBench, "_top1", lambda *a: splits.append((a[2], share := measure(*a))) or share
    )
    outcome = bench().measure("a", smallest(PAPER_SPACE).with_bits(8))
    assert splits == [("val", outcome.direct_top1), ("test", outcome.test_top1)]


def test_direct_accuracy_is_left_out_where_nobody_asks(bench, tmp_path):
    outcome = bench(with_direct=False).measure("a", smallest(PAPER_SPACE).with_bits(8))
    assert outcome.direct_top1 is None
    assert json.loads((tmp_path / "run" / "a.json").read_text())["direct_top1"] is None
    asked = bench().measure("a", smallest(PAPER_SPACE).with_bits(8))
    assert 0 <= asked.direct_top1 <= 1
    assert asked.test_top1 == outcome.test_top1


def test_direct_measurements_finetune_nothing(supernet, toy_data, tmp_path, bench):
    subnet = smallest(PAPER_SPACE).with_bits(8)
    experiment = Experiment.create("x", subnet, 1.5, {}, root=tmp_path / "exps")

    def make():
        return DirectBench(supernet, toy_data, tmp_path / "direct", torch.device("cpu"))

    outcome = make().measure("x", subnet, experiment)
    assert outcome.direct_top1 == outcome.val_top1 == bench().measure("x", subnet).direct_top1
    assert outcome.test_top1 * 12 == pytest.approx(round(outcome.test_top1 * 12))
    assert not experiment.checkpoint_dir.exists()
    kept = tmp_path / "direct" / "x.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "test_top1": 0.125}))
    assert make().measure("x", subnet, experiment).test_top1 == 0.125
    # One supernet serves all subnets, and none leaves a trace in it.
    same = make()
    same.measure("before", largest(PAPER_SPACE).with_bits(4))
    assert same.measure("again", subnet) == outcome


def test_an_experiment_keeps_its_weights(bench, tmp_path, toy_data):
    subnet = smallest(PAPER_SPACE).with_bits(8)
    experiment = Experiment.create("x", subnet, 1.5, {}, root=tmp_path / "exps")
    outcome = bench().measure("x", subnet, experiment)
    trained = load_trained(experiment).net
    assert evaluate(trained, toy_data.loader("test", 12)).top1 == pytest.approx(outcome.test_top1)
    assert not (tmp_path / "run" / "x").exists()
    # Weights that are gone are made again, but never under another subnet's name; others stay.
    shutil.rmtree(experiment.checkpoint_dir)
    with pytest.raises(ApqError, match=r"x.json is of another subnet"):
        bench().measure("x", largest(PAPER_SPACE).with_bits(8), experiment)
    assert bench().measure("x", subnet, experiment) == outcome
    best = experiment.best_checkpoint
    best.write_bytes(b"mine")
    (tmp_path / "run" / "x.json").unlink()
    assert bench().measure("x", subnet, experiment) == outcome
    assert best.read_bytes() == b"mine"


def test_results_of_other_recipes_data_or_subnets_are_never_mixed(bench, toy_data):
    bench().measure("a", smallest(PAPER_SPACE).with_bits(8))
    with pytest.raises(ApqError, match=r"a.json is of another subnet"):
        bench().measure("a", largest(PAPER_SPACE).with_bits(8))
    whole = json.loads((bench().folder / "a.json").read_text())
    text, beyond = (json.dumps({**whole, "test_top1": value}) for value in ("high", 87.5))
    for damaged in ("{}", "[]", '{"arch": {}, "val_top1": 0.5}', text, beyond):
        (bench().folder / "b.json").write_text(damaged)
        with pytest.raises(ApqError, match=r"b.json is damaged: remove it, to measure"):
            bench().measure("b", smallest(PAPER_SPACE).with_bits(8))
    with pytest.raises(ApqError, match=r"another supernet, other images or another recipe"):
        bench(FinetuneSettings(n_epochs=2, batch_size=8))
    other = replace(toy_data, class_names=("cat", "dog", "rose", "tulip"))
    with pytest.raises(ApqError, match=r"another supernet, other images or another recipe"):
        bench(data=other)
    fewer = replace(toy_data.test, indices=toy_data.test.indices[1:])
    with pytest.raises(ApqError, match=r"another supernet, other images or another recipe"):
        bench(data=replace(toy_data, test=fewer))
    # What changes no figure may differ.
    bench(replace(SETTINGS, n_workers=1, save_every=7, compile=False))


def test_ctrl_c_ends_it_and_the_same_call_goes_on(bench, monkeypatch):
    undisturbed = measure_random(bench(), PAPER_SPACE, 2, seed=0)
    for path in bench().folder.glob("random*.json"):
        path.unlink()
    from imagenet_codebase.run_manager import trainer

    real, steps = trainer.Trainer.run_step, []

    def step(self, *args):
        steps.append(1)
        if len(steps) == 5:  # the second subnet's second step
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args)

    monkeypatch.setattr(trainer.Trainer, "run_step", step)
    assert measure_random(bench(), PAPER_SPACE, 2, seed=0) is None
    assert measure_random(bench(), PAPER_SPACE, 2, seed=0) == undisturbed
    assert len(steps) == 6


@pytest.mark.parametrize("share", [0.15, 0.5, 0.9])
def test_random_rivals_cost_the_same(share):
    latency = LatencyPredictor("latency", image_size=64)
    low, high = latency.minimum()[0], latency.maximum()[0]
    maximum = low + share * (high - low)
    subnets = random_subnets(PAPER_SPACE, latency, maximum, 8, seed=0)
    assert len(set(subnets)) == 8
    assert all(subnet.quantized for subnet in subnets)
    costs = latency.predict(subnets)
    assert (costs <= maximum).all()
    assert (costs > 0.98 * maximum).all()
    assert subnets == random_subnets(PAPER_SPACE, latency, maximum, 8, seed=0)


def test_a_cost_that_random_subnets_never_have_is_refused(monkeypatch):
    latency = LatencyPredictor("latency", image_size=64)
    with pytest.raises(ApqError, match="hardly ever cost about 1e-05 ms"):
        random_subnets(PAPER_SPACE, latency, 1e-5, 1, seed=0)
    monkeypatch.setattr("methods.validation.compare.DRAWS", 1)
    with pytest.raises(ApqError, match="hardly ever cost about"):
        random_subnets(PAPER_SPACE, latency, latency.minimum()[0] * 1.0001, 9, seed=0)


def test_a_contest_is_won_only_against_all():
    def outcome(top1):
        return Outcome(direct_top1=0.5, val_top1=0.5, test_top1=top1)

    def result(*rivals):
        return ContestResult(
            contest=None, searched=outcome(0.8), subnets=(), rivals=tuple(map(outcome, rivals))
        )

    assert result(0.7, 0.79).won
    assert not result(0.7, 0.81).won
    assert not result(0.7, 0.8).won


def test_contests_measure_the_searched_and_the_random_subnets(tmp_path):
    class Bench:
        def __init__(self):
            self.asked, self.kept, self.known = {}, [], {}

        def measure(self, name, subnet, experiment=None):
            assert self.asked.setdefault(name, subnet) == subnet
            self.kept.append(experiment)
            top1 = len(self.asked) / 10
            outcome = Outcome(direct_top1=0, val_top1=0, test_top1=top1)
            return self.known.setdefault(name, outcome)

    latency = LatencyPredictor("latency", image_size=64)
    subnet = smallest(PAPER_SPACE).with_bits(4)
    contests = [
        Contest(
            experiment=Experiment.create(name, subnet, 1.5, {}, root=tmp_path),
            cost=latency,
            maximum=2.0,
        )
        for name in "xy"
    ]
    bench = Bench()
    first, second = compare(bench, contests, n_random=2, seed=1)
    searched = ["x-searched", "y-searched"]
    rivals = [f"random-latency-2.0-64px-paper-{i}" for i in (1, 2)]
    # Both have the same rivals, under one name.
    assert list(bench.asked) == [*searched, *rivals]
    assert [bench.asked[name] for name in searched] == [subnet, subnet]
    assert bench.kept == [contest.experiment for contest in contests] + [None] * 4
    assert (latency.predict([bench.asked[name] for name in rivals]) <= 2.0).all()
    assert (first.searched.test_top1, second.searched.test_top1) == (0.1, 0.2)
    assert [rival.test_top1 for rival in first.rivals] == [0.3, 0.4]
    assert second.rivals == first.rivals


def test_correlation_by_hand():
    outcomes = [
        Outcome(direct_top1=d, val_top1=v, test_top1=t)
        for d, v, t in zip(*np.array([[1, 2, 3, 4], [5, 6, 8, 7], [2, 1, 3, 4]]) / 10, strict=True)
    ]
    found = correlate(outcomes)
    assert found.val_tau == pytest.approx(4 / 6)
    assert found.val_rho == pytest.approx(0.8)
    assert found.test_tau == pytest.approx(4 / 6)
    assert found.test_rho == pytest.approx(0.8)
    assert found.n_subnets == 4
    assert "of 4 random subnets: Kendall tau 0.667, Spearman rho 0.800 (validation)" in str(found)


def test_of_subnets_all_equally_accurate_there_are_no_ranks():
    outcomes = [Outcome(direct_top1=d, val_top1=0.5, test_top1=d) for d in (0.1, 0.2)]
    with pytest.raises(ApqError, match="2 random subnets are all equally accurate"):
        correlate(outcomes)
