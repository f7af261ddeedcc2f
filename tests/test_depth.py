"""Images deeper than 8 bits: exact pixels, one range for a data set, and a run that keeps it."""

import csv
import io
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageOps, TiffImagePlugin

import imgcls as package
from imgcls.data import base
from imgcls.data.folder import FolderData
from imgcls.data.shards import ShardData
from imgcls.errors import UserError
from imgcls.images import checking, sources, value_range
from imgcls.images.decode import BrokenImage, ResizeCrop, decode_bytes, decode_file, encode, original_bytes
from imgcls.pages.card import describe, write_card
from imgcls.runs.folder import RunFolder

from .conftest import QUIET, ROOT, write_image
from .test_shards import packed

LOW, HIGH = 1000, 5000
VALUES = np.array([[0, 1000, 1008], [3016, 5000, 9000]])
LEVELS = [[0, 0, 1], [129, 255, 255]]  # (3016 - 1000) * 255 / 4000 = 128.52
WHOLE = ResizeCrop(1, 2, 0, value_range=(LOW, HIGH))


def png16(values: np.ndarray, orientation: int = 1) -> bytes:
    """A PNG of 16 bits a channel with values (H, W, C), C of 1 to 4."""
    exif = Image.Exif()
    exif[0x0112] = orientation

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + line.astype(">u2").tobytes() for line in values))
    chunks = {b"IHDR": header, b"eXIf": exif.tobytes().removeprefix(b"Exif\0\0"), b"IDAT": lines, b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in chunks.items())


def colors(values: np.ndarray) -> np.ndarray:
    """The values in red, the same mirrored in green, low in blue."""
    return np.stack([values, values[:, ::-1], np.full_like(values, LOW)], -1)


def saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def of_pillow(values: np.ndarray, kind: str) -> bytes:
    return saved(Image.fromarray(values), kind)


def unsigned_tiff(values: np.ndarray) -> bytes:
    """A TIFF of unsigned 32-bit integers, which Pillow takes for signed ones and does not write itself."""
    content = bytearray(of_pillow(values.astype(np.uint32).view(np.int32), "TIFF"))
    entry = content.index(struct.pack("<HHIH", TiffImagePlugin.SAMPLEFORMAT, 3, 1, 2))
    content[entry + 8 : entry + 10] = struct.pack("<H", 1)
    return bytes(content)


def color_tiff(values: np.ndarray) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, colors(values).astype(np.uint16), photometric="rgb")
    return file.getvalue()


KINDS = {
    "gray PNG": lambda v: of_pillow(v.astype(np.uint16), "PNG"),
    "gray TIFF": lambda v: of_pillow(v.astype(np.uint16), "TIFF"),
    "integer TIFF": lambda v: of_pillow(v.astype(np.int32), "TIFF"),
    "unsigned TIFF": unsigned_tiff,
    "float TIFF": lambda v: of_pillow(v.astype(np.float32), "TIFF"),
    "color PNG": lambda v: png16(colors(v)),
    "color TIFF": color_tiff,
}


@pytest.mark.parametrize("kind", KINDS)
def test_values_become_levels_linearly_clipped_and_rounded(kind):
    content, expected = KINDS[kind](VALUES), torch.tensor(LEVELS, dtype=torch.uint8)
    image = decode_bytes(content, ResizeCrop(3, 2, 0, value_range=(LOW, HIGH)))
    green, blue = (expected.flip(1), torch.zeros_like(expected)) if "color" in kind else (expected, expected)
    assert image.dtype == torch.uint8 and torch.equal(image, torch.stack([expected, green, blue]))
    with pytest.raises(ValueError, match=r"--data.value_range=\[low, high\]"):
        decode_bytes(content, ResizeCrop(3, 2, 0))


def test_what_is_large_negative_or_no_number():
    large = decode_bytes(unsigned_tiff(VALUES * 400_000), ResizeCrop(1, 2, 0, value_range=(4e8, 2e9)))
    assert large[0].tolist() == LEVELS
    odd = np.array([[np.nan, np.inf, -np.inf], [-3000, -1000, 1000]], np.float32)
    image = decode_bytes(of_pillow(odd, "TIFF"), ResizeCrop(1, 2, 0, value_range=(-1000, 1000)))
    assert image[0].tolist() == [[0, 255, 0], [0, 0, 255]]


