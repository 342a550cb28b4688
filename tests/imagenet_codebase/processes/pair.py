"""Two processes that train, measure and stop as one, and the same in one process."""

import os
import signal
import sys
import time
from dataclasses import replace

import torch
from forking import start_process, start_two, wait
from tiny import SPACE, data, make_trainer

from apq import ApqError
from apq.launched import launched
from apq.subnet import smallest
from elastic_nn.modules import ElasticBatchNorm2d
from elastic_nn.networks import MobileNet, OnceForAllNet
from elastic_nn.networks.files import save_supernet
from elastic_nn.training import SandwichSettings
from imagenet_codebase.run_manager import distributed
from imagenet_codebase.run_manager.evaluate import evaluate, evaluate_split
from imagenet_codebase.run_manager.recipes import FinetuneSettings
from imagenet_codebase.run_manager.settings import TrainingSettings
from imagenet_codebase.run_manager.supernet import SharedSandwichStep
from imagenet_codebase.run_manager.sync_bn import SyncedBatchNorm2d, synchronize
from methods.validation.bench import FinetuningBench

CPU = torch.device("cpu")


def run_twice(folder, name, settings, n_train):
    """Train; return the mean loss of each step, the history and the final weights."""
    losses = []
    trainer = make_trainer(folder / name, settings, n_train, lambda key, loss: losses.append(loss))
    trainer.run()
    losses = distributed.total(torch.stack(losses)) / distributed.shard().n_processes
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in trainer.history]
    means = distributed.gather(trainer.result.first_conv.bn.running_mean)
    weights = trainer.net.state_dict()
    return {"losses": losses, "rows": rows, "weights": weights, "means": means}


def stop_one(folder, settings):
    """Press Ctrl-C in the last process only; return where each one stopped, and go on."""
    n = distributed.shard().n_processes

    def press(key, loss):
        if key[1:] == (1, 0) and distributed.shard().index == n - 1:
            os.kill(os.getpid(), signal.SIGINT)

    trainer = make_trainer(folder / "stopped", settings, 26, press)
    finished = trainer.run()
    stopped = distributed.gather((finished, trainer.epoch, trainer.next_step))
    again = make_trainer(folder / "stopped", settings, 26)
    again.resume()
    again.run()
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in again.history]
    return {"stopped": stopped, "rows": rows, "weights": again.net.state_dict()}


def norms(folder):
    """Return output, gradients and statistics of batch norm over a shared batch."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 3, 4, 4, generator=generator) * 2 + 5
    g = torch.randn(6, 3, 4, 4, generator=generator)
    share = distributed.shard()
    part = slice(6 // share.n_processes * share.index, 6 // share.n_processes * (share.index + 1))
    norm = torch.nn.Sequential(ElasticBatchNorm2d(3))
    torch.nn.init.uniform_(norm[0].weight, 0.5, 2, generator=generator)
    if share.n_processes > 1:
        synchronize(norm)
        assert type(norm[0]) is SyncedBatchNorm2d
    own = x[part].clone().requires_grad_()
    out = norm(own)
    out.backward(g[part])
    grads = [distributed.total(p.grad) for p in (norm[0].weight, norm[0].bias)]
    state = {name: norm[0].get_buffer(name).clone() for name in ("running_mean", "running_var")}
    # As mixed precision hands it over; a rounding in bfloat16 may go the other way.
    half = x[part].to(torch.bfloat16).requires_grad_()
    norm(half).backward(g[part].to(torch.bfloat16))
    difference = (half.grad.float() - own.grad).abs().max()
    return {
        "half_is_close": bool(difference < 0.02 * own.grad.abs().max()),
        "out": torch.cat(distributed.gather(out.detach())),
        "grad": torch.cat(distributed.gather(own.grad)),
        "grads": grads,
        **state,
    }


def sandwich(folder):
    """Return the mean gradients of a supernet's step over two halves of a batch."""
    torch.manual_seed(0)
    net = OnceForAllNet(SPACE, 4)
    step = SharedSandwichStep(net, SandwichSettings(n_random=1))
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    own = distributed.shard()
    halves = [own.index] if own.n_processes > 1 else [0, 1]
    sums: dict[str, torch.Tensor] = {}
    for half in halves:
        net.zero_grad()
        step(images[half::2], labels[half::2], (0, 0, 0))
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                sums[name] = sums.get(name, 0) + parameter.grad / len(halves)
    return sums


