"""CSV and Parquet tables of images."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from tlearn.config import DataConfig, OnError
from tlearn.data import check_data_config, load_data, peek_classes
from tlearn.errors import DataError


@pytest.fixture
def images(tmp_path):
    """Ten different pictures, img/0.png to img/9.png."""
    (tmp_path / "img").mkdir()
    for index in range(10):
        Image.new("RGB", (8, 8), (index, index, index)).save(tmp_path / f"img/{index}.png")
    return tmp_path


PATHS = [f"img/{index}.png" for index in range(10)]
LABELS = ["cat", "dog"] * 5


def write(file, columns):
    table = pa.table(columns)
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(table, file)
    else:
        options = pyarrow.csv.WriteOptions(delimiter="\t" if file.suffix == ".tsv" else ",")
        pyarrow.csv.write_csv(table, file, options)
    return file


def config(file, **options):
    return DataConfig(name="table", path=str(file), **options)


def load(file, **options):
    return load_data(config(file, **options), image_size=8, seed=0)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_paths_and_labels(images, suffix):
    data = load(write(images / f"table{suffix}", {"path": PATHS, "label": LABELS}))
    assert data.classes == ("cat", "dog")
    assert data.table.labels.tolist() == [0, 1] * 5
    assert len(data.train) == 8
    assert [data.source.read(row)[0, 0, 0] for row in range(10)] == list(range(10))


def test_other_columns_root_and_splits(images):
    columns = {
        "id": list(range(10)),
        "file": [path.removeprefix("img/") for path in PATHS],
        "kind": LABELS,
        "part": ["Train"] * 6 + [" validation"] * 2 + ["TEST"] * 2,
    }
    file = write(images / "t.csv", columns)
    options = {"image_column": "file", "label_column": "kind", "split_column": "part", "root": str(images / "img")}
    data = load(file, **options)
    assert data.train.tolist() == list(range(6))
    assert data.val.tolist() == [6, 7]
    assert data.test.tolist() == [8, 9]
    assert check_data_config(config(file, **options)) == []


def test_numbers_as_labels_are_sorted_as_numbers(images):
    for suffix in (".csv", ".parquet"):
        data = load(write(images / f"t{suffix}", {"path": PATHS, "label": [2, 10] * 5}))
        assert data.classes == ("2", "10")
        assert data.table.labels.tolist() == [0, 1] * 5


def test_absolute_paths_below_the_root(images):
    paths = [str(images / path) for path in PATHS]
    data = load(write(images / "t.csv", {"path": paths, "label": LABELS}))
    assert data.table.key(3) == "img/3.png"
    assert data.source.read(3)[0, 0, 0] == 3


@pytest.mark.parametrize("root", ["real", "link"])
def test_absolute_paths_by_another_name_of_the_root(images, root):
    """Through a link to the root, past it, and through a link to a folder in it."""
    (images / "real").mkdir()
    (images / "img").rename(images / "real/img")
    (images / "link").symlink_to(images / "real")
    (images / "inner").symlink_to(images / "real/img")
    tops = [images / "real/img", images / "link/img", images / "inner"]
    paths = [str(tops[index % 3] / f"{index}.png") for index in range(9)] + ["img/9.png"]
    data = load(write(images / "t.csv", {"path": paths, "label": LABELS}), root=str(images / root))
    assert [data.table.key(row) for row in range(10)] == PATHS
    (images / "out").symlink_to(images)
    for outside in (
        images / "out/t.csv",
        images / "inner/../../t.csv",
        images / "link/../t.csv",
        "/etc/passwd",
        "//a/b",
    ):
        file = write(images / "t.csv", {"path": [str(outside), *paths[1:]], "label": LABELS})
        with pytest.raises(DataError, match=r"row 1: a path outside .* \(1 such rows\)"):
            load(file, root=str(images / root))


def test_several_labels_per_image(images):
    labels = ["sea|sky", "sky", "", "sea | sky|sea", "sand", "sand|sky", "sky", "sea", "sand", "sky|"]
    file = write(images / "t.csv", {"path": PATHS, "label": labels})
    data = load(file, label_separator="|")
    assert data.multi_label
    assert data.classes == ("sand", "sea", "sky") == peek_classes(config(file, label_separator="|"))
    assert data.table.labels.dtype == np.uint8
    assert data.table.labels[:5].tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 1, 1], [1, 0, 0]]
    assert data.table.labels[9].tolist() == [0, 0, 1]
    assert len(data.val)


def test_names_with_commas_quotes_and_newlines(images):
    name = 'img/a, "b"\nc.png'
    (images / "img/0.png").rename(images / name)
    data = load(write(images / "t.csv", {"path": [name, *PATHS[1:]], "label": LABELS}))
    assert data.table.key(0) == name


class TestWrongTables:
    """Each says what is wrong, where, and what to do."""

    def wrong(self, file, *says, **options):
        with pytest.raises(DataError) as caught:
            load(file, **options)
        for text in says:
            assert text in str(caught.value)

    def columns(self, images, **changed):
        return write(images / "t.csv", {"path": PATHS, "label": LABELS} | changed)

    def test_missing_file(self, tmp_path):
        self.wrong(tmp_path / "gone.csv", "there is no file", "gone.csv")
        self.wrong(tmp_path / "gone.parquet", "there is no file", "gone.parquet")

    def test_not_a_table(self, tmp_path):
        (tmp_path / "x.json").write_text("{}")
        (tmp_path / "x.parquet").write_bytes(b"PAR0 nothing of the kind")
        (tmp_path / "x.csv").write_bytes(b"path,label\n\xff\xfe\x00,b\n")
        self.wrong(tmp_path / "x.json", "is no table", ".csv")
        self.wrong(tmp_path / "x.parquet", "x.parquet cannot be read")
        self.wrong(tmp_path / "x.csv", "x.csv cannot be read")

    def test_empty_files(self, tmp_path):
        (tmp_path / "0.csv").write_bytes(b"")
        (tmp_path / "header.csv").write_text("path,label\n")
        self.wrong(tmp_path / "0.csv", "cannot be read")
        self.wrong(tmp_path / "header.csv", "has no rows")

    def test_ragged_rows(self, images):
        (images / "t.csv").write_text("path,label\nimg/0.png,cat,extra\n")
        self.wrong(images / "t.csv", "cannot be read")

    def test_missing_columns(self, images):
        file = self.columns(images)
        options = {"image_column": "pth", "split_column": "fold"}
        self.wrong(file, "data.image_column", "did you mean path", "data.split_column", "no column 'fold'", **options)
        problems = check_data_config(config(file, **options))
        assert [problem.where for problem in problems] == ["data.image_column", "data.split_column"]

    def test_missing_root(self, images):
        self.wrong(self.columns(images), "data.root", "no folder", root=str(images / "gone"))

    def test_missing_images(self, images):
        (images / "img/4.png").unlink()
        file = self.columns(images)
        self.wrong(file, "img/4.png", "no such file", "1 of 10 images")
        data = load(file, on_error=OnError.skip)
        assert [entry.row for entry in data.report.unreadable] == [4]
        assert 4 not in {*data.train, *data.val}

    def test_unknown_split(self, images):
        file = self.columns(images, split=["train"] * 8 + ["dev", "holdout"])
        self.wrong(file, "row 9", "unknown split 'dev' (2 such rows)", "train", split_column="split")

    def test_empty_label(self, images):
        self.wrong(self.columns(images, label=[*LABELS[:9], " "]), "row 10", "an empty label")
        self.wrong(self.columns(images, label=[None, *LABELS[1:]]), "row 1", "an empty label")

    def test_a_missing_number_is_no_label(self, images):
        numbers = [1.0, 2.0] * 4 + [float("nan"), 1.0]
        file = write(images / "t.parquet", {"path": PATHS, "label": pa.array(numbers)})
        self.wrong(file, "row 9", "an empty label (1 such rows)")
        file = write(images / "t.parquet", {"path": PATHS, "label": pa.array([*numbers[:8], 2.0, 1.0])})
        assert load(file).classes == ("1", "2")

    def test_lists_of_labels(self, images):
        file = write(images / "t.parquet", {"path": PATHS, "label": [["sea", "sky"]] * 10})
        self.wrong(file, "data.label_column", "'label'", "list<", "data.label_separator")
        assert check_data_config(config(file)), "before the run begins"

    def test_labels_that_differ_in_no_visible_way(self, images):
        labels = ["caf\xe9", "cafe\u0301"] * 5
        self.wrong(self.columns(images, label=labels), "column 'label'", r"caf\xe9", r"cafe\u0301")
        self.wrong(self.columns(images, label=labels), r"caf\xe9", r"cafe\u0301", label_separator="|")

    def test_no_label_at_all(self, images):
        self.wrong(self.columns(images, label=[""] * 10), "no labels at all", label_separator="|")

    def test_empty_path(self, images):
        self.wrong(self.columns(images, path=["", *PATHS[1:]]), "row 1", "an empty path")

    @pytest.mark.parametrize("path", ["../secret.png", "img/../../secret.png", "/etc/passwd", "img/.."])
    def test_paths_out_of_the_root(self, images, path):
        Image.new("RGB", (8, 8)).save(images.parent / "secret.png")
        self.wrong(self.columns(images, path=[path, *PATHS[1:]]), "row 1", "a path outside", "data.root")

    def test_labels_that_are_all_different(self, images):
        file = write(images / "t.csv", {"path": PATHS * 10, "label": [f"label {index}" for index in range(100)]})
        self.wrong(file, "all 100 labels are different", "data.label_column")

    def test_one_class_and_rare_classes(self, images):
        self.wrong(self.columns(images, label=["cat"] * 10), "one class only, 'cat'")
        self.wrong(self.columns(images, label=["cat"] * 9 + ["dog"]), "too few images of 'dog'")

    def test_val_with_a_class_that_train_lacks(self, images):
        file = self.columns(images, label=["a", "b"] * 4 + ["c", "c"], split=["train"] * 8 + ["val"] * 2)
        self.wrong(file, "val has classes that train lacks: 'c'", split_column="split")

    def test_no_training_images(self, images):
        file = self.columns(images, split=["test"] * 10)
        self.wrong(file, "no training images", split_column="split")