def test_opacity_and_orientation_of_deep_colours():
    values = np.concatenate([colors(VALUES), np.full((2, 3, 1), 65535)], -1)
    values[0, 0, 3] = 0
    turned = original_bytes(png16(values, orientation=3), (LOW, HIGH))  # by half a turn
    assert turned.size == (3, 2) and turned.image.getpixel((2, 1)) == (255, 255, 255)
    assert np.asarray(turned.image)[::-1, ::-1, 0].tolist() == [[255, 0, 1], LEVELS[1]]
    gray = decode_bytes(png16(np.stack([VALUES, np.full((2, 3), 65535)], -1)), WHOLE)
    assert gray[0].tolist() == LEVELS


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1"])
def test_eight_bits_stay_as_they_are(mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).convert(mode)
    content = saved(image, "TIFF" if mode == "CMYK" else "PNG")
    assert torch.equal(
        decode_bytes(content, ResizeCrop(3, 7, 0)), decode_bytes(content, ResizeCrop(3, 7, 0, value_range=(9, 99)))
    )


def test_half_of_the_bits_is_never_dropped_in_silence(monkeypatch):
    jpeg2000 = bytearray(saved(Image.new("RGB", (8, 8), "red"), "JPEG2000"))
    first = jpeg2000.index(b"\xff\x4f\xff\x51") + 42
    assert decode_bytes(bytes(jpeg2000), WHOLE).shape == (1, 8, 8)
    jpeg2000[first : first + 9 : 3] = b"\x0b\x0b\x0b"  # says that it has 12 bits
    files = {"PPM": b"P6 2 1 65535\n" + bytes(12), "JPEG2000": bytes(jpeg2000)}
    for kind, content in files.items():
        with pytest.raises(ValueError, match=f"{kind} of more than 8 bits a channel; convert it to PNG or TIFF"):
            decode_bytes(content, WHOLE)
    tiff = color_tiff(VALUES)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"pip install 'imgcls\[tiff\]'"):
        decode_bytes(tiff, WHOLE)


@pytest.mark.parametrize("dtype", [np.uint16, ">u2", np.int32, np.float32])
def test_what_becomes_a_file_keeps_its_depth(dtype):
    assert decode_bytes(encode(Image.fromarray(VALUES.astype(dtype))), WHOLE)[0].tolist() == LEVELS


# ---- the range of a data set ----


