"""Files of tensors: every flipped bit is noticed or harmless, and none runs code."""

import os
import pickle

import pytest
import torch

from apq import ApqError
from elastic_nn.networks.files import load_supernet
from utils import checkpoint
from utils.accuracy_predictor import AccuracyPredictor

CONTENT = {"weight": torch.arange(8.0), "epoch": 3, "rows": [{"top1": 0.5}]}


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def same(content):
    return (
        content.keys() == CONTENT.keys()
        and torch.equal(content["weight"], CONTENT["weight"])
        and (content["epoch"], content["rows"]) == (3, CONTENT["rows"])
    )


def load_or_message(path):
    try:
        return checkpoint.load(path)
    except ApqError as error:
        return str(error)


def test_no_flipped_bit_changes_what_is_read(tmp_path):
    path = tmp_path / "state.pth.tar"
    checkpoint.save(path, CONTENT)
    whole, noticed = path.read_bytes(), 0
    for i in range(len(whole)):
        damaged = bytearray(whole)
        damaged[i] ^= 1 << (i % 8)
        path.write_bytes(damaged)
        content = load_or_message(path)
        if isinstance(content, str):
            assert "state.pth.tar" in content
            noticed += 1
        else:
            assert same(content), i  # padding, dates, names that nobody reads
    assert noticed > len(whole) / 3
    path.write_bytes(whole)
    assert same(checkpoint.load(path))


def test_a_flipped_bit_among_the_weights_is_named(tmp_path):
    path = tmp_path / "state.pth.tar"
    checkpoint.save(path, CONTENT)
    whole = bytearray(path.read_bytes())
    at = whole.index(CONTENT["weight"].numpy().tobytes())
    whole[at + 5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ApqError, match=r"state\.pth\.tar is damaged: .*data/0 does not match"):
        checkpoint.load(path)


def test_a_file_cut_short_anywhere_is_noticed(tmp_path):
    path = tmp_path / "state.pth.tar"
    checkpoint.save(path, CONTENT)
    whole = path.read_bytes()
    for n in range(0, len(whole), 7):
        path.write_bytes(whole[:n])
        with pytest.raises(ApqError, match=r"state\.pth\.tar"):
            checkpoint.load(path)


def test_files_of_the_old_format_still_load(tmp_path):
    path = tmp_path / "published"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=False)
    assert same(checkpoint.load(path))


def load_predictor(path):
    AccuracyPredictor.load(path.parent)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("checkpoint", checkpoint.load),
        ("supernet", load_supernet),
        ("acc_quant.pt", load_predictor),
    ],
)
@pytest.mark.parametrize("format_", ["zip", "old", "pickle"])
def test_no_way_of_loading_runs_code(tmp_path, monkeypatch, name, load, format_):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    content = {"state_dict": Evil()}
    if format_ == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=format_ == "zip")
    with pytest.raises(ApqError, match="refused"):
        load(path)
    assert not (tmp_path / "evil").exists()


def test_damaged_checkpoints_are_named(tmp_path):
    path = tmp_path / "checkpoint"
    checkpoint.save(path, {"weight": torch.randn(100)})
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-10], b"hello"):
        path.write_bytes(damaged)
        for load in (checkpoint.load, load_supernet):
            with pytest.raises(ApqError) as caught:
                load(path)
            assert str(caught.value).count(str(path)) == 1
    with pytest.raises(ApqError, match="there is no file"):
        checkpoint.load(tmp_path / "gone")
    torch.save([1], path)
    with pytest.raises(ApqError, match="holds a list"):
        checkpoint.load(path)
