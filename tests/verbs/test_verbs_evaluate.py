"""``tlearn.evaluate``: runs and backbones on labelled images, from the command line and from Python."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import tlearn
from tlearn.evaluate.command import main
from tlearn.images import Columns
from tlearn.train.run import Run


@pytest.fixture(scope="module")
def labels_network(labels_run: Path) -> tlearn.Network:
    return tlearn.load(labels_run)


@pytest.fixture
def numbers(tmp_path: Path, draw: Callable[..., Path]) -> Path:
    """A folder of class folders: three of the digits' classes."""
    for index in range(9):
        draw(tmp_path / "numbers" / str(index % 3) / f"{index}.png", index)
    return tmp_path / "numbers"


# --- a run on its own data -------------------------------------------------------------------------------------------


def test_a_run_scores_as_it_did_when_it_ended(network: tlearn.Network, digits_run: Path) -> None:
    """Same division, same reading, same weights: the metrics of the summary, which Keras computed."""
    summary = Run.open(digits_run).summary
    found = network.evaluate(resamples=100)
    assert found["accuracy"] == pytest.approx(summary["val_accuracy"], abs=1e-6)
    assert found["top5"] == pytest.approx(summary["val_top5"], abs=1e-6)
    assert found["loss"] == pytest.approx(summary["val_loss"], abs=1e-4)
    assert found.matrix is not None
    assert found.matrix.sum() == len(found.outputs.images)
    assert any("the temperature was fitted to the images" in notice for notice in found.notices)
    assert found.temperature is not None
    assert found.temperature.after.loss <= found.calibration.loss
    assert found.scores["accuracy"].low < found["accuracy"] < found.scores["accuracy"].high  # type: ignore[operator]
    probabilities = [mistake.probability for mistake in found.mistakes]
    assert probabilities == sorted(probabilities, reverse=True)
    train = network.evaluate(split="train", resamples=100, temperature=False)
    assert train.temperature is None
    assert len(train.outputs.images) == 200


