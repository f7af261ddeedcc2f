import csv
import gzip
import inspect
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

from imgcls.data.folder import FolderData
from imgcls.data.options import normalize
from imgcls.data.parts import part_named
from imgcls.data.sample import SampleData
from imgcls.data.table import TableData
from imgcls.data.torchvision import KNOWN, TorchvisionData
from imgcls.errors import UserError
from imgcls.images.decode import ResizeCrop
from imgcls.images.derived import JoinedSource
from imgcls.images.sources import ArraySource, FileSource

from .conftest import write_image

FASHION = Path("/usr/share/datasets/fashion-mnist")


def ready(data, stage="fit"):
    data.setup(stage)
    return data


# ---- the bundled sample ----


def test_the_sample_is_balanced_and_its_parts_do_not_share_an_image():
    data = ready(SampleData(), "test")
    train, test = data.open("train"), data.open("test")
    assert np.bincount(train.label).tolist() == [600] * 10 and np.bincount(test.label).tolist() == [100] * 10
    pixels = {image.numpy().tobytes() for image in train.image}
    assert not pixels & {image.numpy().tobytes() for image in test.image}
    assert len(data.class_names) == data.num_classes == 10


def test_fit_never_opens_the_test_part(monkeypatch):
    opened = []
    original = SampleData.open
    monkeypatch.setattr(SampleData, "open", lambda self, part: opened.append(part) or original(self, part))
    data = ready(SampleData())
    list(data.train_dataloader()), list(data.val_dataloader())
    assert "test" not in opened and "test" not in data.parts
    with pytest.raises(KeyError):
        data.test_dataloader()


def test_a_batch_keeps_the_contract():
    batch = next(iter(ready(SampleData(batch_size=16)).train_dataloader()))
    assert batch["image"].shape == (16, 1, 28, 28) and batch["image"].dtype == torch.uint8
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    source = SampleData().open("train")
    assert torch.equal(batch["label"], torch.from_numpy(source.label[batch["index"]]))
    assert torch.equal(batch["image"], source.image[batch["index"]])


def test_the_validation_split_ignores_the_seed_of_the_run():
    one, two = ready(SampleData(seed=1)), ready(SampleData(seed=2))
    assert one.fingerprint == two.fingerprint
    assert np.array_equal(one.parts["val"][1], two.parts["val"][1])
    order = [[b["index"] for b in d.train_dataloader()] for d in (one, two)]
    assert not torch.equal(torch.cat(order[0]), torch.cat(order[1]))


