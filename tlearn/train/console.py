"""What a person sees while a run goes on: on standard error, so that standard output holds one line for scripts."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tlearn.errors import visible
from tlearn.words import counted, size_text

if TYPE_CHECKING:
    from tlearn.train.foresight import Foresight, StageForesight
    from tlearn.train.launch import JobResult
    from tlearn.train.plan import Plan, StagePlan

_PLAIN_WIDTH = 100
_RESULTS = ("val_accuracy", "val_auc", "val_loss", "test_accuracy")


class Terminal:
    """Prints to the terminal and to the run's log; draws a bar only where somebody can see it.

    Args:
        progress: whether a bar is wanted at all.
    """

    def __init__(self, progress: bool = True) -> None:
        self._console = Console(
            stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=not sys.stderr.isatty()
        )
        self._log: Path | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._wants_bar = progress and self._console.is_terminal

    def log_to(self, path: Path) -> None:
        """From now on append everything printed to a file as well."""
        self._log = path

    def print(self, *what: RenderableType) -> None:
        """Print, and log as plain text."""
        what = tuple(visible(part, keep="\n") if isinstance(part, str) else part for part in what)
        whole = all(isinstance(part, str) for part in what)  # a command broken in two could not be pasted
        self._console.print(*what, soft_wrap=whole)
        if self._log is not None:
            try:
                with open(self._log, "a", encoding="utf-8", errors="backslashreplace") as file:
                    log = Console(file=file, width=_PLAIN_WIDTH, highlight=False, markup=False, emoji=False)
                    log.print(*what, soft_wrap=whole)
            except OSError as error:  # it is for people, and they have read it here
                self._console.print(f"{self._log}: {error.strerror}; the log ends here")
                self._log = None

    def start_epoch(self, label: str, steps: int, done: int) -> None:
        """Begin the bar of an epoch."""
        if not self._wants_bar:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(label, total=steps, completed=done, note="")

    def step(self, done: int, note: str) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, note=note)

    def end_epoch(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def plan_table(plan: Plan) -> RenderableType:
    """The plan for people: facts, then a row per stage; fits 80 columns."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    images = [f"{plan.train_images:,} train", f"{plan.val_images:,} val"]
    images += [f"{plan.test_images:,} test"] if plan.test_images else []
    facts.add_row("backbone", f"{plan.backbone}, {plan.weights} weights, {plan.image_size} px")
    facts.add_row("head", f"{plan.head}, {plan.outputs} {'labels' if plan.multi_label else 'classes'}")
    facts.add_row("images", f"{', '.join(images)}; batches of {plan.batch_size}, {plan.steps_per_epoch} an epoch")
    if plan.replicas > 1:
        facts.add_row("devices", f"{plan.devices}: {_per_device(plan)} images of a batch each")
    facts.add_row("parameters", f"{plan.parameters:,}")
    if plan.class_weights is not None:
        weights = zip(plan.classes, plan.class_weights, strict=False)
        facts.add_row("class weights", ", ".join(f"{name} {weight:.3g}" for name, weight in weights))
    notes = [*plan.notes, *(f"stage {stage.name}: {note}" for stage in plan.stages for note in stage.notes)]
    return Group(facts, _stage_table(plan), _feature_lines(plan), *(f"note: {note}" for note in notes))


def _per_device(plan: Plan) -> str:
    least, most = plan.batch_size // plan.replicas, -(-plan.batch_size // plan.replicas)
    return str(least) if least == most else f"{least} or {most}"


