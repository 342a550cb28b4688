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
    "n_draws": 2,
    "disputed": True,
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


def test_what_older_files_do_not_tell_was_always_so(tmp_path):
    path = tmp_path / "pairs.json"
    write(path, n_draws=1, disputed=False)
    older = {name: value for name, value in FACTS.items() if name not in ("n_draws", "disputed")}
    write_pairs(searched_path(path), PAIRS)
    write_card(searched_path(path), **older)
    assert read_inputs(path).searched == PAIRS
    write(path)
    with pytest.raises(ApqError, match=r"searched.json was measured with n_draws 1, .* with 2"):
        read_inputs(path)
