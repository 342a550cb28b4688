"""From an experiment and a supernet to a finetuned subnet, and back from its folder."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from apq import ApqError, Subnet
from apq.provenance import card_path, read_card, write_card
from apq.subnet import smallest
from elastic_nn.networks import MobileNet, OnceForAllNet
from elastic_nn.networks.files import load_supernet, save_supernet
from imagenet_codebase.run_manager import finetune as module
from imagenet_codebase.run_manager.classes import check_classes
from imagenet_codebase.run_manager.evaluate import evaluate
from imagenet_codebase.run_manager.finetune import finetune, load_trained, starting_network
from imagenet_codebase.run_manager.measuring import bn_batches, ready_to_measure
from imagenet_codebase.run_manager.recipes import RECIPES, FinetuneSettings
from imagenet_codebase.run_manager.teacher import Teacher, read_teacher
from imagenet_codebase.run_manager.trainer import Trainer
from tests.imagenet_codebase.helpers import (
    CPU,
    statistics,
)
from utils import checkpoint
from utils.devices import pick_device

SETTINGS = FinetuneSettings(n_epochs=2, batch_size=8, lr=0.02)


def test_a_finetuned_folder_reads_back_and_goes_on(
    experiment, supernet_file, toy_data, monkeypatch
):
    result = finetune(experiment, supernet_file, toy_data, SETTINGS, CPU)
    assert result.finished
    assert len(result.history) == 2
    assert result.best_top1 == max(row["val_top1"] for row in result.history)
    trained = load_trained(experiment)
    assert trained.facts["dataset"] == "toy"
    assert trained.facts["image_size"] == 32
    images = next(iter(toy_data.loader("val", 12)))[0]
    saved = checkpoint.load(experiment.best_checkpoint)["state_dict"]
    assert torch.equal(
        trained.net.state_dict()["classifier.linear.weight"], saved["classifier.linear.weight"]
    )
    assert trained.net.quantize
    assert trained.net.eval()(images).shape == (12, 4)
    again = finetune(experiment, supernet_file, toy_data, SETTINGS, CPU)
    assert again.initial_top1 is None  # it was finished: nothing starts over
    assert again.best_top1 == result.best_top1
    one_epoch = replace(SETTINGS, n_epochs=1)
    seen = []
    write_card(experiment.best_checkpoint, test_top1=0.5)
    monkeypatch.setattr(Trainer, "run", lambda _: seen.extend(experiment.checkpoint_dir.iterdir()))
    restarted = finetune(experiment, supernet_file, toy_data, one_epoch, CPU, restart=True)
    assert restarted.initial_top1 == result.initial_top1
    seen = [path for path in seen if path.name != "tensorboard"]
    assert not seen  # a run that is killed in its first epoch must not show the old one's best


def test_a_restart_that_cannot_begin_drops_nothing(
    experiment, supernet_file, toy_data, monkeypatch
):
    one_epoch = replace(SETTINGS, n_epochs=1)
    finetune(experiment, supernet_file, toy_data, one_epoch, CPU)
    before = {p.name for p in experiment.checkpoint_dir.iterdir()}
    damaged = "imagenet_codebase.run_manager.finetune.evaluate_split"
    monkeypatch.setattr(damaged, lambda *_, **__: (_ for _ in ()).throw(ApqError("damaged")))
    with pytest.raises(ApqError, match="damaged"):
        finetune(experiment, supernet_file, toy_data, one_epoch, CPU, restart=True)
    assert {p.name for p in experiment.checkpoint_dir.iterdir()} == before


def test_weights_without_a_state_to_go_on_from_are_kept(
    experiment, supernet_file, toy_data, capsys
):
    best = experiment.best_checkpoint
    best.parent.mkdir(parents=True)
    best.write_bytes(b"shipped")
    write_card(best, test_top1=0.5)
    one_epoch = replace(SETTINGS, n_epochs=1)
    assert finetune(experiment, supernet_file, toy_data, one_epoch, CPU).finished
    kept = best.with_name("model_best.earlier.pth.tar")
    assert kept.read_bytes() == b"shipped"
    assert read_card(kept)["test_top1"] == 0.5
    assert not card_path(best).exists()
    assert f"kept as {kept}" in capsys.readouterr().out
    assert load_trained(experiment).facts["dataset"] == "toy"
    # What this run made is its own: a second call goes on from it.
    finetune(experiment, supernet_file, toy_data, one_epoch, CPU)
    assert kept.read_bytes() == b"shipped"


def test_another_number_of_classes_gets_a_new_classifier(
    experiment, supernet_file, toy_data, capsys
):
    data = replace(toy_data, class_names=tuple("abcde"))
    net = starting_network(experiment.subnet(), supernet_file, data, statistics(toy_data), CPU)
    assert net.classifier.linear.weight.shape == (5, 1280)
    assert net.classifier.linear.w_bits == 8
    assert "knows other classes (4) than toy (5)" in capsys.readouterr().out


def test_as_many_classes_of_other_data_are_other_classes(
    experiment, supernet_file, toy_data, tmp_path, capsys
):
    path, batches = tmp_path / "supernet.pth.tar", statistics(toy_data)
    path.write_bytes(supernet_file.read_bytes())

    def keeps_classifier(**card):
        write_card(path, **card)
        torch.manual_seed(7)
        net = starting_network(experiment.subnet(), path, toy_data, batches, CPU)
        own = load_supernet(path).net.classifier.linear.weight
        return torch.equal(net.classifier.linear.weight, own)

    assert keeps_classifier()
    assert keeps_classifier(dataset="toy")
    assert keeps_classifier(dataset="folder", class_names=list(toy_data.class_names))
    assert not keeps_classifier(dataset="digits")
    assert "knows other classes (4) than toy (4)" in capsys.readouterr().out
    assert not keeps_classifier(dataset="toy", class_names=list("abcd"))
    with pytest.raises(ApqError, match="it cannot teach; give --distill=0"):
        read_teacher(path, toy_data, batches, CPU, 1.0, 0.1)


def test_classes_that_no_card_tells_are_said_to_be_assumed(supernet_file, toy_data, capsys):
    check_classes(supernet_file, 4, toy_data, "name another")
    assert "has no card: that it knows the classes of toy is assumed" in capsys.readouterr().out


def test_a_supernet_without_ranges_is_calibrated(experiment, supernet_file, toy_data, tmp_path):
    content = checkpoint.load(supernet_file)["state_dict"]
    bare = {k: v for k, v in content.items() if not k.endswith("_range")}
    checkpoint.save(tmp_path / "bare", {"state_dict": bare})
    ranges = {}
    for path in (supernet_file, tmp_path / "bare"):
        net = starting_network(experiment.subnet(), path, toy_data, statistics(toy_data), CPU)
        layers = net.quantized_layers().values()
        ranges[path.name] = {layer.activation_range.item() for layer, _ in layers}
    assert ranges["supernet.pth.tar"] == {6.0}
    assert len(ranges["bare"]) > 10


def test_centred_values_get_ranges_of_their_own(experiment, supernet_file, toy_data, monkeypatch):
    def ranges(net):
        return [layer.activation_range.item() for layer, _ in net.quantized_layers().values()]

    uncentred, center = [], module.center_streams
    monkeypatch.setattr(
        module, "center_streams", lambda net: uncentred.extend(ranges(net)) or center(net)
    )
    subnet = experiment.subnet().with_bits(4)
    net = starting_network(subnet, supernet_file, toy_data, statistics(toy_data), CPU, "lsq-full")
    assert uncentred
    assert ranges(net) != uncentred


def test_mixed_precision_is_what_runs(experiment, supernet_file, toy_data):
    net = starting_network(experiment.subnet(), supernet_file, toy_data, statistics(toy_data), CPU)
    types = []
    net.classifier.linear.register_forward_hook(lambda *a: types.append(a[2].dtype))
    images, labels = next(iter(toy_data.loader("train", 8)))
    for bf16 in (True, False):
        module.FinetuneStep(net, replace(SETTINGS, bf16=bf16))(images, labels, (0, 0, 0))
    assert types == [torch.bfloat16, torch.float32]


def test_a_run_does_not_go_on_with_another_supernet(experiment, toy_data, tmp_path):
    path, settings = tmp_path / "supernet.pth.tar", replace(SETTINGS, n_epochs=1)
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_supernet(OnceForAllNet(n_classes=4), path)
        if not seed:
            finetune(experiment, path, toy_data, settings, CPU)
    with pytest.raises(ApqError, match="saved with another supernet_sha256"):
        finetune(experiment, path, toy_data, settings, CPU)


@pytest.mark.parametrize("quantizer", ["lsq", "lsq-channel", "lsq-full"])
def test_learned_quantizers_start_close_and_read_back(
    experiment, supernet_file, toy_data, quantizer
):
    subnet, batches = experiment.subnet().with_bits(4), statistics(toy_data)
    net, paper = (
        starting_network(subnet, supernet_file, toy_data, batches, CPU, q)
        for q in (quantizer, "paper")
    )
    ranges = [layer.weight_range for layer, _ in net.quantized_layers().values()]
    assert all(isinstance(r, torch.nn.Parameter) and (r > 0).all() for r in ranges)
    assert (ranges[3].numel() > 1) == (quantizer != "lsq")
    # Ranges of least error beat the largest magnitude on the filters themselves.
    for (layer, c), (other, _) in zip(
        net.quantized_layers().values(), paper.quantized_layers().values(), strict=True
    ):
        error, other_error = (
            (q.quantized_filter(c) - q.active_filter(c)).square().sum() for q in (layer, other)
        )
        assert error <= other_error * 1.0001
    settings = replace(SETTINGS, quantizer=quantizer, n_epochs=1)
    finetune(experiment, supernet_file, toy_data, settings, CPU)
    trained = load_trained(experiment).net
    assert trained.first_conv.conv.quantizer.name == quantizer
    accuracy = evaluate(trained, toy_data.loader("val", 12)).top1
    assert accuracy == finetune(experiment, supernet_file, toy_data, settings, CPU).best_top1


def test_the_average_follows_the_weights_and_is_what_is_kept(experiment, supernet_file, toy_data):
    settings = replace(SETTINGS, ema=0.5, reset_bn=True, n_epochs=1)
    finetune(experiment, supernet_file, toy_data, settings, CPU)
    last = checkpoint.load(experiment.checkpoint_dir / "last.pth.tar")
    best = checkpoint.load(experiment.best_checkpoint)["state_dict"]
    name = "classifier.linear.weight"
    assert torch.equal(best[name], last["average"]["module"][name])
    assert not torch.equal(best[name], last["state_dict"][name])


def test_a_teacher_moves_the_student_towards_its_answers(experiment, supernet_file, toy_data):
    batches = statistics(toy_data)
    images, labels = next(iter(toy_data.loader("train", 8)))
    grads = []
    for share in (None, 0.25, 1.0):
        net = starting_network(experiment.subnet(), supernet_file, toy_data, batches, CPU)
        teacher = None
        if share:
            teacher = read_teacher(supernet_file, toy_data, batches, CPU, share, 0.1)
        module.FinetuneStep(net, SETTINGS, teacher)(images, labels, (0, 0, 0))
        grads.append(net.classifier.linear.bias.grad)
        if share == 1:
            # The gradient of the bias is the mean of answers minus targets.
            wanted = (net(images).softmax(1) - teacher(images, labels)).mean(0)
            torch.testing.assert_close(grads[-1], wanted, atol=1e-5, rtol=1e-4)
    labels_alone, both, teacher_alone = grads
    assert not torch.allclose(labels_alone, teacher_alone)
    # The loss is linear in its targets.
    wanted = 0.75 * labels_alone + 0.25 * teacher_alone
    torch.testing.assert_close(both, wanted, atol=1e-5, rtol=1e-4)


def test_a_teachers_answers_by_hand():
    taught = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    teacher = Teacher(lambda images: taught.log(), 0.25, 0.2, 8)
    wanted = torch.tensor(
        [
            [0.75 * 0.05 + 0.25 * 0.7, 0.75 * 0.85 + 0.25 * 0.1, 0.0625, 0.0625],
            [0.1, 0.1, 0.75 * 0.85 + 0.25 * 0.25, 0.1],
        ]
    )
    torch.testing.assert_close(teacher(torch.zeros(2, 3, 8, 8), torch.tensor([1, 2])), wanted)


def test_a_teacher_sees_larger_images_and_has_statistics_of_them(supernet_file, toy_data):
    def enlarged(images):
        return F.interpolate(images, size=(48, 48), mode="bilinear")

    seen = []
    images, labels = next(iter(toy_data.loader("val", 4)))
    answer = torch.zeros(4, 4)
    Teacher(lambda x: seen.append(x) or answer, 1.0, 0.0, 48)(images, labels)
    torch.testing.assert_close(seen[0], enlarged(images))
    Teacher(lambda x: seen.append(x) or answer, 1.0, 0.0, 32)(images, labels)
    assert seen[-1] is images

    net = load_supernet(supernet_file).net.extract()
    net.reset_bn_statistics([enlarged(batch) for batch in statistics(toy_data)])
    wanted = net.eval()(enlarged(images)).softmax(1)
    for image_size, equal in ((48, True), (0, False)):
        teacher = read_teacher(
            supernet_file, toy_data, statistics(toy_data), CPU, 1.0, 0.0, image_size
        )
        assert teacher.image_size == (image_size or 32)
        assert torch.allclose(teacher(images, labels), wanted, atol=1e-5) == equal


def test_a_teacher_of_other_classes_is_refused(experiment, supernet_file, toy_data):
    data = replace(toy_data, class_names=("a", "b", "c", "d", "e"))
    settings = replace(SETTINGS, distill=0.5)
    with pytest.raises(ApqError, match=r"classes \(4\) than toy \(5\): it cannot teach"):
        finetune(experiment, supernet_file, data, settings, CPU)


def test_every_recipe_runs_and_wrong_settings_are_refused(experiment, supernet_file, toy_data):
    for name, options in RECIPES.items():
        settings = FinetuneSettings(**options, n_epochs=1, batch_size=8)
        result = finetune(experiment, supernet_file, toy_data, settings, CPU, restart=True)
        assert result.finished, name
        assert 0 <= result.best_top1 <= 1, name
    bf16 = replace(SETTINGS, bf16=True, n_epochs=1)
    assert finetune(experiment, supernet_file, toy_data, bf16, CPU, restart=True).finished
    for change in ({"quantizer": "lqs"}, {"ema": 1.5}, {"distill": -1.0}):
        with pytest.raises(ApqError, match=next(iter(change))):
            FinetuneSettings(**change)


# What a host cannot do without waiting for its GPU.
WAITS = {
    torch.ops.aten._local_scalar_dense.default,  # item(), bool(), float() and the like
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}


class Waiting(TorchDispatchMode):
    """Collects the operations that would wait."""

    def __init__(self):
        super().__init__()
        self.seen, self.n = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        if func in WAITS:
            self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device(experiment, supernet_file, toy_data, monkeypatch):
    device = pick_device("auto")
    waiting, real = Waiting(), Trainer.run_step

    def watched(self, *args):
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            with waiting:
                return real(self, *args)
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "run_step", watched)
    recipe = {**RECIPES["best"], "ema": 0.9, "distill": 0.5, "n_epochs": 1, "batch_size": 8}
    settings = FinetuneSettings(**recipe)
    assert finetune(experiment, supernet_file, toy_data, settings, device).finished
    assert waiting.n > 1000
    assert not waiting.seen
    with waiting:  # the watch works
        torch.ones(1).item()
    assert waiting.seen


def test_ranges_are_calibrated_from_full_precision_whatever_the_bits(
    supernet_file, toy_data, tmp_path
):
    weights = checkpoint.load(supernet_file)["state_dict"]
    bare = {n: t for n, t in weights.items() if not n.endswith("_range")}
    assert len(bare) < len(weights)
    path = tmp_path / "bare.pth.tar"
    torch.save({"state_dict": bare}, path)
    ranges = []
    for bits in (4, 8):
        subnet = smallest().with_bits(bits)
        net = starting_network(subnet, path, toy_data, statistics(toy_data), CPU)
        assert net.classifier.linear.w_bits == 8  # not left in full precision
        state = net.state_dict().items()
        ranges.append(torch.cat([t.flatten() for n, t in state if n.endswith("_range")]))
    assert torch.equal(*ranges)
    assert len(ranges[0].unique()) > 10


def test_measuring_leaves_the_supernet_alone_and_repeats(tiny_space, toy_data):
    torch.manual_seed(0)
    net = OnceForAllNet(tiny_space, 4)
    statistics = bn_batches(toy_data, 16, 8, CPU)
    assert [len(batch) for batch in statistics] == [8, 8]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    subnet: Subnet = smallest(tiny_space).with_bits(4)
    first, second = (
        evaluate(ready_to_measure(net, subnet, statistics), toy_data.loader("val", 8))
        for _ in range(2)
    )
    assert first == second
    assert first.n_images == 12
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_a_last_batch_of_one_image_has_no_say_in_batch_statistics(toy_data):
    sizes = [len(batch) for batch in bn_batches(toy_data, 100, 23, CPU)]
    assert sizes == [23]  # of 24 images
    assert [len(batch) for batch in bn_batches(toy_data, 14, 8, CPU)] == [8, 6]
    assert [len(batch) for batch in bn_batches(toy_data, 16, 8, CPU)] == [8, 8]


def test_a_new_classifier_keeps_the_range_of_its_input(tiny_space):
    net = MobileNet.from_subnet(smallest(tiny_space).with_bits(8), 4)
    net.set_quantizer("lsq-channel")
    net.double()
    net.classifier.linear.activation_range.data.fill_(1.3)
    net.replace_classifier(7)
    classifier = net.classifier.linear
    assert classifier.activation_range.item() == pytest.approx(1.3)
    assert classifier.weight_range.shape == (7,)
    assert classifier.weight.dtype == torch.float64
    assert net(torch.zeros(1, 3, 32, 32, dtype=torch.float64)).shape == (1, 7)
