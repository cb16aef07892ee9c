"""The command with real trials: what it prints, what it leaves, what it says when it cannot."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from tlearn.compose import load_config
from tlearn.sweep.command import main
from tlearn.sweep.load import load_sweep
from tlearn.sweep.process import run_trial

RunCli = Callable[..., Any]
TINY = (
    *("backbone.name=tiny", "backbone.weights=null", "backbone.alpha=null", "backbone.image_size=16"),
    *("data.name=stripes", "data.batch_size=8"),
)


def test_a_trial_tells_of_every_epoch_and_ends_when_it_is_told_to(
    plugin_env: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in plugin_env.items():
        monkeypatch.setenv(name, value)
    told: list[tuple[int, set[str]]] = []

    def on_report(epoch: int, metrics: Mapping[str, float]) -> bool:
        told.append((epoch, set(metrics)))
        return epoch == 3

    stages = "schedule.stages=[{name: head, epochs: 2}, {name: all, unfreeze: all, epochs: 4}]"
    (tmp_path / "trials").mkdir()
    run = tmp_path / "trials" / "0000"
    ended = run_trial([*TINY, stages, f"run_dir={run}"], tmp_path / "log.txt", on_report)
    assert ended.status == 0, ended.error
    assert [epoch for epoch, _ in told] == [1, 2, 3], "counted over both stages"
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= told[0][1]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["epochs"]) == ("pruned", 3)
    assert not (run / "model.keras").exists()
    assert hparams_of(tmp_path) == {"0000": {"final/val_loss", "final/val_accuracy"}}


@pytest.mark.slow
def test_a_sweep_goes_on_prunes_and_retrains_the_best(
    run_cli: RunCli, rates: tuple[str, ...], plugin_env: dict[str, str], tmp_path: Path
) -> None:
    """Three trials in two invocations. The pruner compares at every epoch as soon as two trials are complete."""
    pruner = "sweep.pruner={name: median, startup: 2, warmup: 0}"
    given = [*rates, pruner, "sweep.objectives.0.metric=val_loss", "schedule.stages.0.epochs=2"]
    first = run_cli("sweep", *given, "sweep.trials=1", env=plugin_env)
    summary = json.loads(first.assert_ok().stdout.splitlines()[-1])
    assert (summary["trials"], summary["pruned"], summary["study"]) == (1, 0, "rates")
    assert set(summary["best"]["values"]) == {"optimizer.learning_rate"}

    second = run_cli("sweep", *given, "sweep.trials=3", "sweep.retrain=true", env=plugin_env)
    summary = json.loads(second.assert_ok().stdout.splitlines()[-1])
    assert (summary["trials"], summary["complete"], summary["pruned"]) == (3, 2, 1), (
        "the third is worse than the median"
    )
    runs = sorted((tmp_path / "out" / "trials").iterdir())
    assert [run.name for run in runs] == ["0000", "0001", "0002"]
    statuses = [json.loads((run / "summary.json").read_text())["status"] for run in runs]
    assert statuses.count("pruned") == summary["pruned"]
    for run, status in zip(runs, statuses, strict=True):
        assert (run / "model.keras").is_file() == (status == "finished")
        assert (run / "config.yaml").is_file()
    found = hparams_of(tmp_path / "out")
    assert sorted(found) == ["0000", "0001", "0002"], "TensorBoard finds every trial below the folder"
    assert all("final/val_loss" in metrics for metrics in found.values())
    assert b"<svg" in (tmp_path / "out" / "report.html").read_bytes()

    experiment = tmp_path / "experiments" / "rates.yaml"
    assert summary["experiment"] == str(experiment)
    assert (
        yaml.safe_load(experiment.read_text())["optimizer"]["learning_rate"]
        == summary["best"]["values"]["optimizer.learning_rate"]
    )
    again = run_cli("train", "experiment=rates", "run_dir=again", env=plugin_env)
    repeated = json.loads(again.assert_ok().stdout.splitlines()[-1])
    for name in ("val_loss", "val_accuracy", "weights_sha256"):
        assert repeated[name] == summary["retrained"][name]


@pytest.mark.slow
def test_two_commands_at_once_share_trials_and_features(
    rates: tuple[str, ...], plugin_env: dict[str, str], tmp_path: Path
) -> None:
    """Real training on both sides: the budget is met once, by both, and images go through the frozen part once."""
    given = [*rates, "sweep.trials=5", f"cache.dir={tmp_path / 'features'}", "schedule.stages.0.epochs=3"]
    command = [sys.executable, "-m", "tlearn.sweep", *given]
    environment = os.environ | plugin_env
    workers = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for _ in range(2)
    ]
    printed = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed

    ended = [
        sorted(map(int, re.findall(r"^trial (\d+) (?:complete|pruned)", said, re.MULTILINE))) for _, said in printed
    ]
    assert all(ended), "both took part"
    numbers = sorted(ended[0] + ended[1])
    assert len(set(numbers)) == len(numbers) == 5
    runs = sorted((tmp_path / "out" / "trials").iterdir())
    assert [int(run.name) for run in runs] == numbers, "no run but those that count"
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    last_lines = [json.loads(out.splitlines()[-1]) for out, _ in printed]
    for line in last_lines:
        assert (line["status"], line["trials"], line["failed"]) == ("finished", 5, 0)
        assert line["pruned"] == sum(summary["status"] == "pruned" for summary in summaries)
        assert line["best"]["trial"] == last_lines[0]["best"]["trial"]
    passes = [line for run in runs for line in (run / "log.txt").read_text().splitlines() if "one pass" in line]
    assert sorted(re.findall(r"(?:train|val) images", "\n".join(passes))) == ["train images", "val images"]


def hparams_of(folder: Path) -> dict[str, set[str]]:
    """Metrics on TensorBoard's HParams page, by the name that it gives to each run below a folder."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams import plugin_data_pb2

    found = {}
    for file in folder.glob("trials/*/tensorboard/hparams/events.out.tfevents.*"):
        name, metrics = "", set()
        for value in (value for event in EventFileLoader(str(file)).Load() for value in event.summary.value):
            if value.metadata.plugin_data.plugin_name == "hparams":
                data = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
                name = name or data.session_start_info.group_name
                assert data.session_start_info.hparams or not data.HasField("session_start_info")
            else:
                metrics.add(value.tag)
        found[file.relative_to(folder / "trials").parts[0] if name else ""] = metrics
    return found


