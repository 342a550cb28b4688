"""Tables: what they hold, reading and writing, finding one for an image size, mistakes."""

import copy
import json
from dataclasses import replace

import pytest

from apq.errors import ApqError
from apq.space import PAPER_SPACE
from lut import table as table_module
from lut.accelerator import Accelerator
from lut.bitfusion import MODEL_VERSION, layer_cost
from lut.layers import Layer, fixed_layers, space_layers
from lut.lookup import image_size_with
from lut.table import Table, build, diff, for_image_size, load, save

ENTRY = "(96, 456, 14, 1, 1, 0, 1)-W4A4"
TOY_ENTRY = "(16, 64, 112, 1, 1, 0, 1)-W4A4"
TOY = {
    TOY_ENTRY: {"latency": 0.5, "energy": 0.25},
    "head": {"latency": 1, "energy": 2.0},
    "tail": {"latency": 3.0, "energy": 0},
}


@pytest.fixture(scope="module")
def built():
    return {size: build(size) for size in (64, 224)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "apq"


def write(path, value):
    path.write_text(json.dumps(value))
    return path


# ---- what a table holds ----


@pytest.mark.parametrize("image_size", [64, 224])
def test_what_is_missing_is_7x7_with_4_bit_activations(built, image_size):
    wanted = {
        layer.key(w, a): (layer, a)
        for layer in space_layers(PAPER_SPACE, image_size)
        for w in (4, 6, 8)
        for a in (4, 6, 8)
    }
    present = built[image_size].layers
    illegal = {k for k, (layer, a) in wanted.items() if layer.kernel == 7 and a == 4}
    assert wanted.keys() - present.keys() == illegal
    assert present.keys() - wanted.keys() == {"head", "tail"}
    assert {(7, 4)} == set(PAPER_SPACE.forbidden)


@pytest.mark.parametrize("image_size", [32, 65])
def test_small_and_odd_sizes_have_every_entry(image_size):
    assert len(build(image_size).layers) == 6569


def test_fixed_layers(built):
    table = built[224]
    assert table.fixed("head") == table.layers["head"]
    assert table.fixed_components("tail") == table.components["tail"]
    classifier = layer_cost(Layer(1280, 10, 1, 1, 1, 0, 1), 8, 8)
    assert table.fixed("classifier", n_classes=10) == {
        "latency": classifier.latency_ms,
        "energy": classifier.energy_mj,
    }
    assert table.fixed_components("classifier", n_classes=10) == classifier.components
    assert set(fixed_layers(PAPER_SPACE, 224)) >= {"first_depthwise", "first_project"}
    with pytest.raises(ApqError, match="did you mean 'first_project'"):
        table.fixed("first_projekt")


def test_cost_is_the_entry(built):
    assert built[224].cost(Layer(96, 456, 14, 1, 1, 0, 1), 4, 4) == built[224].layers[ENTRY]


# ---- a failed look-up ----


def lookup_error(table, layer, w_bits, a_bits):
    with pytest.raises(ApqError) as caught:
        table.cost(layer, w_bits, a_bits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_layer_of_another_image_size_names_the_command(built):
    message = lookup_error(built[224], Layer(96, 456, 12, 1, 1, 0, 1), 4, 4)
    assert "(96, 456, 12, 1, 1, 0, 1)-W4A4" in message
    assert "1x1 dense convolution, 96 -> 456 channels" in message
    assert "image size 224" in message
    assert f"nearest: {ENTRY}" in message
    assert "`apq lut build --image_size 192`" in message


def test_a_layer_that_cannot_run_says_so(built):
    message = lookup_error(built[224], Layer(480, 480, 14, 7, 1, 3, 480), 8, 4)
    assert "nearest: (480, 480, 14, 7, 1, 3, 480)-W8A6" in message
    assert "cannot run" in message
    assert "apq lut build" not in message


def test_a_foreign_layer_and_foreign_bits_say_so(built):
    assert "no such layer" in lookup_error(built[224], Layer(96, 460, 14, 1, 1, 0, 1), 4, 4)
    assert "4, 6, 8 bits" in lookup_error(built[224], Layer(96, 456, 14, 1, 1, 0, 1), 5, 4)


def test_no_table_is_proposed_that_would_replace_costs_of_another_machine(built):
    layer = Layer(96, 456, 12, 1, 1, 0, 1)
    layers = {key: {"latency": 1.0, "energy": 1.0} for key in built[224].layers}
    device = replace(built[224], layers=layers, components=None, model_version=None)
    assert "measure it, and add its entry" in lookup_error(device, layer, 4, 4)
    other = replace(built[224], accelerator=Accelerator(frequency_mhz=1000))
    message = lookup_error(other, layer, 4, 4)
    assert "lut.table.build computes a table of this accelerator at 192 px" in message
    assert "apq lut build" not in message


@pytest.mark.parametrize("image_size", [64, 96])
def test_the_proposed_image_size_really_has_the_layer(image_size):
    layers = list(space_layers(PAPER_SPACE, image_size))
    for layer in layers[::1500]:
        proposed = image_size_with(layer, PAPER_SPACE)
        assert layer in set(space_layers(PAPER_SPACE, proposed))


# ---- files ----


@pytest.mark.parametrize("image_size", [64, 224])
def test_shipped_tables_are_what_the_code_builds(built, image_size):
    shipped = load(table_module.SHIPPED_DIR / f"bitfusion_{image_size}.json")
    assert shipped == built[image_size]
    assert shipped.current


def test_save_and_load_round_trip(built, tmp_path):
    save(built[64], tmp_path / "deep" / "table.json")
    assert load(tmp_path / "deep" / "table.json") == built[64]
    lines = (tmp_path / "deep" / "table.json").read_text().splitlines()
    assert sum(line.startswith('"(') for line in lines) == 2 * 6567  # one entry a line


def test_another_accelerator_round_trips_and_is_not_current(built, tmp_path):
    other = Table(**{**vars(built[64]), "accelerator": Accelerator(frequency_mhz=1000)})
    save(other, tmp_path / "other.json")
    assert load(tmp_path / "other.json") == other
    assert not other.current


def test_the_authors_format_is_read_and_written(tmp_path):
    table = load(write(tmp_path / "theirs.dict", TOY))
    assert table.layers == TOY
    assert table.components is None
    assert table.model_version is None
    assert table.fixed_components("head") is None
    assert table.image_size == 224
    save(table, tmp_path / "copy.dict")
    assert json.loads((tmp_path / "copy.dict").read_text()) == TOY


def test_an_entry_of_the_first_convolution_tells_the_image_size(tmp_path):
    first = {"(3, 32, 224, 3, 2, 1, 1)-W8A8": TOY["head"]}
    assert load(write(tmp_path / "theirs.dict", {**TOY, **first})).image_size == 224


def test_an_entry_that_is_there_twice_is_refused(tmp_path):
    text = json.dumps(TOY)
    (tmp_path / "twice.dict").write_text(text[:-1] + ', "tail": {"latency": 9, "energy": 9}}')
    with pytest.raises(ApqError, match=r"entry \d of an object, 'tail', is there twice"):
        load(tmp_path / "twice.dict")


def test_the_authors_file_loads(reference):
    table = load(reference / "BitFusion_new.b1.dict")
    assert table.image_size == 224
    assert table.layers[ENTRY]["latency"] == pytest.approx(0.062192, abs=1e-12)
    assert table.lacking() == {}  # what it leaves out is BitFusion's


@pytest.mark.parametrize("image_size", [64, 224])
def test_only_costs_of_other_machines_lack_what_could_be_computed(built, image_size):
    ours = built[image_size]
    assert ours.lacking() == {}
    theirs = replace(ours, components=None, model_version=None)
    assert theirs.lacking() == {}
    device = {"head": {"latency": 9.0, "energy": 9.0}}
    other = replace(theirs, layers={**ours.layers, **device})
    assert list(other.lacking()) == ["first_depthwise", "first_project", "classifier"]
    key = other.lacking(n_classes=10)["classifier"]
    assert key == "(1280, 10, 1, 1, 1, 0, 1)-W8A8"
    known = replace(other, layers={**other.layers, key: {"latency": 2.0, "energy": 3.0}})
    assert "classifier" not in known.lacking(n_classes=10)
    assert known.fixed("classifier", n_classes=10) == {"latency": 2.0, "energy": 3.0}
    assert "classifier" in known.lacking(n_classes=1000)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (TOY_ENTRY, {"latency": -1, "energy": 1}, "latency is -1"),
        (TOY_ENTRY, {"latency": 1, "energy": float("nan")}, "energy is nan"),
        (TOY_ENTRY, {"latency": float("inf"), "energy": 1}, "latency is inf"),
        (TOY_ENTRY, {"latency": 10**400, "energy": 1}, "number from 0 to below"),
        (TOY_ENTRY, {"latency": "1", "energy": 1}, "latency is '1'"),
        (TOY_ENTRY, {"latency": True, "energy": 1}, "latency is True"),
        (TOY_ENTRY, {"latency": 1}, "energy is None"),
        (TOY_ENTRY, [1, 2], "must be an object"),
    ],
)
def test_a_bad_entry_is_named_with_its_file(tmp_path, key, value, message):
    path = write(tmp_path / "bad.dict", {**TOY, key: value})
    with pytest.raises(ApqError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected a JSON object"),
        ({"name": "x"}, "'name' names no layer"),
        ({**TOY, "(96, 456, 14, 1, 1, 0)-W4A4": {}}, "names no layer"),
        ({k: v for k, v in TOY.items() if k != "tail"}, "no entry 'tail'"),
        ({k: v for k, v in TOY.items() if k != TOY_ENTRY}, "no entries of layers"),
        ({"layers": TOY}, "it has no 'model_version'"),
    ],
)
def test_foreign_json_is_refused(tmp_path, value, message):
    path = write(tmp_path / "foreign.json", value)
    with pytest.raises(ApqError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_broken_and_missing_files_are_named_once(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text('{"head": ')
    with pytest.raises(ApqError, match="not valid JSON") as caught:
        load(broken)
    assert str(caught.value).count(str(broken)) == 1
    with pytest.raises(ApqError, match="cannot read"):
        load(tmp_path / "none.json")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    path = tmp_path_factory.mktemp("ours") / "t.json"
    layers = {k: {"latency": 1.0, "energy": 6.0} for k in TOY}
    parts = {k: dict.fromkeys(table_module.COMPONENTS, 1.0) for k in TOY}
    save(
        Table(
            layers=layers,
            components=parts,
            image_size=224,
            accelerator=Accelerator(),
            model_version=MODEL_VERSION,
        ),
        path,
    )
    load(path)  # sound as it is
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_size", 31, "image size is 31"),
        ("image_size", "224", "image size is '224'"),
        ("model_version", "1", "model_version"),
        ("accelerator", {"rows": 3}, "no parameter 'rows'"),
        ("component_names", ["array"], "component_names"),
        ("layers", [], "must be a JSON object"),
        ("components", {}, "same keys"),
        ("components", {k: [1, 1, 1, 1, 1] for k in TOY}, "6 numbers"),
        ("components", {k: [1, 1, 1, 1, 1, "1"] for k in TOY}, "6 numbers"),
        ("components", {**{k: [1] * 6 for k in TOY}, TOY_ENTRY: [1, 1, 1]}, "6 numbers"),
        ("components", {k: [7, -1, 0, 0, 0, 0] for k in TOY}, "add up"),
        ("components", {k: [1, 1, 1, 1, 1, 2] for k in TOY}, "add up"),
        ("components", {k: [1, 1, 1, 1, 1, float("nan")] for k in TOY}, "add up"),
    ],
)
def test_bad_values_in_our_files_are_refused(tmp_path, ours, name, value, message):
    path = write(tmp_path / "t.json", {**copy.deepcopy(ours), name: value})
    with pytest.raises(ApqError, match=message):
        load(path)


