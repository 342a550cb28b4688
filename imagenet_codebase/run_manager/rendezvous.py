"""How the processes of a run find each other, also when `torchrun` has started them again.

`torchrun` keeps its store over restarts, and with it the addresses of processes that are gone:
torch's own way of joining reads them now and then, and fails or waits for half an hour
(pytorch/pytorch#135712). The restarts that its environment tells are those of one machine, and
may differ between machines. So each attempt to join agrees on a number here, under which its
processes have the store to themselves.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

import torch.distributed as dist

from apq.errors import ApqError

TIMEOUT = timedelta(minutes=10)
LOOK_S = 0.01


def rendezvous(timeout: timedelta = TIMEOUT) -> tuple[dist.Store, int, int, int]:
    """Return this attempt's store, its number from one, this process's rank and how many there are.

    Every process of the environment's WORLD_SIZE has to call it. Raises ApqError when one does not
    within the time, or cannot reach the store.
    """
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        attempt = agree(store, rank, world_size, timeout)
    except dist.DistError as error:
        raise ApqError(
            f"process {os.environ['RANK']} cannot join the others by "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {str(error).splitlines()[0]}"
        ) from None
    return dist.PrefixStore(f"attempt {attempt}", store), attempt, rank, world_size


def agree(store: dist.Store, rank: int, world_size: int, timeout: timedelta = TIMEOUT) -> int:
    """Return the number of this attempt, the same in all its processes and new in this store.

    The store may hold what earlier attempts have left at any point. The first process draws the
    number; each other one asks under a number of its own, so that the answer is to it and not to
    one that is gone, and confirms. Raises ApqError when another does not come within the time.
    """
    if rank == 0:
        attempt = store.add("attempts", 1)
        _answer_all(store, attempt, world_size, timeout)
        return attempt
    question = store.add("questions", 1)
    store.set(f"question of {rank}", str(question))
    try:
        store.wait([f"answer {question}"], timeout)
    except dist.DistStoreError:
        raise _late(0, world_size, timeout) from None
    attempt = int(store.get(f"answer {question}"))
    store.set(f"attempt {attempt} confirmed by {rank}", "")
    return attempt


def _answer_all(store: dist.Store, attempt: int, world_size: int, timeout: timedelta) -> None:
    deadline = time.monotonic() + timeout.total_seconds()
    for rank in range(1, world_size):
        # Until it confirms, what it asks may be the question of its predecessor.
        while not store.check([f"attempt {attempt} confirmed by {rank}"]):
            if store.check([f"question of {rank}"]):
                question = store.get(f"question of {rank}").decode()
                store.set(f"answer {question}", str(attempt))
            if time.monotonic() > deadline:
                raise _late(rank, world_size, timeout)
            time.sleep(LOOK_S)


def _late(rank: int, world_size: int, timeout: timedelta) -> ApqError:
    return ApqError(
        f"process {rank} of {world_size} has not come within {timeout.total_seconds():g} s; "
        f"see what it says on its machine"
    )
