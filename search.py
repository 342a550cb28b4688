"""Search a subnet under a latency or energy budget.

python search.py --exp_name=test --constraint=12.80 --type=latency
"""

import sys

from apq.cli import run

if __name__ == "__main__":
    sys.exit(run("search", sys.argv[1:], "search.py"))