# ---- a table for an image size ----


def test_shipped_sizes_build_nothing(cache, monkeypatch, capsys):
    monkeypatch.setattr(table_module, "build", None)
    assert for_image_size(224).image_size == 224
    assert for_image_size(64).image_size == 64
    assert capsys.readouterr().err == ""
    assert not cache.exists()


def test_another_size_is_built_once_and_kept(cache, monkeypatch, capsys):
    first = for_image_size(96)
    assert first.image_size == 96
    assert capsys.readouterr().err.count("\n") == 1
    assert load(cache / "bitfusion_96.json") == first
    monkeypatch.setattr(table_module, "build", None)  # a second build would fail
    assert for_image_size(96) == first
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "change",
    [
        {"model_version": MODEL_VERSION + 1},
        {"accelerator": Accelerator(frequency_mhz=1000)},
        {"image_size": 128},
    ],
    ids=["version", "accelerator", "image size"],
)
def test_a_cached_table_of_something_else_is_rebuilt(cache, built, monkeypatch, change):
    path = cache / "bitfusion_96.json"
    save(Table(**{**vars(built[64]), "image_size": 96, **change}), path)
    fresh = Table(**{**vars(built[64]), "image_size": 96})
    monkeypatch.setattr(table_module, "build", lambda image_size, **_: fresh)
    assert for_image_size(96) == fresh
    assert load(path) == fresh