def test_a_checkpoint_of_another_split_is_refused_unless_told_otherwise():
    state = ready(SampleData(split_seed=1)).state_dict()
    with pytest.raises(UserError, match="val differ from those that the checkpoint was trained on"):
        ready(SampleData(split_seed=2)).load_state_dict(state)
    ready(SampleData(split_seed=2, verify_split=False)).load_state_dict(state)
    ready(SampleData(split_seed=1, train_fraction=0.5)).load_state_dict(state)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "--data.batch_size: 0"),
        ({"val_fraction": 1.0}, "--data.val_fraction: 1.0"),
        ({"train_fraction": 0.0}, "--data.train_fraction"),
        ({"folds": 3, "fold": 3}, "--data.fold: 3 is not a number from 0 to 2"),
        ({"mean": [0.1, 0.2]}, "--data.mean: 2 values for 1 channels"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(UserError, match=message):
        SampleData(**options)


def test_joined_sources_keep_the_order_that_was_asked_for():
    first, second = (ArraySource(torch.full((3, 1, 4, 4), v, dtype=torch.uint8), np.arange(3), "x") for v in (1, 2))
    joined = JoinedSource(first, second)
    assert joined.images([4, 0, 5, 1], ResizeCrop(1, 4, 4))[:, 0, 0, 0].tolist() == [2, 1, 2, 1]
    assert len(joined.names) == len(joined) == 6


# ---- folders ----


def test_a_plain_folder_is_split_three_ways(photos):
    data = ready(
        FolderData(root=str(photos), image_size=16, val_fraction=0.2, test_fraction=0.2, num_workers=0), "test"
    )
    assert data.class_names == ["blue bird", "grüner Frosch", "red fox"]
    counts = {part: np.bincount(source.label[index]).tolist() for part, (source, index) in data.parts.items()}
    assert counts == {"train": [12] * 3, "val": [4] * 3, "test": [4] * 3}
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape == (12, 3, 16, 16)


def test_fit_does_not_reach_a_test_part_that_was_carved(photos):
    data = ready(FolderData(root=str(photos), image_size=16))
    assert "test" not in data.parts
    met = {data.parts[p][0].names[i] for p in ("train", "val") for i in data.parts[p][1]}
    data.setup("test")
    source, index = data.parts["test"]
    assert len(index) == 6 and met.isdisjoint(source.names[i] for i in index)


def test_part_folders_are_taken_as_they_are(tmp_path):
    for part, count in {"train": 6, "valid": 2, "test": 3}.items():
        for label, name in enumerate("ab"):
            for k in range(count):
                write_image(tmp_path / part / name / f"{k}.jpg", label, seed=k)
    (tmp_path / "train" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "train" / "a" / "notes.txt").write_text("x")
    data = ready(FolderData(root=str(tmp_path), image_size=8), "test")
    assert {p: len(i) for p, (_, i) in data.parts.items()} == {"train": 12, "val": 4, "test": 6}
    assert set(data.parts["test"][0].names) == {f"test/{c}/{k}.jpg" for c in "ab" for k in range(3)}


USUAL = [
    ("Train", "Val", "Test"),
    ("Training", None, "Test"),
    ("TRAIN", "VALID", "TEST"),
    ("train", "dev", "test"),
    ("training_set", "validation_set", "test_set"),
    ("train_images", "ValImages", "test-images"),
    ("trainset", "eval", "testing"),
    ("train2017", "val2017", "test2017"),
    ("01_train", "02_valid", None),
]


@pytest.mark.parametrize("names", USUAL)
@pytest.mark.parametrize("within", ["", "archive", "download/archive-main"])
def test_parts_by_any_usual_name(tmp_path, messages, names, within):
    counts = dict(zip(("train", "val", "test"), (5, 2, 3), strict=True))
    for name, count in zip(names, counts.values(), strict=True):
        for label, cls in enumerate("ab"):
            for k in range(count if name else 0):
                write_image(tmp_path / within / name / cls / f"{k}.png", label, seed=k)
    (tmp_path / "__MACOSX").mkdir()
    data = FolderData(root=str(tmp_path), image_size=8)
    data.prepare_data()
    for part, name in zip(counts, names, strict=True):
        assert not name or f"{part} from {name} ({2 * counts[part]})" in messages.text
    ready(data, "test")
    assert data.class_names == ["a", "b"]
    found = {part: {path.split("/")[-3] for path in data.parts[part][0].names} for part in data.parts}
    official = {part: {name} for part, name in zip(counts, names, strict=True) if name}
    assert found == {"val": official["train"], "test": official["train"]} | official


@pytest.mark.parametrize(
    "folders, message",
    [
        (("train/a", "train/b", "cats"), r"train beside cats \(1\): are they parts or classes\?"),
        (("train", "cats"), r"train beside cats \(1\): are they parts or classes\?"),
        (("train", "test"), r"train: has no sub-folders; expected one per class"),
        (("train/a", "Training/a"), r"(Training and train|train and Training) both stand for the train part"),
        (("a/train", "a/test", "b/train", "b/test"), r"a/test: is a part within a class; .* test/a"),
        (("train/a", "train/test"), r"train/test: is called like a part, among classes"),
    ],
)
def test_a_part_is_never_a_class_in_silence(tmp_path, folders, message):
    for k, folder in enumerate(folders):
        write_image(tmp_path / folder / "1.png", k)
    with pytest.raises(UserError, match=message) as error:
        FolderData(root=str(tmp_path))
    assert "has no sub-folders" in message or "--data.parts=none" in str(error.value) or "keep one" in message
    assert FolderData(root=str(tmp_path), parts="none").class_names == sorted({f.split("/")[0] for f in folders})


def test_a_set_without_training_images_cannot_be_trained_on(tmp_path):
    for k, folder in enumerate(("test/b", "val/a")):
        write_image(tmp_path / folder / "1.png", k)
    data = FolderData(root=str(tmp_path))
    assert data.class_names == ["a", "b"]
    with pytest.raises(UserError, match="val, test, and no folder of training images"):
        ready(data)


def test_folders_beside_parts_are_passed_over_when_asked(tmp_path):
    for k, folder in enumerate(("train/a", "train/b", "unlabelled")):
        write_image(tmp_path / folder / "1.png", k)
    data = FolderData(root=str(tmp_path), parts="named")
    assert data.class_names == ["a", "b"] and len(data.open("train")) == 2


@pytest.mark.parametrize(
    "name", ["model train", "trainers", "dev kit", "Latest", "contest", "images", "set", "123", ""]
)
def test_a_name_that_only_resembles_a_part_is_none(name):
    assert part_named(name) is None


def test_images_beside_class_folders_are_counted_once(tmp_path, caplog):
    for k, name in enumerate(("archive/a/1", "archive/b/1", "archive/loose", "archive/other", "out", ".hidden")):
        write_image(tmp_path / f"{name}.png", k)
    with caplog.at_level("WARNING"):
        data = FolderData(root=str(tmp_path))
        data.prepare_data()
        data.prepare_data()
    (record,) = caplog.records
    assert record.message.endswith(f"beside the folders of classes: 2 in {tmp_path / 'archive'}, 1 in {tmp_path}")
    assert len(data.open("train")) == 2


def test_folds_pool_the_official_validation_part(tmp_path):
    for part, count in {"train": 6, "val": 4}.items():
        for label, name in enumerate("ab"):
            for k in range(count):
                write_image(tmp_path / part / name / f"{k}.png", label, seed=k)
    met = []
    for fold in range(5):
        data = ready(FolderData(root=str(tmp_path), test_fraction=0, folds=5, fold=fold))
        source, index = data.parts["val"]
        met += [source.names[i] for i in index]
    assert len(met) == len(set(met)) == 20


def test_an_unknown_class_in_a_later_part_is_named(tmp_path):
    for name in ("train/cat", "train/dog", "val/doge", "val/cat"):
        for k in range(9):
            write_image(tmp_path / name / f"{k}.png", 0)
    with pytest.raises(UserError, match="doge .is no class of the training images .did you mean 'dog'"):
        ready(FolderData(root=str(tmp_path)))


def test_folders_without_classes_or_images_are_named(tmp_path):
    with pytest.raises(UserError, match="has no sub-folders; expected one per class"):
        FolderData(root=str(tmp_path))
    with pytest.raises(UserError, match="there is no such folder"):
        FolderData(root=str(tmp_path / "nothing"))
    for k in range(9):
        write_image(tmp_path / "a" / f"{k}.png", 0)
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="b .holds no images.; repair or remove"):
        ready(FolderData(root=str(tmp_path)))


