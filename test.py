"""Measure an experiment - cost, size and accuracy.

python test.py --exp_dir=exps/test
"""

import sys

from apq.cli import run

if __name__ == "__main__":
    sys.exit(run("test", sys.argv[1:], "test.py"))