def test_a_damaged_cached_table_is_rebuilt(cache, built, monkeypatch):
    cache.mkdir(parents=True)
    (cache / "bitfusion_96.json").write_text("{")
    monkeypatch.setattr(table_module, "build", lambda image_size, **_: built[64])
    assert for_image_size(96) == built[64]


def test_a_stale_shipped_table_is_not_used(cache, built, tmp_path, monkeypatch):
    stale = Table(**{**vars(built[64]), "model_version": MODEL_VERSION + 1})
    save(stale, tmp_path / "bitfusion_64.json")
    monkeypatch.setattr(table_module, "SHIPPED_DIR", tmp_path)
    monkeypatch.setattr(table_module, "build", lambda image_size, **_: built[64])
    assert for_image_size(64) == built[64]
    assert load(tmp_path / "bitfusion_64.json") == stale  # the package's own file is left alone


def test_an_unwritable_cache_is_no_error(tmp_path, built, monkeypatch, capsys):
    (tmp_path / "file").write_text("")  # a cache below a plain file cannot be made, even by root
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(table_module, "build", lambda image_size, **_: built[64])
    assert for_image_size(96) == built[64]
    assert "not kept" in capsys.readouterr().err


def test_the_cache_folder_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert table_module.cache_dir() == tmp_path / ".cache" / "apq"