def test_the_fingerprint_moves_with_the_data_and_not_with_its_place(photos, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(photos, copy)
    there, here = ready(FolderData(root=str(photos))), ready(FolderData(root=str(copy)))
    assert there.fingerprint == here.fingerprint
    (copy / "red fox" / "00.png").unlink()
    assert ready(FolderData(root=str(copy))).fingerprint != there.fingerprint


# ---- tables ----


def write_table(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def rows(tmp_path):
    for k in range(12):
        write_image(tmp_path / "images" / f"{k}.png", k % 3)
    return [
        {"path": f"images/{k}.png", "label": str(k % 3 + 9), "split": "train" if k < 9 else "dev"} for k in range(12)
    ]


def test_a_table_gives_labels_and_parts(tmp_path, rows):
    data = ready(TableData(table=str(write_table(tmp_path / "t.csv", rows)), test_fraction=0, image_size=8))
    assert data.class_names == ["9", "10", "11"]  # as numbers, not as text
    assert {p: len(i) for p, (_, i) in data.parts.items() if p != "test"} == {"train": 9, "val": 3}
    source, _ = data.parts["val"]
    assert list(source.names) == ["images/9.png", "images/10.png", "images/11.png"] and source.label.tolist() == [
        0,
        1,
        2,
    ]


def test_parquet_and_csv_agree(tmp_path, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.table({k: [int(r[k]) if k == "label" else r[k] for r in rows] for k in rows[0]}), tmp_path / "t.parquet"
    )
    write_table(tmp_path / "t.csv", rows)
    one, two = (ready(TableData(table=str(tmp_path / f), test_fraction=0)) for f in ("t.csv", "t.parquet"))
    assert one.fingerprint == two.fingerprint and one.class_names == two.class_names


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({}, {"label_column": "lable"}, r"has no column 'lable' \(did you mean 'label'\?\)"),
        ({"label": ""}, {}, r"t.csv:4: has no label"),
        ({"split": "holdout"}, {}, r"t.csv:4: split 'holdout' is no name of a part"),
        ({"path": "images/gone.png"}, {}, r"t.csv:4: images/gone.png: cannot be read .*there is no such file"),
        ({"path": "images/../images/./0.png"}, {}, r"t.csv:4: images/../images/./0.png is there twice, with another"),
    ],
)
def test_mistakes_in_a_table_name_the_row(tmp_path, rows, change, options, message):
    rows[2] |= change
    with pytest.raises(UserError, match=message):
        ready(TableData(table=str(write_table(tmp_path / "t.csv", rows)), **options))


