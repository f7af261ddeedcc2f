"""Images as people have them: what is odd but valid loads, what is broken is named or left out, never in silence."""

import csv
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.data.folder import FolderData
from imgcls.data.table import TableData
from imgcls.errors import UserError
from imgcls.images.listing import list_images

from .conftest import QUIET, ROOT, write_image

ODD = {  # name: the colour that must come out at the top left
    "cmyk.jpg": (255, 0, 0),
    "sixteen.png": (128, 128, 128),
    "palette.png": (255, 255, 255),
    "alpha.png": (255, 255, 255),
    "animated.gif": (0, 255, 0),
    "one pixel.png": (9, 8, 7),
    "wide.png": (9, 8, 7),
    "tall.png": (9, 8, 7),
    "png by content.jpg": (9, 8, 7),
    "jpeg by content.png": (0, 0, 255),
    "grün 日本 🦊.PNG": (9, 8, 7),
    "gray.jpg": (77, 77, 77),
    "turned.jpg": (255, 255, 255),
    os.fsdecode(b"latin \xe9.png"): (9, 8, 7),
}
BROKEN = {
    "truncated.jpg": "truncated",
    "truncated.png": "truncated",
    "empty.jpg": "it is empty",
    "page.jpg": "its content is no image",
    "bomb.png": "decompression bomb",
    "dangling.jpg": "it is a link to nothing",
    "pipe.jpg": "it is no file",
}


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_odd(folder: Path) -> None:
    folder.mkdir(parents=True)
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(np.full((16, 16), 32768, np.uint16)).save(folder / "sixteen.png")
    clear = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    clear.save(folder / "alpha.png")
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.save(folder / "palette.png", transparency=1)
    frames = [Image.new("RGB", (16, 16), c) for c in ("lime", "blue")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    sizes = {"one pixel.png": (1, 1), "wide.png": (2000, 10), "tall.png": (10, 2000)}
    for name in [*sizes, "png by content.jpg", "grün 日本 🦊.PNG", os.fsdecode(b"latin \xe9.png")]:
        Image.new("RGB", sizes.get(name, (16, 16)), (9, 8, 7)).save(folder / name, "PNG")
    Image.new("RGB", (16, 16), "blue").save(folder / "jpeg by content.png", "JPEG", quality=95)
    Image.new("L", (16, 16), 77).save(folder / "gray.jpg", quality=95)
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[8:] = 255  # the lower half; turned by 90° clockwise it is the left one
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=exif, quality=95)


def write_broken(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for suffix in ("jpg", "png"):
        noise.save(folder / f"truncated.{suffix}")
        cut = (folder / f"truncated.{suffix}").read_bytes()[:3000]
        (folder / f"truncated.{suffix}").write_bytes(cut)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<!DOCTYPE html><html><body>404 not found</body></html>")
    (folder / "bomb.png").write_bytes(png_of_size(50_000, 50_000))
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "._gray.jpg").write_bytes(b"resource fork")
    (folder / "notes.txt").write_text("not an image")


@pytest.fixture
def nasty(tmp_path) -> Path:
    """Two classes: `odd` of valid images, `ok` of ordinary and broken ones."""
    write_odd(tmp_path / "nasty" / "odd")
    for k in range(14):
        write_image(tmp_path / "nasty" / "ok" / f"{k}.png", 0, seed=k)
    write_broken(tmp_path / "nasty" / "ok")
    return tmp_path / "nasty"