def bench(folder):
    """Finetune and measure two subnets, one of them for an experiment; then once more."""
    torch.manual_seed(0)
    n, supernet = distributed.shard().n_processes, folder / "supernet.pth.tar"
    distributed.from_first(lambda: save_supernet(OnceForAllNet(n_classes=4), supernet))
    settings = FinetuneSettings(n_epochs=1, batch_size=8 // n, lr=0.01, sync_bn=True)
    subnet = smallest()  # experiments are of the paper's space
    for _ in range(2):
        bench = FinetuningBench(supernet, data(26), settings, folder / "bench", CPU)
        outcome = vars(bench.measure("a", subnet))
    left = sorted(path.name for path in (folder / "bench").iterdir())
    return {"outcome": distributed.gather(outcome), "left": left}


def images_seen(folder):
    """Return which images each process sees in one epoch, by batch."""
    provider, share = data(26), distributed.shard()
    loader = provider.loader("train", 12 // share.n_processes, seed=3, shard=share)
    own = [positions.tolist() for *_, positions in loader._requests]
    return {"batches": distributed.gather(own), "n": distributed.gather(loader.n_images)}


def accuracies(folder):
    """Return the accuracy on 11 images, and what one process is told of another's mistake."""
    torch.manual_seed(0)
    net = MobileNet.from_subnet(smallest(SPACE).with_bits(8), 4).eval()
    whole = evaluate(net, data(4).loader("test", 5))
    told = []

    def mistaken():
        raise ApqError("a mistake of the first")

    try:
        distributed.from_first(mistaken)
    except ApqError as error:
        told = distributed.gather(str(error))
    shared = evaluate_split(net, data(4), "test", 2)
    worked = []
    squares = list(distributed.each(range(11), lambda i: worked.append(i) or i * i))
    return {
        "whole": vars(whole),
        "shared": vars(shared),
        "told": told,
        "squares": squares,
        "worked": distributed.gather(worked),
    }


def scenarios(folder):
    """Run everything in this process, alone or as one of two; the first one writes."""
    n = 2 if launched() else 1
    with distributed.group(CPU):
        base = TrainingSettings(n_epochs=2, batch_size=8 // n, lr=0.05, sync_bn=True, seed=1)
        unsynced = replace(base, sync_bn=False)
        found = {
            "train": run_twice(folder, "train", base, 26),
            "scaled": run_twice(folder, "scaled", replace(base, scale_lr=True), 26),
            "stop": stop_one(folder, unsynced),
            "undisturbed": run_twice(folder, "undisturbed", unsynced, 26),
            "norms": norms(folder),
            "sandwich": sandwich(folder),
            "bench": bench(folder),
            "seen": images_seen(folder),
            "accuracies": accuracies(folder),
        }
        if distributed.is_first():
            torch.save(found, folder / "found.pt")


def mistake(folder):
    """Meet a mistake that the other process meets as well, the first one later; tell it."""
    rank = int(os.environ["RANK"])
    sys.stderr = open(folder / f"told-{rank}.txt", "w")  # noqa: SIM115 - until the process ends
    try:
        with distributed.group(CPU):
            # It keeps what they know of each other, which torchrun does otherwise: it goes last.
            while rank == 0 and not (folder / "told-1.txt").read_text():
                time.sleep(0.01)
            raise ApqError("a mistake of all")
    except ApqError as error:
        print(error, file=sys.stderr, flush=True)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)  # as torchrun may do before it has spoken
        print("and ended well", file=sys.stderr, flush=True)


def lose(folder, told_by_launcher):
    """Lose the second of two processes in the middle of their work; the first one tells it."""
    if told_by_launcher:
        os.environ[distributed.TELLS_LOSS] = "1"
    told = folder / f"lost-{'launched' if told_by_launcher else 'alone'}.txt"
    sys.stderr = told.open("w")
    try:
        with distributed.group(CPU, "the same command"):
            if not distributed.is_first():
                os._exit(0)
            distributed.any_of(True)
    except ApqError as error:
        print(error, file=sys.stderr, flush=True)
    except SystemExit as error:
        print(f"status {error.code}", file=sys.stderr, flush=True)


def pair(folder):
    """Run the scenarios alone and in two processes."""
    for name in ("one", "two"):
        (folder / name).mkdir()
    alone = start_process(lambda: scenarios(folder / "one"))
    wait([alone, *start_two(lambda: scenarios(folder / "two"))])
    wait(start_two(lambda: mistake(folder)))
    wait(start_two(lambda: lose(folder, told_by_launcher=False)))
    wait(start_two(lambda: lose(folder, told_by_launcher=True)))
