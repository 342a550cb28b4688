"""The prediction pipeline: pairs that survive a kill, and predictors that learn from them."""

import itertools
import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from apq import ApqError, files
from apq.provenance import card_path, read_card
from apq.space import PAPER_SPACE
from apq.subnet import largest, smallest
from elastic_nn.networks import OnceForAllNet
from methods.prediction import collect as module
from methods.prediction.collect import (
    collect,
    noise_floor,
    random_quotas,
)
from methods.prediction.draws import draw_subnets
from methods.prediction.pairs import (
    IMAGE_DIGESTS,
    PairLog,
    as_arrays,
    read_pairs,
    split_pairs,
    write_pairs,
)
from methods.prediction.settings import MeasuringSettings
from utils.latency_predictor import LatencyPredictor


def test_pairs_are_in_the_paper_form(tmp_path):
    pairs = {largest(): 91.25, smallest().with_bits(4): 80.0}
    write_pairs(tmp_path / "pairs.json", pairs)
    raw = json.loads((tmp_path / "pairs.json").read_text())
    assert {json.dumps(json.loads(key)): value for key, value in raw.items()} == {
        json.dumps(subnet.to_paper()): accuracy for subnet, accuracy in pairs.items()
    }
    assert read_pairs(tmp_path / "pairs.json") == pairs
    assert split_pairs(pairs) == ({largest(): 91.25}, {smallest().with_bits(4): 80.0})
    genes, accuracy = as_arrays(pairs, PAPER_SPACE)
    assert genes.shape == (2, 132)
    assert accuracy.tolist() == [0.9125, 0.8]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no pairs"),
        ('{"x": 1}', r"pair 1: not valid JSON"),
        (json.dumps({largest().to_json(): 101}), r"pair 1: the accuracy is 101"),
        (json.dumps({largest().to_json(): "high"}), r"pair 1: the accuracy is 'high'"),
        (json.dumps({largest().to_json(): float("nan")}), "pair 1: the accuracy is nan"),
        (
            f"{{{json.dumps(largest().to_json())}: 7, {json.dumps(largest().to_json())}: 8}}",
            "entry 2 of an object, '.*', is there twice",
        ),
        (
            json.dumps({largest().to_json(): 7, largest().to_json().replace("6.0", "5.999"): 8}),
            "pair 2: the subnet is there twice",
        ),
    ],
)
def test_broken_pairs_are_named(tmp_path, content, message):
    (tmp_path / "pairs.json").write_text(content)
    with pytest.raises(ApqError, match=message):
        read_pairs(tmp_path / "pairs.json")


FACTS = {"supernet": "toy", "seed": 3}


def test_a_log_cut_anywhere_loses_one_line_at_most(tmp_path):
    subnets = list(itertools.islice(draw_subnets(PAPER_SPACE, 0, True), 3))
    log = PairLog(tmp_path / "pairs.json", FACTS)
    for i, subnet in enumerate(subnets):
        log.add(subnet, 50.0 + i)
    log.close()
    whole = log.log_path.read_bytes()
    _, *ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in (ends[0] - 20, ends[0] - 1, ends[0], ends[1] + 40, len(whole)):
        log.log_path.write_bytes(whole[:cut])
        reopened = PairLog(tmp_path / "pairs.json", FACTS)
        assert list(reopened.pairs) == subnets[: sum(end <= cut for end in ends)]
        reopened.add(largest(), 99.0)  # what follows a cut is a line of its own
        reopened.close()
        again = PairLog(tmp_path / "pairs.json", FACTS)
        assert again.pairs[largest()] == 99.0
        again.close()
    last = PairLog(tmp_path / "pairs.json", FACTS)
    last.finish(1.0)
    last.close()
    assert not log.log_path.exists()
    assert read_pairs(tmp_path / "pairs.json")[subnets[0]] == 50.0


def test_a_log_cut_in_its_first_line_begins_anew(tmp_path):
    (tmp_path / "pairs.json.log").write_text(json.dumps(FACTS)[:9])
    log = PairLog(tmp_path / "pairs.json", FACTS)
    log.add(largest(), 50.0)
    log.close()
    with pytest.raises(ApqError, match="seed 3, not 4"):
        PairLog(tmp_path / "pairs.json", {**FACTS, "seed": 4})


def test_two_processes_do_not_measure_into_the_same_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr("apq.lock.PATIENCE_S", 0.2)
    path = tmp_path / "pairs.json"
    first = PairLog(path, FACTS)
    with pytest.raises(ApqError, match=r"another process measures pairs into .*pairs.json.log"):
        PairLog(path, FACTS)
    first.add(largest(), 50.0)
    first.finish(1.0)
    # One that has waited for the end finds the log gone, and makes its own.
    first.close()
    second = PairLog(path, FACTS)
    assert second.pairs == {largest(): 50.0}
    second.close()
    # What cannot go on leaves nothing behind, and holds nothing.
    path.write_text("[]")
    for _ in range(2):
        with pytest.raises(ApqError, match="holds no pairs"):
            PairLog(path, FACTS)
        assert [p for p in tmp_path.iterdir() if p.stat().st_size == 0] == []


