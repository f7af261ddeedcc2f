import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.data.folder import FolderData
from imgcls.errors import UserError
from imgcls.images import cache
from imgcls.images.cache import CachedSource
from imgcls.images.decode import ResizeCrop, decode, decode_file
from imgcls.images.sources import FileSource

FRAME = ResizeCrop(3, 16, 16)


class Counting(FileSource):
    decoded: list[int]

    def images(self, index, resize_crop):
        self.decoded = [*getattr(self, "decoded", []), *index]
        return super().images(index, resize_crop)


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
