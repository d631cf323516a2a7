"""Entry point of `python -m fastood.train`."""

import sys

from fastood.train.cli import main

if __name__ == "__main__":
    sys.exit(main())
