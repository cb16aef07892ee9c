"""``python -m benchmarks [--quick] [NAME ...]``: all benchmarks, or some; ``table`` prints what they found."""

import os
import sys
import time
from importlib import import_module

NAMES = (
    "startup",
    "pipeline",
    "overhead",
    "memory",
    "scale",
    "full",
    "sweep",
    "classic",
    "peers",
    "flowers",
    "embedded",
)

arguments = [argument for argument in sys.argv[1:] if argument != "--quick"]
if "--quick" in sys.argv:
    os.environ["TLEARN_BENCH_QUICK"] = "1"
if unknown := [name for name in arguments if name not in (*NAMES, "table")]:
    sys.exit(f"unknown benchmark {unknown[0]!r}; one of: {', '.join(NAMES)}, table")
if arguments[:1] == ["table"]:
    sys.exit(import_module("benchmarks.table").main(arguments[1:]))
for name in arguments or NAMES:
    print(f"== {name}", flush=True)
    if "--quick" not in sys.argv:
        import_module("benchmarks.common").look_around()
    begin = time.monotonic()
    import_module(f"benchmarks.{name}").main()
    print(f"{name}: {time.monotonic() - begin:.0f} s\n", flush=True)
