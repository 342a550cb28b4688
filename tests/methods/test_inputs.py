"""Which pairs may be put together."""

import pytest

from apq.errors import ApqError
from apq.provenance import write_card
from apq.subnet import largest, smallest
from methods.prediction.inputs import read_inputs
from methods.prediction.pairs import precise_path, searched_path, write_pairs

FACTS = {
    "supernet_sha256": "a",
    "dataset": "digits",
    "image_size": 64,
    "n_images": 100,
    "n_bn_images": 50,
    "own_images": True,
    "seed": 0,
}
OF_THE_SAME_THING = ("supernet_sha256", "dataset", "image_size")
PAIRS = {subnet.with_bits(bits): 70.0 for subnet in (largest(), smallest()) for bits in (4, 6, 8)}


def write(path, **other):
    write_pairs(path, PAIRS)
    write_card(path, **{**FACTS, **other})


@pytest.mark.parametrize("name", FACTS)
def test_pairs_measured_otherwise_are_refused(name, tmp_path):
    path = tmp_path / "pairs.json"
    write(path)
    write(searched_path(path))
    write(precise_path(path))
    inputs = read_inputs(path)
    assert inputs.searched == inputs.precise == PAIRS
    write(searched_path(path), **{name: "other"})
    with pytest.raises(ApqError, match=f"searched.json was measured with {name} other"):
        read_inputs(path)
    write(searched_path(path))
    # More precisely is with more images, but of the same thing.
    write(precise_path(path), **{name: "other"})
    if name in OF_THE_SAME_THING:
        with pytest.raises(ApqError, match=f"precise.json was measured with {name} other"):
            read_inputs(path)
    else:
        assert read_inputs(path).precise == PAIRS
