"""The command line: its surface, what mistakes are told, and what a search leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from apq import ApqError, Experiment, cli, paths
from apq.cli import supernet, weights
from apq.cli.parser import same_command
from apq.cli.tables import format_table
from apq.cli.weights import find_supernet
from apq.provenance import write_card
from apq.space import PAPER_SPACE
from apq.subnet import smallest
from elastic_nn.networks import MobileNet
from imagenet_codebase.run_manager.states import SavedStates
from methods import run as searching_loop
from utils import checkpoint
from utils.accuracy_predictor import AccuracyPredictor
from utils.latency_predictor import LatencyPredictor

REPOSITORY = Path(__file__).resolve().parents[2]

SEARCH = """--exp_name --type --overwrite --max_latency_ms --max_energy_mj --max_bitops
    --max_size_bytes --mode --seconds --patience --population --generations --mutation_prob
    --evaluations --acc_predictor_dir --risk --freeze --freeze_from --exclude_bits --exclude_kernels
    --max_width_ratio --image_size --lut --accounting --n_classes"""
RECIPE = """--supernet --recipe --n_epochs --epoch_images --batch_size --optimizer --lr --momentum
    --weight_decay --label_smoothing --warmup_epochs --grad_clip --quantizer --distill --ema
    --save_every --save_every_s --reset_bn --bf16 --compile --sync_bn --scale_lr"""
DATA = "--dataset --data_dir --image_size --n_workers --download"
SURFACE = {
    "search": f"--constraint {SEARCH}",
    "pareto": f"--from --to --points --budgets {SEARCH}",
    "quant-aware": f"--exp_name --restart --nproc --randaugment {RECIPE} {DATA}",
    "test": """--nproc --exp_dir --image_size --lut --layers --batch_size --dataset --data_dir
        --data_image_size --n_workers --download""",
    "export": "--exp_dir --out --overwrite",
    "lut": "--image_size --out --filter --limit",
    "supernet": f"""--out --init --teacher --distill --teacher_image_size --largest_epochs
        --elastic_epochs --quantized_epochs --optimizer --weight_decay --lr
        --quantized_lr --batch_size --warmup_epochs --n_random --sandwich_every
        --small_image_size --compile --randaugment --restart --overwrite --nproc {DATA}""",
    "collect": f"""--supernet --out --n_full --n_quantized --n_searched
        --acc_predictor_dir --n_bn_images --n_draws --n_val_images --n_noise --nproc {DATA}""",
    "predictor": """--pairs --searched --precise --out_dir --n_steps --lr --held_out --ensemble
        --study --overwrite""",
    "compare": f"--exp_names --n_random --direct --out --overwrite --nproc {RECIPE} {DATA}",
    "correlate": f"--n_subnets --out --overwrite --nproc {RECIPE} {DATA}",
}


def search_flags(name="found", constraint="12.80", **others):
    flags = {"exp_name": name, "constraint": constraint, "generations": 3, **others}
    return [f"--{flag}={value}" for flag, value in flags.items()]


@pytest.mark.parametrize("command", SURFACE)
def test_the_surface_changes_only_on_purpose(command):
    module = __import__(f"apq.cli.{cli.COMMANDS[command][0]}", fromlist=["make_parser"])
    flags = {f"--{name}" for name in module.make_parser("apq").flags()}
    assert flags == {*SURFACE[command].split(), "--help", "--config", "--seed", "--device"}
    assert set(SURFACE) == set(cli.COMMANDS)


def test_help_needs_no_torch():
    code = """
import sys
from apq.cli import main
for command in sys.argv[1:]:
    try:
        main([*command.split(), "--help"])
    except SystemExit:
        pass
    assert "torch" not in sys.modules, command
