"""What every test may use."""

from pathlib import Path

import pytest

from apq.space import SearchSpace, Stage

REPOSITORY = Path(__file__).resolve().parents[1]


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
