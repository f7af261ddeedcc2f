"""Random resized crops, taken from whole images while they are decoded."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from imgcls.augment.crop import RandomHorizontalFlip, RandomResizedCrop
from imgcls.augment.pipeline import Pipeline
from imgcls.data.batches import BatchDataset, loader
from imgcls.data.sample import SampleData
from imgcls.data.sampling import REPEATS, TrainBatches, drawn
from imgcls.images.boxes import crop_bytes
from imgcls.images.decode import ResizeCrop
from imgcls.images.sources import FileSource

FRAME = ResizeCrop(3, 32, 32, random=True)
SIZES = [(500, 375), (375, 500), (64, 64), (900, 120), (33, 200), (1, 7)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_boxes_are_distributed_as_torchvisions(size):
    width, height = size
    crop = RandomResizedCrop()
    ours = np.array([crop.box(width, height, np.random.default_rng((0, k))) for k in range(2000)])
    torch.manual_seed(0)
    of = v2.RandomResizedCrop(32)
    like = [torch.empty(3, height, width, dtype=torch.uint8)]
    params = [of.make_params(like) if hasattr(of, "make_params") else of._get_params(like) for _ in range(2000)]
    theirs = np.array([[p["left"], p["top"], p["left"] + p["width"], p["top"] + p["height"]] for p in params])
    assert (ours[:, :2] >= 0).all() and (ours[:, 2] <= width).all() and (ours[:, 3] <= height).all()
    for measure in (
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
        lambda box: (box[:, 2] - box[:, 0]) / (box[:, 3] - box[:, 1]),
    ):
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-4


def photo(width, height, seed=0):
    """Smooth, with marks of one colour each in the corners."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 200, (6, 8, 3), dtype=np.uint8))
    image = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    h, w = max(1, height // 10), max(1, width // 10)
    image[:h, :w], image[:h, -w:], image[-h:, :w], image[-h:, -w:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    return Image.fromarray(image)


def file_of(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES[:5], ids=str)
def test_pixels_of_a_box_are_torchvisions(size, interpolation, kind):
    content = file_of(photo(*size), kind, **({"quality": 95} if kind == "JPEG" else {}))
    whole = tv.pil_to_tensor(Image.open(io.BytesIO(content)).convert("RGB"))
    frame = ResizeCrop(3, 32, 32, interpolation, random=True)
    crop = RandomResizedCrop()
    for k in range(10):
        box = crop.box(*size, np.random.default_rng(k))
        left, top, right, bottom = box
        mode = tv.InterpolationMode(interpolation)
        theirs = tv.resized_crop(whole, top, left, bottom - top, right - left, [32, 32], mode, antialias=True)
        ours = crop_bytes(content, frame, lambda width, height: box)  # noqa: B023
        difference = (ours.int() - theirs.int()).abs()
        # a JPEG of twice the size or more is decoded at half of it: as smooth, from other coefficients
        reduced = kind == "JPEG" and min(right - left, bottom - top) >= 64
        assert difference.max() <= (64 if reduced else 2) and difference.float().mean() < (3 if reduced else 0.6)


def test_a_box_is_drawn_of_the_upright_image_and_from_all_of_it():
    image = photo(300, 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    turned = file_of(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)
    seen = []

    def all_of_it(width, height):
        seen.append((width, height))
        return 0, 0, width, height

    ours = crop_bytes(turned, FRAME, all_of_it)
    assert seen == [(300, 200)]
    corners = [tuple(ours[:, y, x].tolist()) for y, x in ((1, 1), (1, -2), (-2, 1), (-2, -2))]
    for found, mark in zip(corners, [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], strict=True):
        assert np.abs(np.subtract(found, mark)).max() < 30


def test_large_photos_are_decoded_small_and_never_too_small(monkeypatch):
    content, asked = file_of(photo(1600, 1200), "JPEG"), []
    real = Image.Image.resize

    def resize(self, size, *args, box=None, **kwargs):
        asked.append((self.size, box))
        return real(self, size, *args, box=box, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", resize)
    for box, size in (
        ((0, 0, 1600, 1200), (200, 150)),
        ((100, 100, 500, 400), (200, 150)),
        ((0, 0, 120, 120), (800, 600)),
    ):
        crop_bytes(content, FRAME, lambda width, height: box)  # noqa: B023
        stored, part = asked.pop()
        assert stored == size and min(part[2] - part[0], part[3] - part[1]) >= 32


@pytest.fixture
def files(tmp_path):
    for number in range(12):
        photo(90 + 7 * number, 120 - 5 * number, number).save(tmp_path / f"{number}.png")
    return FileSource(tmp_path, [f"{number}.png" for number in range(12)], np.arange(12) % 3)


def batches(source, workers=0, epoch=0, start=0, seed=3, **options):
    index = np.arange(len(source))
    sampler = TrainBatches(len(index), 4, seed, draws=True, **options)
    sampler.set_epoch(epoch)
    sampler.resume_at = (epoch, start)
    dataset = BatchDataset(source, index, FRAME, crop=RandomResizedCrop(), seed=seed)
    return list(loader(dataset, sampler, workers))


def test_any_workers_and_a_resumed_run_draw_the_same_crops(files):
    alone = batches(files)
    for other, first in ((batches(files, workers=2), 0), (batches(files, start=1), 1)):
        for mine, theirs in zip(alone[first:], other, strict=True):
            assert torch.equal(mine["image"], theirs["image"]) and torch.equal(mine["index"], theirs["index"])


def test_crops_differ_by_epoch_seed_and_copy(files):
    def by_image(found):
        return {int(k): image for batch in found for k, image in zip(batch["index"], batch["image"], strict=True)}

    first = by_image(batches(files))
    for other in (by_image(batches(files, epoch=1)), by_image(batches(files, seed=4))):
        assert all(not torch.equal(first[k], other[k]) for k in first)
    copies = batches(files, repeats=2)
    pairs = [image for batch in copies for image in batch["image"].split(2)]
    assert all(not torch.equal(*pair) for pair in pairs)
    assert torch.equal(pairs[0][0], first[int(copies[0]["index"][0])])  # the first copy is that of a plain run


def test_positions_say_which_draw_of_an_image_it_is():
    def positions(**options):
        sampler = TrainBatches(6, 2, 0, draws=True, **options)
        sampler.set_epoch(5)
        return np.concatenate(list(sampler))

    draw, position = np.divmod(positions(), 6)
    assert sorted(position) == list(range(6)) and (draw == drawn(5)).all()
    draw, position = np.divmod(positions(repeats=3), 6)
    assert (draw - 5 * REPEATS).tolist() == [0, 1, 2, 0, 1, 2] and len(set(position)) == 2
    draw, position = np.divmod(positions(probability=np.array([0.9, 0.1, 0, 0, 0, 0])), 6)
    assert (draw - 5 * REPEATS)[position == 0].tolist() == list(range((position == 0).sum()))


@pytest.mark.parametrize("cache", ["memory", "device"])
def test_images_in_memory_are_cropped_as_they_are_loaded(cache):
    data = SampleData(augment=Pipeline([RandomResizedCrop(), RandomHorizontalFlip()]), cache=cache, image_size=24)
    data.device = torch.device("cpu")
    data.setup("fit")
    source, index = data.parts["train"]
    assert data.resize_crop("train").random and not data.resize_crop("val").random
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape[1:] == (1, 24, 24) and batch["image"].dtype == torch.uint8
    number = int(batch["index"][0])
    box = RandomResizedCrop().box(28, 28, np.random.default_rng((data.seed, number, 0)))
    whole = source.images([number], ResizeCrop(1, 24, 0))[0]
    expected = tv.resized_crop(whole, box[1], box[0], box[3] - box[1], box[2] - box[0], [24, 24], antialias=True)
    assert (batch["image"][0].int() - expected.int()).abs().max() <= 1
    image, _ = data.prepare(batch["image"], batch["label"])
    plain = data.normalize(batch["image"])
    same = (image == plain).flatten(1).all(1) | (image == plain.flip(-1)).flatten(1).all(1)
    assert same.all()  # what is left to do is the flip alone
