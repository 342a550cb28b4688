"""Starts the command at hand again in several processes of this machine."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid

import torch

from apq.errors import ApqError
from apq.launched import launched
from imagenet_codebase.run_manager.distributed import LOST_STATUS, TELLS_LOSS

SHUTDOWN_S = 600
"""How long processes have to stop: Ctrl-C waits for the end of a validation."""


def relaunch(n_processes: int | None, device: str, again: str = "the same command") -> int | None:
    """Run this command once more in several processes, and return their exit status.

    Without `n_processes`, it is one on each visible GPU, or a single one where there is none or the
    device is not all of them. Returns None when this process is to do the work: alone, or as one
    of those that `torchrun` has started. Raises ApqError when a process was killed, with what to
    type `again` to go on.
    """
    n = n_processes or _n_gpus(device)
    if launched() or n < 2:
        return None
    # What `torchrun --standalone` does, but for its report of a failure: the failing process has
    # told that in a line.
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)
    os.environ[TELLS_LOSS] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n)))
    logs = tempfile.TemporaryDirectory(prefix="apq-")  # empty, and left behind otherwise
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=SHUTDOWN_S,
        # Not SIGTERM, which the command takes as Ctrl-C: the processes stop after their step then.
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",
        logs_specs=DefaultLogsSpecs(log_dir=logs.name),
    )
    try:
        elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
    except SignalException as error:
        return 130 if error.sigval == signal.SIGINT else 128 + error.sigval
    except ChildFailedError as error:
        statuses = {number: failure.exitcode for number, failure in error.failures.items()}
        told = [s for s in statuses.values() if s > 0 and s != LOST_STATUS]
        if told:  # by the process itself; the others were ended for that
            return told[0]
        raise ApqError(f"{_loss(statuses, n)}; {again} goes on from the last save") from None
    finally:
        logs.cleanup()
    return 0


def _loss(statuses: dict[int, int], n: int) -> str:
    """Say which of n processes was lost, by the exit statuses of those that failed."""
    # SIGTERM is what the others are ended with, if they did not notice themselves.
    last = {-signal.SIGTERM: 1, LOST_STATUS: 2}
    first = min(statuses, key=lambda number: last.get(statuses[number], 0))
    if statuses[first] == LOST_STATUS:
        return f"the {n} processes have lost each other"
    return f"process {first} of {n} was ended by signal {-statuses[first]}"


def _n_gpus(device: str) -> int:
    every = device in ("auto", "cuda") and torch.cuda.is_available()
    return torch.cuda.device_count() if every else 1
