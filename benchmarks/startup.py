"""How long one waits: for help, for being told of a mistake, for the plan, for the first training step.

Each is a process of its own, from its start; the files were read before, so that the disk is not measured. Beside them
stands what is paid anyway: the interpreter alone, and the import of TensorFlow alone.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

from benchmarks.common import QUICK, ROOT, compare, has_photographs, in_own_process, scratch, write_results

TIMES = 1 if QUICK else 5
TENSORFLOW_TIMES = 1 if QUICK else 3
SECOND = 1.0  # a wrong config is to fail in about a second


def main() -> None:
    """Measure, print a table, write the results."""
    if not has_photographs():
        return
    light = {
        "interpreter": lambda: _seconds("-c", "pass"),
        "help": lambda: _seconds("-m", "tlearn.train", "--help"),
        "wrong key": lambda: _seconds("-m", "tlearn.train", "head.poolling=gem", status=2),
    }
    heavy = {
        "tensorflow": lambda: _seconds("-c", "import tensorflow, keras; tensorflow.config.list_physical_devices()"),
        "plan": lambda: _seconds("-m", "tlearn.plan"),
        "first step": lambda: in_own_process("benchmarks.startup", "off", time.time()),
        "first step on features": lambda: in_own_process("benchmarks.startup", "auto", time.time()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in light | heavy}
    for sides, times in ((light, TIMES), (heavy, TENSORFLOW_TIMES)):
        for repetition in range(times + 1):  # the first one fills the system's file cache, and is not counted
            for name, measured in sides.items():
                figure = measured()
                if repetition or QUICK:
                    seconds[name].append(round(figure, 3))
                    print(f"  {name}: {seconds[name][-1]}", flush=True)
            if QUICK:
                break
    python, imports = seconds["interpreter"], seconds["tensorflow"]
    bound = [SECOND] * len(python)
    comparisons = [
        compare("--help", "s", seconds["help"], python, "interpreter alone"),
        compare("--help", "s", seconds["help"], bound, "a second", goal=1),
        compare("a wrong key", "s", seconds["wrong key"], python, "interpreter alone"),
        compare("a wrong key", "s", seconds["wrong key"], bound, "a second", goal=1),
        compare("tlearn.plan, default run", "s", seconds["plan"], imports, "importing TensorFlow"),
        compare("first step, streaming", "s", seconds["first step"], imports, "importing TensorFlow"),
        compare("first step, features made", "s", seconds["first step on features"], imports, "importing TensorFlow"),
    ]
    write_results("startup", seconds, comparisons)


def _seconds(*arguments: str, status: int = 0) -> float:
    """Of one process, which must end in this exit status."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, env=environment, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode != status:
        sys.exit(f"{arguments}: exit status {done.returncode}\n{done.stderr.decode()}")
    return seconds


def until_first_step(cache: str, started: float) -> float:
    """Seconds from a process' start to the end of the first step of the default run (digits, embedded weights).

    With the cache ``auto`` and empty, features of all images are made before it.
    """
    import tlearn
    from benchmarks.clock import Clock
    from tlearn.quiet import import_tensorflow

    import_tensorflow()
    from tlearn.train.trainer import Stopped

    clock = Clock()
    first: list[float] = []

    def stop_after_first_step() -> bool:
        if not first and any(clock.training()):
            first.append(time.time() - (time.perf_counter() - clock.training()[0][0][0]))
        return bool(first)

    with scratch() as folder:
        config = tlearn.load_config([f"cache.mode={cache}", f"cache.dir={folder}/features", f"run_dir={folder}/run"])
        if QUICK:
            config.data.per_class = 4
        with contextlib.suppress(Stopped):
            tlearn.fit(config, terminal=clock, should_stop=stop_after_first_step)
    return first[0] - started


if __name__ == "__main__":
    print(until_first_step(sys.argv[1], float(sys.argv[2])))
