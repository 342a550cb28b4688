"""Where learned ranges start: where rounding errs least."""

import pytest
import torch

from apq.subnet import largest
from elastic_nn.modules import ElasticConv2d
from elastic_nn.modules.quantizers import quantize_relu6, quantize_signed
from elastic_nn.networks import MobileNet
from elastic_nn.networks.calibration import set_activation_range, set_weight_range
from elastic_nn.quantizer_kinds import find_quantizer


def error(values, limit, bits, quantize):
    return (quantize(values, limit.reshape(1), bits) - values).square().sum()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_no_other_range_errs_less(bits, signed):
    torch.manual_seed(0)
    layer = ElasticConv2d(16, 64, 3, signed_input=signed)
    torch.nn.init.normal_(layer.weight)
    layer.set_quantizer(find_quantizer("lsq"))
    layer.set_bits(bits, bits)
    x = torch.randn(4, 16, 20, 20)
    set_weight_range(layer, 16)
    set_activation_range(layer, (x,), bits)
    quantize = quantize_signed if signed else quantize_relu6
    seen = x.flatten() if signed else x.flatten().clamp(0, 6)
    with torch.no_grad():
        for values, limit, how in (
            (layer.weight.flatten(), layer.weight_range, quantize_signed),
            (seen, layer.activation_range, quantize),
        ):
            least = error(values, limit, bits, how)
            for share in torch.linspace(0.3, 1, 30):
                assert least <= 1.01 * error(values, share * values.abs().max(), bits, how)
            # With 4 bits the largest values are given up for the resolution of the others.
            assert bits > 4 or limit.item() < 0.9 * values.abs().max().item()


def test_a_network_is_calibrated_for_the_bits_it_will_run_with(tiny_space):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    net = MobileNet.from_subnet(largest(tiny_space).with_bits(4), 4)
    net.set_quantizer("lsq")
    net.calibrate(images)
    seen = {}
    layers = [layer for layer, _ in net.quantized_layers().values() if layer.a_bits == 4]
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, x: seen.__setitem__(layer, x[0].clone()))
    with torch.no_grad(), net.eval().full_precision():
        net(images)
    for layer in layers:
        wanted = ElasticConv2d(1, 1, signed_input=layer.signed_input)
        wanted.set_quantizer(find_quantizer("lsq"))
        set_activation_range(wanted, (seen[layer],), 4)
        torch.testing.assert_close(layer.activation_range, wanted.activation_range)
    assert len(layers) > 5