def test_a_run_with_several_labels(labels_network: tlearn.Network, labels_run: Path, tmp_path: Path) -> None:
    found = labels_network.evaluate(split="train", resamples=100)
    assert found.matrix is None
    assert {"map", "subset_accuracy", "micro_f1", "ranking_ap"} <= found.scores.keys()
    assert [each.name for each in found.classes] == ["green", "red"]
    assert all(each.average_precision is not None for each in found.classes)
    assert any("not" in f"{mistake.truth} {mistake.predicted}" for mistake in found.mistakes)

    table = str(labels_run.parent / "table.csv")
    arguments = [str(labels_run), "--data", table, "-o", "report", "--format", "json", "--resamples", "100"]
    assert main(arguments) == 0
    rows = list(csv.DictReader((tmp_path / "report" / "predictions.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["truth"] for row in rows[:3]] == ["green|red", "green", ""]
    assert "confusion_matrix.png" not in {file.name for file in (tmp_path / "report").iterdir()}
    with pytest.raises(tlearn.UserError, match="a folder gives an image one class"):
        labels_network.evaluate(labels_run.parent)


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_command_writes_a_folder_for_people_and_machines(
    digits_run: Path, numbers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        str(digits_run),
        "--data",
        str(numbers),
        "--allow-missing-classes",
        "-o",
        "report",
        "--resamples",
        "100",
    ]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    summary = json.loads(lines[-1])
    assert (summary["images"], summary["split"], summary["output"]) == (9, "all", "report")

    document = json.loads(Path("report/evaluation.json").read_text(encoding="utf-8"))
    assert document["scores"]["accuracy"]["value"] == pytest.approx(summary["accuracy"], abs=1e-6)
    assert [each["support"] for each in document["classes"]] == [3, 3, 3, 0, 0, 0, 0, 0, 0, 0]
    assert document["classes"][9]["recall"] is None
    assert any("no image of '3', '4'" in notice for notice in document["notices"])

    rows = list(csv.DictReader(Path("report/predictions.csv").read_text(encoding="utf-8").splitlines()))
    assert sum(int(row["right"]) for row in rows) / 9 == pytest.approx(summary["accuracy"], abs=1e-6)
    assert all((row["truth"] == row["predicted"]) == (row["truth_rank"] == "1") for row in rows)
    matrix = np.loadtxt("report/confusion_matrix.csv", delimiter=",", skiprows=1)[:, 1:]
    assert matrix.tolist() == document["confusion_matrix"]
    for name in ("confusion_matrix.png", "reliability_diagram.png", "mistakes.png"):
        with Image.open(f"report/{name}") as picture:
            assert np.asarray(picture.convert("L")).std() > 20, f"there is nothing in {name}"

    page = Path("report/report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == len(document["mistakes"]) == document["wrong"]
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs other files"

    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--format", "json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again.pop("output") == "report"
    assert again == document, "the same images give the same numbers, intervals included"


def test_an_output_is_written_wherever_the_check_let_it_pass(
    network: tlearn.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tlearn.evaluate.files import check_output, write_evaluation

    found = network.evaluate(resamples=100, temperature=False)
    (tmp_path / "report.partial").mkdir()
    (tmp_path / "report.partial" / "notes.txt").write_text("of the user")
    check_output("report", overwrite=False)
    write_evaluation(found, "report")
    assert (tmp_path / "report.partial" / "notes.txt").read_text() == "of the user"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "report.partial"]

    written = {path.name for path in (tmp_path / "report").iterdir()}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for overwrite in (False, True):
        check_output(".", overwrite=overwrite)
        write_evaluation(found, ".")
        assert {path.name for path in Path().iterdir()} == written, "and a shell would still stand in it"
    assert Path("evaluation.json").read_bytes() == (tmp_path / "report" / "evaluation.json").read_bytes()


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlearn.evaluate.files import check_output

    Path("dangling").symlink_to("nowhere")
    Path("folder.json").mkdir()
    for output, says in (("dangling", "is no folder"), ("folder.json", "is a folder")):
        with pytest.raises(tlearn.UserError, match=says):
            check_output(output, overwrite=True)
    (tmp_path / "locked").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    for output in ("locked", "locked/report", "locked/report.json"):
        with pytest.raises(tlearn.UserError, match=r"locked may not be written to"):
            check_output(output, overwrite=False)


def test_names_cannot_escape_into_the_page(network: tlearn.Network, numbers: Path) -> None:
    from tlearn.evaluate.page import evaluation_page
    from tlearn.evaluate.tables import evaluation_tables

    odd = numbers / "0" / "<script>x&\x1b[2J\udcff.png"
    shutil.copy(numbers / "0" / "0.png", odd)
    found = network.evaluate(numbers, resamples=100, allow_missing=True)
    page = evaluation_page(found, {})
    page.encode()
    assert "<script" not in page
    console = Console(width=80)
    with console.capture() as capture:
        console.print(evaluation_tables(found))
    assert "\x1b[2J" not in capture.get()


def test_many_classes_still_fit_a_terminal() -> None:
    """A hundred and fifty classes with long names."""
    from tlearn.data import ArraySource
    from tlearn.evaluate.evaluation import Outputs, score
    from tlearn.evaluate.plots import draw_confusions, draw_reliability
    from tlearn.evaluate.tables import evaluation_tables
    from tlearn.images import Reading
    from tlearn.labelled import Labelled

    random = np.random.default_rng(0)
    names = tuple(f"a rather long name of a species, number {index}" for index in range(150))
    truth = random.integers(0, 150, 600)
    logits = random.normal(size=(600, 150)) + 4 * np.eye(150)[truth]
    source = ArraySource(np.zeros((600, 8, 8, 3), np.uint8), truth, names)
    images = Labelled(source, np.arange(600), truth, names, "test")
    found = score(Outputs("net", names, images, truth, logits, (), Reading(8)), resamples=100)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(evaluation_tables(found))
    lines = capture.get().splitlines()
    assert len(lines) < 60
    assert "smallest F1 of 150 classes" in capture.get()
    assert max(map(len, lines)) <= 80
    assert re.search(r"a rather.*….*, number \d+ ", capture.get()), "names that differ in their end look the same"
    assert draw_confusions(found)
    assert draw_reliability(found)


# --- classes by name, and two networks -------------------------------------------------------------------------------


def test_classes_are_found_by_name(
    network: tlearn.Network, numbers: Path, draw: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = network.evaluate(numbers, resamples=100, allow_missing=True)
    draw(numbers / "ten" / "10.png", 10)
    with pytest.raises(tlearn.UserError, match=r"does not know: 'ten'(?s:.)*--skip-unknown"):
        network.evaluate(numbers)
    found = network.evaluate(numbers, skip_unknown=True, resamples=100, allow_missing=True)
    assert found.scores == expected.scores
    assert found.notices[0] == "left out 1 image of classes that the network does not know: 'ten'"

    (numbers / "broken.png").write_text("no image")
    rows = [f"{path.relative_to(numbers)},{path.parent.name}" for path in sorted(numbers.glob("[0-9]/*.png"))]
    (numbers / "table.csv").write_text("\n".join(["file,digit", *rows, "broken.png,2"]))
    arguments = ["--data", str(numbers / "table.csv"), "--image-column", "file", "--label-column", "digit"]
    arguments.append("--allow-missing-classes")
    assert main([str(network.run.path), *arguments, "--format", "json"]) == 0  # type: ignore[union-attr]
    captured = capsys.readouterr()
    assert json.loads(captured.out)["scores"]["accuracy"]["value"] == expected["accuracy"]
    assert "1 image could not be read" in captured.err


def test_every_class_has_images(network: tlearn.Network, numbers: Path, draw: Callable[..., Path]) -> None:
    """Of one label or several, for a classifier or a probe; it is said before an image is opened."""
    from tlearn.labelled import check_every_class, other_data

    for index in range(3, 10):
        draw(numbers / str(index) / f"{index}.png", index)
    assert network.evaluate(numbers, resamples=100).outputs.images.split == "all"
    (numbers / "9" / "9.png").write_bytes(b"")
    shutil.rmtree(numbers / "8")
    with pytest.raises(tlearn.UserError, match="no image of 1 of 10 classes: '8'"):
        network.evaluate(numbers)
    (numbers / "8").mkdir()
    with pytest.raises(tlearn.UserError, match=r"no image of 1 of 10 classes: '8'(?s:.)*--allow-missing-classes"):
        network.evaluate(numbers)
    found = network.evaluate(numbers, resamples=100, allow_missing=True)
    assert (found.classes[8].support, len(found.outputs.unreadable)) == (0, 1)
    (numbers / "nothing" / "0").mkdir(parents=True)
    with pytest.raises(tlearn.UserError, match="nothing holds no images"):
        network.evaluate(numbers / "nothing", allow_missing=True)
    shutil.rmtree(numbers / "nothing")
    (numbers / "probe.csv").write_text("path,label,split\n0/0.png,0,train\n1/1.png,1,train\n0/3.png,0,val\n")
    with pytest.raises(tlearn.UserError, match="the val images: no image of 1 of 2 classes: '1'"):
        network.evaluate(numbers / "probe.csv", method="knn", columns=Columns(split="split"))

    (numbers / "several.csv").write_text("path,label\n0/0.png,a|b\n1/1.png,a\n2/2.png,\n")
    several = other_data(str(numbers / "several.csv"), None, Columns(), 10**6, several=True)
    check_every_class(several, ("a", "b", "c"), None, count=2, where="here")
    with pytest.raises(tlearn.UserError, match="here: no image of 1 of 3 classes: 'c'"):
        check_every_class(several, ("a", "b", "c"), None, count=3, where="here")


def test_a_run_is_not_better_than_itself(network: tlearn.Network, altered: Callable[..., Path]) -> None:
    found = network.evaluate(against=tlearn.load(altered("log.txt", None)), resamples=100).comparison
    assert found is not None
    assert (found.only_first, found.only_second, found.p_value) == (0, 0, 1.0)
    assert found.both + found.neither == found.images
    assert found.first != found.second


def test_another_division_of_the_data_is_said(network: tlearn.Network, altered: Callable[..., Path]) -> None:
    other = altered("manifest.json", {"hash": "0"})
    found = network.evaluate(against=tlearn.load(other), resamples=100)
    assert "it may know these images" in found.notices[-1]
    assert any("data has changed" in notice for notice in tlearn.load(other).evaluate(resamples=100).notices)


def test_what_a_run_left_out_is_left_out_again(draw: Callable[..., Path], tmp_path: Path) -> None:
    """Else the images would be divided in another way, and some of training be evaluated on."""
    for index in range(24):
        draw(tmp_path / "photos" / "ab"[index % 2] / f"{index}.png", index)
    for index in range(4, 10):
        (tmp_path / "photos" / "ab"[index % 2] / f"{index}.png").write_bytes(b"no image")
    network = ("backbone.name=mobilenet", "backbone.alpha=0.25", "backbone.weights=null", "backbone.image_size=32")
    data = ("data=folder", f"data.path={tmp_path / 'photos'}", "data.on_error=skip", f"run_dir={tmp_path / 'run'}")
    run = tlearn.fit(tlearn.load_config([*network, *data, "schedule.stages.0.epochs=1", "log.tensorboard=false"]))
    evaluation = tlearn.load(run).evaluate(resamples=100)
    assert not any("data has changed" in notice for notice in evaluation.notices)
    assert not evaluation.outputs.unreadable
    assert len(evaluation.outputs.images) == sum(run.manifest["counts"]["val"])


def test_imagenet_classes_by_wordnet_id(assets: Path, keras_home: Path, tmp_path: Path) -> None:
    """A backbone with its own classifier, on folders called as in ImageNet."""
    for name, file in (("n02124075", "skimage_chelsea.png"), ("hotdog", "hot_dog.jpg")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        shutil.copy(assets / "open-photos" / file, tmp_path / "photos" / name)
    network = tlearn.backbone("mobilenet", alpha=0.25, include_top=True)
    with pytest.raises(tlearn.UserError, match="no image of 998 of 1,000 classes: 'tench'"):
        network.evaluate(tmp_path / "photos")
    found = network.evaluate(tmp_path / "photos", resamples=100, allow_missing=True)
    assert found["accuracy"] == 1
    assert {each.name for each in found.classes if each.support} == {"Egyptian cat", "hotdog"}


# --- features without a run ------------------------------------------------------------------------------------------


def test_neighbours_vote_by_their_cosine() -> None:
    """The formula, image by image; and what is far away has no say."""
    from tlearn.evaluate.probes import nearest_neighbours

    random = np.random.default_rng(0)
    known, labels = random.normal(size=(30, 5)).astype(np.float32), random.integers(0, 3, 30)
    asked = random.normal(size=(4, 5)).astype(np.float32)
    found = np.exp(nearest_neighbours(known, labels, asked, 3, 6))
    for image, row in zip(asked, found, strict=True):
        cosine = known @ image / np.linalg.norm(known, axis=1) / np.linalg.norm(image)
        votes = np.zeros(3)
        for index in np.argsort(-cosine)[:6]:
            votes[labels[index]] += np.exp(cosine[index] / 0.07)
        np.testing.assert_allclose(row, np.maximum(votes / votes.sum(), 1e-12), rtol=1e-4)
    assert nearest_neighbours(known, labels, 7 * known, 3, 1).argmax(axis=1).tolist() == labels.tolist()


def test_a_linear_probe_finds_what_is_linear() -> None:
    from tlearn.evaluate.probes import linear_probe

    random = np.random.default_rng(0)
    features = random.normal(size=(300, 4)).astype(np.float32) * [1, 10, 100, 0]
    labels = np.where(features[:, 1] > 0, 2, 0)  # class 1 has no image
    logits, chosen = linear_probe(features[:200], labels[:200], features[200:], 3)
    assert (logits.argmax(axis=1) == labels[200:]).mean() > 0.95
    assert (np.exp(logits[:, 1]) < 1e-9).all()
    assert 1e-4 <= chosen <= 1e4


def test_features_are_those_that_training_has_kept(network: tlearn.Network, digits_run: Path) -> None:
    """The run trained its head on the same features: no image is read again, and nothing is written."""
    cache = digits_run.parent / "features"
    before = {path: path.stat().st_mtime_ns for path in cache.glob("*/*.bin")}
    found = network.evaluate(method="knn", neighbours=5, resamples=100)
    assert "features from the cache" in found.notices[0]
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*/*.bin")} == before
    fresh = network.evaluate(method="knn", neighbours=5, resamples=100, keep_features=False)
    assert "cache" not in fresh.notices[0]
    assert fresh["accuracy"] == pytest.approx(found["accuracy"], abs=0.01)
    assert fresh["loss"] == pytest.approx(found["loss"], rel=1e-3)


def test_a_backbone_without_a_run(pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bare = ["--backbone", "mobilenet", "--alpha", "0.25", "--weights", "null", "--image-size", "32"]
    arguments = [*bare, "--data", str(pictures), "--cache-dir", str(tmp_path / "cache"), "--resamples", "100"]
    assert main([*arguments, "--method", "linear", "--format", "json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["images"], [each["name"] for each in first["classes"]]) == (2, ["ant", "bee"])
    assert "8 images, C = " in first["notices"][0]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert main([*arguments, "--method", "knn", "--format", "json"]) == 0
    assert "features from the cache" in json.loads(capsys.readouterr().out)["notices"][0]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ("neither a run nor --backbone",)),
        (["nowhere"], ("nowhere", "is not a run folder")),
        (["{run}", "{run}"], ("one run is evaluated at a time",)),
        (["{run}", "--data", "nowhere"], ("there is no folder or table nowhere",)),
        (["{run}", "--against", "nowhere"], ("nowhere", "is not a run folder")),
        (["{run}", "--split", "tset"], ("did you mean test",)),
        (["{run}", "--split", "test"], ("has no test images", "train, val")),
        (["{run}", "--method", "kn"], ("did you mean knn",)),
        (["{run}", "--method", "knn", "--split", "train"], ("learns from the train images",)),
        (["{run}", "--method", "knn", "--against", "{run}"], ("does not go with --method",)),
        (["{run}", "--resamples", "1", "--confidence", "2"], ("--resamples", "--confidence")),
        (["{run}", "--data", "{empty}"], ("holds no folders",)),
        (["{run}", "--data", "{table}"], ("no image of 9 of 10 classes: '0', '2', '3'", "--allow-missing-classes")),
        (["{run}", "--data", "{bad}", "--allow-missing-classes"], ("not one could be read", "is not an image")),
        (["{run}", "--data", "{table}", "--label-column", "kind"], ("--label-column", "one of: label, path")),
        (["{run}", "--data", "{table}", "--split", "test"], ("has no test images of its own",)),
        (["{run}", "--output", "{bad}"], ("holds other things",)),
        (["{run}", "--output", "no/where"], ("there is no folder",)),
        (["{labels}", "--method", "knn"], ("one class per image",)),
        (["{run}", "--data", "{bad}", "--split-column", "foo"], ("--split-column", "no table is given")),
        (["{run}", "--label-separator", "|"], ("--label-separator", "no table is given")),
        (["{run}", "--data", "{table}", "--label-separator", "|"], ("several labels each", "gives one class")),
        (["{run}", "--threshold", "0.7"], ("--threshold", "several labels per image")),
        (["{labels}", "--method", "knn", "--threshold", "0.7"], ("--threshold", "one class is given")),
        (["--backbone", "mobilenet"], ("--data", "no images of its own")),
        (["--backbone", "mobilnet", "--data", "{table}"], ("did you mean mobilenet",)),
    ],
)
def test_mistakes(
    arguments: list[str],
    says: tuple[str, ...],
    digits_run: Path,
    labels_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "text.png").write_text("no image")
    (tmp_path / "table.csv").write_text("path,label\nbad/1/text.png,1\n")
    places = {
        "run": digits_run, "labels": labels_run, "empty": tmp_path / "empty", "bad": tmp_path / "bad",
        "table": tmp_path / "table.csv",
    }  # fmt: skip
    assert main([argument.format(**places) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    missing = [text for text in says if text not in captured.err]
    assert not missing, captured.err


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("summary.json", None, "has not finished"),
        ("config.yaml", b"backbone: {name: mobilenet, of_tomorrow: 1}\n", "use that version"),
        ("environment.json", {"run_format": 2, "packages": {"tlearn": "9.1"}}, "made by tlearn 9.1, which is newer"),
    ],
)
def test_runs_that_cannot_be_evaluated(
    file: str, content: Any, says: str, altered: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(altered(file, content))
    assert main([run]) == 2
    assert says in capsys.readouterr().err


def test_the_data_of_a_run_is_gone(labels_run: Path, altered: Callable[..., Path], tmp_path: Path) -> None:
    """Its own splits cannot be evaluated any more; other data can, without temperature scaling."""
    copy = tmp_path / "copy"
    shutil.copytree(labels_run, copy)
    config = (copy / "config.yaml").read_text(encoding="utf-8")
    (copy / "config.yaml").write_text(config.replace(str(labels_run.parent / "table.csv"), str(tmp_path / "gone.csv")))
    network = tlearn.load(copy)
    with pytest.raises(tlearn.UserError, match=r"there is no file(?s:.)*--data"):
        network.evaluate()
    found = network.evaluate(labels_run.parent / "table.csv", resamples=100)
    assert found.temperature is None
    assert any("no temperature scaling" in notice for notice in found.notices)


def test_no_traceback_reaches_the_user(run_cli: Callable[..., Any], digits_run: Path) -> None:
    run_cli("evaluate", digits_run, "--data", "nowhere").assert_user_error("nowhere")