def folder(root: Path, **options) -> FolderData:
    options = {"val_fraction": 0.0, "test_fraction": 0.0, "image_size": 16, "num_workers": 0} | options
    data = FolderData(root=str(root), **options)
    data.setup("fit")
    return data


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_odd_images_load_as_they_are_meant(tmp_path, cache):
    write_odd(tmp_path / "data" / "odd")
    data = folder(tmp_path / "data", cache=cache)
    source, index = data.parts["train"]
    assert len(index) == len(ODD) and len(data.caches.made) == (cache == "memory")
    images = source.images(index.tolist(), data.resize_crop("train"))
    for number, image in zip(index, images, strict=True):
        expected = ODD[data.open("train").paths[number].removeprefix("odd/")]
        assert np.abs(image[:, 1, 1].numpy().astype(int) - expected).max() <= 3, source.names[number]
    assert "odd/latin \\xe9.png" in source.names


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_broken_images_are_all_named_before_training(nasty, cache):
    with pytest.raises(UserError) as error:
        folder(nasty, cache=cache)
    text = str(error.value)
    assert text.startswith(f"data: {len(BROKEN)} of {14 + len(ODD) + len(BROKEN)} images cannot be read: ")
    for name, reason in BROKEN.items():
        entry = text.partition(f"ok/{name} (")[2]
        assert reason in entry.partition("),")[0], (name, text)
    assert "DS_Store" not in text and "._gray" not in text and "--data.on_error=skip" in text


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_skipping_leaves_out_the_broken_and_moves_no_split(nasty, cache):
    options = {"on_error": "skip", "val_fraction": 0.3, "test_fraction": 0.2, "cache": cache}
    data = folder(nasty, **options)
    before = {part: set(index.tolist()) for part, (_, index) in data.parts.items()}
    data.setup("test")
    met = {s.name: s for s in data.skipped}
    assert met.keys() == {f"ok/{name}" for name in BROKEN} and len(data.skipped) == len(BROKEN)
    for part, (source, index) in data.parts.items():
        assert not {source.names[i] for i in index} & met.keys()
        assert all(s.part != part or BROKEN[s.name[3:]] in s.reason for s in data.skipped)
    for name in ("truncated.jpg", "truncated.png", "empty.jpg", "page.jpg", "bomb.png"):
        write_image(nasty / "ok" / "sound.png", 0)
        os.replace(nasty / "ok" / "sound.png", nasty / "ok" / name)
    (nasty / "ok" / "dangling.jpg").unlink()
    write_image(nasty / "ok" / "dangling.jpg", 0)
    (nasty / "ok" / "pipe.jpg").unlink()
    write_image(nasty / "ok" / "pipe.jpg", 0)
    mended = folder(nasty, **options)
    assert not mended.skipped
    for part in before:
        assert before[part] <= set(mended.parts[part][1].tolist())
    assert {k: mended.fingerprint[k] for k in ("val", "test")} == {k: data.fingerprint[k] for k in ("val", "test")}
    assert mended.fingerprint["data"] != data.fingerprint["data"]


def test_an_image_is_read_once_until_it_changes(photos, tmp_path, monkeypatch):
    import shutil

    import imgcls.images.sources as sources

    read = []
    original = sources.read_file
    monkeypatch.setattr(sources, "read_file", lambda path: read.append(path.name) or original(path))
    shutil.copytree(photos, tmp_path / "copy")
    for expected in (60, 0):
        read.clear()
        folder(tmp_path / "copy", cache="none")
        assert len(read) == expected
    (tmp_path / "copy" / "red fox" / "07.png").write_bytes(b"no image")
    read.clear()
    with pytest.raises(UserError, match="red fox/07.png: cannot be read as an image"):
        folder(tmp_path / "copy", cache="none")
    assert read == ["07.png"]


def test_a_part_of_which_nothing_is_left_is_an_error(tmp_path):
    for k in range(3):
        write_image(tmp_path / "data" / "a" / f"{k}.png", 0)
        (tmp_path / "data" / "a" / f"{k}.png").write_bytes(b"x")
    with pytest.raises(UserError, match="no image of the train part can be read: a/0.png"):
        folder(tmp_path / "data", on_error="skip")


