"""``python -m tlearn VERB`` is ``tlearn VERB``."""

import sys

from tlearn.cli import main

sys.exit(main())
