"""Finetune what search.py found, quantization-aware.

python quant_aware.py --exp_name=test --dataset=digits --n_epochs=3
"""

import sys

from apq.cli import run

if __name__ == "__main__":
    sys.exit(run("quant-aware", sys.argv[1:], "quant_aware.py"))
