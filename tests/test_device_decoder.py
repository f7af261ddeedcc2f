"""JPEG files that the device decodes; the CPU stands for it."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.data.batches import BatchDataset
from imgcls.data.encoded import EncodedBatches
from imgcls.data.folder import FolderData
from imgcls.data.shards import ShardData
from imgcls.errors import UserError
from imgcls.images import jpeg
from imgcls.images.decode import ResizeCrop, decode_bytes
from imgcls.images.jpeg import decode_jpegs, plain_size

from .conftest import QUIET, ROOT
from .test_feeding import ready, same_batches, same_epochs
from .test_shards import packed

CPU = torch.device("cpu")
TURNED = Image.Exif()
TURNED[0x0112] = 6  # a camera held upright


def photo(size=(40, 33), seed=0) -> Image.Image:
    """Smooth, as photographs are, so that coarser colours and another way to shrink change little."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def content(image=None, kind="JPEG", **options) -> bytes:
    file = io.BytesIO()
    (image or photo()).save(file, kind, **options)
    return file.getvalue()


PLAIN = {
    "colours": content(),
    "gray": content(photo().convert("L")),
    "progressive": content(progressive=True),
    "not subsampled": content(subsampling=0),
}
OTHERS = {
    "turned": content(exif=TURNED),
    "CMYK": content(photo().convert("CMYK")),
    "RGB as it is": content(keep_rgb=True),
    "unusual colours": content().replace(b"\x02\x11\x01", b"\x02\x21\x01"),
    "cut": content()[:-20],
    "more behind": content() + b"more",
    "PNG": content(kind="PNG"),
    "several": content(kind="MPO", save_all=True, append_images=[photo(seed=1)]),
}


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(jpeg, "DEVICES", ("cuda", "cpu"))


