"""Images of any number of bands: files, ranges, networks and augmentation, from the first file to the exported run."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import kornia.augmentation as K  # noqa: N812
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import imgcls as package
from imgcls.augment.color import ColorJitter
from imgcls.augment.crop import RandomResizedCrop
from imgcls.augment.erasing import RandomErasing
from imgcls.augment.mixing import CutMix, MixUp
from imgcls.augment.pipeline import PER_CHANNEL, OneOf, Pipeline
from imgcls.augment.policy import AugMix, AutoAugment, Policy, RandAugment, ThreeAugment, TrivialAugmentWide
from imgcls.data.folder import FolderData
from imgcls.data.labelled import LabelledSet
from imgcls.data.sample import SampleData
from imgcls.data.table import TableData
from imgcls.errors import UserError
from imgcls.images.arrays import Bands, as_shown, bands_last, read_bands, to_channels
from imgcls.images.boxes import whole
from imgcls.images.decode import ResizeCrop, resize_crop_batch
from imgcls.training.distillation import Teacher

from .conftest import QUIET, ROOT, write_image

MODEL = ("--config", ROOT / "configs/model/cnn.yaml", "--config", ROOT / "configs/trainer/default.yaml", *QUIET)
SMALL = ("--model.backbone.depth=2", "--model.backbone.width=8", "--data.image_size=16", "--data.num_workers=0")


def bands(label: int, seed: int, number: int = 5) -> np.ndarray:
    """Noise (H, W, C) float32 of another scale in each band; the label shows in the fifth alone."""
    values = np.random.default_rng((seed, label)).normal(size=(24, 20, number)) * 10.0 ** np.arange(number)
    values[..., 4:5] *= 0.1 if label else 1
    return values.astype(np.float32)


def write_bands(root: Path, count: int = 40) -> Path:
    for label, name in enumerate(("field", "wood")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            values = bands(label, number)
            np.save(root / name / f"{number:02d}.npy", values if number % 2 else np.moveaxis(values, 2, 0))
    return root


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> Path:
    """Two classes that differ in band 4 alone, of which half the files have bands first."""
    return write_bands(tmp_path_factory.mktemp("bands") / "fields")


@pytest.fixture
def run(fields, tmp_path_factory, imgcls) -> Path:
    """A run on them, made once."""
    folder = tmp_path_factory.getbasetemp() / "run of bands"
    if not folder.exists():
        words = ["--config", ROOT / "configs/data/folder.yaml", *MODEL, *SMALL, f"--data.root={fields}"]
        words += ["--trainer.max_epochs=4", "--data.batch_size=8", "--model.lr=0.01", "--test_after_fit=true"]
        code, _, err = imgcls("fit", *words, "--run_dir", folder)
        assert code == 0, err
    return folder


# ---- files ----


@pytest.mark.parametrize("kind", ["u1", "i2", ">u2", "i4", "u8", "f2", "f4", "f8"])
def test_arrays_of_any_layout_and_kind(kind, tmp_path):
    values = np.arange(4 * 6 * 3).reshape(4, 6, 3).astype(kind)
    for name, stored in {"last": values, "first": np.moveaxis(values, 2, 0)}.items():
        np.save(tmp_path / f"{name}.npy", stored)
        np.savez_compressed(tmp_path / f"{name}.npz", any_name=stored)
        for suffix in (".npy", ".npz"):
            found = read_bands(tmp_path / f"{name}{suffix}")
            assert found.dtype == values.dtype and (found == values).all()
    np.save(tmp_path / "one.npy", values[..., 0])
    assert (read_bands(tmp_path / "one.npy") == values[..., :1]).all()
    scaled = to_channels(values, Bands((2, 0), 3), None if kind == "u1" else ((2, 2 + 255), (0, 510)))
    expected = values[..., [2, 0]] if kind == "u1" else (values[..., [2, 0]] - [2.0, 0]) * [1, 0.5]
    assert scaled.dtype == torch.uint8 and (scaled.permute(1, 2, 0).numpy() == np.round(expected).astype("u1")).all()


def test_what_tells_no_bands_is_named(tmp_path):
    for shape in ((5, 9, 5), (4,), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match=r"shape \(.*\) does not tell which axis holds the bands"):
            bands_last(np.zeros(shape))
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    np.save(tmp_path / "objects.npy", np.array([["a", {}]], dtype=object), allow_pickle=True)
    np.save(tmp_path / "complex.npy", np.zeros((4, 4), complex))
    (tmp_path / "text.npy").write_text("no array")
    said = {"two.npz": "2 arrays", "objects.npy": "no array of numbers", "complex.npy": "complex128", "text.npy": "."}
    for name, words in said.items():
        with pytest.raises(ValueError, match=words):
            read_bands(tmp_path / name)


def test_bands_and_pages_of_tiff_files(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    values = np.arange(5 * 8 * 9, dtype=np.uint16).reshape(8, 9, 5)
    pages = np.ascontiguousarray(np.moveaxis(values, 2, 0))
    tifffile.imwrite(tmp_path / "samples.tif", values, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "planes.tif", pages, photometric="minisblack", planarconfig="separate")
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="minisblack")
    tifffile.imwrite(tmp_path / "gray.tif", values[..., 0], photometric="minisblack")
    for name in ("samples", "planes", "pages"):
        assert (read_bands(tmp_path / f"{name}.tif") == values).all(), name
    assert (read_bands(tmp_path / "gray.tif") == values[..., :1]).all()
    for name in ("samples", "planes"):
        shutil.copy(tmp_path / f"{name}.tif", made(tmp_path / name / "a" / "0.tif"))
        assert FolderData(root=str(tmp_path / name)).channels == 5
    shutil.copy(
        tmp_path / "pages.tif", made(tmp_path / "pages" / "a" / "0.tif")
    )  # a photo's further pages are no bands
    assert FolderData(root=str(tmp_path / "pages")).bands is None
    assert FolderData(root=str(tmp_path / "pages"), bands=[4, 2]).num_bands == 5
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r"pip install 'imgcls\[tiff\]'"):
        FolderData(root=str(tmp_path / "samples"))


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# ---- data ----


def data_of(root: Path, **options) -> FolderData:
    data = FolderData(root=str(root), image_size=16, num_workers=0, **options)
    data.setup("fit")
    return data


def test_files_say_the_channels(fields):
    data = data_of(fields)
    assert (data.channels, data.bands, data.num_bands) == (5, [0, 1, 2, 3, 4], 5)
    assert data.mean == [0.5] * 5 and data.std == [0.25] * 5
    batch = next(iter(data.train_dataloader()))["image"]
    assert batch.shape[1:] == (5, 16, 16) and batch.dtype == torch.uint8
    photos = FolderData(root=str(fields), channels=3, mean=[0.4] * 3, std=[0.2] * 3)  # as weights of photos expect
    assert photos.channels == 5 and photos.mean == [0.5] * 5
    chosen = FolderData(root=str(fields), channels=3, mean=[0.4, 0.5, 0.6], bands=[3, 2, 1])
    assert chosen.channels == 3 and chosen.mean == [0.4, 0.5, 0.6]
    assert FolderData(root=str(fields), mean=[0.1, 0.2, 0.3, 0.4, 0.5]).mean[4] == 0.5
    source, index = data.parts["val"]
    other, same = data_of(fields, bands=[4, 0]).parts["val"]
    frame = data.resize_crop("val")
    two = ResizeCrop(2, 16, 16, value_range=tuple(frame.value_range[k] for k in (4, 0)))
    assert (index == same).all() and source.fingerprint() == other.fingerprint()
    assert torch.equal(other.images(index[:3], two), source.images(index[:3], frame)[:, [4, 0]])


def test_each_channel_has_its_own_range(fields, messages):
    data = data_of(fields)
    ranges = np.array(data.value_range)
    assert ranges.shape == (5, 2)
    assert (ranges[:, 1] - ranges[:, 0]) / 10.0 ** np.arange(5) == pytest.approx(6.2, rel=0.2)
    assert "channel by channel; --data.value_range sets this" in messages.text
    assert data_of(fields, value_range=[-5, 5]).resize_crop("val").value_range == (-5, 5)
    given = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert data_of(fields, value_range=given).resize_crop("val").value_range == tuple(map(tuple, given))
    with pytest.raises(UserError, match=r"value_range: .* is not \[low, high\] or a list of 5 such pairs"):
        FolderData(root=str(fields), value_range=given[:2])


def test_what_is_not_finite_becomes_low_and_is_counted(tmp_path, messages):
    root = write_bands(tmp_path / "fields", 8)
    for number, odd in enumerate((np.nan, np.inf, -np.inf)):
        values = bands(0, number)
        values[:12, :, 1] = odd
        np.save(root / "field" / f"{number:02d}.npy", values)
    data = data_of(root, test_fraction=0, val_fraction=0)
    assert "1.88% of the training values looked at are not finite" in messages.text  # 3 of 16 · half · one of 5
    for number in range(3):
        image = data.parts["train"][0].images([number], ResizeCrop(5, 1, 0, value_range=data.value_range))[0]
        assert not image[1, :12].any() and image[1, 12:].any() and image[0, :12].any()


def test_caches_tell_bands_apart(fields, tmp_path):
    found = []
    for chosen in ([0, 1], [1, 0], [0, 1]):
        data = data_of(fields, bands=chosen, value_range=[-30, 30], cache=str(tmp_path / "cache"), batch_size=4)
        found.append(next(iter(data.val_dataloader()))["image"])
    assert torch.equal(found[0], found[1].flip(1)) and torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1]) and len({*(tmp_path / "cache").iterdir()}) == 4  # two parts each


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_each_band_is_resized_as_a_gray_image(interpolation):
    frame = ResizeCrop(5, 20, 16, interpolation)
    image = (torch.rand(2, 5, 40, 36) * 255).byte()
    found = resize_crop_batch(image, frame)
    for band in range(5):
        alone = resize_crop_batch(image[:, band : band + 1].contiguous(), replace(frame, channels=1))
        assert torch.equal(found[:, band : band + 1], alone)


def test_another_number_of_bands_is_named_or_skipped(tmp_path):
    root = write_bands(tmp_path / "fields", 8)
    np.save(root / "wood" / "03.npy", bands(1, 3, 4))
    write_image(root / "wood" / "05.png", 1)
    with pytest.raises(UserError, match=r"wood/03.npy \(it has 4 bands, where 5 are expected") as error:
        data_of(root, test_fraction=0)
    assert "wood/05.png (it has 3 bands" in str(error.value)
    data = data_of(root, test_fraction=0, on_error="skip")
    assert {row.name for row in data.skipped} == {"wood/03.npy", "wood/05.png"}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"bands": [0, 5]}, "bands: .* is not a list of numbers from 0 to 4"),
        ({"bands": [-1]}, "bands: .* from 0 to 4"),
        ({"channels": 4}, "4, but images have 5 bands; --data.bands chooses some"),
        ({"channels": 0}, "0 is not a positive number"),
        ({"mean": [0.1, 0.2]}, "mean: 2 values for 5 channels"),
    ],
)
def test_options_that_bands_contradict(options, words, fields):
    with pytest.raises(UserError, match=words):
        FolderData(root=str(fields), **options)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"bands": [0]}, r"bands: \[0\] is not for images that are no files"),
        ({"num_bands": 5}, "num_bands: 5 is not for images that are no files"),
        ({"channels": 5}, "channels: 5 is not 1 or 3"),
        ({"value_range": [[0, 1]]}, r"value_range: .* is not \[low, high\]"),
    ],
)
def test_only_files_have_bands(options, words):
    with pytest.raises(UserError, match=words):
        SampleData(**options)


def test_photos_have_bands_if_asked_for(photos):
    with pytest.raises(UserError, match="5, but images have 3 bands"):
        FolderData(root=str(photos), channels=5)
    with pytest.raises(UserError, match="these images have 3 bands, unlike those"):
        LabelledSet(FolderData(root=str(photos), bands=[0]), ["red fox"])
    data = data_of(photos, bands=[2, 0])
    rgb = data_of(photos)
    (source, index), frame = data.parts["val"], data.resize_crop("val")
    own = rgb.parts["val"][0].images(index, rgb.resize_crop("val"))[:, [2, 0]]
    assert (source.images(index, frame).int() - own.int()).abs().max() <= 1


def test_a_table_and_a_random_crop_of_bands(fields):
    rows = [f"{path.relative_to(fields)},{path.parent.name}" for path in sorted(fields.rglob("*.npy"))]
    table = fields / "table.csv"
    table.write_text("path,label\n" + "\n".join(rows))
    data = TableData(table=str(table), image_size=16, num_workers=0)
    data.setup("fit")
    source, index = data.parts["val"]
    assert data.channels == 5 and source.images(index[:2], data.resize_crop("val")).shape == (2, 5, 16, 16)
    frame = data.resize_crop("val")
    cut = source.crop(0, ResizeCrop(5, 16, 16, value_range=frame.value_range, random=True, bound=16), whole)
    assert cut.shape == (5, 16, 16)
    small = source.crop(0, ResizeCrop(5, 16, 0, value_range=frame.value_range, random=True, bound=16), whole)
    assert small.shape == (5, 16, 16)  # no side of what a cache keeps is longer than the bound
    table.unlink()


def test_three_channels_are_shown():
    image = torch.arange(5, dtype=torch.uint8).view(5, 1, 1).expand(5, 2, 2)
    assert as_shown(image)[:, 0, 0].tolist() == [0, 1, 2] and as_shown(image[:1]).shape == (1, 2, 2)
    assert as_shown(image[1:3])[:, 0, 0].tolist() == [1, 2, 0]
    assert as_shown(image.expand(7, 5, 2, 2)).shape == (7, 3, 2, 2)


# ---- a run ----


def test_a_run_keeps_bands_and_ranges(run, fields, imgcls):
    options = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    assert options["channels"] == options["num_bands"] == 5 and options["bands"] == [0, 1, 2, 3, 4]
    assert len(options["mean"]) == len(options["value_range"]) == 5
    assert json.loads((run / "metrics.json").read_text())["test/acc"] == 1
    loaded = package.load(run)
    paths = [fields / name / "03.npy" for name in ("field", "wood")]
    by_path = loaded.predict(paths)
    assert by_path.class_names == ["field", "wood"]
    by_array = loaded.predict([np.load(path) for path in paths])
    np.testing.assert_array_equal(by_array.probability, by_path.probability)
    code, _, err = imgcls("predict", "--run", run, f"--data.root={fields / 'wood'}", "--out", "table.csv")
    assert code == 0, err
    rows = Path("table.csv").read_text().splitlines()
    assert len(rows) == 41 and sum(row.split(",")[1] == "wood" for row in rows) == 40
    teacher = Teacher(str(run))
    teacher.load(["field", "wood"], torch.device("cpu"))
    assert teacher.logits(torch.rand(2, 5, 16, 16), [0.5] * 5, [0.25] * 5).shape == (2, 2)
    with pytest.raises(UserError, match="knows images of 5 channels, the data has 3"):
        teacher.logits(torch.rand(2, 3, 16, 16), [0.5] * 3, [0.25] * 3)
    for odd, words in ((np.zeros((9, 8, 7), "f4"), "7 bands, where 5 are"), (Image.new("RGB", (9, 9)), "give paths")):
        with pytest.raises(UserError, match=words):
            loaded.predict([odd])


def test_a_run_of_bands_goes_everywhere(run, fields, imgcls, monkeypatch):
    pytest.importorskip("onnxruntime")
    assert imgcls("test", "--run", run, *QUIET)[0] == 0
    code, out, err = imgcls("test", "--run", run, f"--data.root={fields}", *QUIET, "--robustness=true")
    assert code == 0, err
    code, out, err = imgcls("export", "--run", run, "--out", "model.onnx")
    assert code == 0, err
    import onnxruntime

    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1] == 5
    code = Path("model.md").read_text().split("```python\n")[1].split("```")[0]
    image, of = fields / "wood" / "02.npy", {}
    monkeypatch.setattr(sys, "argv", ["classify.py", str(image)])
    exec(code, {"print": lambda line: of.update([line.split()[::-1]])})
    np.testing.assert_allclose(
        [float(of[name]) for name in ("field", "wood")], package.load(run).predict([image]).probability[0], atol=2e-3
    )
    code, out, err = imgcls("explain", "--run", run)
    assert code == 0, err
    code, out, err = imgcls("preview", "--config", run / "config.yaml", "--out", "preview.png", "--count=2")
    assert code == 0, err
    code, out, err = imgcls("pack", "--config", run / "config.yaml", "--out", "pack")
    assert code == 2 and "a pack holds photos" in err


def test_a_run_of_bands_is_taken_up_again(run, imgcls):
    words = ["--config", run / "config.yaml", *QUIET]
    code, _, err = imgcls("fit", *words, "--run_dir", "again", "--trainer.max_epochs=2")
    assert code == 0, err
    code, _, err = imgcls("fit", "--resume", "again", "--trainer.max_epochs=4")
    assert code == 0, err
    first, again = (torch.load(Path(of, "checkpoints/last.ckpt"), weights_only=True)["epoch"] for of in (run, "again"))
    assert first == again


def test_audit_tells_bands_apart(tmp_path, imgcls):
    """Images that look alike where they are shown, but are others, are no copies."""
    root = write_bands(tmp_path / "fields", 12)
    values = bands(0, 0)
    values[..., 4] += 1e4
    np.save(root / "wood" / "00.npy", values)
    np.save(root / "wood" / "01.npy", np.moveaxis(bands(0, 2), 2, 0))
    words = ["--config", ROOT / "configs/data/folder.yaml", f"--data.root={root}", "--out", "audit"]
    ranges = ",".join(f"[{-3 * 10**k},{3 * 10**k}]" for k in range(5))
    assert imgcls("audit", *words, f"--data.value_range=[{ranges}]", "--data.bands=[0,1,2,3,4]")[0] == 0
    found = json.loads(Path("audit/audit.json").read_text())
    assert found["modes"] == {"5 × float32": 24} and found["found"]["two_labels"] == 2  # the other pair


# ---- augmentation ----

FIVE = torch.rand(4, 5, 24, 24, generator=torch.Generator().manual_seed(0))
LABEL = torch.tensor([0, 1, 0, 1])
PARAMETERS = {
    K.RandomBrightness: {"brightness": (0.5, 1.5)},
    K.RandomContrast: {"contrast": (0.5, 1.5)},
    K.RandomGamma: {"gamma": (0.5, 1.5)},
    K.RandomGaussianBlur: {"kernel_size": (3, 3), "sigma": (0.5, 1.0)},
    K.RandomMotionBlur: {"kernel_size": 3, "angle": 20.0, "direction": 0.5},
    K.RandomSolarize: {"thresholds": 0.1},
    K.RandomFisheye: dict.fromkeys(("center_x", "center_y", "gamma"), torch.tensor([0.1, 0.3])),
}


@pytest.mark.parametrize("kind", [of for of in PER_CHANNEL if "Base" not in of.__name__], ids=lambda of: of.__name__)
def test_operations_of_kornia_that_are_let_through_do_the_same_to_each_channel(kind):
    operation = kind(**PARAMETERS.get(kind, {}), p=1.0)
    Pipeline([operation]).check_channels(5)
    if kind is K.RandomGaussianNoise:  # anew for each value
        noise = (operation(FIVE) - FIVE).permute(1, 0, 2, 3).flatten(1)
        assert (noise.std(1) > 0.1).all() and noise.corrcoef().sub(torch.eye(5)).abs().max() < 0.1
        return
    changed = operation(FIVE)
    for channel in range(5):
        alone = operation(FIVE[:, channel : channel + 1], params=operation._params)
        torch.testing.assert_close(changed[:, channel : channel + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "operation, named",
    [
        (ColorJitter(), "the saturation of ColorJitter, the hue of ColorJitter"),
        (K.ColorJitter(0.1, 0.1, 0.0, 0.1), "the hue of ColorJitter"),
        (TrivialAugmentWide(), "the color of TrivialAugmentWide"),
        (AutoAugment(), "the color of AutoAugment"),
        (RandAugment(), "the color of RandAugment"),
        (ThreeAugment(), "the color of ThreeAugment"),
        (OneOf([MixUp(), Pipeline([K.RandomGrayscale()])]), "Kornia's RandomGrayscale"),
        (K.AugmentationSequential(K.RandomInvert(), K.RandomHue()), "Kornia's RandomHue"),
        (K.auto.RandAugment(1, 5), "Kornia's RandAugment"),
        (RandomErasing(value=[0.1, 0.2, 0.3]), "RandomErasing of 3 values"),
    ],
    ids=lambda of: type(of).__name__,
)
def test_operations_on_colours_are_refused_before_the_first_step(operation, named, fields):
    augment = Pipeline([operation])
    with pytest.raises(UserError) as error:
        FolderData(root=str(fields), augment=augment, num_workers=0).setup("fit")
    assert str(error.value).startswith(
        f"--data.augment: not defined for 5 channels: {named}; leave such operations out"
    )
    for channels in (1, 3):
        augment.check_channels(channels)


def test_brightness_and_contrast_of_any_number_of_channels():
    jitter = ColorJitter(brightness=[0.5, 0.5], contrast=[0.5, 0.5], saturation=0, hue=0, p=1)
    Pipeline([jitter]).check_channels(5)
    plan = jitter.plan_of(torch.tensor([[0.5, 0.5, 1, 0]]).expand(4, 4), [0, 1], 5)
    darker = FIVE / 2
    expected = darker / 2 + darker.mean((1, 2, 3), keepdim=True) / 2
    torch.testing.assert_close(jitter.steps(FIVE, plan), expected)


@pytest.mark.parametrize("side", [24, 96])
def test_a_policy_of_defined_operations_does_the_same_to_each_channel(side):
    """Of five channels, the first three are changed as they are alone."""
    image = (torch.rand(6, 5, side, side) * 255).byte()
    policy = Equalized()
    policy.check_channels(5)
    changed = policy(image, LABEL)[0]
    assert not torch.equal(changed, image)
    assert torch.equal(changed[:, :3], policy(image[:, :3], LABEL)[0])
    assert torch.equal(changed[:, 4:], policy(image[:, 4:], LABEL)[0])


class Equalized(Policy):
    """Equalises every image, then stretches it."""

    names = ("equalize", "autocontrast", "posterize")

    def sample(self, shape):
        choice = torch.arange(2).repeat(shape[0], 1)
        return {"choice": choice, "value": choice.float()}, shape


def test_geometry_and_mixing_of_five_channels(fields):
    operations = [RandomResizedCrop(), K.RandomHorizontalFlip(), K.RandomRotation(20.0), AugMix()]
    operations += [RandomErasing(value=[0.1] * 5), OneOf([MixUp(), CutMix()])]
    data = data_of(fields, augment=Pipeline(operations))
    batch = next(iter(data.train_dataloader()))
    image, label = data.prepare(batch["image"], batch["label"])
    assert image.shape == (64, 5, 16, 16) and image.isfinite().all() and label.shape == (64, 2)
