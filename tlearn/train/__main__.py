"""``python -m tlearn.train``."""

import sys

from tlearn.interrupts import enter

sys.exit(enter("tlearn.train.command"))
