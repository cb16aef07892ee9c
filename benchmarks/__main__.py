"""``python -m benchmarks [NAME ...]``: all benchmarks, or some."""

import sys
from importlib import import_module

NAMES = ("embedded", "flowers", "classic")

for name in sys.argv[1:] or NAMES:
    if name not in NAMES:
        sys.exit(f"unknown benchmark {name!r}; one of: {', '.join(NAMES)}")
    print(f"== {name}", flush=True)
    import_module(f"benchmarks.{name}").main()
