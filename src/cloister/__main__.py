"""`python -m cloister`: the command line."""

import sys

from cloister.cli import main

if __name__ == "__main__":
    sys.exit(main())
