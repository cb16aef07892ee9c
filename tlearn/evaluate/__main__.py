"""``python -m tlearn.evaluate``."""

import sys

from tlearn.evaluate.command import main

if __name__ == "__main__":
    sys.exit(main())
