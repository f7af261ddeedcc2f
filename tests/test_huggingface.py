"""Data sets in the formats of Hugging Face's `datasets`; the hub itself is not asked here."""

import io
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.data.folder import FolderData
from imgcls.data.huggingface import HuggingFaceData
from imgcls.errors import UserError
from imgcls.images.decode import ResizeCrop

from .conftest import QUIET, ROOT, write_image
from .test_cli import rows
from .test_nasty_files import ODD, write_odd

datasets = pytest.importorskip("datasets")
NAMES = ["cat", "dog", "eel"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def png(label: int, seed: int) -> bytes:
    write_image(Path("one.png"), label, seed=seed)
    return Path("one.png").read_bytes()


def items(count: int, start: int = 0, image="img", label="label", names=NAMES, **more):
    """`count` rows of images whose colour tells the label, as bytes."""
    numbers = range(start, start + count)
    content = {image: [{"bytes": png(k % 3, k), "path": None} for k in numbers]}
    content |= {label: [names[k % 3] if names is not NAMES else k % 3 for k in numbers]}
    kind = datasets.ClassLabel(names=names) if names is NAMES else datasets.Value(type_of(names[0]))
    features = {image: datasets.Image(), label: kind}
    content |= {name: [values] * count for name, values in more.items()}
    features |= {name: datasets.Value(type_of(value)) for name, value in more.items()}
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def type_of(value) -> str:
    return "string" if isinstance(value, str) else "int64"


def saved(folder: str = "saved", **splits) -> str:
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def ready(name: str, stage: str = "test", **options) -> HuggingFaceData:
    options = {"image_size": 16, "num_workers": 0, "root": "cache"} | options
    data = HuggingFaceData(name=name, **options)
    data.setup(stage)
    return data


def test_over_all_folds_each_row_is_tested_once():
    name, met = saved(train=items(30), validation=items(9, 30), test=items(6, 39)), []
    for fold in range(3):
        source, index = ready(name, folds=3, fold=fold, fold_part="test").parts["test"]
        met += [source.names[i] for i in index.tolist()]
    assert sorted(met) == sorted(source.names) == sorted(set(met)) and len(met) == 39  # none of the official test part


def test_a_saved_folder_and_parquet_files_are_the_same_wherever_they_lie():
    train, test = items(30, caption="a cat"), items(9, 100, caption="")
    saved(train=train, test=test)
    Path("parquet").mkdir()
    for split, part in {"train": train, "test": test}.items():
        part.to_parquet(f"parquet/{split}.parquet")
    shutil.copytree("saved", "elsewhere/copy")
    found = [ready(name) for name in ("saved", "parquet", "elsewhere/copy")]
    assert all(data.fingerprint == found[0].fingerprint for data in found)
    for data in found:
        assert data.class_names == NAMES
        assert {part: len(index) for part, (_, index) in data.parts.items()} == {"train": 27, "val": 3, "test": 9}
        source, index = data.parts["test"]
        assert source.names[8] == "test/8" and source.label.tolist() == [(100 + k) % 3 for k in range(9)]
        assert source.encoded(4) == png(104 % 3, 104)
        assert np.array_equal(pickle.loads(pickle.dumps(source)).encoded(4), source.encoded(4))  # as spawned workers
        batch = next(iter(data.test_dataloader()))
        assert batch["image"].shape == (9, 3, 16, 16)
    assert np.array_equal(found[0].parts["val"][1], found[1].parts["val"][1])
    other = ready(saved("other", train=items(30, 1), test=test))
    assert other.fingerprint["data"] != found[0].fingerprint["data"]


def test_images_are_decoded_as_files_are():
    """Turned, gray, CMYK, sixteen bits, animated: all as from a folder."""
    write_odd(Path("data/odd"))
    write_image(Path("data/ok/1.png"), 0)
    files = FolderData(root="data", image_size=16).open("train")
    entries = [{"bytes": files.encoded(k), "path": None} for k in range(len(files))]
    features = datasets.Features({"image": datasets.Image(), "target": datasets.Value("string")})
    label = [Path(name).parent.name for name in files.names]
    made = datasets.Dataset.from_dict({"image": entries, "target": label}, features=features)
    data = HuggingFaceData(name=saved(train=made), image_size=16)
    source = data.open("train")
    assert data.class_names == ["odd", "ok"] and len(source) == len(ODD) + 1
    numbers, how = list(range(len(files))), ResizeCrop(3, 16, 16, value_range=(0, 65535))
    assert np.array_equal(source.images(numbers, how), files.images(numbers, how))


def test_broken_images_and_rows_without_label_are_named_or_left_out():
    train = items(12)
    content = train.cast_column("img", datasets.Image(decode=False)).to_dict()
    content["img"][2]["bytes"] = b"no image"
    content["img"][5] = None
    content["label"][7], content["label"][8] = -1, None
    saved(train=datasets.Dataset.from_dict(content, features=train.features), test=items(3))
    with pytest.raises(UserError, match=r"saved: train/7 \(has no label\), train/8 \(has no label\); .*on_error=skip"):
        ready("saved")
    data = ready("saved", "fit", on_error="skip", val_fraction=0)
    assert {s.name: s.reason.split(" (")[0] for s in data.skipped} == {
        "train/7": "has no label",
        "train/8": "has no label",
        "train/2": "its content is no image",
        "train/5": "it is empty",
    }
    source, index = data.parts["train"]
    assert [source.names[k] for k in index.tolist()] == [f"train/{k}" for k in (0, 1, 3, 4, 6, 9, 10, 11)]
    assert source.encoded(7) == png(0, 9) and source.label[7] == 0  # rows 7 and 8 are gone


def test_rows_that_hold_a_path_alone_are_read_from_there():
    """As `datasets` gives a folder of images."""
    for k in range(12):
        write_image(Path(f"data/{NAMES[k % 2]}/{k}.png"), k % 2, seed=k)
    data, files = ready("data", "fit", val_fraction=0), FolderData(root="data").open("train")
    source, _ = data.parts["train"]
    assert data.class_names == ["cat", "dog"] and (source._sizes() == -1).all()
    assert {source.encoded(k) for k in range(12)} == {files.encoded(k) for k in range(12)}
    before = source.fingerprint()
    source._path(4).unlink()
    assert source.fingerprint() != before and source.stamps() is None
    with pytest.raises(UserError, match="train/4: cannot be read as an image .there is no such file"):
        source.images([4], data.resize_crop("train"))


@pytest.mark.parametrize("hidden", ["minus one", "none", "no column"])
def test_a_split_with_hidden_labels_is_absent(hidden, caplog):
    test = items(6, 50)
    if hidden == "no column":
        test = test.remove_columns("label")
    else:
        content = test.to_dict() | {"label": [-1 if hidden == "minus one" else None] * 6}
        test = datasets.Dataset.from_dict(content, features=test.features)
    name = saved(train=items(30), validation=items(6, 60), test=test, extra=items(3))
    with caplog.at_level("INFO"):
        data = ready(name, test_fraction=0.2)
        data.prepare_data()
    assert {part: len(index) for part, (_, index) in data.parts.items()} == {"train": 24, "val": 6, "test": 6}
    assert data.parts["test"][0].names[0].startswith("train/")
    assert "train from train (30), val from validation (6)" in caplog.text
    assert "passed over the splits test (labels hidden), extra" in caplog.text
    assert (
        len(ready(name, "fit", splits={"train": "extra", "val": "validation"}, test_fraction=0).parts["train"][1]) == 3
    )


def test_labels_are_sorted_as_in_tables_and_unknown_ones_are_errors():
    numbers = saved(train=items(9, label="class", names=[10, -1, 9]))
    assert ready(numbers).class_names == ["-1", "9", "10"]
    turned = items(3).cast_column("label", datasets.Value("int64")).map(lambda row: {"label": 2 - row["label"]})
    turned = turned.cast_column("label", datasets.ClassLabel(names=NAMES[::-1]))
    data = ready(saved("turned", train=items(9), test=turned))
    assert data.class_names == NAMES and data.parts["test"][0].label.tolist() == [0, 1, 2]  # by name
    texts = saved("texts", train=items(9, names=["b", "c", "a"]), test=items(3, names=["b", "c", "q"]))
    with pytest.raises(UserError, match=r"texts: test/2 \(label 'q' is not one of 3 classes\); .*on_error=skip"):
        ready(texts)
    data = ready(texts, on_error="skip", val_fraction=0.4)
    assert data.class_names == ["a", "b", "c"] and data.parts["test"][0].label.tolist() == [1, 2]


@pytest.mark.parametrize(
    "made, options, message",
    [
        (
            lambda: saved(train=items(3)),
            {"image_column": "imag"},
            r"there is no column 'imag' \(did you mean 'img'\?\)",
        ),
        (lambda: saved(train=items(3, y=1)), {"label_column": "img"}, "--data.label_column img: holds Image"),
        (lambda: saved(train=items(3)), {"image_column": "label"}, "--data.image_column label: holds no images"),
        (
            lambda: saved(train=items(3, label="kind", names=[1, 2, 3], n=1)),
            {},
            r"--data.label_column: name it, as none is it for certain; saved has the columns img \(Image\), kind \(int",
        ),
        (
            lambda: saved(train=items(3, names=[1, 2, 3], target="x")),
            {},
            "--data.label_column: name it, as each of label, target could be it",
        ),
        (
            lambda: saved(dev=items(3), val=items(3), train=items(3)),
            {},
            "dev and val both stand for val; --data.splits=",
        ),
        (lambda: saved(val=items(3), test=items(3)), {}, "has the splits val, test, and none to train on"),
        (lambda: saved(train=items(3)), {"splits": {"train": "trian"}}, r"has the splits train \(did you mean 'train'"),
        (lambda: "./nothing", {}, "--data.name ./nothing: there is no such folder"),
        (lambda: "hub/offline", {}, "--data.name hub/offline: cannot be loaded"),
    ],
)
def test_mistakes_are_one_line(made, options, message):
    with pytest.raises(UserError, match=message) as error:
        ready(made(), **options)
    assert "\n" not in str(error.value)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'imgcls\[huggingface\]'"):
        HuggingFaceData(name="x")


@pytest.mark.slow
def test_the_commands_take_it(imgcls):
    saved(train=items(40), test=items(10, 70))
    data = ["--config", ROOT / "configs/data/huggingface.yaml", "--data.name=saved", "--data.image_size=16"]
    words = ["--config", ROOT / "configs/model/cnn.yaml", "--config", ROOT / "configs/trainer/default.yaml", *QUIET]
    words += ["--trainer.max_epochs=3", "--trainer.accelerator=cpu", "--model.backbone.width=8", "--data.batch_size=8"]
    code, _, err = imgcls("fit", *data, *words, "--data.num_workers=1", "--test_after_fit=true", "--run_dir=run")
    assert code == 0, err
    assert [row["path"] for row in rows("run/predictions/test.csv")] == [f"test/{k}" for k in range(10)]
    assert json.loads(Path("run/metrics.json").read_text())["test/acc"] == 1.0
    assert imgcls("audit", *data)[0] == 0
    assert json.loads(Path("audit/audit.json").read_text())["images"] == {"train": 36, "val": 4, "test": 10}
    code, _, err = imgcls("pack", *data, "--out", "pack")
    assert code == 0, err
    assert Image.open(io.BytesIO(Path("pack/test-000000.tar").read_bytes()[512:])).size == (40, 32)
