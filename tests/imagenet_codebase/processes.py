"""Runs in processes of their own, for tests: killed ones, and two that work as one.

A script, not a test: python processes.py kill|pair|commands FOLDER. It imports torch once and
forks; what the processes find goes to FOLDER/*.pt, what commands print to FOLDER/*.txt.
"""

import os
import random
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from apq import ApqError, Experiment, cli
from apq.space import SearchSpace, Stage
from apq.subnet import smallest
from elastic_nn.modules import ElasticBatchNorm2d
from elastic_nn.networks import MobileNet, OnceForAllNet
from elastic_nn.networks.files import save_supernet
from elastic_nn.training import SandwichSettings
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.data_providers.memory import MemorySource, crop_and_flip
from imagenet_codebase.data_providers.normalization import Normalization
from imagenet_codebase.data_providers.splits import Split
from imagenet_codebase.run_manager import distributed
from imagenet_codebase.run_manager.averaging import RunningAverage
from imagenet_codebase.run_manager.evaluate import evaluate, evaluate_split
from imagenet_codebase.run_manager.recipes import FinetuneSettings
from imagenet_codebase.run_manager.settings import TrainingSettings
from imagenet_codebase.run_manager.supernet import SharedSandwichStep
from imagenet_codebase.run_manager.sync_bn import SyncedBatchNorm2d, synchronize
from imagenet_codebase.run_manager.trainer import Trainer
from methods.validation.bench import FinetuningBench

N_KILLS, SAVE_EVERY = 20, 4
STEPS = 10  # an epoch of the runs to kill
SPACE = SearchSpace(
    stem_channels=8,
    first_block_channels=8,
    stages=(Stage(out_channels=16, stride=2, max_depth=2, depths=(1, 2)),),
    feature_channels=32,
)
CPU = torch.device("cpu")


def data(n_train):
    """Noise of four classes: `n_train` images to learn from, 12 to choose on, 11 to test with."""
    n = n_train + 23
    pixels = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    source = MemorySource(
        read=lambda: torch.from_numpy(pixels),
        labels=np.arange(n) % 4,
        image_size=16,
        normalize=Normalization(mean=(0.5,) * 3, std=(0.25,) * 3),
        augmentation=crop_and_flip,
    )
    ends = np.cumsum([n_train, 12, 11])
    parts = [Split(source=source, indices=part) for part in np.split(np.arange(n), ends)[:3]]
    return DataProvider(
        name="noise",
        image_size=16,
        class_names=tuple("abcd"),
        train=replace(parts[0], augment=True),
        train_unaugmented=parts[0],
        val=parts[1],
        test=parts[2],
    )


def make_trainer(folder, settings, n_train, on_step=lambda key, loss: None, noise=0.0):
    """Return a trainer of a tiny quantized network, with averaged weights."""
    torch.manual_seed(0)
    net = MobileNet.from_subnet(smallest(SPACE).with_bits(8), 4)
    net = net.to(memory_format=torch.channels_last)
    provider, average = data(n_train), RunningAverage(net, 0.9)
    forward = distributed.data_parallel(net)

    def step(images, labels, key):
        images = images + noise * torch.randn(images.shape)  # what a dropout would draw
        logits = forward(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        on_step(key, loss.detach())
        return loss.detach(), (logits.argmax(1) == labels).sum()

    def validate():
        return {"val_top1": evaluate_split(average.module, provider, "val", 5).top1}

    return Trainer(net, provider, settings, step, validate, folder, {}, average=average)


# ---- kill ----


def train(folder, log=None):
    """Run or go on; each line of the log is where a process began or a step that it has done."""
    settings = TrainingSettings(n_epochs=8, batch_size=4, lr=0.05, save_every=SAVE_EVERY)

    def note(text):
        if log:
            with open(log, "a") as file:
                file.write(f"{text}\n")

    def on_step(key, loss):
        note(STEPS * key[1] + key[2] + 1)
        time.sleep(0.02)  # or it would die in the middle of saving every time

    trainer = make_trainer(folder, settings, 4 * STEPS, on_step, noise=0.01)
    trainer.resume()
    note(f"from {STEPS * trainer.epoch + trainer.next_step}")
    assert trainer.run()


def kill_many(folder):
    """Run once undisturbed, and once more with twenty kill -9 at random moments."""
    wait([start_process(lambda: train(folder / "undisturbed"))])
    draw, kills, log = random.Random(0), 0, folder / "log"
    log.touch()
    while kills < N_KILLS:
        pid = start_process(lambda: train(folder / "killed", log))
        n_lines = log.read_text().count("from")
        # One in four dies while it starts; the others in a step, a save, a validation ...
        while kills % 4 and log.read_text().count("from") == n_lines:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            break
        kills += 1
    wait([start_process(lambda: train(folder / "killed", log))])
    torch.save({"kills": kills}, folder / "kills.pt")


def wait(processes):
    """Wait for processes by number; all have to end well."""
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes]
    assert not any(statuses), statuses


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


# ---- pair ----


def run_twice(folder, name, settings, n_train):
    """Train; return the mean loss of each step, the history and the final weights."""
    losses = []
    trainer = make_trainer(folder / name, settings, n_train, lambda key, loss: losses.append(loss))
    trainer.run()
    losses = distributed.total(torch.stack(losses)) / distributed.shard().n_processes
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in trainer.history]
    return {"losses": losses, "rows": rows, "weights": trainer.net.state_dict()}


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
    n = 2 if distributed.launched() else 1
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


def pair(folder):
    """Run the scenarios alone and in two processes."""
    for name in ("one", "two"):
        (folder / name).mkdir()
    alone = start_process(lambda: scenarios(folder / "one"))
    wait([alone, *start_two(lambda: scenarios(folder / "two"))])


# ---- commands ----


def commands(folder):
    """Run commands in two processes, most of them alone too; NAME-2.txt is what is printed."""
    import sklearn.datasets  # noqa: F401 - once, before forking

    os.chdir(folder)
    for part, n in (("train", 6), ("test", 2)):
        for blue in (0, 200):
            images = Path("images", part, str(blue))
            images.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (32, 32), (20 * i, 9, blue)).save(images / f"{i}.png")
    Experiment.create("small", smallest().with_bits(8), 3.0, {"image_size": 32}, root="exps")
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    # What torch imports on first use takes seconds: once, before forking. No backward pass may
    # have run by then.
    make_trainer(Path(sys.argv[2]), TrainingSettings(), 4)
    {"kill": kill_many, "pair": pair, "commands": commands}[sys.argv[1]](Path(sys.argv[2]))
