import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.augment.crop import RandomResizedCrop
from imgcls.augment.pipeline import Pipeline
from imgcls.data.folder import FolderData
from imgcls.errors import UserError
from imgcls.images import cache, checking
from imgcls.images.boxes import scaled
from imgcls.images.cache import CachedSource
from imgcls.images.decode import ResizeCrop, decode, decode_file
from imgcls.images.sources import FileSource

FRAME = ResizeCrop(3, 16, 16)


class Counting(FileSource):
    decoded: list[int]

    def encoded(self, number):
        self.decoded = [*getattr(self, "decoded", []), number]
        return super().encoded(number)


@pytest.fixture
def source(photos) -> Counting:
    names = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.png"))
    return Counting(photos, names, np.zeros(len(names)))


@pytest.mark.parametrize("folder", [None, "cache"])
def test_each_image_is_decoded_once(source, folder, tmp_path):
    index = np.array([5, 3, 8, 40])
    cached = CachedSource(source, index, FRAME, tmp_path / folder if folder else None)
    first = cached.images([3, 8], FRAME)
    again = cached.images([8, 40, 3], FRAME)
    assert source.decoded == [3, 8, 40]
    assert torch.equal(first, again[[2, 0]])
    assert torch.equal(again, FileSource.images(source, [8, 40, 3], FRAME))
    other = ResizeCrop(3, 8, 8)  # what was not asked for at the start goes to the source
    assert cached.images([3], other).shape == (1, 3, 8, 8) and cached.images([7], FRAME).shape == (1, 3, 16, 16)


def test_a_folder_serves_later_runs_and_other_frames_have_their_own(source, tmp_path):
    index = np.arange(6)
    CachedSource(source, index, FRAME, tmp_path).images([0, 1, 2], FRAME)
    source.decoded = []
    CachedSource(source, index, FRAME, tmp_path).images([1, 2, 3], FRAME)
    assert source.decoded == [3]
    CachedSource(source, index, ResizeCrop(3, 8, 8), tmp_path)
    CachedSource(source, np.arange(5), FRAME, tmp_path)
    assert len(list(tmp_path.glob("*.images"))) == 3


def test_a_cut_file_is_made_anew_and_a_bad_folder_is_named(source, tmp_path):
    index = np.arange(4)
    CachedSource(source, index, FRAME, tmp_path).images([0], FRAME)
    (path,) = tmp_path.glob("*.images")
    path.write_bytes(b"cut")
    assert torch.equal(CachedSource(source, index, FRAME, tmp_path).images([0], FRAME), source.images([0], FRAME))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--data.cache .*file.*: cannot be used"):
        CachedSource(source, index, FRAME, tmp_path / "file" / "below")


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_fill_one_block(photos, workers):
    data = FolderData(root=str(photos), image_size=16, batch_size=8, num_workers=workers)
    data.setup("fit")
    first = [b["image"] for b in data.ordered_batches("train")]
    cached = data.caches.made[0]
    assert cached.there.all()
    again = [b["image"] for b in data.ordered_batches("train")]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_what_does_not_fit_is_decoded_in_each_epoch(photos, monkeypatch):
    monkeypatch.setattr(cache, "SHARE", 0.0)
    data = FolderData(root=str(photos), image_size=16, batch_size=8, num_workers=0)
    data.setup("fit")
    list(data.train_dataloader())
    assert not data.caches.made


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(60, 45), (33, 33), (90, 30)])
def test_the_fast_way_for_jpegs_agrees_with_pillow(tmp_path, channels, size):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise.save(tmp_path / "a.jpg", quality=90, exif=_turned())
    resize_crop = ResizeCrop(channels, 32, 28)
    with Image.open(tmp_path / "a.jpg") as image:
        from PIL import ImageOps

        slow = decode(ImageOps.exif_transpose(image), resize_crop)
    fast = decode_file(tmp_path / "a.jpg", resize_crop)
    assert (fast.int() - slow.int()).abs().max() <= 4  # rounding of two resizes, and of luma


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    return exif