def test_a_trial_does_not_outlive_its_worker(
    plugin_env: dict[str, str], rates: tuple[str, ...], tmp_path: Path
) -> None:
    """Killed, a worker takes its trial with it: else two processes would write one folder."""
    code = "import sys; from tlearn.sweep.command import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *rates, "schedule.stages.0.epochs=100000", "sweep.trials=1"]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | plugin_env, stderr=subprocess.DEVNULL) as worker:
        metrics = tmp_path / "out" / "trials" / "0000" / "metrics.jsonl"
        wait_for(metrics.is_file)
        (trial,) = children_of(worker.pid)
        worker.send_signal(signal.SIGKILL)
    wait_for(lambda: not is_alive(trial))


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


def test_a_trial_that_fails_says_why(tmp_path: Path) -> None:
    ended = run_trial(["data=folder", "data.path=nowhere"], tmp_path / "log.txt", lambda *_: False)
    assert ended.status == 2
    assert "data.path" in ended.error
    assert "nowhere" in ended.error


# --- without TensorFlow ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--help"], 0, "sweep.trials=20"),
        (["--pln"], 2, "did you mean --plan"),
        ([], 2, "sweep: is not given"),
        (["sweep=heads", "sweep.tirals=2"], 2, "did you mean sweep.trials"),
        (["sweep=heads", "data=folder", "data.path=nowhere"], 2, "nowhere"),
    ],
)
def test_mistakes_end_with_status_2(
    arguments: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert says in (printed.err if status else printed.out)
    assert not (tmp_path / "sweeps").exists()


def test_a_stopped_sweep_says_how_to_go_on(
    rates: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tlearn.sweep.worker import Worker

    monkeypatch.setattr(Worker, "work", lambda worker: False)  # the budget is not met
    assert main([*rates]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["status"] == "stopped"
    assert "stopped; start the same command again to go on" in err


def test_mistakes_do_not_wait_for_tensorflow_or_optuna(tmp_path: Path) -> None:
    code = (
        "import sys; from tlearn.sweep.command import main; main(['sweep=heads', 'sweep.space.haed.type=int']); "
        "main(['--help']); print([m for m in ('tensorflow', 'keras', 'optuna', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_somebody_elses_experiment_is_not_overwritten(
    rates: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "rates.yaml").write_text("seed: 3\n")
    assert main([*rates, "sweep.retrain=true"]) == 2
    assert "sweep.retrain would overwrite it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        ((3, {"status": "stopped"}), {"status": "stopped"}),
        ((4, {"status": "failed", "reason": "no number"}), {"status": "failed", "reason": "no number"}),
        ((2, {}), {"status": "failed", "reason": "exit status 2"}),
    ],
)
def test_how_the_run_of_the_best_ended_is_told(
    ended: tuple[int, dict[str, str]],
    said: dict[str, str],
    rates: tuple[str, ...],
    fake: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    from tlearn.sweep import retrain
    from tlearn.train.launch import JobResult

    fake["work"]([*rates, "sweep.trials=1"], fake["fake_run"]())
    monkeypatch.setattr(retrain, "run_job", lambda *_: JobResult(*ended, seconds=1.0))
    capsys.readouterr()
    assert main([*rates, "sweep.trials=1", "sweep.retrain=true"]) == ended[0]
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["retrained"] == {"run": str(tmp_path / "out" / "best-0000")} | said


def test_two_workers_train_the_best_once(
    rates: tuple[str, ...],
    fake: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The second waits for the first, and tells what that one's run came to; its objective is of training images."""
    from tlearn.sweep import retrain
    from tlearn.train.launch import JobResult, Processes

    given = [*rates, "sweep.trials=1", "sweep.pruner.name=none", "sweep.objectives.0.metric=loss"]
    fake["work"](given, fake["fake_run"]())
    begun, waiting, runs = threading.Event(), threading.Event(), []

    def run_job(overrides: list[str], *_: Any) -> JobResult:
        runs.append(overrides)
        begun.set()
        assert waiting.wait(60)
        run = tmp_path / "out" / "best-0000"
        run.mkdir()
        (run / "config.yaml").write_text(
            OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(load_config(overrides))))
        )
        (run / "metrics.jsonl").write_text('{"event": "epoch", "loss": 0.25}\n')
        (run / "summary.json").write_text('{"status": "finished"}')
        return JobResult(0, {"status": "finished"}, 1.0)

    monkeypatch.setattr(retrain, "run_job", run_job)
    monkeypatch.setattr(retrain, "time", SimpleNamespace(sleep=lambda _: waiting.set()))
    told: list[tuple[int, dict[str, Any]]] = []

    def work() -> None:
        told.append(retrain.retrain(load_sweep(given), fake["open_study"](given), Processes()))

    first = threading.Thread(target=work, daemon=True)
    first.start()
    assert begun.wait(60)
    work()
    first.join(60)
    assert len(runs) == 1
    assert [(status, line["retrained"]["status"]) for status, line in told] == [(0, "finished")] * 2
    assert "waiting for another worker, which trains" in capsys.readouterr().err
    assert re.search(
        r"^# Result: loss 0\.25 \(seed", (tmp_path / "experiments" / "rates.yaml").read_text(), re.MULTILINE
    )


# --- the plan --------------------------------------------------------------------------------------------------------


POOLINGS = "{head: {type: categorical, choices: [linear, mlp]}, head.pooling: {type: categorical, choices: [avg, max]}}"


def test_the_plan_counts_extractions(rates: tuple[str, ...]) -> None:
    from tlearn.sweep.extractions import count_extractions
    from tlearn.sweep.load import load_sweep

    alone = count_extractions(load_sweep(rates))
    assert (alone.shared, alone.own, dict(alone.deciding)) == (1, 0, {})
    seeds = count_extractions(load_sweep([*rates, "sweep.space.seed={type: int, low: 1, high: 4}"]))
    assert (seeds.shared, seeds.deciding) == (4, {"seed": 4}), "each seed has random weights of its own"
    thawed = count_extractions(load_sweep([*rates, "schedule=full", "schedule.stages.1.epochs=4"]))
    assert (thawed.shared, thawed.own) == (1, 4), "with everything unfrozen each trial goes through all images anew"


@pytest.mark.slow
def test_trials_make_as_many_extractions_as_the_plan_says(rates: tuple[str, ...], tmp_path: Path) -> None:
    import tlearn
    from tlearn.compose import load_config
    from tlearn.sweep.extractions import count_extractions
    from tlearn.sweep.load import load_sweep

    given = [*rates, f"sweep.space={POOLINGS}", f"cache.dir={tmp_path / 'features'}", "schedule.stages.0.epochs=1"]
    sweep = load_sweep([*given, "log.tensorboard=false"])
    planned = count_extractions(sweep)
    assert (planned.shared, planned.deciding) == (2, {"head.pooling": 2})
    for number, (head, pooling) in enumerate([("linear", "avg"), ("mlp", "avg"), ("mlp", "max")]):
        values = {"head": head, "head.pooling": pooling}
        tlearn.fit(load_config(sweep.overrides(values, tmp_path / f"run-{number}")))
    entries = [path for path in (tmp_path / "features").iterdir() if path.is_dir()]
    assert len(entries) == 2 * planned.shared, "of the training and of the validation images"


def test_the_plan_is_printed_by_both_commands(
    rates: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tlearn.plan import main as plan

    assert main([*rates, "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "1 for 6 trials" in printed
    assert plan([*rates]) == 0
    assert capsys.readouterr().out == printed
    assert plan(["--json", *rates]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["study"], data["trials"], data["extractions"]["shared"]) == ("rates", 6, 1)
    assert list(data["space"]) == ["optimizer.learning_rate"]
    assert plan(["sweep=heds"]) == 2
    assert "did you mean heads" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