def test_drawn_subnets_are_distinct_repeatable_and_cover_the_budget_axis():
    first = list(itertools.islice(draw_subnets(PAPER_SPACE, 3, True), 300))
    assert first == list(itertools.islice(draw_subnets(PAPER_SPACE, 3, True), 300))
    assert len(set(first)) == 300
    assert not any(s.quantized for s in itertools.islice(draw_subnets(PAPER_SPACE, 3, False), 9))
    cost = LatencyPredictor("latency")
    low, high = cost.minimum()[0], cost.maximum()[0]
    share = (cost.predict(first) - low) / (high - low)
    assert share.min() < 0.06
    assert share.max() > 0.7


@pytest.fixture
def net(tiny_space):
    torch.manual_seed(0)
    return OnceForAllNet(tiny_space, 4)


FEW_IMAGES = MeasuringSettings(n_bn_images=16, batch_size=8)


def gather(net, data, path, n_full=3, n_quantized=4, supernet="toy"):
    facts, quotas = {"supernet": supernet}, random_quotas(net.space, n_full, n_quantized, 5)
    return collect(net, data, path, quotas, facts, replace(FEW_IMAGES, seed=5))


def test_collecting_resumes_and_gives_the_same_pairs(net, toy_data, tmp_path, monkeypatch):
    assert gather(net, toy_data, tmp_path / "whole.json")
    whole = read_pairs(tmp_path / "whole.json", net.space)
    assert [len(part) for part in split_pairs(whole)] == [3, 4]
    assert all(0 <= accuracy <= 100 for accuracy in whole.values())

    measured = []

    def interrupted_top1(self, subnet):
        measured.append(subnet)
        if len(measured) in (2, 5):
            os.kill(os.getpid(), signal.SIGINT)
        return top1(self, subnet)

    top1 = module.Measurer.top1
    monkeypatch.setattr(module.Measurer, "top1", interrupted_top1)
    path = tmp_path / "parts.json"
    assert not gather(net, toy_data, path)
    assert len(read_pairs(path, net.space)) == 2
    assert not gather(net, toy_data, path)
    assert gather(net, toy_data, path)
    assert len(measured) == 7  # nothing is measured twice
    assert read_pairs(path, net.space) == whole
    assert gather(net, toy_data, path)
    assert len(measured) == 7


def test_the_noise_is_that_of_other_images(net, toy_data, tmp_path, monkeypatch):
    path = tmp_path / "pairs.json"
    quotas = random_quotas(net.space, 2, 4, 0)
    assert collect(net, toy_data, path, quotas, {}, FEW_IMAGES, n_noise=3)
    noise, sampling = (read_card(path)[name] for name in ("noise_points", "sampling_noise_points"))
    assert set(noise) == set(sampling) == {"full", "quantized"}
    assert min(*noise.values(), *sampling.values()) >= 0
    # Known already, it costs nothing when there is nothing else to measure.
    with monkeypatch.context() as patch:
        patch.setattr(module, "Measurer", None)
        assert collect(net, toy_data, path, quotas, {}, FEW_IMAGES, n_noise=3)
    assert read_card(path)["noise_points"] == noise
    assert read_card(path)["sampling_noise_points"] == sampling
    # Nor is it forgotten where none is asked for, and where nothing is new nothing is written.
    both = (path, card_path(path))
    written = [file.stat().st_mtime_ns for file in both]
    assert collect(net, toy_data, path, quotas, {}, FEW_IMAGES)
    assert [file.stat().st_mtime_ns for file in both] == written
    assert not list(tmp_path.glob("*.log"))
    grown = tmp_path / "grown.json"
    for file in both:
        shutil.copy(file, str(file).replace("pairs", "grown"))
    more = random_quotas(net.space, 2, 5, 0)
    assert collect(net, toy_data, grown, more, {}, FEW_IMAGES)
    card = read_card(grown)
    assert card["n_quantized"] == 5
    assert (card["noise_points"], card["sampling_noise_points"]) == (noise, sampling)
    # By hand: measured again, the first, the last and one between are off by 1, -2 and 2 points,
    # and those once more by 3 from the accuracy on all images.
    pairs = read_pairs(path, net.space)
    assert len(pairs) == 6
    off = dict(zip([list(pairs)[i] for i in (0, 2, 5)], (1, -2, 2), strict=True))

    def again(subnet):
        top1 = pairs[subnet] + off[subnet]
        return top1 / 100, (top1 + 3) / 100

    assert noise_floor(pairs, 3, again) == pytest.approx((9 / 3 / 2 + 3**2) ** 0.5)


def test_what_a_kill_left_in_the_log_is_new_to_the_card(net, toy_data, tmp_path, monkeypatch):
    (full, _), seen = random_quotas(net.space, 3, 0, 5), []
    quota = replace(full, facts=lambda new: {"new": len(seen.append(new) or new)})
    path = tmp_path / "pairs.json"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", None)  # a kill after the last pair
        with pytest.raises(TypeError):
            collect(net, toy_data, path, [quota], {}, FEW_IMAGES)
    assert collect(net, toy_data, path, [quota], {}, FEW_IMAGES, n_noise=2)
    assert len(seen[-1]) == 3
    assert read_card(path)["new"] == 3
    assert set(read_card(path)["noise_points"]) == {"full"}