def test_empty_class_folders_are_all_named_or_no_classes(photos, tmp_path):
    import shutil

    shutil.copytree(photos, tmp_path / "data")
    for name in ("void", "hole"):
        (tmp_path / "data" / name).mkdir()
    (tmp_path / "data" / "void" / ".DS_Store").write_bytes(b"x")
    with pytest.raises(UserError, match="hole .holds no images., .*void .holds no images"):
        folder(tmp_path / "data")
    data = folder(tmp_path / "data", on_error="skip")
    assert data.class_names == ["blue bird", "grüner Frosch", "red fox"]
    assert [s.name for s in data.skipped] == ["hole", "void"]
    assert data.class_counts().tolist() == [20, 20, 20]


def test_a_class_of_one_image_is_trained_on(tmp_path):
    for k in range(20):
        write_image(tmp_path / "data" / "many" / f"{k}.png", 0, seed=k)
    write_image(tmp_path / "data" / "single" / "1.png", 1)
    data = folder(tmp_path / "data", val_fraction=0.2, test_fraction=0.2)
    assert data.class_counts()[1] == 1


def test_class_folders_with_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_image(tmp_path / "data" / name / "1.png", 0)
    write_image(tmp_path / "data" / "b" / "1.png", 1)
    data = folder(tmp_path / "data")
    assert data.class_names == ["b", "caf\\xe9"] and data.class_counts().tolist() == [1, 1]
    json.dumps(data.class_names).encode()


def test_a_link_to_a_folder_above_does_not_go_round(tmp_path):
    write_image(tmp_path / "data" / "a" / "1.png", 0)
    (tmp_path / "data" / "a" / "again").symlink_to(tmp_path / "data")
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path / "data")] == ["data/a/1.png"]


# ---- tables ----

ROWS = [
    ("0.png", "cat", "train"),
    ("1.png", "dog", "train"),
    ("2.png", "cat", "train"),
    ("3.png", "", "train"),  # line 5: no label
    ("", "cat", "train"),  # line 6: no path
    ("4.png", "doge", "test"),  # line 7: no class
    ("./0.png", "cat", "train"),  # line 8: line 2 again
    ("5.png", "cat", "train"),  # lines 9 and 10 disagree
    ("5.png", "dog", "train"),
    ("6.png", "dog", "train"),  # lines 11 and 12: the same image in training and test
    ("6.png", "dog", "test"),
    ("7.png", "dog", "test"),
    ("gone.png", "dog", "test"),
]
BAD_LINES = {5: "has no label", 6: "has no path", 7: "label 'doge' is not one of 2 classes (did you mean 'dog'?)"}
BAD_LINES |= {8: "./0.png is there twice"}
BAD_LINES |= {line: f"{line // 2 + 1}.png is there twice, with another label or part" for line in (9, 11)}
BAD_LINES |= {line: BAD_LINES[line - 1] for line in (10, 12)}


@pytest.fixture
def table(tmp_path) -> Path:
    for k in range(8):
        write_image(tmp_path / f"{k}.png", k)
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *ROWS])
    return tmp_path / "t.csv"


def test_rows_that_cannot_be_used_are_all_named(table):
    with pytest.raises(UserError) as error:
        TableData(table=str(table))
    text = str(error.value)
    for line, reason in BAD_LINES.items():
        assert f"t.csv:{line}: {reason}" in text, text


def test_rows_that_cannot_be_used_are_left_out_and_listed(table):
    data = TableData(table=str(table), on_error="skip", val_fraction=0, image_size=8)
    data.setup("fit")
    data.setup("test")
    names = {part: [source.names[i] for i in index] for part, (source, index) in data.parts.items()}
    assert sorted(names["train"]) == ["0.png", "1.png", "2.png"] and names["val"] == []
    assert names["test"] == ["7.png"] and data.class_names == ["cat", "dog"]
    lines = [int(s.name.partition("t.csv:")[2].partition(":")[0]) for s in data.skipped]
    assert lines == [*sorted(BAD_LINES), 14]
    assert data.skipped[-1].reason == "there is no such file" and data.skipped[-1].part == "test"


