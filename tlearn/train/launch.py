"""Where the runs of a multirun are started: here one after the other, here several at once, on a Slurm or Ray cluster.

Each run is a process of its own in all cases: TensorFlow gives memory and state back only when its process ends. The
launchers come with ``pip install tlearn[cluster]``; the basic one needs nothing.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from tlearn.config import option
from tlearn.errors import ConfigError, Problem, did_you_mean
from tlearn.typed import keys, typed


class LauncherName(Enum):
    """What starts the runs."""

    basic = "basic"
    joblib = "joblib"
    submitit = "submitit"
    ray = "ray"


@dataclass
class LauncherConfig:
    """The launcher of a multirun; what the others do not know is refused."""

    name: LauncherName = option(LauncherName.basic, "basic: one after the other | joblib | submitit | ray")
    workers: int = option(1, "runs at a time; basic: 1")
    cluster: str = option("local", "submitit: local (processes here) | slurm")
    partition: str | None = option(None, "submitit on Slurm: partition; null: the cluster's own")
    timeout_minutes: int = option(240, "submitit: a run that takes longer is ended; it can be resumed")
    memory_gb: float | None = option(None, "submitit on Slurm, ray: memory of a run, 10^9 bytes; null: not said")
    cpus: int = option(1, "submitit on Slurm, ray: processors of a run")
    gpus: int = option(0, "submitit on Slurm, ray: GPUs of a run")
    address: str | None = option(None, "ray: auto, or of a cluster that runs; null: one is started here")


@dataclass(frozen=True)
class JobResult:
    """What became of a run.

    Attributes:
        status: its exit status; 128 + n when signal n killed it.
        summary: its last line; empty where it did not come to one.
        seconds: it took, with its start.
    """

    status: int
    summary: dict[str, Any]
    seconds: float


OnResult = Callable[[int, JobResult], None]

_OWN = {  # options that are not every launcher's
    "workers": ("joblib", "submitit", "ray"),
    "cluster": ("submitit",),
    "partition": ("submitit",),
    "timeout_minutes": ("submitit",),
    "memory_gb": ("submitit", "ray"),
    "cpus": ("submitit", "ray"),
    "gpus": ("submitit", "ray"),
    "address": ("ray",),
}


def split_launcher(overrides: Sequence[str]) -> tuple[LauncherConfig, list[str]]:
    """Take ``launcher=NAME`` and ``launcher.key=value`` out of overrides.

    Raises:
        ConfigError: with every problem of these.
    """
    from tlearn.compose import parse_overrides

    data: dict[str, Any] = {}
    others: list[str] = []
    for text in overrides:
        if re.match(r"\+*launcher[.=]", text):
            (override,) = parse_overrides([text])
            data[str(override.key_or_group).removeprefix("launcher").lstrip(".") or "name"] = override.value()
        else:
            others.append(text)
    known = [key.removeprefix("launcher.") for key in keys(LauncherConfig, "launcher")]
    unknown = [key for key in data if key not in known]
    if unknown:
        raise ConfigError([Problem(f"launcher.{key}", "unknown key", did_you_mean(key, known)) for key in unknown])
    config = typed(data, LauncherConfig, "launcher")
    problems = list(_problems(config, data))
    if problems:
        raise ConfigError(problems)
    return config, others


def _problems(config: LauncherConfig, given: dict[str, Any]) -> Iterator[Problem]:
    name = config.name.value
    for key in given:
        if key in _OWN and name not in _OWN[key]:
            fix = " or ".join(f"launcher={other}" for other in _OWN[key])
            yield Problem(f"launcher.{key}", f"has no effect with launcher={name}", fix)
    for key, least in (("workers", 1), ("cpus", 1), ("gpus", 0), ("timeout_minutes", 1)):
        if getattr(config, key) < least:
            yield Problem(f"launcher.{key}", f"must be {least} or more, received {getattr(config, key)}")
    if config.memory_gb is not None and config.memory_gb <= 0:
        yield Problem("launcher.memory_gb", f"must be above 0, received {config.memory_gb}")
    if config.cluster not in ("local", "slurm"):
        yield Problem("launcher.cluster", f"must be local or slurm, received {config.cluster!r}")
    if config.name is not LauncherName.basic and find_spec(name) is None:
        yield Problem(f"launcher={name}", f"needs the package {name}", "pip install 'tlearn[cluster]'")


def launch(config: LauncherConfig, jobs: Sequence[list[str]], on_result: OnResult) -> list[JobResult | None]:
    """Start the runs of a multirun, and wait for them.

    Args:
        config: where, and how many at a time.
        jobs: overrides of each run.
        on_result: called with the number of a run, from 0, and what became of it.

    Returns:
        What became of each; None for those that were not started because one was stopped.
    """
    return _LAUNCHERS[config.name](config, jobs, on_result)


# --- one run ---------------------------------------------------------------------------------------------------------


def run_job(overrides: Sequence[str], folder: str, processes: Processes | None = None) -> JobResult:
    """A run in a process of its own, on whatever machine this is called.

    Args:
        overrides: of the run.
        folder: to run in.
        processes: to enter it into while it runs; None: a signal to this process is passed on to it.
    """
    begin = time.monotonic()
    command = (sys.executable, "-m", "tlearn.train", *overrides)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, encoding="utf-8"))
        own = Processes()
        if processes is None and threading.current_thread() is threading.main_thread():
            stack.enter_context(own.outlive_signals())
        stack.enter_context((processes or own).running(process))
        printed, _ = process.communicate()
        status = process.returncode
    return JobResult(status if status >= 0 else 128 - status, _last_line(printed), round(time.monotonic() - begin, 1))


def _last_line(printed: str) -> dict[str, Any]:
    lines = printed.splitlines()
    with contextlib.suppress(ValueError):
        summary = json.loads(lines[-1]) if lines else {}
        return summary if isinstance(summary, dict) else {}
    return {}


class Processes:
    """Runs that go on; a signal to this process is passed on to them, so that they save their state.

    Attributes:
        stopped: whether one came; nothing is to be started any more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[Any]] = set()
        self.stopped = False

    @contextlib.contextmanager
    def running(self, process: subprocess.Popen[Any]) -> Iterator[None]:
        """While inside, the process is one of them."""
        with self._lock:
            self._running.add(process)
        if self.stopped:  # while it was started, too early for it to be told
            process.terminate()
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)

    @contextlib.contextmanager
    def outlive_signals(self, says: str = "") -> Iterator[None]:
        """While inside, this process outlives signals that its children must answer.

        Ctrl-C reaches all of them from the terminal; SIGTERM is sent to one process, so it is passed on. The second
        ends them at once, and this process where there is none.

        Args:
            says: printed at the first on standard error, for children that cannot be heard.
        """
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        received: list[int] = []

        def receive(number: int, frame: FrameType | None) -> None:
            self.stopped = True
            received.append(number)
            running = list(self._running)
            if number == signal.SIGTERM:
                for process in running:
                    process.send_signal(number)
            if len(received) == 1 and says:
                os.write(2, f"\n{says}\n".encode())
            if len(received) > 1 and not running:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        for number in before:
            signal.signal(number, receive)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