def _stage_table(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("stage", "trains", "parameters", "epochs", "steps", "optimizer"):
        table.add_column(name, justify="right" if name in ("parameters", "epochs", "steps") else "left")
    for stage in plan.stages:
        trains = f"head + {stage.unfreeze}\nfrom {stage.lowest}" if stage.layers else "head"
        if stage.batch_norms_training:
            trains += f"\n{stage.batch_norms_training} batch norms move"
        parameters = f"{stage.parameters:,}"
        table.add_row(stage.name, trains, parameters, str(stage.epochs), f"{stage.steps:,}", stage.optimizer)
    return table


def _feature_lines(plan: Plan) -> Group:
    lines = Table.grid(padding=(0, 2))
    for stage, text in feature_texts(plan):
        lines.add_row(stage, Text(text))
    return Group(lines, passes_text(plan))


def feature_texts(plan: Plan) -> Iterator[tuple[str, str]]:
    """The name of each stage, and what it does about the part of the model that does not change in it."""
    for index, stage in enumerate(plan.stages):
        features = stage.features
        if features.cached:
            when = f"once for {features.reason}" if features.views > 1 else "once"
            if features.made_in not in (None, index):
                when += f", together with {plan.stages[features.made_in or 0].name}"
            size = f"{size_text(features.bytes)}, {features.bytes_per_image:,} bytes an image"
            text = f"computes {', '.join(features.tensors)} {when}: {size} in {features.dtype}"
        else:
            images = "all training images" if features.keeps_val else "all images"
            text = f"computes {images} in each epoch: {features.reason}; {_streaming(plan, stage)}"
            if features.keeps_val:
                size = size_text(features.bytes_per_image * plan.val_images)
                text += f"; {', '.join(features.tensors)} of the validation images once: {size} in {features.dtype}"
        yield stage.name, text


def passes_text(plan: Plan) -> str:
    """How often the training images go through that part, and how often they would if nothing were kept."""
    passes = f"passes over the training images: {plan.passes}"
    passes += f" instead of {plan.epochs}" if plan.passes < plan.epochs else ""
    if plan.passes > plan.epochs:
        passes += f", more than the {plan.epochs} epochs: fewer cache.views, or none, take less time"
    engine = next((stage.features.engine for stage in plan.stages if stage.features.cached), "")
    return passes + (f", prefix engine {engine}" if engine else "")


def _streaming(plan: Plan, stage: StagePlan) -> str:
    """How often a stage goes through the training images, and what it reads each time."""
    passes = counted(stage.epochs, "pass", "passes")
    if plan.file_bytes is not None and not plan.decoded_once:
        return f"{passes} over {size_text(plan.file_bytes)} of files"
    pixels = size_text(plan.train_images * plan.image_size**2 * 3)
    return f"{passes} over {pixels} of pixels" + (", decoded once" if plan.decoded_once else "")


def metrics_line(logs: dict[str, float], names: Iterable[str] | None = None) -> str:
    """Metrics in one line: ``loss 0.312  accuracy 0.912``."""
    return "  ".join(f"{name} {logs[name]:.4g}" for name in (names or logs) if name in logs)


def print_plan(plan: Plan, foresight: Foresight, notes: Sequence[str] = ()) -> None:
    """The plan on standard output, with what the cache has of its features, and notes on how it was made."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(plan_table(plan))
    if foresight.stages:
        console.print(_foresight_lines(plan, foresight))
    for note in notes:
        console.print(f"note: {note}")


def _foresight_lines(plan: Plan, foresight: Foresight) -> Group:
    lines = Table.grid(padding=(0, 2))
    for stage in foresight.stages:
        if stage.train is None or stage.val is None:
            text = "shows once earlier stages have trained what is below its features"
        else:
            text = f"{plan.train_images if stage.train else 0:,} of {plan.train_images:,} train images, "
            text += f"{plan.val_images if stage.val else 0:,} of {plan.val_images:,} val"
        lines.add_row(stage.stage, f"{text}: {_passes_left(plan, stage)}")
    return Group(Text(f"features in the cache {foresight.folder}:"), lines)


def _passes_left(plan: Plan, stage: StageForesight) -> str:
    """What is left to do for a stage."""
    if stage.made_in is None:
        return "no pass over the images"
    maker = plan.stages[stage.made_in]
    if maker.name != stage.stage:
        return f"made in the pass of {maker.name}"
    at_most = "at most " if stage.train is None else ""
    return at_most + (counted(stage.passes, "pass", "passes") if stage.passes else "one pass over the val images")


def print_results(jobs: Sequence[Sequence[str]], results: Sequence[JobResult | None]) -> None:
    """The runs of a multirun and what came of them, on standard error: a row each, with what tells them apart."""
    Console(stderr=True, highlight=False, markup=False).print(results_table(jobs, results))


def results_table(jobs: Sequence[Sequence[str]], results: Sequence[JobResult | None]) -> Table:
    """A row for each run: what is not the same in all of them, its status and metrics."""
    table = Table(box=None, padding=(0, 1), header_style="bold")
    different = [[text for text in job if not all(text in other for other in jobs)] for job in jobs]
    keys = list(dict.fromkeys(text.partition("=")[0] for job in different for text in job))
    shown = [name for name in _RESULTS if any(result and name in result.summary for result in results)]
    for name in ("run", *keys, "status", *shown, "seconds"):
        table.add_column(name, justify="left" if name in (*keys, "status") else "right", overflow="fold")
    for number, (texts, result) in enumerate(zip(different, results, strict=True), start=1):
        values = dict(text.partition("=")[::2] for text in texts)
        summary = result.summary if result else {}
        status = str(summary.get("status", f"exit status {result.status}" if result else "not started"))
        metrics = [f"{summary[name]:.4g}" if name in summary else "" for name in shown]
        seconds = f"{result.seconds:.1f}" if result else ""
        table.add_row(str(number), *(values.get(key, "") for key in keys), status, *metrics, seconds)
    return table


def plan_text(plan: Plan) -> str:
    """The plan as plain text, 80 columns wide."""
    console = Console(file=io.StringIO(), width=80, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(plan_table(plan))
    return capture.get()
