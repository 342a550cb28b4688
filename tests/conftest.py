"""What every test may use."""

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apq.space import SearchSpace, Stage
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.data_providers.memory import MemorySource, crop_and_flip
from imagenet_codebase.data_providers.normalization import Normalization
from imagenet_codebase.data_providers.splits import Split

# Threads that wait for each other by spinning are slow where test processes share the cores.
torch.set_num_threads(1)

# A shell without job control starts background commands deaf to Ctrl-C, and so would be all that
# they start; the tests of Ctrl-C hold there too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]

# Files of whole commands, a minute or more each: first, or one process is left alone with them.
LONGEST = ("test_end_to_end.py", "test_relaunch.py", "test_processes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, all else in its order."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


BLANK_PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def drawn(request, monkeypatch):
    """Leave plots blank but in tests marked `plots`: hundreds of runs would draw theirs."""
    if not request.node.get_closest_marker("plots"):

        def savefig(figure, file, **_):
            file.write(BLANK_PNG)

        monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of oracles computed with the authors' code, beside a developer's checkout."""
    folder = REPOSITORY.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip("the oracles of the authors' code are not here")
    return folder


@pytest.fixture(scope="session")
def tiny_space() -> SearchSpace:
    """A space of two stages whose networks run in milliseconds."""
    return SearchSpace(
        stem_channels=8,
        first_block_channels=8,
        stages=(
            Stage(out_channels=16, stride=2, max_depth=2, depths=(1, 2)),
            Stage(out_channels=16, stride=1, max_depth=2, depths=(1, 2)),
        ),
        feature_channels=32,
    )


@pytest.fixture(scope="session")
def toy_data() -> DataProvider:
    """Forty-eight 32 px images of four classes that differ in brightness and hue."""
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 4
    base = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [220, 220, 220]])
    noise = rng.integers(-30, 30, size=(48, 32, 32, 3))
    pixels = torch.from_numpy((base[labels][:, None, None] + noise).astype(np.uint8))
    source = MemorySource(
        read=lambda: pixels,
        labels=labels,
        image_size=32,
        normalize=Normalization(mean=(0.5,) * 3, std=(0.25,) * 3),
        augmentation=crop_and_flip,
    )
    parts = {"train": slice(0, 24), "val": slice(24, 36), "test": slice(36, 48)}
    splits = {n: Split(source=source, indices=np.arange(48)[part]) for n, part in parts.items()}
    return DataProvider(
        name="toy",
        image_size=32,
        class_names=("red", "green", "blue", "white"),
        train_unaugmented=splits["train"],
        train=replace(splits.pop("train"), augment=True),
        **splits,
    )


@pytest.fixture(scope="session")
def randomize():
    """A function that gives every tensor of a network a value of its own, and evaluates it.

    Batch statistics and kernel transforms included; quantization ranges stay.
    """

    def change(net, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in net.state_dict().items():
            if tensor.dtype == torch.long or name.endswith("range"):
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("_matrix"):
                tensor.add_(0.05 * noise)
            elif name.endswith("running_var"):
                tensor.copy_(1 + 0.2 * noise.abs())
            elif tensor.dim() < 2:
                tensor.add_(0.1 * noise)
        return net.eval()

    return change
