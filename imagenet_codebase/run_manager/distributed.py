"""Several processes that train and measure as one: on one machine or many, or just this one.

Every function works in a single process too, where it does nothing or next to nothing. With
several, all of them have to call it, in the same order.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from apq.errors import ApqError
from apq.launched import launched
from imagenet_codebase.data_providers import Shard
from imagenet_codebase.run_manager.rendezvous import rendezvous

T = TypeVar("T")

CPU = torch.device("cpu")
# Items that a process works on before all wait for each other: cheap and expensive ones even out.
DEALT = 4
LOOK_FOR_PARENT_S = 1.0
TELLS_LOSS = "APQ_LAUNCHER_TELLS_LOSS"
"""Variable of the environment that a launcher sets which tells when it has lost a process."""
LOST_STATUS = 75
"""Exit status of the other processes then, which tell nothing."""

_attempt = 1  # of the processes to join, as they have agreed


def restarted() -> bool:
    """Whether `torchrun` has started this run again after a process of it was lost."""
    # Each machine counts its own restarts, and the store that counts attempts may be a new one.
    here = _attempt > 1 or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return any_of(here)[0]


@contextmanager
def group(device: torch.device, again: str = "the same command") -> Iterator[torch.device]:
    """Join the other processes, if there are any, and yield the device of this one.

    All but the first fall silent, and of several that meet errors one tells its own. Raises
    ApqError when a machine has fewer GPUs than processes, and, with what to type `again`, when
    another process is lost.
    """
    global _attempt
    if not launched():
        yield device
        return
    _end_with_parent()
    if device.type == "cuda":
        device = _own_gpu()
    # Small things about the run itself go between the CPUs: no GPU has to wait for them.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, _attempt, rank, world_size = rendezvous()
    try:
        with _told_once(store), loss_explained(again):
            # Another process may be lost while they connect, too.
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
            if not is_first():
                _silence("stdout")
            yield device
            dist.barrier()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _told_once(store: dist.Store) -> Iterator[None]:
    """Let this process tell its error unless another has told one: the same, or the cause."""
    try:
        yield
    except (ApqError, OSError):
        if _is_before_others(store):
            # torchrun ends all as soon as one has ended, and this one has yet to speak.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            _silence("stderr")
        raise


@contextmanager
def loss_explained(again: str) -> Iterator[None]:
    """Tell the loss of another process in a line, and what goes on from the last save."""
    try:
        yield
    except RuntimeError as error:
        if "onnection" not in str(error):
            raise
        if TELLS_LOSS in os.environ:
            raise SystemExit(LOST_STATUS) from None
        if _starts_again():
            again = "torchrun starts all again, and the run"
        raise ApqError(
            f"another process of this run is lost; {again} goes on from the last save"
        ) from None


def _starts_again() -> bool:
    """Whether torchrun has a restart left on this machine."""
    most, count = (
        int(os.environ.get(f"TORCHELASTIC_{name}", "0"))
        for name in ("MAX_RESTARTS", "RESTART_COUNT")
    )
    return count < most


def _is_before_others(store: dist.Store) -> bool:
    try:
        return store.add("errors told", 1) == 1
    except RuntimeError:  # the store was the first process's and is gone with it
        return True


def _silence(stream: str) -> None:
    setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends


def _end_with_parent() -> None:
    """End this process soon after the one that started it, were that killed.

    Nobody sees it any more then, and the same command typed again would write to the same folder.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_FOR_PARENT_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _own_gpu() -> torch.device:
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise ApqError(
            f"process {number} has no GPU of its own: {torch.cuda.device_count()} are visible; "
            f"start no more processes than that, or use --device cpu"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def shard() -> Shard:
    """Return this process's share of the data."""
    return Shard(dist.get_rank(), dist.get_world_size()) if _several() else Shard()


def is_first() -> bool:
    """Whether this is the process that writes files and talks."""
    return shard().index == 0


def total(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of the processes' tensors of one shape."""
    values = values.clone()
    if _several():
        dist.all_reduce(values)
    return values


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Return which of the flags are set in any process."""
    if not _several():
        return flags
    values = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return tuple(bool(value) for value in values)


def gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of their numbers."""
    if not _several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], T]) -> T:
    """Return what the first process makes; an ApqError that it raises is raised in all."""
    if not _several():
        return make()
    made: list[Any] = [None]
    if is_first():
        try:
            made = [make()]
        except ApqError as error:
            made = [error]
    dist.broadcast_object_list(made, device=CPU)
    if isinstance(made[0], ApqError):
        raise ApqError(*made[0].args)
    return made[0]


def once_a_machine(work: Callable[[], Any]) -> None:
    """Have one process of each machine do what all need there; the others wait for it."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        work()
    any_of(False)


def each(items: Iterable[T], work: Callable[[T], Any]) -> Iterator[tuple[T, Any]]:
    """Yield every item and what `work` makes of it, in order; the processes share the work.

    All processes have to be given the same items, and all are told every result. Items are asked
    for as they are needed, `DEALT` for each process: there may be no end to them.
    """
    own, items = shard(), iter(items)
    n, each_takes = own.n_processes, DEALT if _several() else 1
    while dealt := list(itertools.islice(items, n * each_takes)):
        made = gather([work(item) for item in dealt[own.index :: n]])
        yield from ((item, made[i % n][i // n]) for i, item in enumerate(dealt))


def data_parallel(net: nn.Module) -> nn.Module:
    """Return what to call instead of the network in training steps: gradients are then averaged.

    Layers may be left without gradients, but always the same ones. Batch statistics follow the
    first process.
    """
    if not _several():
        return net
    device = next(net.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    # A depthwise filter has one input channel: what torch takes for two layouts are the same bytes.
    warnings.filterwarnings("ignore", "Grad strides do not match")
    return nn.parallel.DistributedDataParallel(net, device_ids=ids, static_graph=True)


def average_gradients(net: nn.Module) -> None:
    """Replace gradients by their mean over the processes, which all have to have the same ones.

    For steps of several backward passes, whose layers change from step to step; others overlap
    this with their backward pass (`data_parallel`).
    """
    if not _several():
        return
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    parts = together.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


def follow_first(net: nn.Module) -> None:
    """Give the network the first process's weights, batch statistics and the like."""
    if _several():
        for tensor in itertools.chain(net.parameters(), net.buffers()):
            dist.broadcast(tensor.detach(), 0)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