def test_a_cut_jpeg_is_named(tmp_path):
    Image.effect_noise((40, 30), 50).save(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cut.jpg: cannot be read as an image"):
        decode_file(tmp_path / "cut.jpg", ResizeCrop(3, 28, 28))


# ---- random crops ----

WHOLE = ResizeCrop(3, 16, 16, random=True)
BOUNDED = replace(WHOLE, bound=36)
SIZES = [(30, 36), (36, 20), (7, 5), (100, 75), (400, 30), (1200, 900), (2, 3000)]


@pytest.fixture(params=["PNG", "JPEG"])
def sizes(request, tmp_path):
    """One smooth image of each size; the first three are no larger than the bound."""
    rng, names = np.random.default_rng(0), [f"{number}.{request.param.lower()}" for number in range(len(SIZES))]
    for size, name in zip(SIZES, names, strict=True):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(tmp_path / name, request.param)
    return Counting(tmp_path, names, np.zeros(len(names)))


def crops(source, frame, draws=5):
    """Crops of all images, and the size of which each box was drawn with the box."""
    found, drawn = [], []

    def box_of(width, height):
        drawn.append((width, height, RandomResizedCrop().box(width, height, np.random.default_rng(len(drawn)))))
        return drawn[-1][2]

    for number in range(len(source)):
        found += [source.crop(number, frame, box_of) for _ in range(draws)]
    return torch.stack(found).int(), drawn


@pytest.mark.parametrize("folder", [None, "cache"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_from_the_cache_have_the_boxes_and_pixels_of_those_without(sizes, folder, interpolation, tmp_path):
    whole, bounded = (replace(frame, interpolation=interpolation) for frame in (WHOLE, BOUNDED))
    cached = CachedSource(sizes, np.arange(len(sizes)), bounded, tmp_path / folder if folder else None)
    first, boxes = crops(cached, bounded)
    assert sizes.decoded == list(range(len(sizes)))
    again, _ = crops(cached, bounded)
    assert sizes.decoded == list(range(len(sizes)))
    plain, without = crops(sizes, whole)
    assert boxes == without and [size[:2] for size in boxes[::5]] == SIZES
    assert torch.equal(first, again)  # the first is as the later ones, and as where nothing is kept
    assert torch.equal(first, crops(sizes, bounded)[0])
    assert torch.equal(first[:15], plain[:15])  # three images, which are kept as they are
    assert (first - plain).abs().float().mean() < 6 and (first[15:] != plain[15:]).any()
    pixels, width = cached.image[3:].reshape(-1, 36, 36, 3), [min(side, 36) for side, _ in SIZES[3:]]
    assert [int((row.any((0, 2))).sum()) for row in pixels] == width  # never enlarged


def test_a_box_of_what_is_kept_is_never_empty_and_lies_inside():
    for side, kept in ((3000, 36), (37, 36), (36, 36), (1, 1)):
        for first in range(side):
            left, top, right, bottom = scaled((first, 0, first + 1, side), (side, side), (kept, kept))
            assert 0 <= left < right <= kept and (top, bottom) == (0, kept)
            assert abs(left - first * kept / side) <= 1 and (side != kept or (left, right) == (first, first + 1))


def of_crops(root, **options):
    augment = Pipeline([RandomResizedCrop(scale=(0.25, 1.0))])
    return FolderData(root=str(root), image_size=6, batch_size=8, augment=augment, **options)


def epochs(data):
    data.setup("fit")
    found = []
    for epoch in (0, 3):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        found += [batch["image"] for batch in loader]
    return torch.stack(found)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_check_decodes_for_all_epochs_and_what_has_no_room_gives_the_same(photos, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(checking, "FEW", 0)
    root, away = tmp_path / "own", tmp_path / "away"
    shutil.copytree(photos, root)
    kept, on_disk = (of_crops(root, num_workers=workers, cache=where) for where in ("memory", str(tmp_path / "images")))
    kept.setup("fit")
    assert kept.resize_crop("train").bound == 14 and all(cached.there.all() for cached in kept.caches.made)
    root.rename(away)  # from here on no file is read
    inside = epochs(kept)
    away.rename(root)
    assert not torch.equal(*inside.chunk(2)) and torch.equal(inside, epochs(on_disk))
    root.rename(away)
    assert torch.equal(inside, epochs(on_disk))
    away.rename(root)
    monkeypatch.setattr(cache, "SHARE", 0.0)
    no_room, whole = (of_crops(root, num_workers=workers, cache=where) for where in ("memory", "none"))
    assert torch.equal(inside, epochs(no_room)) and not no_room.caches.made
    assert whole.resize_crop("train").bound == 0 and not torch.equal(inside, epochs(whole))


def test_a_broken_image_is_named_by_the_check_and_left_out_of_the_crops(photos, tmp_path):
    root = tmp_path / "own"
    shutil.copytree(photos, root)
    broken = root / "red fox" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError, match="red fox/03.png: cannot be read as an image"):
        of_crops(root).setup("fit")
    data = of_crops(root, on_error="skip")
    assert len(epochs(data)) > 0 and [row.name for row in data.skipped] == ["red fox/03.png"]


def test_crops_from_device_memory_have_the_boxes_of_those_from_host_memory(sizes, tmp_path):
    for size, name in zip(SIZES, sizes.names, strict=True):
        for part in ("train/a", "train/b", "val/a", "val/b"):
            (tmp_path / "own" / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / name, tmp_path / "own" / part / f"{size}{name}")
    options: dict = {"augment": Pipeline([RandomResizedCrop()]), "image_size": 16, "batch_size": 4, "num_workers": 0}
    near, far = (FolderData(root=str(tmp_path / "own"), cache=where, **options) for where in ("device", "memory"))
    near.device = torch.device("cpu")
    one, other = epochs(near).int(), epochs(far).int()
    difference = (one - other).abs().float()  # products of matrices there, fixed-point steps here
    assert "train" in near._resident and difference.max() <= 2 and difference.mean() < 0.5
    refused = FolderData(root=str(tmp_path / "own"), cache="device", decoder="cuda", **options)
    refused.device = torch.device("cpu")
    refused.setup_training_parts()
    refused.augment.configure(16, 2)
    with pytest.raises(UserError, match="take --data.decoder=cpu, or --data.cache=memory"):
        refused.train_dataloader()


def test_features_take_the_place_of_random_crops_in_device_memory(photos):
    data = of_crops(photos, cache="device", num_workers=0)
    data.device = torch.device("cpu")
    data.setup("fit")
    feature = torch.arange(len(data.parts["train"][1]) * 6.0).view(-1, 2, 3)
    data.use_features("train", feature)
    batch = next(iter(data.train_dataloader()))
    place = {int(number): row for row, number in enumerate(data.parts["train"][1])}
    assert torch.equal(batch["image"], feature[[place[int(number)] for number in batch["index"]]])


def test_features_are_read_on_every_core_and_training_images_on_the_spare_ones(photos, monkeypatch):
    monkeypatch.setattr("imgcls.data.batches.cores", lambda: 2)
    data = of_crops(photos)
    data.setup("fit")
    assert (data.ordered_batches("train").num_workers, data.train_dataloader().num_workers) == (2, 1)
    data.num_workers = 1
    assert data.ordered_batches("train").num_workers == 1
