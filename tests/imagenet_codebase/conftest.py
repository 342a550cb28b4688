"""What the tests of data and training share: small data sets, networks and runs."""

import pytest
import torch
import torch.nn.functional as F

from apq import Experiment
from apq.subnet import smallest
from elastic_nn.networks import MobileNet, OnceForAllNet
from elastic_nn.networks.files import save_supernet
from imagenet_codebase.data_providers import open_dataset
from imagenet_codebase.run_manager.averaging import RunningAverage
from imagenet_codebase.run_manager.evaluate import evaluate
from imagenet_codebase.run_manager.trainer import Trainer
from tests.imagenet_codebase.helpers import TRAINING, write_tree


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A root with `train` and `val`: 20 training and 6 test images of two classes."""
    root = tmp_path_factory.mktemp("photos")
    write_tree(root / "train", {"cat": 12, "dog": 8}, size=(40, 30))
    write_tree(root / "val", {"cat": 3, "dog": 3}, size=(40, 30))
    return root


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    write_tree(root / "train", {"cat": 10, "dog": 10})
    write_tree(root / "test", {"cat": 2, "dog": 2})
    return root


@pytest.fixture(scope="module")
def supernet_file(tmp_path_factory):
    """A supernet of the paper's space with four classes and fresh weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("supernet") / "supernet.pth.tar"
    save_supernet(OnceForAllNet(n_classes=4), path)
    return path


@pytest.fixture
def experiment(tmp_path):
    subnet = smallest().with_bits(8)
    return Experiment.create("small", subnet, 3.0, {"image_size": 64}, root=tmp_path)


@pytest.fixture
def start(toy_data, tiny_space, tmp_path):
    """Return a function that makes a trainer of a small quantized network in a folder."""

    def make(folder="run", settings=TRAINING, on_step=None, decay=None, **facts):
        torch.manual_seed(0)
        net = MobileNet.from_subnet(smallest(tiny_space).with_bits(8), toy_data.n_classes)

        def step(images, labels, key):
            if on_step:
                on_step(key)
            logits = net(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            return loss.detach(), (logits.argmax(1) == labels).sum()

        def validate():
            return {"val_top1": evaluate(net, toy_data.loader("val", 8)).top1}

        average = RunningAverage(net, decay) if decay else None
        folder = tmp_path / folder
        return Trainer(net, toy_data, settings, step, validate, folder, facts, average=average)

    return make