@pytest.fixture
def files(tmp_path) -> Path:
    """Two classes of 24 files of several sizes and of every kind that can be read; a test part."""
    readable = {name: made for name, made in (PLAIN | OTHERS).items() if name not in ("cut", "unusual colours")}
    for part in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / "files" / part / label
            folder.mkdir(parents=True)
            for k in range(14):
                image = photo((30 + 4 * (k % 3), 28), seed=k)
                (folder / f"{k}.jpg").write_bytes(content(image if label == "a" else image.point(lambda v: v // 4)))
            for k, made in enumerate(readable.values()):
                (folder / f"other {k}.jpg").write_bytes(made)
    return tmp_path / "files"


def is_plain(file):
    return plain_size(file) is not None


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_jpeg_travels_as_it_is(name):
    assert is_plain(PLAIN[name])


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_decoded_by_the_worker(name):
    assert not is_plain(OTHERS[name])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_frame_is_that_of_the_other_decoder(channels, interpolation):
    """Equal below twice the size; above, where the CPU shrinks an image while it decodes it, 4 of 255 on average."""
    resize_crop = ResizeCrop(channels, 24, 20, interpolation)
    small = [content(photo(size, seed=k)) for k, size in enumerate([(40, 30), (30, 47), (40, 30), (20, 20), (24, 24)])]
    large = [content(photo((400, 300), seed=k)) for k in range(3)]
    asked = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in [*small, *large, PLAIN["gray"]]]
    found = decode_jpegs(asked, resize_crop, CPU)
    wanted = [decode_bytes(file, resize_crop) for file in [*small, *large, PLAIN["gray"]]]
    for k, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert one.shape == other.shape == (channels, 20, 20) and one.dtype == torch.uint8
        apart = (one.int() - other.int()).abs().float()
        assert (apart.mean() < 4 and apart.max() < 24) if k in (5, 6, 7) else not apart.any()


@pytest.mark.parametrize(
    "options", [{}, {"num_workers": 2}, {"folds": 3}, {"cache": "device"}, {"channels": 1}], ids=str
)
def test_batches_are_those_of_the_other_decoder(files, on_cpu, options):
    options = {"root": str(files), "image_size": 20, "batch_size": 8, "num_workers": 0, **options}
    near = ready(FolderData(decoder="cuda", **options))
    far = ready(FolderData(**options | {"cache": "none"}))
    assert near.fingerprint == far.fingerprint and not near.caches.made
    same_epochs(near, far)
    near.setup("test"), far.setup("test")
    same_batches(near.test_dataloader(), far.test_dataloader())
    assert type(near.test_dataloader().dataset) is EncodedBatches
    assert bool(near._resident) == ("cache" in options)


def test_a_pack_is_decoded_on_the_device_too(files, on_cpu):
    root = packed(FolderData(root=str(files)))
    near, far = (ready(ShardData(root=root, image_size=20, batch_size=8, decoder=how)) for how in ("cuda", "cpu"))
    same_batches(near.train_dataloader(), far.train_dataloader())
    assert type(near.train_dataloader().dataset) is EncodedBatches


def test_bytes_travel_and_only_other_images_are_decoded_by_workers(files, on_cpu):
    data = ready(FolderData(root=str(files), image_size=20, decoder="cuda"))
    source, index = data.parts["train"]
    sent = data.train_dataloader().dataset[list(range(len(index)))]
    kept = [source.encoded(number) for number in index.tolist()]
    assert sent["files"].numpy().tobytes() == b"".join(file for file in kept if is_plain(file))
    assert sent["size"].tolist() == [len(file) * is_plain(file) for file in kept]
    assert 0 < len(sent["decoded"]) == (sent["size"] == 0).sum() * 3 * 20 * 20
    alone = ready(FolderData(root=str(files), image_size=20, decoder="cuda")).train_dataloader().dataset
    for known in (True, False):  # a batch of files alone, and one without any
        positions = [k for k, file in enumerate(kept) if is_plain(file) == known]
        image = alone.to_device(alone[positions])["image"]
        assert torch.equal(image, source.images(index[positions].tolist(), data.resize_crop("train")))


def test_what_the_device_refuses_the_cpu_decodes(files, on_cpu, monkeypatch, messages):
    near, far = (ready(FolderData(root=str(files), image_size=20, decoder=how)) for how in ("cuda", "cpu"))

    def refused(*_):
        raise RuntimeError("Error while decoding JPEG images: 5")

    monkeypatch.setattr(jpeg, "decode_jpeg", refused)
    same_batches(near.train_dataloader(), far.train_dataloader())
    same_batches(near.val_dataloader(), far.val_dataloader())
    said = [(id(record), record.message) for record in messages.records if "--data.decoder=cuda" in record.message]
    assert said[0][1] == (
        "--data.decoder=cuda: the CPU decodes a batch that cpu does not (Error while decoding JPEG images: 5)"
    )
    assert len(set(said)) == 2  # once for each loader


def test_a_file_that_is_damaged_behind_its_header_is_named(files, on_cpu):
    data = ready(FolderData(root=str(files), image_size=20, decoder="cuda"))
    source, index = data.parts["train"]
    dataset = data.train_dataloader().dataset
    plain = next(k for k, number in enumerate(index.tolist()) if is_plain(source.encoded(number)))
    path = source.file(int(index[plain]))
    damaged = bytearray(content())
    table = damaged.index(b"\xff\xc4") + 5  # of Huffman codes, which the header's check does not read
    damaged[table : table + 16] = b"\xff" * 16
    path.write_bytes(damaged)
    assert is_plain(bytes(damaged))
    with pytest.raises(UserError, match=f"{path.name}: cannot be read as an image"):
        dataset.to_device(dataset[[plain]])


def test_broken_files_are_found_before_training_and_left_out_as_ever(files, on_cpu):
    shutil.copytree(files, "own")
    for name in ("a/3.jpg", "b/5.jpg"):
        Path("own/train", name).write_bytes(OTHERS["cut"])
    with pytest.raises(UserError, match="2 of .* images cannot be read: .*3.jpg"):
        ready(FolderData(root="own", image_size=20, decoder="cuda"))
    near, far = (
        ready(FolderData(root="own", image_size=20, batch_size=8, decoder=how, on_error="skip"))
        for how in ("cuda", "cpu")
    )
    assert near.skipped == far.skipped and len(near.skipped) == 2 and near.fingerprint == far.fingerprint
    same_batches(near.train_dataloader(), far.train_dataloader())


def test_options_that_cannot_be_met_are_named(files, imgcls):
    words = ["--config", ROOT / "configs/data/folder.yaml", "--config", ROOT / "configs/model/cnn.yaml", *QUIET]
    words += ["--config", ROOT / "configs/trainer/default.yaml", f"--data.root={files}"]
    words += ["--data.decoder=cuda", "--trainer.accelerator=cpu"]
    for verb in ("fit", "benchmark", "find_lr"):
        code, _, err = imgcls(verb, *words)
        assert code == 2 and "--data.decoder=cuda: the run is on cpu; take --data.decoder=cpu, or a CUDA device" in err
    code, _, err = imgcls("fit", *words, "--data.cache=folder")
    assert code == 2 and "--data.cache: folder is not memory, device or none" in err
    data = FolderData(root=str(files), image_size=20, decoder="cuda")
    data.setup("fit")  # without a Trainer or a device, images are read as ever
    assert type(data.train_dataloader().dataset) is BatchDataset


def test_a_device_without_a_decoder_is_named(on_cpu, monkeypatch, files):
    def lacking(*_):
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    monkeypatch.setattr(jpeg, "decode_jpeg", lacking)
    with pytest.raises(UserError, match="torchvision does not decode on cpu .*not compiled with nvJPEG.*decoder=cpu"):
        ready(FolderData(root=str(files), image_size=20, decoder="cuda"))


@pytest.mark.parametrize("verb", ["fit", "benchmark", "find_lr", "dry_run"])
def test_verbs_work_with_the_device_decoder(files, on_cpu, imgcls, verb):
    words = ["--config", ROOT / "configs/data/folder.yaml", "--config", ROOT / "configs/model/cnn.yaml"]
    words += ["--config", ROOT / "configs/trainer/default.yaml", f"--data.root={files}", "--data.batch_size=8", *QUIET]
    words += ["--trainer.accelerator=cpu", "--data.image_size=20", "--model.backbone.depth=1", "--trainer.max_epochs=2"]
    words += {
        "benchmark": ["--rounds=1", "--steps=2"],
        "find_lr": ["--steps=40"],
        "dry_run": ["--dry_run=true"],
        "fit": ["--run_dir=near", "--test_after_fit=true"],
    }[verb]
    code, _, err = imgcls("fit" if verb == "dry_run" else verb, *words, "--data.decoder=cuda")
    assert code == 0, err
    if verb == "fit":
        assert imgcls("fit", *words[:-2], "--run_dir=far", "--test_after_fit=true")[0] == 0
        near, far = (json.loads(Path(run, "metrics.json").read_text()) for run in ("near", "far"))
        assert near["test/loss"] == far["test/loss"] and near["val/acc"] == far["val/acc"]
        code, out, err = imgcls("predict", "--run=near", *QUIET)
        assert code == 0, err


@pytest.mark.parametrize("options", [{"decoder": "cuda"}, {"cache": "device"}], ids=str)
def test_what_cannot_be_read_is_blank_and_named_while_it_is_predicted(files, on_cpu, options):
    Path(files, "test/a/3.jpg").write_bytes(OTHERS["cut"])
    data = FolderData(root=str(files), image_size=20, batch_size=64, on_error="skip", num_workers=0, **options)
    data.device = CPU
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    ((number, reason),) = batch["broken"]
    assert data.parts["test"][0].names[number].endswith("a/3.jpg") and reason
    blank = [position for position, image in enumerate(batch["image"]) if not image.any()]
    assert batch["index"][blank].tolist() == [number]
