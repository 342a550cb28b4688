"""`python -m apq` is `apq`."""

import sys

from apq.cli import main

if __name__ == "__main__":
    sys.exit(main())
