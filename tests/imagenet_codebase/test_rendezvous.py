"""How processes agree on an attempt, whatever earlier ones have left in the store."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from apq import ApqError
from imagenet_codebase.run_manager.rendezvous import agree, rendezvous

SHORT = timedelta(seconds=0.2)


def agreed(store, n=3, reverse=False):
    """What each of n processes takes the attempt for; the first begins last if `reverse`."""
    with ThreadPoolExecutor(n) as pool:
        ranks = reversed(range(n)) if reverse else range(n)
        found = {rank: pool.submit(agree, store, rank, n, timedelta(seconds=20)) for rank in ranks}
        return [found[rank].result() for rank in range(n)]


@pytest.mark.parametrize("reverse", [False, True])
def test_all_agree_on_one_more_at_each_restart(reverse):
    store = dist.HashStore()
    assert [agreed(store, reverse=reverse) for _ in range(3)] == [[1] * 3, [2] * 3, [3] * 3]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lost", range(3))
def test_what_an_attempt_leaves_that_lost_a_process_before_it_began_does_no_harm(lost, reverse):
    store = dist.HashStore()
    with ThreadPoolExecutor(3) as pool:
        others = [rank for rank in range(3) if rank != lost]
        for left in [pool.submit(agree, store, rank, 3, SHORT) for rank in others]:
            left.exception()
    before = store.add("attempts", 0)
    assert agreed(store, reverse=reverse) == [before + 1] * 3


def test_an_answer_to_a_process_that_is_gone_is_not_taken():
    store = dist.HashStore()
    agreed(store, n=2)
    store.set("question of 1", str(store.add("questions", 1)))  # and gone before the answer
    with pytest.raises(ApqError, match=r"^process 1 of 2 has not come within 0.2 s"):
        agree(store, 0, 2, SHORT)  # it answers, nobody confirms
    assert agreed(store, n=2) == [3, 3]


def test_the_others_wait_for_the_first_no_longer_than_that():
    with pytest.raises(ApqError, match=r"^process 0 of 2 has not come within 0.2 s"):
        agree(dist.HashStore(), 1, 2, SHORT)


def test_a_store_that_cannot_be_reached_is_told_with_its_address(monkeypatch):
    address = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    for name, value in address.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ApqError, match=r"^process 1 cannot join the others by 127.0.0.1:9: "):
        rendezvous(timedelta(seconds=1))
