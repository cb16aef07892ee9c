"""``python -m tlearn.sweep``."""

import sys

from tlearn.sweep.command import main

sys.exit(main())
