"""Images with several labels each, or none: read, divided, sampled, packed and loaded."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from imgcls.augment.mixing import CutMix, EitherMixing, MixUp
from imgcls.augment.pipeline import Pipeline
from imgcls.data.clean_table import write_clean_table
from imgcls.data.files import FilesData
from imgcls.data.folder import FolderData
from imgcls.data.huggingface import HuggingFaceData
from imgcls.data.labelled import LabelledSet
from imgcls.data.long_tail import LongTail
from imgcls.data.resident import ResidentBatches
from imgcls.data.sampling import balanced, with_unlabelled
from imgcls.data.shards import ShardData
from imgcls.data.splits import SplitOptions, apportion, mislabel
from imgcls.data.table import TableData
from imgcls.errors import UserError
from imgcls.tasks import find

from .conftest import write_image
from .test_data import ready, write_table
from .test_shards import packed

KIND = find("multi_label")


# ---- labels ----

ROWS = np.array([[1, 0, 1], [0, 0, 0], [-1, -1, -1], [0, 1, 0]], np.int8)


def test_labels_in_words_and_numbers():
    names = [("a", "c"), (), None, ("b",)]
    assert KIND.numbered(names, "abc").tolist() == ROWS.tolist() and KIND.numbered(names, "abc").dtype == np.int8
    assert KIND.text(ROWS, ["a", "b", "c"]) == ["a|c", "", "", "b"]
    assert [of.tolist() for of in KIND.pairs(ROWS)] == [[0, 0, 3], [0, 2, 1]]
    assert KIND.unknown(2, 3).tolist() == [[-1] * 3] * 2
    with pytest.raises(UserError, match=r"class 'a\|b' holds \|, which joins the labels"):
        KIND.class_order(["a", "a|b"])


def test_labels_in_terms_of_other_classes():
    assert KIND.renumbered(ROWS, np.array([3, 0, 1]), 4).tolist() == [[0, 1, 0, 1], [0] * 4, [-1] * 4, [1, 0, 0, 0]]
    # of the first image one class is none of them: what it shows is not known
    assert KIND.renumbered(ROWS, np.array([0, 1, -1]), 2).tolist() == [[-1, -1], [0, 0], [-1, -1], [0, 1]]


def test_another_label_turns_one_class_round():
    label = np.random.default_rng(0).integers(0, 2, (5000, 4)).astype(np.int8)
    turned = KIND.another(label, 4, np.random.default_rng(1)) != label
    assert (turned.sum(1) == 1).all() and np.abs(turned.mean(0) - 0.25).max() < 0.02


def test_each_kind_refuses_labels_of_the_other():
    for name, label in (("single_label", ROWS), ("ordered", ROWS), ("multi_label", np.zeros(4, np.int64))):
        with pytest.raises(UserError, match="--data.task"):
            find(name).check(label)
    with pytest.raises(UserError, match="single_label: is for images with one label, and these have several"):
        find("single_label").numbered([("a",), ("a", "b")], "ab")
    assert find("single_label").numbered([("b",), None, ("a",)], "ab").tolist() == [1, -1, 0]


# ---- splits ----


def several(kind: str, count: int, seed: int) -> np.ndarray:
    """Labels (N, 20), about 1.4 to 3 an image."""
    rng, classes = np.random.default_rng(seed), 20
    if kind == "equal":
        return rng.random((count, classes)) < 0.15
    if kind == "long tail":
        return rng.random((count, classes)) < np.geomspace(0.5, 0.002, classes)
    if kind == "correlated":
        cause, weight = rng.normal(size=(count, 4)), rng.normal(size=(4, classes))
        return cause @ weight + rng.logistic(size=(count, classes)) > np.linspace(1, 6, classes)
    share = np.geomspace(1, 0.01, classes)  # mostly one
    one = np.eye(classes, dtype=bool)[rng.choice(classes, count, p=share / share.sum())]
    return one | (rng.random((count, classes)) < 0.02)


def errors(label: np.ndarray, fold: np.ndarray) -> tuple[float, float]:
    """By how many images a fold is wrong: of a label, and in all; the largest."""
    folds = [label[fold == k] for k in range(5)]
    of_label = max(np.abs(of.sum(0) - label.sum(0) / 5).max() for of in folds)
    return of_label, max(abs(len(of) - len(label) / 5) for of in folds)


@pytest.mark.parametrize("kind", ["equal", "long tail", "correlated", "mostly one"])
@pytest.mark.parametrize("count", [300, 3000])
def test_folds_have_each_label_in_proportion(kind, count):
    found = []
    for seed in range(3):
        label = several(kind, count, seed)
        pairs = with_unlabelled(np.nonzero(label), count)
        fold = apportion(pairs, np.arange(count), np.full(5, count / 5), seed)
        found.append(errors(label, fold))
    assert np.max(found, 0)[0] <= 1.4 and np.mean(found, 0)[0] <= 1 and np.max(found, 0)[1] <= 1


@pytest.mark.parametrize("kind", ["equal", "long tail", "correlated", "mostly one"])
def test_folds_are_no_worse_than_those_of_iterative_stratification(kind):
    stratifiers = pytest.importorskip("iterstrat.ml_stratifiers")
    label = several(kind, 1000, 0)
    theirs, none = np.empty(1000, int), np.zeros(1000)
    folds = stratifiers.MultilabelStratifiedKFold(5, shuffle=True, random_state=0)
    for k, (_, index) in enumerate(folds.split(none, label.astype(int))):
        theirs[index] = k
    ours = apportion(with_unlabelled(np.nonzero(label), 1000), np.arange(1000), np.full(5, 200.0), 0)
    assert errors(label, ours)[0] <= errors(label, theirs)[0] + 0.2 and errors(label, ours)[1] <= 1


@pytest.mark.parametrize("grouped", [False, True])
def test_parts_of_images_with_several_labels(grouped):
    label = several("long tail", 2000, 0)
    group = np.random.default_rng(1).integers(0, 900, 2000) if grouped else None
    slack = 8 if grouped else 2
    tested = []
    for fold in range(4):
        options = SplitOptions(folds=4, fold=fold, fold_part="test", val_fraction=0.1)
        found = options.split(np.nonzero(label), 2000, group)
        parts = {"train": found.train, "val": found.val, "test": found.test}
        assert sorted(np.concatenate(list(parts.values()))) == list(range(2000))
        for part, share in (("val", 0.1), ("test", 0.25)):
            assert abs(len(parts[part]) - 2000 * share) <= slack
            assert np.abs(label[parts[part]].sum(0) - label.sum(0) * share).max() <= slack
        if group is not None:
            assert sum(len(set(group[of])) for of in parts.values()) == len(set(group))
        tested += found.test.tolist()
    assert sorted(tested) == list(range(2000))


def test_smaller_shares_of_training_images_lie_in_larger_ones():
    label, before = several("long tail", 2000, 0), set()
    for fraction in (0.1, 0.3, 1.0):
        found = SplitOptions(train_fraction=fraction).split(np.nonzero(label), 2000)
        assert before < set(found.train) and abs(len(found.train) - fraction * 1600) <= 4
        share = label[found.train].mean(0) / label.mean(0)
        assert np.abs(share[:10] - 1).max() < 0.35  # the commoner half
        before = set(found.train)


# ---- tables ----

CELLS = ["cat|dog", " dog | cat|dog", "", "eel", "cat", "eel|dog"] * 10
WANTED = [(1, 1, 0), (1, 1, 0), (0, 0, 0), (0, 0, 1), (1, 0, 0), (0, 1, 1)] * 10


@pytest.fixture
def table(tmp_path):
    """Write a table of sixty images, with the cells of columns."""
    for k in range(60):
        write_image(tmp_path / f"{k}.png", k % 4, (20, 16), seed=k)

    def write(**columns) -> str:
        rows = [{"path": f"{k}.png", **{name: cells[k] for name, cells in columns.items()}} for k in range(60)]
        return str(write_table(tmp_path / "t.csv", rows))

    return write


def flags(k: int, *words: str) -> list[str]:
    """A column of a class in such words for no and yes."""
    return [words[of[k]] for of in WANTED]


def ways(table) -> dict:
    """Options of tables that say the same."""
    columns = {"cat": flags(0, "0", "1"), "dog": flags(1, "False", "TRUE"), "eel": flags(2, "", "1.0")}
    return {
        "cells": lambda: {"table": table(label=CELLS), "label_separator": "|"},
        "columns": lambda: {"table": table(**columns), "label_columns": ["cat", "dog", "eel"]},
    }


@pytest.mark.parametrize("way", ["cells", "columns"])
def test_a_table_says_several_labels_in_cells_or_columns(table, way):
    data = ready(TableData(num_workers=0, image_size=8, **ways(table)[way]()), "test")
    assert (data.task, data.class_names) == ("multi_label", ["cat", "dog", "eel"])
    source, index = data.parts["train"]
    assert source.label.dtype == np.int8 and source.label.tolist() == [list(of) for of in WANTED]
    assert data.class_counts().tolist() == source.label[index].sum(0).tolist()
    assert [len(of) for _, of in data.parts.values()] == [48, 6, 6]
    for part in ("val", "test"):  # one of the ten images of each kind
        assert sorted(map(tuple, source.label[data.parts[part][1]].tolist())) == sorted(WANTED[:6])
    for batches in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(batches))
        assert batch["label"].dtype == torch.float32
        assert batch["label"].tolist() == source.label[batch["index"].numpy()].tolist()


def test_rows_that_say_nothing_of_a_class_are_named_or_left_out(table):
    dog = flags(1, "0", "1")[:57] + ["2", "-1", "1"]
    options = {"table": table(cat=flags(0, "0", "1"), dog=dog), "label_columns": ["cat", "dog"], "num_workers": 0}
    with pytest.raises(
        UserError, match=r"t.csv:59: column 'dog' holds '2', which is none of 0, 1, true and false, .*t.csv:60: "
    ):
        TableData(**options)
    data = TableData(**options, on_error="skip")
    assert [of.reason.split(",")[0] for of in data.skipped] == ["column 'dog' holds '2'", "column 'dog' holds '-1'"]
    assert len(data.open("train")) == 58
    for columns in ([], ["cat", "cat"]):
        with pytest.raises(UserError, match="--data.label_columns: .* is not a list of different columns"):
            TableData(table=options["table"], label_columns=columns)
    with pytest.raises(UserError, match="has no column 'dogs' .did you mean 'dog'.*--data.label_columns names"):
        TableData(table=options["table"], label_columns=["cat", "dogs"])


@pytest.mark.parametrize(
    "labels, asked",
    [
        (
            ["cat"] * 58 + ["dog|cat", "dog|eel"],
            r"t.csv:60: label 'dog\|cat' holds \| \(rows like it: 2\); .*separator='\|'",
        ),
        (["cat", "dog;"] * 30, r"t.csv:3: label 'dog;' holds ; \(rows like it: 30\)"),
        (["shirt, long", "coat"] * 30, r"t.csv:2: label 'shirt, long' holds , \(.*--data.label_separator=none takes"),
        (["cat/dog", "dog", "T-shirt/top"] * 20, r"t.csv:2: label 'cat/dog' holds / \(rows like it: 20\)"),
        (["cat+dog", "cat + eel"] * 30, r"t.csv:2: label 'cat\+dog' holds \+ \(rows like it: 60\)"),
        (["T-shirt/top", "C++", "R&B", "eel"] * 15, None),
    ],
)
def test_labels_that_may_be_several_are_asked_about(table, labels, asked):
    name = table(label=labels)
    if asked is None:
        assert TableData(table=name).class_names == sorted(set(labels))
        return
    with pytest.raises(UserError, match=asked):
        TableData(table=name)
    one = TableData(table=name, label_separator="none")
    assert (one.task, one.class_names) == ("single_label", sorted(set(labels)))


@pytest.mark.parametrize("separator", [*"|;,/+&", " and "])
def test_any_separator_is_understood_on_the_command_line(table, separator):
    name = table(label=[f"a{separator}b", "b"] * 30)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TableData, "data")
    words = ["--data=TableData", f"--data.table={name}", f"--data.label_separator={separator}"]
    data = parser.instantiate(parser.parse_args(words)).data
    assert data.class_names == ["a", "b"] and data.open("train").label[:2].tolist() == [[1, 1], [0, 1]]


def test_lists_in_a_parquet_file_are_joined(table, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table(label=CELLS)
    columns = {"path": [f"{k}.png" for k in range(60)], "label": [["cat", "dog"], [], None, ["eel"]] * 15}
    parquet.write_table(pytest.importorskip("pyarrow").table(columns), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t.parquet row 0: label 'cat\|dog' holds \| .*--data.label_separator='\|'"):
        TableData(table=str(tmp_path / "t.parquet"))
    source = TableData(table=str(tmp_path / "t.parquet"), label_separator="|").open("train")
    assert source.label[:4].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_images_on_the_device_have_the_labels_of_others(table):
    options = {"table": table(label=CELLS), "label_separator": "|", "num_workers": 0, "image_size": 8}
    kept, read = (TableData(**options, cache=cache) for cache in ("device", "none"))
    for data in (kept, read):
        data.device = torch.device("cpu")
        ready(data)
    one, other = (next(iter(data.train_dataloader())) for data in (kept, read))
    assert isinstance(kept.train_dataloader().dataset, ResidentBatches)
    assert torch.equal(one["label"], other["label"]) and one["label"].dtype == torch.float32


def test_an_image_in_two_rows_is_told_to_go_into_one(table, tmp_path):
    rows = [{"path": f"{k % 50}.png", "label": "ab"[k // 50]} for k in range(60)]
    table(label=CELLS)
    write_table(tmp_path / "t.csv", rows)
    with pytest.raises(
        UserError, match=r"0.png is there twice, .*several labels of an image go into one row, see --data"
    ):
        TableData(table=str(tmp_path / "t.csv"))
    rows = [{"path": f"{k % 50}.png", "label": ("a|b", "b| a|b")[k // 50]} for k in range(60)]
    write_table(tmp_path / "t.csv", rows)
    data = TableData(table=str(tmp_path / "t.csv"), label_separator="|", on_error="skip")
    assert len(data.open("train")) == 50 and {of.reason.split(".png ")[1] for of in data.skipped} == {"is there twice"}


def test_labels_that_no_training_row_has(table):
    splits = ["train"] * 40 + ["test"] * 20
    name = table(label=CELLS[:59] + ["eel|dgo"], split=splits)
    with pytest.raises(UserError, match=r"t.csv:61: label 'dgo' is not one of 3 classes .did you mean 'dog'"):
        TableData(table=name, label_separator="|")
    data = TableData(table=name, label_separator="|", on_error="skip")
    assert len(data.open("test")) == 19 and data.class_names == ["cat", "dog", "eel"]


def test_a_task_of_one_label_refuses_images_with_several(table):
    options = {"table": table(label=CELLS), "label_separator": "|"}
    with pytest.raises(UserError, match="is for images with one label, and these have several labels"):
        ready(TableData(**options, task="single_label", num_workers=0))
    for ordered in (True, ["eel", "cat", "dog"]):
        with pytest.raises(UserError, match="--data.ordered: is for --data.task=ordered, not for multi_label"):
            TableData(**options, ordered=ordered)
    with pytest.raises(UserError, match="LongTail is for images of one class each"):
        ready(LongTail(TableData(**options), num_workers=0))


def test_other_images_are_labelled_by_the_classes_of_the_run(table, photos):
    data = TableData(table=table(label=CELLS), label_separator="|", num_workers=0)
    options = {"class_names": ["eel", "dog"], "task": "multi_label", "num_workers": 0}
    with pytest.raises(UserError, match="cat .1. is no class of the run"):
        LabelledSet(data, **options).source  # noqa: B018
    found = LabelledSet(data, unknown_classes="leave_out", **options)
    assert found.source.label.tolist()[:6] == [[-1, -1], [-1, -1], [0, 0], [1, 0], [-1, -1], [1, 1]]
    assert found.known.tolist() == [k for k in range(60) if not WANTED[k][0]]
    with pytest.raises(UserError, match="of the kind single_label, those of the run multi_label"):
        LabelledSet(FolderData(root=str(photos)), **options).source  # noqa: B018
    with pytest.raises(UserError, match="of the kind multi_label, those of the run single_label"):
        LabelledSet(data, class_names=["eel", "dog"]).source  # noqa: B018


def test_images_without_labels_of_a_run_with_several(photos):
    data = FilesData(["a", "b"], task="multi_label", root=str(photos), num_workers=0, image_size=8)
    data.setup("predict")
    assert next(iter(data.predict_dataloader()))["label"].unique().tolist() == [-1]


def test_a_clean_table_is_read_again(table, tmp_path):
    data = ready(TableData(num_workers=0, image_size=8, **ways(table)["columns"]()), "test")
    kept = [(part, source, index, np.full(len(index), -1)) for part, (source, index) in data.parts.items()]
    written = write_clean_table(tmp_path, kept, data.class_names, data.task)
    assert written["classes"]["train"] == {"cat": 24, "dog": 24, "eel": 16}
    again = ready(TableData(table=written["file"], root=written["root"], label_separator="|", num_workers=0), "test")
    for part, (source, index) in data.parts.items():
        other, of = again.parts[part]
        met = dict(zip(other.names, other.label.tolist(), strict=True))
        assert len(of) == len(index) and all(met[source.names[k]] == source.label[k].tolist() for k in index)


# ---- data sets of Hugging Face ----


def lists(values, kind, count: int = 30):
    """`count` rows whose lists of labels are such values, in turn."""
    datasets = pytest.importorskip("datasets")
    write_image(Path("one.png"), 0, (12, 12))
    rows = {"image": ["one.png"] * count, "labels": [values[k % len(values)] for k in range(count)]}
    features = datasets.Features({"image": datasets.Value("string"), "labels": kind(datasets)})
    made = datasets.Dataset.from_dict(rows, features=features)
    return made.cast_column("image", datasets.Image()).map(lambda row: row)  # which puts bytes into the rows


HELD = {
    "classes": (lambda d: d.List(d.ClassLabel(names=["eel", "cat", "dog"])), [[1, 2], [], [0], [2, 2]]),
    "texts": (lambda d: d.List(d.Value("string")), [["cat", "dog"], [], ["eel"], ["dog", "dog"]]),
    "integers": (lambda d: d.List(d.Value("int64")), [[3, 10], [], [2], [10, 10]]),
}
NAMES = {"classes": ["eel", "cat", "dog"], "texts": ["cat", "dog", "eel"], "integers": ["2", "3", "10"]}
ROWS_OF = {"texts": [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]]}
ROWS_OF |= {kind: [[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]] for kind in ("classes", "integers")}


def saved(**splits) -> str:
    pytest.importorskip("datasets").DatasetDict(splits).save_to_disk("saved")
    return "saved"


@pytest.mark.parametrize("kind", HELD)
def test_lists_of_labels_are_several(kind):
    feature, values = HELD[kind]
    hidden = lists([None], feature, 6)
    data = ready(HuggingFaceData(name=saved(train=lists(values, feature), test=hidden), num_workers=0), "test")
    assert (data.task, data.class_names) == ("multi_label", NAMES[kind]) and not data.has_official("test")
    source, _ = data.parts["train"]
    assert source.label.dtype == np.int8 and source.label.tolist() == (ROWS_OF[kind] * 8)[:30]
    assert data.parts["test"][0] is source
    name = saved(train=lists([*values, None], feature))
    with pytest.raises(UserError, match=r"train/4 .has no label.*on_error=skip"):
        HuggingFaceData(name=name).open("train")
    data = HuggingFaceData(name=name, on_error="skip")
    assert len(data.open("train")) == 24 and len(data.skipped) == 6


def test_lists_of_zeros_and_ones_are_not_taken_for_numbers_of_classes():
    made = lists([[0, 1, 0, 1], [0, 0, 0, 0]], lambda d: d.List(d.Value("int64")))
    with pytest.raises(UserError, match="lists of 0 and 1 seem to say of each class whether it is there"):
        HuggingFaceData(name=saved(train=made))


# ---- packs ----


@pytest.mark.parametrize("size", [None, 8])
def test_a_pack_keeps_several_labels(table, size):
    options = {"split_seed": 3, "num_workers": 0, "image_size": 8}
    data = TableData(table=table(label=CELLS, place=["x", "y"] * 30), label_separator="|", **options)
    pack = ready(ShardData(root=packed(data, size=size), **options), "test")
    assert (pack.task, pack.class_names) == ("multi_label", ["cat", "dog", "eel"])
    assert json.loads(Path("pack/pack.json").read_text())["task"] == "multi_label"
    for part, (source, index) in data.parts.items():
        here, of = pack.parts[part]
        wanted = {source.names[k]: source.label[k].tolist() for k in index.tolist()}
        assert {here.names[k]: here.label[k].tolist() for k in of.tolist()} == wanted
        assert Path(f"pack/{part}.label").read_bytes() == here.label.tobytes() and here.label.dtype == np.int8
        classes = []
        for shard in sorted(Path("pack").glob(f"{part}-*.tar")):
            with tarfile.open(shard) as tar:
                classes += [tar.extractfile(of).read().decode() for of in tar if of.name.endswith(".cls")]
        assert classes == [" ".join(str(k) for k in range(3) if of[k]) for of in here.label]
    batch = next(iter(pack.train_dataloader()))
    assert batch["label"].dtype == torch.float32
    assert batch["label"].tolist() == pack.parts["train"][0].label[batch["index"].numpy()].tolist()


def test_a_damaged_label_file_is_named(table):
    root = packed(TableData(table=table(label=CELLS), label_separator="|", num_workers=0))
    path = Path(root, "train.label")
    right = path.read_bytes()
    path.write_bytes(right[:-1])
    with pytest.raises(UserError, match="train.label: has 143 bytes, expected 144 bytes"):
        ready(ShardData(root=root))
    path.write_bytes(b"\x02" + right[1:])
    with pytest.raises(UserError, match="labels of the train part are no numbers of classes"):
        ready(ShardData(root=root))


# ---- sampling ----


def test_balanced_sampling_adds_up_the_labels_of_an_image():
    # a is there twice, b once, and two images have none
    label = np.array([[1, 0], [1, 1], [0, 0], [0, 0]])
    assert balanced(np.nonzero(label), 4) == pytest.approx(np.array([1 / 2, 1 / 2 + 1, 1 / 2, 1 / 2]) / 3)
    one_each = np.array([0, 0, 0, 1])
    assert balanced((np.arange(4), one_each), 4) == pytest.approx(np.array([1, 1, 1, 3]) / 6)


def test_label_noise_changes_one_class_of_the_asked_share():
    label = several("long tail", 500, 0).astype(np.int8)
    half, tenth = (mislabel(label, np.arange(400), share, 20, 3, KIND) for share in (0.5, 0.1))
    assert (half != label).sum(1).tolist().count(1) == 200 and (half[400:] == label[400:]).all()
    changed = (tenth != label).any(1)
    assert changed.sum() == 40 and (half[changed] == tenth[changed]).all()


# ---- mixed images ----


def test_several_labels_are_mixed_by_the_shares_of_images():
    """As the paper's formula has it, class by class: an image without labels takes some of the other's."""
    image, label = torch.rand(2, 1, 4, 8), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    mixup, cutmix = MixUp(), CutMix()
    mixup.num_classes = cutmix.num_classes = 3
    partner = torch.tensor([1, 0])
    _, found = mixup.transform(image, label, mixup.parameters_of(torch.tensor([0.25, 0.9]), partner))
    torch.testing.assert_close(found, torch.tensor([[0.25, 0, 0.25], [0.1, 0, 0.1]]))
    box = torch.tensor([[2, 1, 6, 3], [0, 0, 8, 4]])
    _, found = cutmix.transform(image, label, cutmix.parameters_of(box, partner, image.shape))
    torch.testing.assert_close(found, torch.tensor([[0.75, 0, 0.75], [1.0, 0, 1.0]]))


def test_a_mixed_training_batch_has_the_labels_that_it_shows(table):
    """Of images that are as bright as their first class, the brightness tells how much of that class is in a mix."""
    data = TableData(table=table(label=CELLS), label_separator="|", num_workers=0, image_size=8)
    data.augment = Pipeline([EitherMixing([MixUp(alpha=1.0), CutMix()])])
    ready(data)
    label = torch.tensor(WANTED[:48], dtype=torch.float32)
    image = (label[:, 0] * 255).byte().view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    data.mean, data.std = [0.0] * 3, [1.0] * 3
    mixed, found = data.prepare(image, label)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), found[:, 0], atol=1e-4, rtol=0)
    assert found.shape == label.shape and not torch.equal(found, label) and found.max() <= 1
