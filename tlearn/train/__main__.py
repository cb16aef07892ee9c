"""``python -m tlearn.train``."""

import sys

from tlearn.train.command import main

sys.exit(main())
