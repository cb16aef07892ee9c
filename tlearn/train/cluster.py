"""The workers of a run on several machines: who they are, by ``TF_CONFIG``, and how they find one another.

``TF_CONFIG`` is TensorFlow's own description, set anew on every machine:

    TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}'

TensorFlow waits for a missing worker without a word, and the chief without end. So before it is asked, and before
anything slow, the workers meet on plain sockets: the chief listens on its own address until all others have called.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tlearn.config import Config, Strategy
from tlearn.errors import ConfigError, Problem, UserError

_EXAMPLE = (
    """set it on each machine, as in TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, """
    """"task": {"type": "worker", "index": 0}}'"""
)
_ADDRESS = re.compile(r"(?P<host>[^\s:/]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
_MOST_BYTES = 4096  # of a greeting
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Cluster:
    """All workers of a run, and which of them this process is.

    Attributes:
        workers: ``host:port`` of each; the first is the chief, which alone writes the run folder.
        index: of this process among them.
        named_chief: whether ``TF_CONFIG`` lists the first as ``chief``, not as a worker.
    """

    workers: tuple[str, ...]
    index: int
    named_chief: bool = False

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder."""
        return self.index == 0


def cluster_of(config: Config) -> Cluster | None:
    """The cluster a run is a part of; None when it trains by itself.

    Raises:
        ConfigError: ``TF_CONFIG`` is missing or makes no sense.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if config.strategy is Strategy.multi_worker:
        if not text:
            raise ConfigError(Problem("strategy", "multi_worker needs the environment variable TF_CONFIG", _EXAMPLE))
        return parse_cluster(text)
    if config.strategy is Strategy.auto and text:
        cluster = parse_cluster(text)
        return cluster if len(cluster.workers) > 1 else None
    return None


def parse_cluster(text: str) -> Cluster:
    """Read ``TF_CONFIG``. Raises ConfigError with all that is wrong with it."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigError(Problem("TF_CONFIG", f"is not JSON: {error}", _EXAMPLE)) from None
    cluster = data.get("cluster") if isinstance(data, dict) else None
    if not isinstance(cluster, dict) or not cluster:
        raise ConfigError(Problem("TF_CONFIG", "names no cluster", _EXAMPLE))
    problems = [*_check_jobs(cluster)]
    if problems:
        raise ConfigError(problems)
    chief, workers = cluster.get("chief", []), cluster.get("worker", [])
    index = _index(data.get("task"), len(chief), len(workers))
    return Cluster((*chief, *workers), index, named_chief=bool(chief))


def _check_jobs(cluster: Mapping[str, Any]) -> Iterator[Problem]:
    for job in cluster.keys() - {"chief", "worker"}:
        fix = "parameter servers and evaluators are no part of it: the workers do all the work"
        yield Problem(f"TF_CONFIG: cluster.{job}", "only chief and worker are known", fix)
    addresses = []
    for job in ("chief", "worker"):
        listed = cluster.get(job, [])
        if not isinstance(listed, list):
            yield Problem(f"TF_CONFIG: cluster.{job}", f"must be a list of addresses, received {listed!r}", _EXAMPLE)
            continue
        for index, address in enumerate(listed):
            match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
            if match is None or not 0 < int(match["port"]) < 65536:
                yield Problem(f"TF_CONFIG: cluster.{job}[{index}]", f"{address!r} is not host:port")
        addresses += listed
    if len(cluster.get("chief", ())) > 1:
        yield Problem("TF_CONFIG: cluster.chief", "there can be one chief only")
    if not addresses:
        yield Problem("TF_CONFIG", "the cluster has no worker", _EXAMPLE)
    elif len(set(map(str, addresses))) < len(addresses):
        yield Problem("TF_CONFIG: cluster", "names one address twice")


def _index(task: Any, chiefs: int, workers: int) -> int:
    """Number of a task among all workers."""
    if not isinstance(task, dict) or task.get("type") not in ("chief", "worker"):
        what = f"must name this process as a worker or the chief of the cluster, received {task!r}"
        raise ConfigError(Problem("TF_CONFIG: task", what, _EXAMPLE))
    index, count = task.get("index"), chiefs if task["type"] == "chief" else workers
    if type(index) is not int or not 0 <= index < count:
        raise ConfigError(
            Problem("TF_CONFIG: task.index", f"must be 0 or more and below {count}, received {index!r}", _EXAMPLE)
        )
    return index + (chiefs if task["type"] == "worker" else 0)


# --- meeting ---------------------------------------------------------------------------------------------------------


def meet(cluster: Cluster, about: Mapping[str, str], seconds: float) -> None:
    """Wait until all workers are there, and see that they are to do the same.

    Args:
        cluster: of this process.
        about: what the workers must agree in, by what it is called.
        seconds: to wait for those that are missing.

    Raises:
        ConfigError: a worker is missing, comes twice, or is to do something else.
    """
    (_meet_others if cluster.is_chief else _meet_chief)(cluster, about, time.monotonic() + seconds)


def _meet_others(cluster: Cluster, about: Mapping[str, str], end: float) -> None:
    callers: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listening(cluster.workers[0]))
        problem = None
        while problem is None and len(callers) < len(cluster.workers) - 1:
            caller = _accept(server, cluster, callers, end)
            stack.enter_context(caller)
            problem = _greet(caller, cluster, about, callers)
        for caller in callers.values():
            _send(caller, {"problem": problem})
    if problem is not None:
        raise ConfigError(Problem("strategy", problem, "start the same command on all workers"))


def _accept(server: socket.socket, cluster: Cluster, callers: Mapping[int, socket.socket], end: float) -> socket.socket:
    while True:
        try:
            caller, _ = server.accept()
            caller.settimeout(5.0)
            return caller
        except TimeoutError:
            if time.monotonic() > end:
                present = {0, *callers}
                missing = [
                    f"{index} ({address})" for index, address in enumerate(cluster.workers) if index not in present
                ]
                raise _missing(f"worker {', '.join(missing)} did not come") from None


def _greet(
    caller: socket.socket, cluster: Cluster, about: Mapping[str, str], callers: dict[int, socket.socket]
) -> str | None:
    """Take note of a worker that calls; what is wrong with it, if anything."""
    try:
        greeting = _receive(caller)
        index, theirs, workers = int(greeting["index"]), dict(greeting["about"]), list(greeting["workers"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # somebody who looks for open ports
    problem = None
    if index in callers or not 0 < index < len(cluster.workers):
        problem = f"there are two workers of index {index}: task.index of TF_CONFIG must be another on each machine"
    elif workers != list(cluster.workers):
        problem = f"worker {index} has another cluster in its TF_CONFIG"
    else:
        apart = [name for name, value in about.items() if theirs.get(name) != value]
        if apart:
            problem = f"worker {index} has another {apart[0]} than the chief"
    if index in callers:
        _send(caller, {"problem": problem})
    else:
        callers[index] = caller
    return problem


def _meet_chief(cluster: Cluster, about: Mapping[str, str], end: float) -> None:
    address = _split(cluster.workers[0])
    greeting = {"index": cluster.index, "workers": cluster.workers, "about": dict(about)}
    while True:
        try:
            with socket.create_connection(address, timeout=5.0) as connection:
                _send(connection, greeting)
                connection.settimeout(max(end - time.monotonic(), 1.0))
                answer = _receive(connection)
                break
        except (OSError, ValueError):
            if time.monotonic() > end:
                raise _missing(f"the chief ({cluster.workers[0]}) did not answer") from None
            time.sleep(_POLL_SECONDS)
    if answer.get("problem"):
        raise ConfigError(Problem("strategy", str(answer["problem"]), "start the same command on all workers"))


def _missing(who: str) -> UserError:
    fix = "start the same command on all machines of TF_CONFIG, and let them reach one another; see strategy_timeout"
    return ConfigError(Problem("strategy", who, fix))


def _listening(address: str) -> socket.socket:
    """Listen as TensorFlow will: on all interfaces, for the chief may not know the name it is called by."""
    host, port = _split(address)
    try:
        server = socket.create_server(("", port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        fix = "is this machine the chief, and is nobody else using the port?"
        raise ConfigError(Problem("TF_CONFIG", f"cannot listen on {address}: {error.strerror or error}", fix)) from None
    server.settimeout(_POLL_SECONDS)
    return server


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who has gone is found missing where it is needed next
        connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any]:
    """One line of JSON. Raises OSError or ValueError."""
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(_MOST_BYTES)
        data += part
        if not part or len(data) > _MOST_BYTES:
            raise ValueError("no greeting")
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("no greeting")
    return message
