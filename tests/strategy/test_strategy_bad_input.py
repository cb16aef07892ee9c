"""What is wrong with a strategy is said before anything slow, with exit status 2; a missing worker after a timeout."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tlearn.config import Config, DataConfig, Strategy
from tlearn.errors import ConfigError, UserError
from tlearn.train.cluster import Cluster, cluster_of, meet, parse_cluster

TWO = ["10.0.0.1:2222", "10.0.0.2:2222"]
FIRST = {"type": "worker", "index": 0}


def describe(cluster: Any, task: Any = FIRST) -> str:
    return json.dumps({"cluster": cluster, "task": task})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ["strategy", "needs the environment variable TF_CONFIG", '"task": {"type": "worker", "index": 0}']),
        ("{cluster", ["TF_CONFIG", "is not JSON"]),
        ("[]", ["TF_CONFIG", "names no cluster"]),
        ('{"task": {"type": "worker", "index": 0}}', ["names no cluster"]),
        (describe({"worker": []}), ["has no worker"]),
        (describe({"worker": "10.0.0.1:2222"}), ["cluster.worker", "must be a list"]),
        (describe({"worker": ["10.0.0.1"]}), ["cluster.worker[0]", "is not host:port"]),
        (describe({"worker": ["10.0.0.1:0"]}), ["is not host:port"]),
        (describe({"worker": [TWO[0], TWO[0]]}), ["names one address twice"]),
        (describe({"worker": TWO, "ps": ["10.0.0.3:2222"]}), ["cluster.ps", "only chief and worker"]),
        (describe({"chief": TWO}, {"type": "chief", "index": 0}), ["one chief only"]),
        (describe({"worker": TWO}, None), ["TF_CONFIG: task", "received None"]),
        (describe({"worker": TWO}, {"type": "evaluator", "index": 0}), ["TF_CONFIG: task"]),
        (describe({"worker": TWO}, {"type": "worker", "index": 2}), ["task.index", "below 2, received 2"]),
        (describe({"worker": TWO}, {"type": "worker", "index": "1"}), ["task.index", "received '1'"]),
        (describe({"worker": TWO}, {"type": "chief", "index": 0}), ["task.index", "below 0"]),
    ],
)
def test_tf_config(text: str, says: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from tlearn.train.command import main

    monkeypatch.setenv("TF_CONFIG", text)
    assert main(["strategy=multi_worker", "data=digits"]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in says), error


def test_a_sound_tf_config_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = parse_cluster(describe({"chief": ["a:1"], "worker": ["b:1", "[::1]:1"]}, {"type": "worker", "index": 1}))
    assert cluster == Cluster(("a:1", "b:1", "[::1]:1"), 2, named_chief=True)
    assert not cluster.is_chief
    monkeypatch.setenv("TF_CONFIG", describe({"worker": TWO}))
    assert cluster_of(Config()) == Cluster(tuple(TWO), 0)  # auto
    assert cluster_of(Config(strategy=Strategy.one)) is None
    assert cluster_of(Config(strategy=Strategy.mirrored)) is None
    monkeypatch.setenv("TF_CONFIG", describe({"worker": TWO[:1]}))
    assert cluster_of(Config()) is None


def test_a_timeout_that_is_none(capsys: pytest.CaptureFixture) -> None:
    from tlearn.train.command import main

    assert main(["strategy_timeout=0", "data=digits"]) == 2
    assert "strategy_timeout" in capsys.readouterr().err


# --- devices ---------------------------------------------------------------------------------------------------------


def test_mirrored_needs_two_devices(capsys: pytest.CaptureFixture) -> None:
    from tlearn.train.command import main

    assert main(["strategy=mirrored", "data=digits", "data.per_class=5", "run_dir=/tmp/never"]) == 2
    assert "mirrored needs two devices or more; there is 1 CPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "images", "says"),
    [
        (3, 100, "3 images cannot be shared among 4 devices"),
        (16, 51, "the last batch of an epoch has 3 of 51 images, too few for 4 devices; data.batch_size=15"),
    ],
)
def test_batches_that_cannot_be_shared(size: int, images: int, says: str) -> None:
    from tlearn.train.distribution import DevicePlan, check_devices

    config = Config(data=DataConfig(batch_size=size))
    with pytest.raises(ConfigError) as caught:
        check_devices(DevicePlan(Strategy.mirrored, 4), config, images)
    assert says in " ".join(str(caught.value).replace("\n", ";").split())
    check_devices(DevicePlan(Strategy.one), config, images)


def test_steps_of_several_devices_are_not_compiled() -> None:
    from tlearn.train.distribution import DevicePlan, check_devices

    with pytest.raises(ConfigError, match="steps on several devices are not compiled"):
        check_devices(DevicePlan(Strategy.mirrored, 2), Config(xla="on"), 64)


# --- meeting ---------------------------------------------------------------------------------------------------------


def meeting(*workers: Callable[[tuple[str, ...]], None]) -> list[str]:
    """What each worker says, "" for one that went on; all of them at once on free ports."""
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as two:
        addresses = tuple(f"127.0.0.1:{server.getsockname()[1]}" for server in (one, two))
    said = [""] * len(workers)

    def run(index: int) -> None:
        try:
            workers[index](addresses)
        except UserError as error:
            said[index] = str(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return said


def worker(index: int, seconds: float = 10.0, **about: str) -> Callable[[tuple[str, ...]], None]:
    return lambda addresses: meet(Cluster(addresses, index), about, seconds)


def test_workers_meet() -> None:
    assert meeting(worker(0, config="a"), worker(1, config="a")) == ["", ""]


def test_a_worker_that_does_not_come() -> None:
    (said,) = meeting(worker(0, 0.3))
    assert "worker 1 (127.0.0.1:" in said
    assert "did not come" in said
    assert "start the same command on all machines" in said


def test_a_chief_that_does_not_answer() -> None:
    (said,) = meeting(worker(1, 0.3))
    assert "the chief (127.0.0.1:" in said
    assert "did not answer" in said


def test_workers_of_different_configs() -> None:
    chief, other = meeting(worker(0, config="a"), worker(1, config="b"))
    assert "worker 1 has another config than the chief" in chief
    assert other == chief


def test_two_workers_of_one_index() -> None:
    def twice(addresses: tuple[str, ...]) -> None:
        meet(Cluster((*addresses, "127.0.0.1:9"), 1), {}, 10)

    said = meeting(lambda addresses: meet(Cluster((*addresses, "127.0.0.1:9"), 0), {}, 10), twice, twice)
    assert all("two workers of index 1" in text for text in said), said


def test_a_stranger_at_the_port_changes_nothing() -> None:
    def stranger(addresses: tuple[str, ...]) -> None:
        host, port = addresses[0].split(":")
        for _ in range(100):
            try:
                with socket.create_connection((host, int(port)), 1) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\n\r\n\n")
                    return
            except OSError:
                threading.Event().wait(0.01)

    assert meeting(worker(0), stranger, lambda a: (threading.Event().wait(1), worker(1)(a))[1]) == ["", "", ""]
