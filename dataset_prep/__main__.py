"""``python -m dataset_prep``: the commands without RecBole or torch."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