def test_a_table_may_name_files_anywhere(tmp_path, rows):
    """Absolute paths, and ones out of the table's folder; where they begin does not matter to the fingerprint."""
    (tmp_path / "tables").mkdir()
    made = {}
    for name, root in {"out": "..", "here": tmp_path, "there": tmp_path / "copy"}.items():
        shutil.copytree(tmp_path / "images", tmp_path / "copy/images", dirs_exist_ok=True)
        changed = [row | {"path": f"{root}/{row['path']}"} for row in rows]
        table = write_table(tmp_path / f"tables/{name}.csv", changed)
        made[name] = ready(TableData(table=str(table), image_size=8, test_fraction=0.2), "test")
        assert made[name].parts["test"][0].names[0] == changed[0]["path"]
    assert made["here"].fingerprint == made["there"].fingerprint
    assert {part: index.tolist() for part, (_, index) in made["out"].parts.items()} == {
        part: index.tolist() for part, (_, index) in made["here"].parts.items()
    }
    changed[2]["path"] = "../copy/" + rows[1]["path"]  # another name of the second one
    with pytest.raises(UserError, match=r"t.csv:3: .*1.png is there twice, .*t.csv:4"):
        ready(TableData(table=str(write_table(tmp_path / "tables/t.csv", changed))))


# ---- torchvision ----


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_set_takes_the_arguments_that_we_pass(name):
    known = KNOWN[name]
    signature = inspect.signature(getattr(torchvision.datasets, name).__init__)
    assert "train" in known.parts
    for arguments in known.parts.values():
        signature.bind(None, **({"root": "x"} if "root" in signature.parameters else {}), **known.options, **arguments)
    data = TorchvisionData(name=name)
    assert data.num_classes == known.classes
    assert data.channels in (1, 3) and len(data.mean) == data.channels


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match="CIFAR10: is not in .*--data.download=true"):
        ready(TorchvisionData(name="CIFAR10", root=str(tmp_path)))
    with pytest.raises(UserError, match="'CIFAR1O' .did you mean 'CIFAR10'"):
        TorchvisionData(name="CIFAR1O")


def test_fake_data_has_disjoint_parts_and_right_labels():
    data = ready(
        TorchvisionData(name="FakeData", options={"size": 40, "image_size": (3, 12, 12)}, image_size=12), "test"
    )
    source, index = data.parts["test"]
    assert len(index) == 40 and len(data.parts["train"][1]) + len(data.parts["val"][1]) == 40
    item = torchvision.datasets.FakeData(40, (3, 12, 12), random_offset=1_000_000)[7]
    assert np.array_equal(source.images([7], data.resize_crop("test"))[0].permute(1, 2, 0), np.asarray(item[0]))
    assert source.label[7] == item[1]