"""
    argv = [sys.executable, "-c", code, "", *SURFACE]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: apq") == 1 + len(SURFACE)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--constrain=12"], r"unknown argument '--constrain' (did you mean '--constraint'?)"),
        (["--exp_nam=x"], "unknown argument '--exp_nam' (did you mean '--exp_name'?)"),
        (["--typ=energy"], "unknown argument '--typ' (did you mean '--type'?)"),
        (
            ["--type=latncy"],
            "--type: 'latncy' is none of latency, energy (did you mean 'latency'?)",
        ),
        (["--mode=evolutoin"], "(did you mean 'evolution'?)"),
        (["--constraint=-3"], "--constraint: '-3' is not a positive number"),
        (["--constraint=nan"], "--constraint: 'nan' is not a positive number"),
        (["--constraint=inf"], "--constraint: 'inf' is not a positive number"),
        (["--constraint=1e19"], "--constraint: 1e19 is too large; below 1e+18"),
        (["--generations=1000000000000"], "--generations: 1000000000000 is too large; at most"),
        (["--constraint=fast"], "--constraint: 'fast' is not a number"),
        (["--constraint=1"], "the cheapest subnet costs 2.95915 ms; raise the constraint"),
        (["--type=energy", "--constraint=5"], "the cheapest subnet costs 5.107084 mJ"),
        (["--exp_name=a/b"], "experiment name 'a/b' is not a plain name"),
        (["--acc_predictor_dir=empty"], "no accuracy predictor acc_quant.pt in empty"),
        (["--acc_predictor_dir=cut"], "cut/acc_quant.pt is cut short or was not written by torch"),
        (["--acc_predictor_dir=text"], "text/acc_quant.pt"),
        (["--acc_predictor_dir=odd"], "'regressor.weight' is (1, 7); expected (1, 400)"),
        (["--lut=cut/acc_quant.pt"], "cut/acc_quant.pt is not a text file"),
        (["--lut=nowhere"], "cannot read nowhere: No such file"),
        (["--device=gpu"], "--device: 'gpu' is none of auto, cpu, cuda, cuda:1 ..."),
        (["--device=cuda:99"], "--device cuda:99 cannot be used here"),
        (["--generations=0"], "--generations: 0 is too small; at least 1"),
        (["--seed=x"], "--seed: 'x' is not a whole number"),
        (["--image_size=16"], "--image_size: 16 is too small"),
        (["--config=nowhere.yaml"], "cannot read nowhere.yaml"),
    ],
)
def test_mistakes_are_told_in_one_line(home, call, flags, message):
    weights = AccuracyPredictor().state_dict()
    for name in ("empty", "cut", "text", "odd"):
        (home / name).mkdir()
    whole = (home / "models" / "acc_quant.pt").read_bytes()
    (home / "cut" / "acc_quant.pt").write_bytes(whole[: len(whole) // 2])
    (home / "text" / "acc_quant.pt").write_text("not a model")
    torch.save({**weights, "regressor.weight": torch.zeros(1, 7)}, home / "odd" / "acc_quant.pt")
    status, out, err = call("search", *search_flags(), *flags)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("apq search: error: ")
    assert message in err
    assert not (home / "exps").exists()


def test_a_mistyped_required_flag_is_named(home, call):
    status, _, err = call("search", "--exp_name=x", "--constrain=12")
    assert status == 2
    assert "unknown argument '--constrain' (did you mean '--constraint'?)" in err


def test_a_missing_flag_is_named(home, call):
    status, _, err = call("search", "--exp_name=x")
    assert status == 2
    assert "no budget: give --constraint (with --type), or any of --max_latency_ms" in err


def test_an_unknown_command_names_the_closest(capsys):
    assert cli.main(["serch"]) == 2
    assert "unknown command 'serch' (did you mean 'search'?)" in capsys.readouterr().err


def test_a_search_leaves_an_experiment_that_explains_itself(home, call):
    status, out, err = call("search", *search_flags(seed=3))
    assert (status, err) == (0, "")
    experiment = Experiment.open(home / "exps" / "found")
    cost = LatencyPredictor("latency").predict([experiment.subnet()])[0]
    assert cost <= 12.80
    assert json.loads((experiment.dir / "lat").read_text()) == [cost]
    report = experiment.report()
    assert report["settings"]["seed"] == 3
    assert report["predictor"]["dataset"] == "digits"
    assert len(report["table_sha256"]) == len(report["predictor"]["sha256"]) == 64
    assert "total" in out
    assert f"latency {cost:.3f} ms of 12.8 ms at 224 px" in out
    assert "learned on digits at 64 px" in out
    assert "the accuracy was learned at 64 px and the cost is at 224 px" in out
    # The blocks' rows and the fixed layers' add up to the total.
    lines = [line.split() for line in out.splitlines()[2:] if line.strip()]
    rows = [line for line in lines if line[0] in ("head", "stage", "tail")]
    total = next(line for line in lines if line[0] == "total")
    assert sum(float(row[-2]) for row in rows) == pytest.approx(float(total[-2]), abs=0.02)
    assert sum(float(row[-1]) for row in rows) == pytest.approx(float(total[-1]), abs=0.02)


def test_the_same_seed_finds_the_same_subnet_and_another_may_not(home, call):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert call("search", *search_flags(name, seed=seed))[0] == 0
    a, b, c = (Experiment.open(home / "exps" / name).subnet() for name in "abc")
    assert a == b != c


def test_an_existing_experiment_is_refused_before_the_search(home, call):
    call("search", *search_flags())
    before = (home / "exps" / "found" / "arch").read_text()
    status, _, err = call("search", *search_flags(seed=5))
    assert status == 2
    assert "exists" in err
    assert (home / "exps" / "found" / "arch").read_text() == before
    assert call("search", *search_flags(seed=5), "--overwrite")[0] == 0
    assert (home / "exps" / "found" / "arch").read_text() != before


def test_a_constraint_above_the_most_expensive_is_said_to_bind_nothing(home, call):
    status, _, err = call("search", *search_flags(constraint=100))
    assert status == 0
    assert "binds nothing: the most expensive subnet costs 46.792338 ms" in err


def test_a_supernets_phases_may_warm_up_for_longer_than_the_default_ones():
    flags = ["--elastic_epochs=100", "--warmup_epochs=40"]
    settings = supernet._settings(supernet.make_parser("apq supernet").parse_args(flags))
    assert settings.training.warmup_epochs == 40


def test_energy_and_another_image_size(home, call):
    status, out, _ = call("search", *search_flags(constraint=2, type="energy", image_size=64))
    assert status == 0
    experiment = Experiment.open(home / "exps" / "found")
    assert LatencyPredictor("energy", 64).predict([experiment.subnet()])[0] <= 2
    assert "note:" not in out  # accuracy and cost are at one size


def test_finetuning_starts_from_a_supernet_of_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "shipped_models_dir", lambda: tmp_path / "shipped")
    monkeypatch.setattr(paths, "shipped_models_dir", lambda: tmp_path / "shipped")
    default = Path("models/supernet.pth.tar")
    with pytest.raises(ApqError, match=f"no supernet at {default}"):
        find_supernet(None, "digits")
    shipped, digits = (tmp_path / "shipped" / n / default.name for n in (".", "digits"))
    for path, dataset in ((shipped, "cifar10"), (digits, "digits")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dataset.encode())
        write_card(path, dataset=dataset)
    assert find_supernet(None, "cifar10") == shipped
    assert find_supernet(None, "digits") == digits
    assert find_supernet(None, "folder") == shipped
    # The user's own come first, where they are of the data or nothing is.
    default.parent.mkdir()
    default.write_bytes(b"mine")
    write_card(default, dataset="digits")
    assert find_supernet(None, "digits") == default
    assert find_supernet(None, "cifar10") == shipped
    assert find_supernet(None, "folder") == default
    authors = Path("models/imagenet-OFA")
    authors.write_bytes(b"theirs")
    assert find_supernet(None, "imagenet") == authors
    assert find_supernet(authors, "digits") == authors


def test_a_search_runs_from_any_folder_with_the_shipped_predictor(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call("search", *search_flags())
    assert status == 0
    assert "learned on" in out


def test_an_empty_models_folder_does_not_hide_the_shipped_predictor(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert call("search", *search_flags())[0] == 0


def test_ctrl_c_keeps_the_best_so_far(home, call, monkeypatch):
    old = Experiment.create("found", smallest().with_bits(8), 3.0, {"old": True})
    record = searching_loop.SearchRecord

    def interrupt(**fields):
        if fields["step"] == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return record(**fields)

    monkeypatch.setattr(searching_loop, "SearchRecord", interrupt)
    flags = search_flags(generations=100000)
    status, out, err = call("search", *flags, "--overwrite")
    assert status == 130, err
    assert "stopped early: this is the best so far" in out
    assert old.report() == {"old": True}  # half a search replaces no experiment
    experiment = Experiment.open(home / "exps" / "found.stopped")
    assert experiment.report()["interrupted"]
    assert LatencyPredictor().predict([experiment.subnet()])[0] <= 12.80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[0]["ks"].pop(), "kernels has 20 entries"),
        (lambda a: a[0]["ks"].__setitem__(0, 4), "kernel of block 1 is 4"),
        (lambda a: a[0]["e"].__setitem__(0, 7), "expand ratio of block 1 is 7"),
        (
            lambda a: (a[0]["ks"].__setitem__(0, 7), a[1]["dw_a_bits_setting"].__setitem__(0, 4)),
            "no tile of it fits the accelerator's weight buffer",
        ),
        (None, "not valid JSON"),
    ],
)
@pytest.mark.parametrize("command", ["test", "quant-aware"])
def test_a_broken_arch_is_named_by_every_command(home, call, command, change, message):
    arch = smallest().with_bits(8).to_paper()
    if change:
        change(arch)
    folder = home / "exps" / "broken"
    folder.mkdir(parents=True)
    (folder / "arch").write_text(json.dumps(arch) if change else '[{"ks": ')
    flag = "--exp_dir=exps/broken" if command == "test" else "--exp_name=broken"
    status, _, err = call(command, flag)
    assert status == 2
    assert f"{Path('exps/broken/arch')}: " in err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=digit"], "no data set 'digit' (did you mean 'digits'?)"),
        ([], "there is no folder dataset/imagenet"),
        (["--dataset=cifar10"], "dataset/cifar10"),
        (["--dataset=digits", "--supernet=gone"], "there is no supernet at gone"),
        (["--dataset=digits", "--supernet=models/acc_quant.pt"], "no supernet"),
        (["--dataset=digits", "--label_smoothing=2"], "label_smoothing is 2.0"),
    ],
)
def test_finetuning_tells_what_is_missing(home, call, flags, message):
    call("search", *search_flags())
    status, _, err = call("quant-aware", "--exp_name=found", *flags)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_an_experiment_without_checkpoint_is_priced_all_the_same(home, call):
    call("search", *search_flags())
    status, out, _ = call("test", "--exp_dir=exps/found")
    assert status == 0
    assert "no accuracy: there is no exps/found/checkpoint/model_best.pth.tar; make it with" in out
    shutil.copytree("exps/found", "elsewhere")
    _, out, _ = call("test", "--exp_dir=elsewhere")
    assert "no accuracy: there is no elsewhere/checkpoint/model_best.pth.tar\n" in out
    subnet = Experiment.open("exps/found").subnet()
    status, out, _ = call("test", "--exp_dir=exps/found", "--layers")
    rows = [line for line in out.splitlines() if " convolution, " in line]
    n_layers = 3 * len(subnet.active_blocks) + 5
    assert len(rows) == n_layers
    assert "weight buffer mJ" in out
    for type_, scale, digits in (("latency", 1, 3), ("energy", 1, 3), ("bitops", 1e9, 2)):
        value = LatencyPredictor(type_).predict([subnet])[0] / scale
        assert f"{value:.{digits}f}" in out


def test_any_folder_can_be_measured(home, call, monkeypatch):
    Experiment.create("found", smallest().with_bits(8), 1.0, {}, root="exps")
    shutil.copytree("exps/found", "exps/my exp")  # no command has such a name for one
    status, out, _ = call("test", "--exp_dir=exps/my exp")
    assert status == 0
    assert "no accuracy: there is no exps/my exp/checkpoint/model_best.pth.tar\n" in out
    monkeypatch.chdir("exps/my exp")
    assert call("test", "--exp_dir=.")[0] == 0


def test_damaged_weights_are_not_measured_as_sound(home, call):
    subnet = smallest().with_bits(8)
    experiment = Experiment.create("found", subnet, 1.0, {}, root="exps")
    net = MobileNet.from_subnet(subnet, 10)
    torch.nn.init.constant_(net.classifier.linear.bias, torch.nan)
    facts = {"dataset": "digits", "image_size": 32}
    checkpoint.save(experiment.best_checkpoint, {"state_dict": net.state_dict(), **facts})
    status, out, err = call("test", "--exp_dir=exps/found")
    assert status == 2
    assert "top-1" not in out
    assert "model_best.pth.tar is damaged: what it answers is not finite" in err


def test_a_subnet_without_bits_is_priced_as_one_of_8_bits_and_says_so(home, call):
    for name, subnet in (("bits", smallest().with_bits(8)), ("none", smallest())):
        Experiment.create(name, subnet, 1.0, {}, root="exps")
    costs = {}
    for name in ("bits", "none"):
        status, out, _ = call("test", f"--exp_dir=exps/{name}")
        assert status == 0
        costs[name] = out.split("\n")[1:9]
        assert ("note: the subnet has no bits: its costs are those of 8 bits" in out) == (
            name == "none"
        )
    assert costs["bits"] == costs["none"]


def test_a_damaged_report_is_told(home, call):
    assert call("search", *search_flags())[0] == 0
    path = home / "exps" / "found" / "search.json"
    whole = json.loads(path.read_text())
    for change in (
        {"constraint": "x"},
        {"constraint": 10**400},
        {"use_of_limits": [{"type": "latency"}]},
        {"use_of_limits": []},
        {"type": None},
    ):
        path.write_text(json.dumps({**whole, **change}))
        status, _, err = call("test", "--exp_dir=exps/found")
        assert status == 2
        assert "search.json: it is damaged" in err


def test_what_another_run_made_is_not_replaced(home, call):
    (home / "models" / "supernet.pth.tar").write_bytes(b"mine")
    status, _, err = call("supernet", "--dataset=digits")
    assert status == 2
    assert "models/supernet.pth.tar exists" in err
    assert not (home / "models" / "supernet.pth.tar.run").exists()
    assert (home / "models" / "supernet.pth.tar").read_bytes() == b"mine"


def test_restart_leaves_a_run_that_is_at_work(home, call, monkeypatch):
    monkeypatch.setattr("apq.lock.PATIENCE_S", 0.2)
    folder = home / "s.pth.tar.run" / "1-largest"
    with SavedStates(folder).lock.held():
        (folder / "last.pth.tar").write_bytes(b"hours of work")
        status, _, err = call("supernet", "--dataset=digits", "--out=s.pth.tar", "--restart")
    assert status == 2
    assert "another process trains in s.pth.tar.run/1-largest" in err
    assert (folder / "last.pth.tar").read_bytes() == b"hours of work"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--teacher=gone.pth.tar"], "gone.pth.tar"),
        (["--teacher=models/acc_quant.pt"], "models/acc_quant.pt: no supernet"),
        (["--teacher_image_size=128"], "name one with --teacher, or drop --teacher_image_size"),
        (["--distill=0.5"], "there is no teacher: name one with --teacher, or drop --distill"),
        (["--teacher=models/acc_quant.pt", "--distill=2"], "distill is 2.0"),
    ],
)
def test_a_teacher_that_is_none_is_refused(home, call, flags, message):
    status, _, err = call("supernet", "--dataset=digits", "--out=s.pth.tar", *flags)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_teacher_sees_images_of_the_size_in_its_card(home):
    path = home / "teacher.pth.tar"
    path.write_bytes(b"weights")

    def size(*flags):
        args = supernet.make_parser("supernet").parse_args([f"--teacher={path}", *flags])
        return supernet._settings(args).teacher_image_size

    assert size() == 0
    write_card(path, image_size=128)
    assert size() == 128
    assert size("--teacher_image_size=96") == 96


def test_going_on_after_a_restart_is_said_right():
    assert same_command(Namespace(restart=False)) == "the same command"
    assert same_command(Namespace()) == "the same command"  # of commands that have no such flag
    assert same_command(Namespace(restart=True)) == "the same command without --restart"


def test_the_table_printer_by_hand():
    text = format_table(("name", "ms"), [("a", 1.5), ("longer", 10), (None, None)])
    assert text == "name     ms\n------  ---\na       1.5\nlonger   10\n"


def test_predictors_train_from_a_file_of_pairs(home, call):
    from methods.prediction.pairs import write_pairs

    rng = np.random.default_rng(0)
    subnets = PAPER_SPACE.decode(PAPER_SPACE.sample(rng, 60))
    pairs = {s.full_precision() if i < 30 else s: 80.0 + i / 10 for i, s in enumerate(subnets)}
    write_pairs("pairs.json", pairs)
    write_card("pairs.json", dataset="toys", image_size=48)
    status, out, _ = call("predictor", "--pairs=pairs.json", "--out_dir=mine", "--n_steps=5")
    assert status == 0
    assert "quantized, by transfer" in out
    assert AccuracyPredictor.load("mine").card["dataset"] == "toys"
    assert not AccuracyPredictor.load("mine", name="acc.pt").quantized
    status, _, err = call("predictor", "--pairs=pairs.json", "--n_steps=5")
    assert status == 2
    assert "acc_quant.pt has learned from other data (digits) than these pairs (toys)" in err
    write_pairs("few.json", dict(list(pairs.items())[:3]))
    status, _, err = call("predictor", "--pairs=few.json", "--out_dir=few")
    assert status == 2
    assert "too few" in err

    Path("other").mkdir()
    shutil.copy("mine/acc.pt", "other/acc_ensemble.pt")
    write_card("other/acc_ensemble.pt", dataset="digits")
    flags = ("--pairs=pairs.json", "--out_dir=other", "--n_steps=5")
    assert call("predictor", *flags)[0] == 0
    status, _, err = call("predictor", *flags, "--ensemble=2")
    assert status == 2
    assert "acc_ensemble.pt has learned from other data (digits)" in err
    write_pairs("cardless.json", pairs)
    status, _, err = call("predictor", "--pairs=cardless.json", "--out_dir=mine", "--n_steps=5")
    assert status == 2
    assert "has learned from other data (toys) than these pairs (unknown)" in err


def test_too_few_pairs_for_an_ensemble_are_told_before_anything_is_written(home, call):
    from methods.prediction.pairs import write_pairs

    subnets = PAPER_SPACE.decode(PAPER_SPACE.sample(np.random.default_rng(0), 52))
    pairs = {s.full_precision() if i < 30 else s: 80.0 + i / 10 for i, s in enumerate(subnets)}
    write_pairs("pairs.json", pairs)
    flags = ("--pairs=pairs.json", "--out_dir=mine", "--n_steps=5", "--ensemble=2")
    status, _, err = call("predictor", *flags)
    assert status == 2
    assert "22 quantized pairs are too few for an ensemble: 18 are left" in err
    assert not Path("mine").exists()