# --- the launchers ---------------------------------------------------------------------------------------------------


def _here(config: LauncherConfig, jobs: Sequence[list[str]], on_result: OnResult) -> list[JobResult | None]:
    """On this machine: one after the other, or so many at a time as joblib is told. Its threads only wait."""
    processes, folder = Processes(), os.getcwd()

    def job(number: int) -> JobResult | None:
        if processes.stopped:
            return None
        result = run_job(jobs[number], folder, processes)
        on_result(number, result)
        processes.stopped |= result.status == _STOPPED
        return result

    with processes.outlive_signals():
        if config.name is LauncherName.basic:
            return [job(number) for number in range(len(jobs))]
        from joblib import Parallel, delayed

        calls = (delayed(job)(number) for number in range(len(jobs)))
        return list(Parallel(n_jobs=config.workers, backend="threading", batch_size=1, pre_dispatch="n_jobs")(calls))


def _submitit(config: LauncherConfig, jobs: Sequence[list[str]], on_result: OnResult) -> list[JobResult | None]:
    """As jobs of Slurm, or as processes here in the same way."""
    import submitit

    logs = Path("launched").absolute() / time.strftime("%Y%m%d-%H%M%S")
    executor = submitit.AutoExecutor(logs, cluster=config.cluster)
    executor.update_parameters(timeout_min=config.timeout_minutes, name="tlearn")
    if config.cluster == "slurm":
        executor.update_parameters(
            slurm_array_parallelism=config.workers, cpus_per_task=config.cpus, gpus_per_node=config.gpus
        )
        if config.memory_gb is not None:
            executor.update_parameters(mem_gb=config.memory_gb)
        if config.partition is not None:
            executor.update_parameters(slurm_partition=config.partition)
    results: list[JobResult | None] = [None] * len(jobs)
    folder, pending, started = os.getcwd(), dict(enumerate(jobs)), dict[int, Any]()
    if config.cluster == "slurm":  # an array of jobs: Slurm itself starts so many at a time
        started = dict(enumerate(executor.map_array(run_job, jobs, [folder] * len(jobs))))
        pending = {}
    try:
        while pending or started:
            while pending and len(started) < config.workers:
                number = min(pending)
                started[number] = executor.submit(run_job, pending.pop(number), folder)
            for number in [number for number, job in started.items() if job.done()]:
                results[number] = _result_of(started.pop(number).result, submitit.core.utils.UncompletedJobError)
                on_result(number, results[number] or JobResult(1, {}, 0.0))
            time.sleep(0.2)
    except BaseException:
        for job in started.values():
            job.cancel()
        raise
    return results


