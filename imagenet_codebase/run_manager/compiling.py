"""Whether a run's quantizers are compiled."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from apq.errors import ApqError
from elastic_nn.modules.kernels import compile_kernels, use_plain_kernels
from elastic_nn.quantizer_kinds import Quantizer
from imagenet_codebase.run_manager import distributed
from imagenet_codebase.run_manager.settings import TrainingSettings

# Compiling takes 5 to 15 s, and saves a tenth of a second or so a step.
WORTHWHILE_STEPS = 500
CPP_COMPILERS = ("g++", "clang++")


def compile_where_it_pays(
    settings: TrainingSettings, quantizer: Quantizer, n_images: int, device: torch.device
) -> None:
    """Compile the passes if that is asked for, or if nothing is and the run is long enough.

    Otherwise they run as they are, whatever an earlier run of this process has compiled.
    Raises ApqError when it is asked for and cannot be done.
    """
    use_plain_kernels()
    if settings.compile is None:
        together = settings.batch_size * distributed.shard().n_processes
        n_steps = settings.n_epochs * (settings.epoch_images or n_images) // together
        if n_steps < WORTHWHILE_STEPS or not _has_compiler(device):
            return
    elif not settings.compile:
        return
    try:
        compile_kernels(quantizer, device)
        print("quantizers: compiled (--no-compile leaves them as they are)", flush=True)
    except ApqError as error:
        if settings.compile:
            raise
        print(f"note: {error}", flush=True)


def _has_compiler(device: torch.device) -> bool:
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    own = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([own] if own else CPP_COMPILERS))
