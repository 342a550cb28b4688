"""Settings from a YAML file: what they may be, and what mistakes are told."""

from dataclasses import replace

import pytest

from apq import Experiment
from apq.cli.recipe import recipe
from imagenet_codebase.run_manager.recipes import RECIPES, FinetuneSettings

SEARCH = ("search", "--exp_name=found", "--constraint=12.80", "--generations=3")


def test_a_switch_can_be_turned_off_and_set_in_a_file(tmp_path):
    parser = __import__("apq.cli.quant_aware", fromlist=["make_parser"]).make_parser("apq")
    assert parser.parse(["--exp_name=x"]).reset_bn is None
    assert parser.parse(["--exp_name=x", "--reset_bn"]).reset_bn is True
    assert parser.parse(["--exp_name=x", "--no-reset_bn"]).reset_bn is False
    (tmp_path / "c.yaml").write_text("reset_bn: true\n")
    config = f"--config={tmp_path / 'c.yaml'}"
    assert parser.parse(["--exp_name=x", config]).reset_bn is True
    assert recipe(parser.parse(["--exp_name=x", config, "--no-reset_bn"])).reset_bn is False
    assert recipe(parser.parse(["--exp_name=x", "--recipe=best", "--reset_bn"])) == replace(
        FinetuneSettings(**RECIPES["best"]), reset_bn=True
    )


def test_a_config_file_holds_flags_and_the_command_line_wins(home, call):
    (home / "run.yaml").write_text(
        "exp_name: from_file\nconstraint: 12.8\ngenerations: 2\noverwrite: true\n"
    )
    assert call("search", "--config=run.yaml")[0] == 0
    assert call("search", "--config=run.yaml", "--exp_name=typed")[0] == 0
    assert {p.name for p in (home / "exps").iterdir()} == {"from_file", "typed"}


def test_a_list_of_yaml_is_one_with_commas(home, call):
    (home / "run.yaml").write_text("exclude_bits: [4, 8]\nexclude_kernels: 7\n")
    assert call(*SEARCH, "--config=run.yaml")[0] == 0
    subnet = Experiment.open("exps/found").subnet()
    assert {*subnet.pw_w_bits, *subnet.dw_a_bits} == {6}
    assert 7 not in subnet.kernels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("constrant: 3", "unknown setting 'constrant' (did you mean 'constraint'?)"),
        ("constraint: slow", "run.yaml: --constraint: 'slow' is not a number"),
        ("overwrite: 1", "'overwrite' is '1'; it must be true or false"),
        ("seed: [1]", "'seed' is ['1']; it must be a number or a word"),
        ("exclude_bits: [[4]]", "'['4']' is not a whole number"),
        ("- 3", "must hold settings"),
        ("seed: 1\na: [", "run.yaml, line 2: not valid YAML: "),
        ("seed: !!python/object/apply:os.system ['touch evil']", "it must be a number or a word"),
        ("seed: 2026-13-45", "run.yaml: --seed: '2026-13-45' is not a whole number"),
        ("seed: 18446744073709551616", "is too large; at most"),
        ("exp_name:", "'exp_name' is ''; it must be a number or a word"),
        ("seed: 1\nseed: 2", "run.yaml, line 2: not valid YAML: 'seed' is there twice"),
        ("seed: " + "[" * 3000, "run.yaml is no file of settings: it is nested too deeply"),
    ],
)
def test_a_broken_config_file_is_told(home, call, text, message):
    (home / "run.yaml").write_text(text)
    status, _, err = call(*SEARCH, "--config=run.yaml")
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (home / "evil").exists()


def test_two_config_files_are_refused(home, call):
    for name in ("a.yaml", "b.yaml"):
        (home / name).write_text("seed: 1\n")
    status, _, err = call(*SEARCH, "--config=a.yaml", "--config", "b.yaml")
    assert status == 2
    assert "--config names a.yaml and b.yaml: put all settings into one file" in err


def test_a_config_without_a_name_is_told(home, call):
    status, _, err = call(*SEARCH, "--config=")
    assert status == 2
    assert "--config names no file" in err