@pytest.mark.parametrize("image_size", [31, 96.0, "96"])
def test_a_bad_image_size_is_refused_before_any_work(cache, image_size):
    with pytest.raises(ApqError, match="image size is"):
        for_image_size(image_size)
    with pytest.raises(ApqError, match="image size is"):
        build(image_size)


# ---- two tables ----


def test_diff_of_equal_tables(built):
    result = diff(built[64], built[64])
    assert result.agrees()
    assert result.n_common == 6569
    assert [d.relative for d in result.largest] == [0, 0]


def test_diff_finds_the_largest_difference(tmp_path):
    a = load(write(tmp_path / "a", TOY))
    changed = copy.deepcopy(TOY)
    changed[TOY_ENTRY]["latency"] = 0.4
    changed["head"]["latency"] = 1.1
    changed["tail"]["energy"] = 1.0
    extra = TOY_ENTRY.replace("W4", "W8")
    b = load(write(tmp_path / "b", {**changed, extra: {"latency": 1, "energy": 1}}))
    result = diff(a, b)
    assert result.only_in_a == ()
    assert result.only_in_b == (extra,)
    assert result.n_common == 3
    latency, energy = result.largest
    assert (latency.quantity, latency.key) == ("latency", TOY_ENTRY)
    assert latency.relative == pytest.approx(0.2)
    assert (energy.key, energy.a, energy.b, energy.relative) == ("tail", 0, 1.0, 1.0)
    assert not result.agrees()


def test_diff_agrees_within_its_tolerance(tmp_path):
    a = load(write(tmp_path / "a", TOY))
    b = load(write(tmp_path / "b", {**TOY, "head": {"latency": 1.001, "energy": 2.0}}))
    assert diff(a, b).agrees(tolerance=0.01)
    assert not diff(a, b).agrees()