# ---- the command line ----


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def fit_words(root: Path) -> list[str]:
    words = ["--config", ROOT / "configs/data/folder.yaml", "--config", ROOT / "configs/model/cnn.yaml", *QUIET]
    words += ["--data.root", root, "--data.image_size=16", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    words += ["--model.backbone.depth=1", "--model.backbone.width=4", "--data.val_fraction=0.2"]
    return [*map(str, words), "--data.test_fraction=0.2", "--data.batch_size=4"]


def test_a_run_tells_what_it_left_out(imgcls, nasty):
    code, _, err = imgcls("fit", *fit_words(nasty), "--run_dir", "refused")
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: data: ") and not Path("refused/config.yaml").exists()
    named = [row[1] for row in rows("refused/broken.csv")[1:]]
    assert len(named) > 3 and all(name in last for name in named)
    code, _, err = imgcls("fit", *fit_words(nasty), "--run_dir", "run", "--data.on_error=skip")
    assert code == 0, err
    code, _, err = imgcls("test", "--run", "run", "--trainer.enable_progress_bar=false")
    assert code == 0, err
    header, *listed = rows("run/skipped.csv")
    assert header == ["part", "name", "reason"] and {row[1] for row in listed} == {f"ok/{name}" for name in BROKEN}
    assert len(listed) == len(BROKEN)
    assert json.loads(Path("run/metrics.json").read_text())["data/skipped"] == len(BROKEN)
    assert "data/skipped" in Path("run/report.html").read_text()
    predicted = rows("run/predictions/test.csv")
    assert not {row[1] for row in predicted} & {row[1] for row in listed}
    words = ["--run", "run", "--data.root", nasty, "--trainer.enable_progress_bar=false", "--out", "p.csv"]
    code, _, err = imgcls("predict", *words, "--data.on_error=raise")
    assert code == 2 and f"{len(BROKEN)} of {14 + len(ODD) + len(BROKEN)} images cannot be read" in err
    code, _, err = imgcls("predict", *words)
    assert code == 0, err
    assert len(rows("p.csv")) == 1 + 14 + len(ODD) and len(rows("p.skipped.csv")) == 1 + len(BROKEN)


def test_a_single_class_is_refused_in_plain_words(imgcls, tmp_path):
    for k in range(10):
        write_image(tmp_path / "data" / "only" / f"{k}.png", 0, seed=k)
    code, _, err = imgcls("fit", *fit_words(tmp_path / "data"))
    assert code == 2 and "error: data: has one class only" in err and "Traceback" not in err


def test_of_many_broken_images_a_file_lists_all(imgcls, tmp_path):
    for k in range(40):
        write_image(tmp_path / "data" / "ab"[k % 2] / f"{k}.png", k)
        if k < 30:
            (tmp_path / "data" / "ab"[k % 2] / f"{k}.png").write_bytes(b"no image")
    code, _, err = imgcls("fit", *fit_words(tmp_path / "data"), "--data.test_fraction=0", "--run_dir", "run")
    assert code == 2 and "30 of 40 images cannot be read" in err
    assert " and 10 more (run/broken.csv lists all)" in err and len(rows("run/broken.csv")) == 31


@pytest.mark.slow
def test_two_processes_leave_out_the_same(nasty):
    """Each reads half of the images: without an exchange they would not share the others alike."""
    # no loader processes: forked from a process of DDP, one of them has once been seen to wait for ever
    words = [*fit_words(nasty), "--data.on_error=skip", "--run_dir=run", "--trainer.devices=2", "--data.num_workers=0"]
    command = [sys.executable, "-m", "imgcls", "fit", *words, "--trainer.strategy=ddp", "--test_after_fit=true"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    data = folder(nasty, on_error="skip", val_fraction=0.2, test_fraction=0.2)
    data.setup("test")
    for part in ("val", "test"):
        assert [int(row[0]) for row in rows(f"run/predictions/{part}.csv")[1:]] == sorted(data.parts[part][1].tolist())
    assert len(rows("run/skipped.csv")) == 1 + len(BROKEN)
