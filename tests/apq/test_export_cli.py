"""`apq export`: from an experiment to a file that others run."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from apq import Experiment, files
from apq.subnet import smallest
from elastic_nn.networks import MobileNet, OnceForAllNet
from elastic_nn.networks.files import save_supernet
from elastic_nn.networks.folded import fold
from imagenet_codebase.data_providers import open_dataset
from imagenet_codebase.data_providers.cifar10 import NORMALIZATION
from imagenet_codebase.run_manager.finetune import load_trained
from utils import checkpoint

SHIPPED = Path(__file__).resolve().parents[2] / "exps" / "cifar10-0.6ms"


def test_the_file_answers_as_the_experiment_does(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SHIPPED, "exps/found", ignore=shutil.ignore_patterns("*.onnx"))
    status, out, err = call("export", "--exp_dir=exps/found")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("pixels: uint8 (N, 3, 64, 64), red, green and blue, of images")
    assert lines[0].endswith("of cifar10; logits: float32 (N, 10)")
    size = Path("exps/found/net.onnx").stat().st_size / 1e6
    assert lines[1:] == [f"{size:.3f} MB: exps/found/net.onnx"]
    trained = load_trained(Experiment.open("exps/found"))
    pixels = open_dataset("digits").keep("test", 64).pixels.expand(-1, -1, -1, 3)
    with torch.inference_mode():
        wanted = fold(trained.net)(NORMALIZATION(pixels)).argmax(1)
    session = onnxruntime.InferenceSession("exps/found/net.onnx")
    (logits,) = session.run(["logits"], {"pixels": pixels.permute(0, 3, 1, 2).numpy()})
    assert len(set(wanted.tolist())) >= 3
    assert (logits.argmax(1) == wanted.numpy()).mean() > 0.9
    told = {p.key: p.value for p in onnx.load("exps/found/net.onnx").metadata_props}
    assert told["arch"] == trained.net.subnet.to_json()
    assert json.loads(told["class_names"]) == trained.facts["class_names"]
    assert told["dataset"] == "cifar10"
    assert told["weights_sha256"] == files.sha256(SHIPPED / "checkpoint" / "model_best.pth.tar")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """An experiment without weights, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return Experiment.create("small", smallest().with_bits(8), 3.0, {"image_size": 64})


def test_what_is_missing_or_there_is_told(small, call):
    status, _, err = call("export", "--exp_dir=exps/small")
    assert status == 2
    assert "there is no exps/small/checkpoint/model_best.pth.tar; make it with" in err
    Path("taken.onnx").write_text("mine")
    status, _, err = call("export", "--exp_dir=exps/small", "--out=taken.onnx")
    assert status == 2
    assert "taken.onnx exists: choose another --out, or replace it with --overwrite" in err
    assert Path("taken.onnx").read_text() == "mine"


def test_the_size_is_that_of_the_training_images(small, call):
    small.best_checkpoint.parent.mkdir(parents=True)
    net = MobileNet.from_subnet(small.subnet(), 10)
    checkpoint.save(
        small.best_checkpoint,
        {"state_dict": net.state_dict(), "dataset": "digits", "image_size": 48},
    )
    status, out, err = call("export", "--exp_dir=exps/small")
    assert status == 0, err
    assert "pixels: uint8 (N, 3, 48, 48)" in out
    model = onnx.load("exps/small/net.onnx")
    assert "class_names" not in {prop.key for prop in model.metadata_props}
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    normalize = open_dataset("digits").train.source.normalize
    scale = 1 / (255 * np.array(normalize.std))
    np.testing.assert_allclose(constants["pixels.scale"].ravel(), scale, rtol=1e-6)


def test_the_authors_weights_are_of_imagenet(small, call):
    small.best_checkpoint.parent.mkdir(parents=True)
    save_supernet(OnceForAllNet(n_classes=7), small.best_checkpoint)
    Path("taken.onnx").write_text("mine")
    status, out, err = call("export", "--exp_dir=exps/small", "--out=taken.onnx", "--overwrite")
    assert status == 0, err
    assert "(N, 3, 224, 224)" in out
    assert "as those of imagenet; logits: float32 (N, 7)" in out
    assert onnx.load("taken.onnx").graph.input[0].name == "pixels"