def write_deep(folder: Path, values: np.ndarray, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(folder / name)


def opened(root: Path, **options) -> FolderData:
    data = FolderData(
        root=str(root), **{"image_size": 8, "num_workers": 0, "cache": "none", "test_fraction": 0.0} | options
    )
    data.setup("fit")
    return data


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What is logged of values and pages."""
    lines: list[str] = []
    for module in (value_range, checking):
        monkeypatch.setattr(module.log, "info", lines.append)
    return lines


def test_the_range_is_measured_on_the_training_part_alone(tmp_path, said):
    rng = np.random.default_rng(0)
    for part, shift in (("train", 0), ("val", 20_000)):
        for number in range(10):
            values = rng.permutation(np.arange(10_000) / 10.0).reshape(100, 100).astype(np.float32) + shift
            values[0, :3] = np.nan, np.inf, -np.inf
            write_deep(tmp_path / part / "ab"[number % 2], values, f"{number}.tif")
    (tmp_path / "train" / "a" / "cut.tif").write_bytes((tmp_path / "train" / "a" / "0.tif").read_bytes()[:999])
    low, high = opened(tmp_path, on_error="skip").value_range
    assert low == pytest.approx(1, abs=0.3) and high == pytest.approx(998.9, abs=0.3)
    assert said == [
        f"images are deeper than 8 bits: values {low:g} to {high:g} (0.1 % and 99.9 % of the training pixels) become "
        "0 to 255; --data.value_range sets this"
    ]
    again = opened(tmp_path, value_range=[5, 7], folds=2, fold=1, on_error="skip")
    assert again.resize_crop("train").value_range == (5, 7) and len(said) == 1


def test_beside_images_of_eight_bits_zero_stays_black(tmp_path, said):
    for number in range(9):
        write_image(tmp_path / "a" / f"{number}.png", 0, seed=number)
    write_deep(tmp_path / "b", np.full((8, 8), 2048, np.uint16), "9.png")
    data = opened(tmp_path, val_fraction=0.0, channels=1)
    assert data.value_range == (0, 4095)
    assert said == [
        "1 of 10 training images looked at are deeper than 8 bits: values 0 to 4,095 (the 12 bits in use) become "
        "0 to 255; --data.value_range sets this"
    ]
    source, index = data.parts["train"]
    assert source.images([9], data.resize_crop("train")).unique().tolist() == [128]
    write_deep(tmp_path / "b", np.full((8, 8), -0.5, np.float32), "9.tif")  # of which nobody knows what is black
    with pytest.raises(UserError, match=r"2 of 11 images .*--data.value_range=\[low, high\]"):
        opened(tmp_path, val_fraction=0.0)


def test_eight_bits_have_no_range_and_are_not_read_for_it(tmp_path, said, monkeypatch):
    for number in range(12):
        write_image(tmp_path / "ab"[number % 2] / f"{number}.png", 0, seed=number)
    read: list[Path] = []
    read_file = sources.read_file
    monkeypatch.setattr(sources, "read_file", lambda path: read.append(path) or read_file(path))
    data = opened(tmp_path)
    assert data.value_range == "none" and data.resize_crop("val").value_range is None
    assert len(read) == 12 and said == []  # by the check, once each
    write_deep(tmp_path / "a", np.zeros((8, 8), np.uint16), "12.png")
    with pytest.raises(BrokenImage, match="a/12.png: .*deeper than 8 bits"):
        opened(tmp_path, value_range="none")


def test_an_image_is_checked_again_for_another_range(tmp_path):
    for number in range(6):
        write_deep(tmp_path / "ab"[number % 2], np.full((8, 8), number, np.uint16), f"{number}.png")
    opened(tmp_path, value_range=[0, 9])
    with pytest.raises(UserError, match="6 of 6 images cannot be read"):
        opened(tmp_path, value_range="none")


@pytest.mark.parametrize("given", [[3, 3], [5, 1], [1], [0, float("nan")], [0, float("inf")]])
def test_a_range_that_is_none_is_refused(given):
    with pytest.raises(UserError, match="--data.value_range: .* is not .low, high. with low below high"):
        base.check_ranges({**dict.fromkeys(("val_fraction", "test_fraction", "label_noise"), 0), "image_size": None,
                           "train_size": None, "batch_size": 1, "repeats": 1,
                           "value_range": given, "decoder": "cpu", "cache": "memory"})  # fmt: skip


def test_pages_are_said_once(tmp_path, said):
    for number in range(5):
        write_image(tmp_path / "a" / f"{number}.png", 0, seed=number)
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    for name in ("moving.gif", "moving.png", "moving.webp", "pages.tif"):
        frames[0].save(tmp_path / "a" / name, save_all=True, append_images=frames[1:])
    for _ in range(2):
        opened(tmp_path, val_fraction=0.0)
    assert said == ["4 images have several pages or frames, of which the first is used: a/moving.gif and 3 more"]


def test_a_pack_keeps_depth_and_range(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        write_deep(
            tmp_path / "data" / "ab"[number % 2], rng.integers(0, 3000, (20, 20)).astype(np.uint16), f"{number}.png"
        )
    data = FolderData(root=str(tmp_path / "data"), num_workers=0, channels=1)
    for out, size in ((tmp_path / "whole", None), (tmp_path / "small", 16)):
        shards = ShardData(root=packed(data, str(out), size=size), channels=1)
        shards.setup("fit")
        assert shards.value_range == [*data.value_range] and data.value_range[1] > 2900
        source, index = shards.parts["train"]
        found = source.images(index.tolist(), ResizeCrop(1, 16, 16, value_range=shards.resize_crop("val").value_range))
        own, numbers = data.parts["train"][0], {name: k for k, name in enumerate(data.parts["train"][0].names)}
        expected = own.images(
            [numbers[source.names[k]] for k in index],
            ResizeCrop(1, 16, 16, value_range=data.resize_crop("val").value_range),
        )
        assert (found.int() - expected.int()).abs().float().mean() < (12 if size else 0.1)


# ---- a run ----


@pytest.fixture(scope="module")
def twelve_bits(tmp_path_factory) -> Path:
    """Two classes of 12-bit images in 16-bit files, which 16 bits would make all but black."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("twelve_bits")
    for name, mean in (("low", 400), ("high", 1200)):
        for number in range(40):
            write_deep(
                root / name, rng.normal(mean, 100, (40, 40)).clip(0, 4095).astype(np.uint16), f"{number:03d}.png"
            )
    return root


def fit_words(root: Path, run: str) -> list[str]:
    words = ["--config", ROOT / "configs/data/folder.yaml", "--config", ROOT / "configs/model/cnn.yaml", *QUIET]
    words += [f"--data.root={root}", "--data.image_size=16", "--data.batch_size=8", "--trainer.max_epochs=4"]
    words += ["--model.backbone.depth=2", "--model.backbone.width=8", "--trainer.accelerator=cpu", "--run_dir", run]
    return [*map(str, words), "--test_after_fit=true", "--data.channels=1", "--data.num_workers=0"]


def value_range_of(run: str) -> object:
    return yaml.safe_load(Path(run, "config.yaml").read_text())["data"]["init_args"]["value_range"]


@pytest.mark.slow
def test_a_run_keeps_its_range_for_all_that_comes_after(imgcls, twelve_bits, tmp_path, said, monkeypatch):
    code, _, err = imgcls("fit", *fit_words(twelve_bits, "run"))
    assert code == 0, err
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["val/acc"] == metrics["test/acc"] == 1
    low, high = value_range_of("run")
    assert 50 < low < 250 and 1300 < high < 1600 and len(said) == 1

    monkeypatch.setattr(base, "measured_range", None)  # from here on nothing is measured
    code, _, err = imgcls("fit", "--config", "run/config.yaml", "--run_dir", "again", "--trainer.max_epochs=1")
    assert code == 0 and value_range_of("again") == [low, high], err
    assert imgcls("test", "--run", "run", "--trainer.enable_progress_bar=false")[0] == 0
    assert json.loads(Path("run/metrics.json").read_text())["test/acc"] == 1

    path = twelve_bits / "high" / "003.png"
    code, _, err = imgcls("predict", "--run", "run", f"--data.root={path}", "--out", "p.csv")
    assert code == 0, err
    with open("p.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    loaded = package.load("run")
    probability = loaded.predict([path, Image.open(path)]).probability
    assert probability[:, 0] == pytest.approx([float(row["high"])] * 2, abs=2e-6) and row["prediction"] == "high"
    assert decode_file(path, loaded.prepare.resize_crop("test")).float().mean() > 120

    code, out, err = imgcls("export", "--run", "run", "--format", "safetensors", "--out", "m", "--card", "m.md")
    assert code == 0 and f"low, high = [{low}, {high}]" in Path("m.md").read_text(), err
    about = describe(RunFolder("run"), 1, 16)
    check = {"images": 1, "source": "", "bytes": 1, "largest": 0, "largest_in_size": 0, "top1": 0}
    card = write_card(RunFolder("run"), "torch_export", "m", about, check, {})
    lines = card.partition("image = Image.open")[2].partition("pixels =")[0]
    example = {"np": np, "json": json, "Image": Image, "ImageOps": ImageOps, "sys": sys, "about": about}
    monkeypatch.setattr(sys, "argv", ["", str(path)])
    exec("image = Image.open" + lines, example)
    own = decode_file(path, ResizeCrop(1, 40, 0, value_range=(low, high)))
    assert np.array_equal(np.asarray(example["image"]), own[0])


def test_a_run_on_eight_bits_refuses_deeper_images(imgcls, photos, twelve_bits, said):
    code, _, err = imgcls("fit", *fit_words(photos, "run"), "--trainer.max_epochs=1")
    assert code == 0 and value_range_of("run") == "none" and said == [], err
    path = twelve_bits / "low" / "000.png"
    for images in ([path], [Image.open(path)]):
        with pytest.raises(UserError, match=r"deeper than 8 bits: --data.value_range=\[low, high\]"):
            package.load("run").predict(images)
    words = ["--run", "run", f"--data.root={path}", "--out", "p.csv"]
    code, _, err = imgcls("predict", *words, "--data.on_error=raise")
    assert code == 2 and "000.png: cannot be read as an image (it is deeper than 8 bits: --data.value_range" in err
    code, _, err = imgcls("predict", *words, "--data.value_range=[0, 4095]")
    assert code == 0 and len(Path("p.csv").read_text().splitlines()) == 2, err
    code, _, err = imgcls("predict", *words, "--data.value_range=auto")
    assert code == 2 and err.endswith("error: --data.value_range: auto is not allowed; expected list or 'none'\n")
    # a run of an earlier version had other pixels of deep images: it measures nothing now
    path = Path("run/config.yaml")
    path.write_text(path.read_text().replace("    value_range: none\n", ""))
    assert RunFolder("run").read_config()["data"]["init_args"]["value_range"] == "none"
