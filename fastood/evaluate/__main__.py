"""Entry point of `python -m fastood.evaluate`."""

import sys

from fastood.evaluate.cli import main

if __name__ == "__main__":
    sys.exit(main())