def _ray(config: LauncherConfig, jobs: Sequence[list[str]], on_result: OnResult) -> list[JobResult | None]:
    """As tasks of a Ray cluster, or of one that is started here."""
    import ray

    local = config.address is None
    amount = {"num_cpus": config.workers * config.cpus, "num_gpus": config.workers * config.gpus} if local else {}
    memory = {} if config.memory_gb is None else {"memory": int(config.memory_gb * 1e9)}
    ray.init(address=config.address or "local", include_dashboard=False, log_to_driver=True, **amount)
    try:
        remote = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=0, **memory)(run_job)
        results: list[JobResult | None] = [None] * len(jobs)
        waiting, running, folder = list(enumerate(jobs)), dict[Any, int](), os.getcwd()
        while waiting or running:
            while waiting and len(running) < config.workers:
                number, job = waiting.pop(0)
                running[remote.remote(job, folder)] = number
            (done, *_), _ = ray.wait(list(running))
            number = running.pop(done)
            results[number] = _result_of(functools.partial(ray.get, done), ray.exceptions.RayError)
            on_result(number, results[number] or JobResult(1, {}, 0.0))
        return results
    finally:
        ray.shutdown()


def _result_of(get: Callable[[], JobResult], lost: type[Exception]) -> JobResult:
    """What a cluster gives back; a job that it lost has failed, and the others go on."""
    try:
        return get()
    except lost as error:
        said = str(error).strip().splitlines()
        return JobResult(1, {"status": "lost", "reason": said[-1] if said else type(error).__name__}, 0.0)


_STOPPED = 3  # exit status of a run that can be resumed
_LAUNCHERS = {
    LauncherName.basic: _here,
    LauncherName.joblib: _here,
    LauncherName.submitit: _submitit,
    LauncherName.ray: _ray,
}
