"""``python -m tlearn.evaluate``."""

import sys

from tlearn.interrupts import enter

if __name__ == "__main__":
    sys.exit(enter("tlearn.evaluate.command"))
