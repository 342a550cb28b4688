"""Runs in processes of their own, for tests: killed ones, and two that work as one.

A script, not a test: python processes kill|pair|commands FOLDER. It imports torch once and
forks; what the processes find goes to FOLDER/*.pt, what commands print to FOLDER/*.txt.
"""

import sys
from pathlib import Path

import torch
from commands import commands
from kill import kill_many
from pair import pair
from tiny import make_trainer

from imagenet_codebase.run_manager.settings import TrainingSettings

torch.set_num_threads(1)
what, folder = sys.argv[1], Path(sys.argv[2])
# What torch imports on first use takes seconds: once, before forking. No backward pass may
# have run by then.
make_trainer(folder, TrainingSettings(), 4)
{"kill": kill_many, "pair": pair, "commands": commands}[what](folder)