def test_ctrl_c_is_heard_while_the_noise_is_measured(net, toy_data, tmp_path, monkeypatch):
    again, asked = module.Measurer.again, []

    def interrupted_again(self, subnet):
        asked.append(subnet)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return again(self, subnet)

    monkeypatch.setattr(module.Measurer, "again", interrupted_again)
    path, quotas = tmp_path / "pairs.json", random_quotas(net.space, 3, 0, 5)
    assert not collect(net, toy_data, path, quotas, {}, FEW_IMAGES, n_noise=3)
    assert len(asked) == 2
    assert "noise_points" not in read_card(path)
    monkeypatch.setattr(module.Measurer, "top1", None)  # no pair is measured again
    assert collect(net, toy_data, path, quotas, {}, FEW_IMAGES, n_noise=3)
    assert len(asked) == 5
    assert read_card(path)["n_noise"] == 3


def test_a_kill_between_the_pairs_and_their_card_loses_none(tmp_path, monkeypatch):
    path, facts = tmp_path / "pairs.json", {"supernet_sha256": "x"}
    subnet = smallest(PAPER_SPACE).with_bits(4)
    first = PairLog(path, facts)
    first.add(subnet, 70.0)
    first.finish(1.0)
    first.close()
    again = PairLog(path, facts)
    again.add(subnet.with_bits(8), 80.0)
    with monkeypatch.context() as patch:
        patch.setattr("methods.prediction.pairs.write_card", None)
        with pytest.raises(TypeError):
            again.finish(1.0)
    again.close()
    known = PairLog(path, facts)
    known.close()
    assert known.pairs == {subnet: 70.0, subnet.with_bits(8): 80.0}
    with pytest.raises(ApqError, match="supernet_sha256 x, not y"):
        PairLog(path, {"supernet_sha256": "y"})


def test_pairs_of_another_supernet_are_never_mixed_in(net, toy_data, tmp_path):
    path = tmp_path / "pairs.json"
    gather(net, toy_data, path)
    card = read_card(path)
    assert (card["supernet"], card["dataset"], card["n_full"]) == ("toy", "toy", 3)
    for supernet, seed in (("other", 5), ("toy", 6)):
        settings = replace(FEW_IMAGES, seed=seed)
        with pytest.raises(ApqError, match=r"pairs.json was measured with .*another --out"):
            collect(net, toy_data, path, [], {"supernet": supernet}, settings)
    val = replace(toy_data.val, indices=toy_data.val.indices[::-1])
    reordered = replace(toy_data, val=val)
    with pytest.raises(ApqError, match=r"pairs.json was measured with val_images \w+, not \w+:"):
        gather(net, reordered, path)
    older = {name: value for name, value in card.items() if name not in IMAGE_DIGESTS}
    files.write_json(card_path(path), older)
    assert gather(net, reordered, path)
    log = PairLog(tmp_path / "b.json", FACTS)
    log.add(largest(), 50.0)
    log.close()
    with pytest.raises(ApqError, match=r"b.json.log was measured with seed 3, not 4"):
        PairLog(tmp_path / "b.json", {**FACTS, "seed": 4})
    write_pairs(tmp_path / "foreign.json", {largest(): 50.0})
    with pytest.raises(ApqError, match=r"foreign.json was measured with supernet unknown"):
        PairLog(tmp_path / "foreign.json", FACTS)


def test_pairs_of_all_images_go_on_from_older_ones_and_those_of_some_do_not(
    net, toy_data, tmp_path
):
    path = tmp_path / "pairs.json"
    gather(net, toy_data, path)
    card = read_card(path)
    older = {name: card[name] for name in card if name not in ("n_draws", "disputed")}
    files.write_json(card_path(path), older)
    assert gather(net, toy_data, path, n_full=4)
    with pytest.raises(ApqError, match="was measured with n_draws 1, not 2"):
        collect(
            net, toy_data, path, [], {"supernet": "toy"}, replace(FEW_IMAGES, seed=5, n_draws=2)
        )
    some = replace(FEW_IMAGES, seed=5, n_val_images=6)
    quotas, facts = random_quotas(net.space, 1, 0, 5), {"supernet": "toy"}
    with pytest.raises(ApqError, match="was measured with n_images 12, not 6"):
        collect(net, toy_data, path, quotas, facts, some)
    path.unlink()
    assert collect(net, toy_data, path, quotas, facts, some)
    card = read_card(path)
    assert card["disputed"] is True
    del card["disputed"]  # drawn for each subnet then
    files.write_json(card_path(path), card)
    with pytest.raises(ApqError, match="was measured with disputed False, not True"):
        collect(net, toy_data, path, quotas, facts, some)
    path.unlink()
    assert collect(net, toy_data, path, quotas, facts, replace(some, n_draws=2))
    with pytest.raises(ApqError, match="was measured with n_draws 2, not 1"):
        collect(net, toy_data, path, quotas, facts, some)
