"""Processes that are forked from this one, so that torch is imported once."""

import os
import socket
import sys


def start_process(work):
    """Run a function in a process; return the process's number."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return pid


def start_two(work):
    """Run a function in two processes that know of each other; return the processes' numbers."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def launched(rank):
        os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        work()

    return [start_process(lambda rank=rank: launched(rank)) for rank in range(2)]


def wait(processes):
    """Wait for processes by number; all have to end well."""
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes]
    assert not any(statuses), statuses
