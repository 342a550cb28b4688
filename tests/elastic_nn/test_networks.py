"""The supernet: the authors' outputs, its own extracted subnets, ranges and batch statistics."""

import copy
import importlib.util
import itertools
import json

import numpy as np
import pytest
import torch

from apq import ApqError, Subnet
from apq.subnet import largest, smallest
from elastic_nn.importance import sort_channels
from elastic_nn.modules import ElasticBatchNorm2d, QuantizedLayer
from elastic_nn.networks import OnceForAllNet
from elastic_nn.networks.batch_statistics import adopt_batch_statistics, center_streams
from elastic_nn.networks.files import load_supernet, save_supernet
from utils import checkpoint

INNER_LAYERS = ("inverted_bottleneck", "depth_conv", "point_linear")


@pytest.fixture
def net(tiny_space, randomize):
    torch.manual_seed(0)
    return randomize(OnceForAllNet(tiny_space, n_classes=5))


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def draw(space, n, seed=0):
    return space.decode(space.sample(np.random.default_rng(seed), n))


@pytest.fixture(scope="module")
def golden(reference):
    spec = importlib.util.spec_from_file_location("golden", reference / "golden_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden_net(reference, golden):
    shapes = json.loads((reference / "ofa_state_dict.json").read_text())
    net = OnceForAllNet()
    assert {n for n in net.paper_state_dict() if not n.endswith("_range")} == set(shapes)
    net.load_paper_state_dict(golden.golden_state_dict(shapes))
    return net.eval()


def test_agrees_with_the_authors_forward_passes(reference, golden, golden_net):
    expected = np.load(reference / "golden_forward.npz")
    exact = 0
    for i, case in enumerate(json.loads((reference / "golden_forward.json").read_text())):
        net = copy.deepcopy(golden_net)
        net.activate(Subnet.from_paper(case["arch"]), quantize=case["kind"] != "fp32")
        if case["ranges"]:
            net.set_quantization_ranges(case["ranges"])
        with torch.no_grad():
            logits = net(golden.golden_input(case["input_seed"])).numpy()
        wanted = expected[f"logits_{i}"]
        off = np.abs(logits - wanted)
        if case["kind"] == "fp32":
            assert off.max() < 1e-4
        assert np.corrcoef(logits.ravel(), wanted.ravel())[0, 1] > 0.99
        exact += np.quantile(off, 0.99) < 5e-3 * wanted.std()
    assert exact >= 5


@pytest.mark.parametrize("quantize", [False, True])
def test_an_extracted_subnet_computes_the_same(net, tiny_space, images, quantize):
    for subnet in [*draw(tiny_space, 6), largest(tiny_space), smallest(tiny_space)]:
        net.activate(subnet, quantize)
        compact = net.extract()
        with torch.no_grad():
            torch.testing.assert_close(compact(images), net(images), atol=1e-5, rtol=0)
        assert compact.quantize == (quantize and subnet.quantized)


def test_a_supernet_learns_no_ranges(net):
    net.set_quantizer("paper")
    with pytest.raises(ApqError, match=r"quantizer 'lsq-channel'.*extract"):
        net.set_quantizer("lsq-channel")


def test_an_extracted_subnet_is_compact(net, tiny_space):
    net.activate(smallest(tiny_space))
    compact = net.extract()
    shapes = {n: tuple(t.shape) for n, t in compact.state_dict().items()}
    # One block a stage, expanded 4x, kernel 3, and nothing of the other choices.
    assert shapes["blocks.1.mobile_inverted_conv.depth_conv.conv.weight"] == (32, 1, 3, 3)
    assert shapes["blocks.2.mobile_inverted_conv.inverted_bottleneck.conv.weight"] == (64, 16, 1, 1)
    assert len(compact.blocks) == 3
    assert not [name for name in shapes if "matrix" in name]


def test_an_extracted_subnet_is_a_copy(net, tiny_space, images):
    net.activate(largest(tiny_space))
    compact = net.extract()
    before = compact(images).detach()
    for parameter in net.parameters():
        parameter.data.mul_(1.1)
    assert torch.equal(compact(images), before)


def test_bits_change_the_output_and_full_precision_ignores_them(net, tiny_space, images):
    subnet = largest(tiny_space)
    with torch.no_grad():
        outputs = {}
        for bits in (4, 8):
            net.activate(subnet.with_bits(bits))
            outputs[bits] = net(images)
        net.activate(subnet)
        full = net(images)
        net.activate(subnet.with_bits(4), quantize=False)
        assert torch.equal(net(images), full)
    error = {bits: (out - full).norm() for bits, out in outputs.items()}
    assert 0 < error[8] < error[4]


def test_every_layer_runs_with_the_bits_that_are_its_own(net, tiny_space):
    (subnet,) = draw(tiny_space, 1)
    net.activate(subnet)
    for one in (net, net.extract()):
        bits = {n: (layer.w_bits, layer.a_bits) for n, (layer, _) in one.quantized_layers().items()}
        first = [bits[f"blocks.0.mobile_inverted_conv.{n}.conv"] for n in INNER_LAYERS[1:]]
        assert first == [(8, 8), (8, 8)]
        assert bits["first_conv.conv"] == (8, None)
        assert bits["feature_mix_layer.conv"] == (8, 7)  # as the authors' network
        assert bits["classifier.linear"] == (8, 8)
        names = [name for name, _ in one.running_blocks()][1:]
        for name, block in zip(names, subnet.active_blocks, strict=True):
            i = block.index
            pointwise = (subnet.pw_w_bits[i], subnet.pw_a_bits[i])
            depthwise = (subnet.dw_w_bits[i], subnet.dw_a_bits[i])
            found = [bits[f"{name}.mobile_inverted_conv.{n}.conv"] for n in INNER_LAYERS]
            assert found == [pointwise, depthwise, pointwise]


def test_the_stem_sees_the_image_unquantized(net, tiny_space):
    net.activate(largest(tiny_space).with_bits(4))
    stem = net.first_conv.conv
    assert (stem.w_bits, stem.a_bits) == (8, None)
    assert (net.classifier.linear.w_bits, net.classifier.linear.a_bits) == (8, 8)


def test_a_smaller_kernel_is_the_centre_through_the_matrix_by_hand(tiny_space):
    conv = OnceForAllNet(tiny_space, 2).blocks[1].mobile_inverted_conv.depth_conv.conv
    conv.active_kernel = 3
    centre = conv.weight[:, :, 2:5, 2:5]
    torch.testing.assert_close(conv.active_filter(48), centre)  # identities at the start
    with torch.no_grad():
        conv.get_parameter("5to3_matrix").copy_(2 * torch.eye(9).flip(0))
    flipped = 2 * centre.flatten(2).flip(2).view_as(centre)
    torch.testing.assert_close(conv.active_filter(48), flipped)
    torch.testing.assert_close(conv.active_filter(40), flipped[:40])


def test_both_spellings_of_published_names_load(net, tiny_space, images, tmp_path):
    long = net.paper_state_dict()
    assert "blocks.1.mobile_inverted_conv.depth_conv.conv.conv.weight" in long
    assert "blocks.1.mobile_inverted_conv.depth_conv.conv.7to5_matrix" in long
    assert "blocks.2.mobile_inverted_conv.point_linear.bn.bn.running_var" in long
    short = net.state_dict()
    data_parallel = {f"module.{name}": tensor for name, tensor in long.items()}
    for state in (long, short, data_parallel):
        other = OnceForAllNet(tiny_space, n_classes=5).eval()
        other.load_paper_state_dict(state)
        assert torch.equal(other(images), net(images))
    save_supernet(net, tmp_path / "supernet")
    loaded = load_supernet(tmp_path / "supernet", tiny_space)
    assert loaded.has_ranges
    assert torch.equal(loaded.net.eval()(images), net(images))


def test_a_full_precision_file_leaves_the_ranges_alone(net, tiny_space, tmp_path):
    state = {k: v for k, v in net.paper_state_dict().items() if not k.endswith("_range")}
    checkpoint.save(tmp_path / "ofa", {"state_dict": state})
    loaded = load_supernet(tmp_path / "ofa", tiny_space)
    assert not loaded.has_ranges
    assert loaded.net.first_conv.conv.activation_range.item() == 6


def test_a_wrong_supernet_file_is_named(net, tiny_space, tmp_path):
    state = net.paper_state_dict()
    path = tmp_path / "ofa"
    for change, message in (
        ({"blocks.1.x": torch.zeros(1)}, r"ofa: .*unknown tensor 'blocks.1.x'"),
        ({"first_conv.conv.weight": torch.zeros(8, 3, 5, 5)}, r"shape \(8, 3, 5, 5\).*8, 3, 3, 3"),
        ({"feature_mix_layer.bn.bias": None}, "lacks the tensor 'feature_mix_layer.bn.bias'"),
        ({"classifier.linear.weight": None}, "no supernet: .*classifier.linear.weight"),
    ):
        changed = {k: v for k, v in {**state, **change}.items() if v is not None}
        checkpoint.save(path, {"state_dict": changed})
        with pytest.raises(ApqError, match=message):
            load_supernet(path, tiny_space)


def test_ranges_are_set_by_name(net):
    net.set_quantization_ranges({"blocks.1.mobile_inverted_conv.depth_conv.conv": (3.5, 0.25)})
    layer = net.blocks[1].mobile_inverted_conv.depth_conv.conv
    assert (layer.activation_range.item(), layer.weight_range.item()) == (3.5, 0.25)
    with pytest.raises(ApqError, match=r"'classifer.linear' \(did you mean 'classifier.linear'"):
        net.set_quantization_ranges({"classifer.linear": (1, 1)})


def test_ranges_are_set_from_the_tensors_of_a_checkpoint(net):
    net.set_quantization_ranges(dict.fromkeys(net.quantized_layers(), (2.5, 0.75)))
    state = net.paper_state_dict()
    other = OnceForAllNet(net.space, net.n_classes)
    other.set_quantization_ranges(
        {
            name: (state[f"{name}.activation_range"], state[f"{name}.weight_range"])
            for name in net.quantized_layers()
        }
    )
    for layer, _ in other.quantized_layers().values():
        assert (layer.activation_range.item(), layer.weight_range.item()) == (2.5, 0.75)
    with pytest.raises(ApqError, match=r"'classifier.linear.weight_range' has shape \(3,\)"):
        net.set_quantization_ranges({"classifier.linear": (1, torch.ones(3))})


def test_calibration_finds_what_the_data_hold(net, tiny_space, images):
    net.activate(smallest(tiny_space).with_bits(4))
    idle = net.blocks[2].mobile_inverted_conv.depth_conv.conv
    net.calibrate(images)
    assert idle.activation_range.item() == 6  # left out by the depth
    seen = {}
    layers = net.quantized_layers()
    hooks = [
        layer.register_forward_pre_hook(lambda m, x, n=name: seen.__setitem__(n, x[0]))
        for name, (layer, _) in layers.items()
    ]
    net.activate(net.subnet, quantize=False)
    net(images)
    for hook in hooks:
        hook.remove()
    for name, (layer, in_channels) in layers.items():
        values = seen[name].abs()
        share = (values <= layer.activation_range).float().mean().item()
        assert 0.99 <= share < 1.0 or values.max() <= layer.activation_range, name
        assert layer.weight_range.item() == pytest.approx(
            layer.active_filter(in_channels).abs().max().item()
        )
    net.activate(smallest(tiny_space).with_bits(4))
    assert layers["blocks.1.mobile_inverted_conv.depth_conv.conv"][0].a_bits == 4


@torch.no_grad()
def test_other_batch_statistics_and_the_same_function(net):
    generator = torch.Generator().manual_seed(0)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(1, 9, generator=generator)
    batches = [torch.randn(n, 3, 32, 32, generator=generator) for n in (2, 6)]
    net.eval()
    before = [net(batch) for batch in batches]
    adopt_batch_statistics(net, batches)
    for batch, wanted in zip(batches, before, strict=True):
        torch.testing.assert_close(net(batch), wanted, atol=1e-4, rtol=1e-4)
    # They are those of all images: training on these together computes the same as well.
    seen = net.first_conv.conv(torch.cat(batches))
    torch.testing.assert_close(norms[0].running_mean, seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    trained = net.train()(torch.cat(batches))
    torch.testing.assert_close(trained, torch.cat(before), atol=1e-3, rtol=1e-3)
    with pytest.raises(ApqError, match="without images"):
        adopt_batch_statistics(net, [])


@torch.no_grad()
def test_centred_streams_and_the_same_function(net, tiny_space, images):
    net.activate(largest(tiny_space).with_bits(4))
    compact = net.extract().eval()
    for module in compact.modules():
        if isinstance(module, ElasticBatchNorm2d):
            module.bias.normal_()
    with compact.full_precision():
        before = compact(images)
    center_streams(compact)
    with compact.full_precision():
        torch.testing.assert_close(compact(images), before, atol=1e-4, rtol=1e-4)
    blocks = [block for _, block in compact.running_blocks()]
    for block, following in itertools.pairwise(blocks):
        reader = following.mobile_inverted_conv.inverted_bottleneck.conv
        half = 0.0 if block.shortcut else reader.activation_range.item() / 7 / 2
        bias = block.mobile_inverted_conv.point_linear.bn.bias
        torch.testing.assert_close(bias, torch.full_like(bias, -half), atol=1e-6, rtol=1e-5)


def test_bn_statistics_are_those_of_the_data(net, tiny_space):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 3, 32, 32, generator=generator) * 2 + 1 for n in (6, 2)]
    net.activate(smallest(tiny_space))
    untouched = net.blocks[2].mobile_inverted_conv.depth_conv.bn.running_mean.clone()
    net.reset_bn_statistics(batches)
    with torch.no_grad():
        stem = [net.first_conv.conv(b) for b in batches]
    # Every image counts the same, whatever its batch.
    mean = torch.cat(stem).mean((0, 2, 3))
    torch.testing.assert_close(net.first_conv.bn.running_mean, mean)
    var = (stem[0].var((0, 2, 3)) * 6 + stem[1].var((0, 2, 3)) * 2) / 8
    torch.testing.assert_close(net.first_conv.bn.running_var, var)
    assert torch.equal(net.blocks[2].mobile_inverted_conv.depth_conv.bn.running_mean, untouched)
    norms = [m for m in net.modules() if isinstance(m, ElasticBatchNorm2d)]
    assert {n.momentum for n in norms} == {0.1}
    assert not any(n.training for n in norms)
    with pytest.raises(ApqError, match="without images"):
        net.reset_bn_statistics([])


def test_sorting_channels_keeps_the_largest_and_puts_important_ones_first(net, tiny_space, images):
    net.activate(largest(tiny_space))
    before = net(images).detach()
    sort_channels(net)
    torch.testing.assert_close(net(images).detach(), before, atol=1e-5, rtol=1e-5)
    for block in list(net.blocks)[1:]:
        norms = block.mobile_inverted_conv.point_linear.conv.weight.abs().sum((0, 2, 3))
        assert (norms.diff() <= 0).all()


def test_gradients_reach_what_the_subnet_uses_and_nothing_else(net, tiny_space, images):
    net.train()
    net.activate(smallest(tiny_space).with_bits(4))
    net(images).sum().backward()
    used = {id(layer) for layer, _ in net.quantized_layers().values()}
    for name, module in net.named_modules():
        if isinstance(module, QuantizedLayer):
            assert (module.weight.grad is not None) == (id(module) in used), name
    conv = net.blocks[1].mobile_inverted_conv.inverted_bottleneck.conv
    assert conv.weight.grad[:32].abs().sum() > 0
    assert conv.weight.grad[32:].abs().sum() == 0


def test_a_subnet_of_another_space_is_refused(net):
    with pytest.raises(ApqError, match="another search space"):
        net.activate(largest())
