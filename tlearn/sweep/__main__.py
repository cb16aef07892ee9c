"""``python -m tlearn.sweep``."""

import sys

from tlearn.interrupts import enter

sys.exit(enter("tlearn.sweep.command"))
