"""One candidate: the paper's JSON in and out, and what a broken file is told."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest

from apq import ApqError, Subnet
from apq.space import PAPER_SPACE
from apq.subnet import largest, nearest_width, smallest


@pytest.fixture
def arch():
    n = 21
    bits = [8] * n
    q_info = {f"{part}_bits_setting": list(bits) for part in ("pw_w", "pw_a", "dw_w", "dw_a")}
    return [{"wid": None, "ks": [5] * n, "e": [5] * n, "d": [3, 3, 3, 3, 3, 4]}, q_info]


def test_reads_the_paper_form_by_hand(arch):
    subnet = Subnet.from_paper(arch)
    assert subnet.widths[:6] == (80, 120, 120, 120, 120, 200)
    assert subnet.kernels == (5,) * 21
    assert subnet.quantized
    assert [b.index for b in subnet.active_blocks] == [
        0,
        1,
        2,
        4,
        5,
        6,
        8,
        9,
        10,
        12,
        13,
        14,
        16,
        17,
        18,
        20,
    ]


@pytest.mark.parametrize(
    ("channels", "width"), [(100, 104), (99.9, 96), (108, 112), (96, 96), (103.99, 104)]
)
def test_widths_round_to_the_nearest_multiple_of_8(channels, width):
    assert nearest_width(channels, 8) == width


def test_round_trips():
    for subnet in PAPER_SPACE.decode(PAPER_SPACE.sample(np.random.default_rng(0), 100)):
        assert Subnet.from_paper(subnet.to_paper()) == subnet
        assert Subnet.from_json(subnet.to_json()) == subnet
        full = subnet.full_precision()
        assert Subnet.from_json(full.to_json()) == full
        assert hash(Subnet.from_json(subnet.to_json())) == hash(subnet)
        assert full != subnet


def test_agrees_with_the_authors_files(reference):
    for name in ("golden_cost.json", "golden_forward.json"):
        for case in json.loads((reference / name).read_text()):
            assert Subnet.from_paper(case["arch"]).to_paper() == case["arch"]


def test_the_architecture_alone_is_full_precision(arch):
    for form in (arch[0], arch[:1], [arch[0], None]):
        assert not Subnet.from_paper(form).quantized
    assert Subnet.from_paper(arch[0]).to_paper()[1] is None


def test_an_arch_merged_into_one_object_keeps_its_bits(arch):
    info, q_info = arch
    for form in ({**info, **q_info}, [{**info, **q_info}]):
        assert Subnet.from_paper(form) == Subnet.from_paper(arch)
    del q_info["dw_a_bits_setting"]
    with pytest.raises(ApqError, match="'dw_a_bits_setting'"):
        Subnet.from_paper({**info, **q_info})


def test_the_stage_of_one_block_takes_any_depth(arch):
    arch[0]["d"][5] = 1
    assert Subnet.from_paper(arch).active_blocks[-1].index == 20


def test_with_bits_gives_7x7_what_it_can_run():
    subnet = largest().with_bits(4)
    assert set(subnet.pw_w_bits) == set(subnet.dw_w_bits) == {4}
    assert set(subnet.dw_a_bits) == {6}
    assert set(smallest().with_bits(4).dw_a_bits) == {4}


@pytest.mark.parametrize("made", [list, np.array, lambda values: tuple(map(float, values))])
def test_lists_and_arrays_make_the_same_subnet_as_tuples(made):
    subnet = largest().with_bits(6)
    fields = {f.name: getattr(subnet, f.name) for f in dataclasses.fields(subnet)}
    space = fields.pop("space")
    twin = Subnet(space=space, **{name: made(values) for name, values in fields.items()})
    assert twin == subnet
    assert hash(twin) == hash(subnet)
    assert twin.to_json() == subnet.to_json()


@pytest.mark.parametrize("values", [None, 3, (3, None), (math.inf,), (math.nan,)])
def test_what_is_no_sequence_of_integers_is_refused(values):
    with pytest.raises(ApqError, match=r"kernels is .*; it must be a sequence of integers"):
        dataclasses.replace(largest(), kernels=values)


def test_bits_that_the_space_lacks_are_refused():
    with pytest.raises(ApqError, match="bits is 16; it must be one of 4, 6, 8"):
        largest().with_bits(16)


def test_7x7_with_4_bit_activations_is_refused_with_the_reason(arch):
    arch[0]["ks"][1] = 7
    arch[1]["dw_a_bits_setting"][1] = 4
    with pytest.raises(ApqError, match=r"block 2: a 7x7 .* 4-bit .* no tile .* weight buffer"):
        Subnet.from_paper(arch)
    arch[0]["d"][0] = 2
    arch[0]["ks"][1], arch[1]["dw_a_bits_setting"][1] = 5, 8
    arch[0]["ks"][3] = 7
    arch[1]["dw_a_bits_setting"][3] = 4  # a block that the depth leaves out never runs
    assert Subnet.from_paper(arch).kernels[3] == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[0]["ks"].pop(), "kernels has 20 entries; expected 21"),
        (lambda a: a[0]["e"].pop(), "expand ratios.* has 20 entries"),
        (lambda a: a[0]["d"].append(3), "depths.* has 7 entries; expected 6"),
        (lambda a: a[0]["ks"].__setitem__(4, 9), "kernel of block 5 is 9; it must be one of 3"),
        (lambda a: a[0]["e"].__setitem__(2, 6.5), "expand ratio of block 3 is 6.5.* 4 and 6"),
        (lambda a: a[0]["e"].__setitem__(2, float("nan")), "expand ratio of block 3 is nan"),
        (lambda a: a[0]["d"].__setitem__(1, 5), "depth of stage 2 is 5"),
        (lambda a: a[0]["d"].__setitem__(5, 0), "depth of stage 6 is 0"),
        (lambda a: a[1]["pw_w_bits_setting"].__setitem__(0, 5), "pw_w_bits of block 1 is 5"),
        (lambda a: a[1].pop("dw_w_bits_setting"), "list of numbers under 'dw_w_bits_setting'"),
        (lambda a: a[0]["ks"].__setitem__(0, "3"), "'ks' holds '3'"),
        (lambda a: a[0].__setitem__("ks", 3), "list of numbers under 'ks'"),
        (lambda a: a.append(1), r"\[info, q_info\]"),
        (lambda a: a.__setitem__(0, 1), r"\[info, q_info\]"),
    ],
)
def test_broken_archs_are_named(arch, change, message):
    broken = copy.deepcopy(arch)
    change(broken)
    with pytest.raises(ApqError, match=message) as error:
        Subnet.from_paper(broken)
    assert "\n" not in str(error.value)


def test_broken_json_is_named():
    with pytest.raises(ApqError, match="not valid JSON"):
        Subnet.from_json('[{"ks": [3,')


def test_bits_come_all_or_none(arch):
    subnet = Subnet.from_paper(arch)
    with pytest.raises(ApqError, match="bit widths are incomplete: dw_a_bits, dw_w_bits"):
        Subnet(
            depths=subnet.depths,
            kernels=subnet.kernels,
            widths=subnet.widths,
            pw_w_bits=(8,) * 21,
            pw_a_bits=(8,) * 21,
        )
