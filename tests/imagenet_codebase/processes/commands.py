"""Commands of users, in one process and in two that work as one."""

import os
import sys
from pathlib import Path

from forking import start_process, start_two, wait

from apq import Experiment, cli
from apq.subnet import smallest
from methods.prediction import images as measuring
from tests.images import save_colours


def commands(folder):
    """Run commands in two processes, most of them alone too; NAME-2.txt is what is printed."""
    import sklearn.datasets  # noqa: F401 - once, before forking

    measuring.N_REFERENCES = 3  # or they take longer than the pairs
    os.chdir(folder)
    save_colours(Path("images"), n_train=6, n_test=2)
    cost = {"image_size": 64}  # of a shipped table, or one is announced and built
    Experiment.create("small", smallest().with_bits(8), 3.0, cost, root="exps")
    coloured = ["--dataset=folder", "--data_dir=images", "--image_size=32", "--batch_size=2"]
    wait([alone("quant-aware", "--exp_name=small", "--n_epochs=1", *coloured)])
    test = ["test", "--exp_dir=exps/small", "--data_dir=images"]
    wait([alone(*test), *in_two(*test)])
    few = ["--n_full=2", "--n_quantized=3", "--n_noise=2", "--n_bn_images=64", "--n_val_images=64"]
    collect = ["collect", *few, "--image_size=32", "--out=pairs-{n}.json"]
    wait([alone(*collect), *in_two(*collect)])
    epochs = ["--largest_epochs=0", "--elastic_epochs=1", "--quantized_epochs=0"]
    sandwich = ["--n_random=1", "--sandwich_every=2"]
    wait(in_two("supernet", *epochs, *sandwich, *coloured, "--out=supernet.pth.tar"))


def alone(*argv):
    """Run a command in a process; return the process's number."""
    return start_process(lambda: command(1, argv))


def in_two(*argv):
    """Run a command in two processes that know of each other; return the processes' numbers."""
    return start_two(lambda: command(2, argv))


def command(n, argv):
    """Run a command, as one of `n` processes, and append what it prints to a file."""
    sys.stdout = open(f"{argv[0]}-{n}.txt", "a")  # noqa: SIM115 - until the process ends
    status = cli.run(argv[0], [flag.format(n=n) for flag in argv[1:]], f"apq {argv[0]}")
    sys.stdout.flush()
    assert status == 0, argv
