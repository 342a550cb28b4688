"""A run that is killed again and again, and an undisturbed one."""

import os
import random
import signal
import time

import torch
from forking import start_process, wait
from tiny import make_trainer

from imagenet_codebase.run_manager.settings import TrainingSettings

N_KILLS, SAVE_EVERY = 20, 4
STEPS = 10  # an epoch of the runs to kill


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
