"""Compiled passes compute what the plain ones do."""

import pytest
import torch

from apq import ApqError
from elastic_nn.modules import kernels
from elastic_nn.modules.quantizers import quantize_relu6, quantize_signed
from imagenet_codebase.run_manager.compiling import compile_where_it_pays
from imagenet_codebase.run_manager.settings import TrainingSettings

CPU = torch.device("cpu")
LAYOUTS = (torch.channels_last, torch.contiguous_format)


@pytest.fixture
def plain_again():
    yield
    kernels._compiled.clear()


def results(quantize, learned, layout):
    """Return values and gradients of a batch that is large enough to run compiled."""
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(3, 12, 32, 33, generator=generator)).to(memory_format=layout)
    grad = torch.randn(x.shape, generator=generator).to(memory_format=layout)
    x.requires_grad_()
    limit = torch.tensor([5.0], requires_grad=True)
    y = quantize(x, limit, 4, learned)
    y.backward(grad)
    assert y.stride() == x.stride()
    return y.detach(), x.grad, limit.grad


def test_compiled_passes_compute_the_same(plain_again):
    cases = [
        (q, lsq, f) for q in (quantize_signed, quantize_relu6) for lsq in (0, 1) for f in LAYOUTS
    ]
    plain = [results(*case) for case in cases]
    kernels.compile_kernels(CPU)
    assert len(kernels._compiled) == 4
    for case, (y, x_grad, limit_grad) in zip(cases, plain, strict=True):
        compiled_y, compiled_x_grad, compiled_limit_grad = results(*case)
        assert torch.equal(compiled_y, y)
        assert torch.equal(compiled_x_grad, x_grad)
        torch.testing.assert_close(compiled_limit_grad, limit_grad, rtol=1e-4, atol=1e-4)


def test_a_broken_compiler_is_told_or_done_without(monkeypatch, capsys, plain_again):
    def broken(*_, **__):
        def fail(*_):
            raise RuntimeError("no such program: g++\nand a long story")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ApqError, match=r"cannot compile here \(no such program: g\+\+\): install"):
        compile_where_it_pays(TrainingSettings(compile=True), 64, CPU)
    monkeypatch.setenv("CXX", "true")  # there is such a program, but it is no compiler
    compile_where_it_pays(TrainingSettings(n_epochs=1), 500 * 64, CPU)
    assert "note: torch cannot compile here" in capsys.readouterr().out
    assert not kernels._compiled


def test_short_runs_and_those_that_decline_are_not_compiled(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    compile_where_it_pays(TrainingSettings(n_epochs=1), 499 * 64, CPU)
    compile_where_it_pays(TrainingSettings(n_epochs=1, compile=False), 10**6, CPU)
    assert not capsys.readouterr().out
