"""Starting from EfficientNet-Lite0: the same function, wherever the two networks agree."""

import pytest
import torch
import torch.nn.functional as F

from apq import ApqError
from apq.space import PAPER_SPACE
from apq.subnet import largest, smallest
from elastic_nn.networks import OnceForAllNet, efficientnet_lite

# (input, output, kernel, stride) of its blocks, from the table of the EfficientNet paper (ICML
# 2019), with the widths that the lite variant keeps.
BLOCKS = (
    (32, 16, 3, 1),
    (16, 24, 3, 2), (24, 24, 3, 1),
    (24, 40, 5, 2), (40, 40, 5, 1),
    (40, 80, 3, 2), (80, 80, 3, 1), (80, 80, 3, 1),
    (80, 112, 5, 1), (112, 112, 5, 1), (112, 112, 5, 1),
    (112, 192, 5, 2), (192, 192, 5, 1), (192, 192, 5, 1), (192, 192, 5, 1),
    (192, 320, 3, 1),
)  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    state = {}

    def add(conv, bn, *shape):
        weight = torch.randn(shape, generator=generator)
        state[f"{conv}.weight"] = weight / weight[0].numel() ** 0.5
        state[f"{bn}.weight"] = torch.rand(shape[0], generator=generator) + 0.5
        state[f"{bn}.bias"] = torch.randn(shape[0], generator=generator)
        state[f"{bn}.running_mean"] = torch.randn(shape[0], generator=generator)
        state[f"{bn}.running_var"] = torch.rand(shape[0], generator=generator) + 0.5

    add("_conv_stem", "_bn0", 32, 3, 3, 3)
    for i, (c_in, c_out, kernel, _) in enumerate(BLOCKS):
        name, width = f"_blocks.{i}", c_in * (6 if i else 1)
        if i:
            add(f"{name}._expand_conv", f"{name}._bn0", width, c_in, 1, 1)
        add(f"{name}._depthwise_conv", f"{name}._bn1", width, 1, kernel, kernel)
        add(f"{name}._project_conv", f"{name}._bn2", c_out, width, 1, 1)
    add("_conv_head", "_bn1", 1280, 320, 1, 1)
    return state


MEAN, STD = (0.5, 0.4, 0.3), (0.1, 0.2, 0.25)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 64, 64, generator=generator) for n in (3, 5)]


def loaded(weights, batches):
    torch.manual_seed(0)
    net = OnceForAllNet(n_classes=10)
    efficientnet_lite.load(net, weights, batches, MEAN, STD)
    return net.eval()


def reference_layer(weights, x, conv, bn, stride=1, groups=1):
    """One layer, written down here once more: TensorFlow's padding, the source's statistics."""
    weight = weights[f"{conv}.weight"]
    total = weight.size(-1) - stride  # what an even side lacks
    before = total // 2
    x = F.pad(x, (before, total - before) * 2)
    x = F.conv2d(x, weight, None, stride, groups=groups)
    norm = [weights[f"{bn}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *norm, training=False, eps=1e-3)


def reference(weights, x, n_blocks):
    """What its blocks make of its stem's output."""
    for i, (c_in, c_out, _, stride) in enumerate(BLOCKS[:n_blocks]):
        name = f"_blocks.{i}"
        y = x
        if i:
            y = F.relu6(reference_layer(weights, y, f"{name}._expand_conv", f"{name}._bn0"))
        y = F.relu6(
            reference_layer(
                weights, y, f"{name}._depthwise_conv", f"{name}._bn1", stride, y.size(1)
            )
        )
        y = reference_layer(weights, y, f"{name}._project_conv", f"{name}._bn2")
        x = x + y if stride == 1 and c_in == c_out else y
    return x


@torch.no_grad()
def test_the_first_stages_compute_the_same(weights, batches):
    net = loaded(weights, batches)
    stem = net.first_conv(batches[0])
    x = net.blocks[0](stem)
    # Four blocks a stage of ours, of which the source has two, two and three.
    for block in net.blocks[1:13]:
        x = block(x)
    torch.testing.assert_close(x, reference(weights, F.relu6(stem), 8), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_stem_reads_the_same_pixels(weights, batches):
    net = loaded(weights, batches)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    pixels = 255 * (batches[0] * std + mean)
    # Shifted by a pixel, and but for the borders: it pads with another grey, and elsewhere.
    x = ((pixels - 127) / 128)[:, :, 1:, 1:]
    wanted = reference_layer(weights, x, "_conv_stem", "_bn0", 2)
    got = net.first_conv(batches[0])[:, :, 1:, 1:]
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_training_computes_what_the_source_does(weights, batches):
    net = loaded(weights, batches[:1])
    by_running_statistics = net(batches[0])
    net.train()
    torch.testing.assert_close(net(batches[0]), by_running_statistics, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_blocks_that_the_source_lacks_change_nothing(weights, batches):
    net = loaded(weights, batches).train()
    for index in (3, 4, 7, 8, 12, 16):
        block = net.blocks[index]
        x = torch.randn(2, block.mobile_inverted_conv.point_linear.conv.out_channels, 8, 8)
        assert torch.equal(block(x), x)
        # Not dead, though: they hold filters to learn from.
        assert block.mobile_inverted_conv.depth_conv.conv.weight.abs().sum() > 0


@torch.no_grad()
def test_the_wider_stage_keeps_the_channels_that_weigh_most(weights, batches):
    weights = dict(weights)
    dull = torch.arange(0, 112, 7)  # sixteen channels that nothing reads
    for block in (9, 10, 11):
        weights[f"_blocks.{block}._expand_conv.weight"] = weights[
            f"_blocks.{block}._expand_conv.weight"
        ].clone()
        weights[f"_blocks.{block}._expand_conv.weight"][:, dull] = 0
    net = loaded(weights, batches)
    kept = [c for c in range(112) if c not in dull]
    got = net.blocks[13].mobile_inverted_conv.point_linear.conv.weight
    wanted = weights["_blocks.8._project_conv.weight"][kept]
    assert torch.equal(got, wanted)


def test_every_subnet_runs_and_learns(weights, batches):
    net = loaded(weights, batches).train()
    for subnet in (largest(PAPER_SPACE), smallest(PAPER_SPACE)):
        net.activate(subnet.full_precision())
        loss = net(torch.randn(2, 3, 32, 32)).square().sum()
        loss.backward()
        assert torch.isfinite(loss)


def test_a_missing_tensor_is_named(weights, batches):
    weights = {k: v for k, v in weights.items() if k != "_blocks.4._bn1.bias"}
    with pytest.raises(ApqError, match=r"lack the tensor '_blocks\.4\._bn1\.bias'"):
        loaded(weights, batches)


def test_another_space_is_refused(weights, batches, tiny_space):
    net = OnceForAllNet(tiny_space, n_classes=10)
    with pytest.raises(ApqError, match="do not fit this search space"):
        efficientnet_lite.load(net, weights, batches, MEAN, STD)
