"""``python -m shmdriver`` is the command ``shmdriver``."""

import sys

from shmdriver.cli import main

if __name__ == "__main__":
    sys.exit(main())
