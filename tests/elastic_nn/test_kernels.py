"""Compiled passes compute what the plain ones do."""

from functools import partial

import pytest
import torch
import torch._inductor

from apq import ApqError
from elastic_nn.modules import kernels
from elastic_nn.modules.quantizers import quantize_relu6, quantize_signed
from elastic_nn.quantizer_kinds import PAPER, QUANTIZERS
from imagenet_codebase.run_manager import compiling
from imagenet_codebase.run_manager.compiling import compile_where_it_pays
from imagenet_codebase.run_manager.settings import TrainingSettings

CPU = torch.device("cpu")
FULL = partial(quantize_signed, full=True)
LAYOUTS = (torch.channels_last, torch.contiguous_format)


@pytest.fixture
def plain_again():
    yield
    kernels.use_plain_kernels()


def results(quantize, learned, shape, layout, n_limits=1):
    """Return values and gradients of a tensor, under one range or one for each of its rows."""
    generator = torch.Generator().manual_seed(0)
    x = 4 * torch.randn(shape, generator=generator)
    grad = torch.randn(shape, generator=generator)
    if layout:
        x, grad = x.to(memory_format=layout), grad.to(memory_format=layout)
    x.requires_grad_()
    limit = torch.linspace(1, 5, n_limits).view(-1, *[1] * (x.dim() - 1)).requires_grad_()
    y = quantize(x, limit if n_limits > 1 else limit.flatten(), 4, learned)
    y.backward(grad)
    assert y.stride() == x.stride()
    return y.detach(), x.grad, limit.grad


CASES = [
    (quantize, learned, shape, layout)
    for quantize in (quantize_signed, quantize_relu6, FULL)
    for learned in (False, True)
    for shape in ((3, 12, 32, 33), (16, 24, 56, 57), (7, 1, 3, 3))
    for layout in LAYOUTS
] + [
    (quantize_signed, True, (7, 1, 3, 3), torch.contiguous_format, 7),
    (quantize_signed, True, (6, 20, 1, 1), torch.channels_last, 6),
    (quantize_signed, True, (5, 40), None, 5),
    (FULL, True, (6, 20, 1, 1), torch.channels_last, 6),
]


def test_compiled_passes_compute_the_same(plain_again, monkeypatch):
    plain = [results(*case) for case in CASES]
    for name, n_compiled in (("paper", 2), ("lsq", 4), ("lsq-channel", 6), ("lsq", 6)):
        kernels.compile_kernels(QUANTIZERS[name], CPU)
        assert len(kernels._in_use) == n_compiled
    for case, (y, x_grad, limit_grad) in zip(CASES, plain, strict=True):
        compiled_y, compiled_x_grad, compiled_limit_grad = results(*case)
        assert torch.equal(compiled_y, y)
        assert torch.equal(compiled_x_grad, x_grad)
        torch.testing.assert_close(compiled_limit_grad, limit_grad, rtol=1e-4, atol=1e-4)
    # A later run of the same process decides for itself, and compiles nothing twice.
    compile_where_it_pays(TrainingSettings(compile=False), PAPER, 10**6, CPU)
    assert not kernels._in_use
    monkeypatch.setattr(kernels, "_compile", None)
    compile_where_it_pays(TrainingSettings(compile=True), PAPER, 64, CPU)
    assert len(kernels._in_use) == 2


def test_filters_of_a_part_of_the_channels_are_rounded_as_copies_are():
    whole = torch.randn(8, 6, 1, 1, generator=torch.Generator().manual_seed(0))
    limit = torch.tensor([1.5], requires_grad=True)
    part = whole.clone().requires_grad_()
    rounded = quantize_signed(part[:5, :3], limit, 4)
    assert torch.equal(rounded, quantize_signed(whole[:5, :3].contiguous(), limit, 4))
    rounded.sum().backward()
    inside = whole.abs() < 1.5
    assert torch.equal(part.grad[:5, :3], inside[:5, :3].float())
    assert part.grad[5:].eq(0).all()
    assert part.grad[:, 3:].eq(0).all()


def test_gradients_in_another_order_than_the_values_are_put_into_theirs():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grad = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    quantize_signed(x, torch.tensor([9.0]), 4).backward(grad.to(memory_format=LAYOUTS[0]))
    assert torch.equal(x.grad, grad)


def test_a_broken_compiler_is_told_or_done_without(monkeypatch, capsys, plain_again):
    def broken(*_, **__):
        raise RuntimeError("no such program: g++\nand a long story")

    monkeypatch.setattr(torch._inductor, "standalone_compile", broken)
    monkeypatch.setattr(kernels, "_compiled", {})
    with pytest.raises(ApqError, match=r"cannot compile here \(no such program: g\+\+\): install"):
        compile_where_it_pays(TrainingSettings(compile=True), PAPER, 64, CPU)
    monkeypatch.setenv("CXX", "true")  # there is such a program, but it is no compiler
    compile_where_it_pays(TrainingSettings(n_epochs=1), PAPER, 500 * 64, CPU)
    assert "note: torch cannot compile here" in capsys.readouterr().out
    assert not kernels._in_use


def test_short_runs_and_those_that_decline_are_not_compiled(monkeypatch, capsys):
    monkeypatch.setattr(compiling, "compile_kernels", lambda *_: pytest.fail("compiled"))
    compile_where_it_pays(TrainingSettings(n_epochs=1), PAPER, 499 * 64, CPU)
    compile_where_it_pays(TrainingSettings(n_epochs=1, compile=False), PAPER, 10**6, CPU)
    assert not capsys.readouterr().out
