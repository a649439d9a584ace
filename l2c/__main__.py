"""`python -m l2c` is the command `l2c`."""

import sys

from l2c.cli import main

if __name__ == "__main__":
    sys.exit(main())