def cifar(root: Path) -> np.ndarray:
    """A data set in CIFAR-10's file format, ten images a file."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3072), dtype=np.uint8)
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    for k, name in enumerate(names):
        content = {"data": pixels[10 * k : 10 * k + 10], "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return pixels


def test_arrays_of_torchvision_are_held_in_memory_the_right_way_round(tmp_path, monkeypatch):
    pixels = cifar(tmp_path)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    data = ready(TorchvisionData(name="CIFAR10", root=str(tmp_path)), "test")
    source, _ = data.parts["test"]
    assert isinstance(source, ArraySource) and source.in_memory
    assert np.array_equal(source.images([3], data.resize_crop("test"))[0].numpy().ravel(), pixels[53])
    assert data.class_names == list("abcdefghij")


def idx_files(root: Path) -> None:
    """Fashion-MNIST's files below `root`: the real ones where Debian's package is, else random ones."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in {"train": 300, "t10k": 100}.items():
        image, label = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
        if FASHION.is_dir():
            for name in (image, label):
                (raw / name).write_bytes(gzip.decompress((FASHION / f"{name}.gz").read_bytes()))
        else:
            header = np.array([2051, count, 28, 28], ">i4").tobytes()
            (raw / image).write_bytes(header + rng.integers(0, 256, count * 784, dtype=np.uint8).tobytes())
            (raw / label).write_bytes(np.array([2049, count], ">i4").tobytes() + bytes(i % 10 for i in range(count)))


def test_fashion_mnist_by_name(tmp_path):
    idx_files(tmp_path)
    data = ready(TorchvisionData(name="FashionMNIST", root=str(tmp_path)), "test")
    official = torchvision.datasets.FashionMNIST(str(tmp_path), train=False)
    source, index = data.parts["test"]
    assert len(index) == len(official) and isinstance(source, ArraySource)
    assert torch.equal(source.image[:, 0], official.data) and data.mean == [0.286]
    assert data.class_names[9] == "Ankle boot"
    train, val = data.parts["train"][1], data.parts["val"][1]
    assert set(train).isdisjoint(val) and len(val) == round(0.1 * (len(train) + len(val)))


def test_emnist_letters_count_from_zero(tmp_path):
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "test"):
        header = np.array([2051, 52, 28, 28], ">i4").tobytes()
        (raw / f"emnist-letters-{part}-images-idx3-ubyte").write_bytes(header + bytes(52 * 784))
        labels = bytes(i % 26 + 1 for i in range(52))
        (raw / f"emnist-letters-{part}-labels-idx1-ubyte").write_bytes(np.array([2049, 52], ">i4").tobytes() + labels)
    options = {"split": "letters"}
    data = ready(TorchvisionData(name="EMNIST", root=str(tmp_path), options=options, val_fraction=0.5))
    assert data.num_classes == 26 and data.class_names[0] == "a"
    assert sorted(set(data.parts["train"][0].label)) == list(range(26))


def test_file_sources_read_what_is_asked(photos):
    source = FileSource(photos, ["red fox/00.png", "blue bird/01.png"], np.array([0, 1]))
    images = source.images([1, 0], ResizeCrop(3, 8, 8))
    assert images[0, 2].float().mean() > 180 and images[1, 0].float().mean() > 180


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_the_same_in_any_layout_and_keeps_it(channels, dtype):
    image = torch.randint(256, (2, channels, 5, 7)).to(dtype) / (1 if dtype == torch.uint8 else 255)
    image, before = image.to(dtype), image.clone()
    mean, std = [0.5, 0.4, 0.3][:channels], [0.25, 0.2, 0.3][:channels]
    unit = image.float() / (255 if dtype == torch.uint8 else 1)
    wanted = torch.stack([(unit[:, c] - mean[c]) / std[c] for c in range(channels)], 1)
    beside = image.contiguous(memory_format=torch.channels_last)
    for given in (image, beside):
        found = normalize(given, mean, std)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert found.stride() == given.stride() or channels == 1
    assert torch.equal(image, before) and torch.equal(beside, before)  # the batch itself is left alone
