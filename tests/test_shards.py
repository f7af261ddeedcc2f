"""Packs: what goes in comes out, whatever is read when, by whom, from where; half of one is none."""

import functools
import http.server
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.classifier import Classifier
from imgcls.commands.pack import pack
from imgcls.data.base import ImageDataModule
from imgcls.data.folder import FolderData
from imgcls.data.sample import SampleData
from imgcls.data.sampling import EvalBatches, TrainBatches, mixed_blocks
from imgcls.data.shards import ShardData
from imgcls.data.table import TableData
from imgcls.errors import UserError
from imgcls.images.decode import BrokenImage, ResizeCrop
from imgcls.images.sources import Blocks, FileSource, Source
from imgcls.training.trainer import Trainer

from .conftest import QUIET, ROOT, write_image
from .test_cli import rows, same, weights

PARTS = ("train", "val", "test")
WHOLE = ResizeCrop(3, 1 << 16, 0)
RESIZE_CROPS = (ResizeCrop(3, 24, 16), ResizeCrop(1, 32, 32, "bicubic"), WHOLE)


def packed(data, out="pack", shard_mb=0.02, size=None):
    data.trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False)
    pack(data, Path(out), shard_mb, size)
    return out


def opened(data: ImageDataModule) -> ImageDataModule:
    data.setup("fit")
    data.setup("test")
    return data


@pytest.fixture
def mixed(tmp_path) -> Path:
    """JPEG and PNG, gray and turned by EXIF, one under another's extension, names of all kinds; a test part."""
    root = tmp_path / "mixed"
    for part, count in (("train", 30), ("test", 11)):
        for label, name in enumerate(("a.b c", "grüner Frosch")):
            for k in range(count):
                kind = ("png", "jpg", "JPEG")[k % 3]
                write_image(root / part / name / f"{'tief/' * (k % 2)}{k}.x.{kind}", label, (40 + k, 33), seed=k)
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(root / "train/a.b c/4.x.jpg".replace("4.", "tief/1.")) as image:
        image.load()
        image.save(root / "train/a.b c/turned.jpg", exif=turned)
        image.convert("L").save(root / "train/a.b c/gray.jpg")
        image.convert("P").save(root / "train/a.b c/palette.gif")
        image.save(root / "train/a.b c/really a png.jpg", "PNG")
    return root


def by_name(data, part, resize_crop):
    source, index = data.parts[part]
    images = [source.images([int(i)], resize_crop)[0] for i in index]
    return {source.names[i]: (int(source.label[i]), image) for i, image in zip(index, images, strict=True)}


def sources(mixed):
    with open("table.csv", "w", encoding="utf-8") as table:
        table.write("path,label,scanner\n")
        for k, path in enumerate(sorted(p for p in (mixed / "train").rglob("*.*") if p.is_file())):
            table.write(f"{path.relative_to(Path.cwd())},{k % 3},{'AB'[k % 2]}é\n")
    folds = {"folds": 3, "fold": 1}
    yield lambda: FolderData(root=str(mixed))
    yield lambda: FolderData(root=str(mixed), **folds)
    yield lambda: TableData(table="table.csv", train_fraction=0.8)
    yield lambda: SampleData(train_fraction=0.02)


@pytest.mark.parametrize("number", range(4))
def test_every_image_comes_back_with_its_name_label_part_and_pixels(mixed, number):
    make = list(sources(mixed))[number]
    before, after = opened(make()), opened(ShardData(root=packed(make())))
    assert after.class_names == before.class_names and after.fingerprint == before.fingerprint
    for part in PARTS:
        # Pillow resizes files and torch arrays, which differ in the last bit: an array is compared in its own size
        for resize_crop in RESIZE_CROPS if number < 3 else (ResizeCrop(1, 28, 28), ResizeCrop(3, 28, 28)):
            old, new = by_name(before, part, resize_crop), by_name(after, part, resize_crop)
            assert old.keys() == new.keys() and len(old) > 3
            for name, (label, image) in old.items():
                assert label == new[name][0] and torch.equal(image, new[name][1]), name
        source, index = before.parts[part]
        for column, values in source.columns.items():
            found, where = after.parts[part][0], {name: k for k, name in enumerate(after.parts[part][0].names)}
            assert all(found.columns[column][where[source.names[i]]] == values[i] for i in index)


def test_files_keep_their_bytes_and_other_programs_read_them(mixed):
    root = Path(packed(FolderData(root=str(mixed))))
    names = [json.loads(line)[0] for line in (root / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    shards = sorted(root.glob("train-*.tar"))
    assert len(shards) > 3
    found = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            assert [m.name[:9] for m in members[::2]] == [m.name[:9] for m in members[1::2]]  # image, label
            for member in members:
                content = tar.extractfile(member).read()
                found.setdefault(int(member.name[:9]), {})[member.name.split(".")[1]] = content
    assert sorted(found) == list(range(len(names)))
    for number, name in enumerate(names):
        image, label = (mixed / name).read_bytes(), name.split("/")[1] == "grüner Frosch"
        kind = Image.open(io.BytesIO(image)).format.lower().replace("jpeg", "jpg")
        assert found[number] == {kind: image, "cls": str(int(label)).encode()}
    assert len({name.split("/")[1] for name in names[:10]}) == 2  # classes are mixed
    source = opened(ShardData(root="pack")).parts["train"][0]
    source.images([3], WHOLE)
    elsewhere = pickle.loads(pickle.dumps(source))  # as for a worker that is not forked
    assert torch.equal(elsewhere.images([3, 9], RESIZE_CROPS[0]), source.images([3, 9], RESIZE_CROPS[0]))


def test_what_is_no_file_and_of_an_unknown_kind_becomes_png(tmp_path):
    class Noise(Source):
        def images(self, index, resize_crop):
            return torch.stack([torch.full((resize_crop.channels, 5, 4), 10 * i, dtype=torch.uint8) for i in index])

    content = Noise(np.zeros(3), ["a", "b", "c"]).encoded(2)
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG" and image.size == (4, 5) and image.getpixel((0, 0)) == (20, 20, 20)


def test_smaller_images(mixed):
    root = packed(FolderData(root=str(mixed)), size=20)
    before, after = opened(FolderData(root=str(mixed))), opened(ShardData(root=root))
    assert before.fingerprint["data"] != after.fingerprint["data"]
    old, new = (by_name(data, "test", WHOLE) for data in (before, after))
    for name, (_, image) in new.items():
        assert min(image.shape[1:]) == 20
        scale = 20 / min(old[name][1].shape[1:])
        assert image.shape[2] == pytest.approx(old[name][1].shape[2] * scale, abs=1)
        assert (image.float().mean((1, 2)) - old[name][1].float().mean((1, 2))).abs().max() < 4
    unchanged = opened(ShardData(root=packed(FolderData(root=str(mixed)), "large", size=500)))
    large = by_name(unchanged, "test", WHOLE)
    assert all(torch.equal(image, large[name][1]) for name, (_, image) in old.items())


def test_several_processes_write_what_one_writes(mixed, monkeypatch):
    monkeypatch.setattr("imgcls.images.checking.FEW", 0)
    folders = [Path(packed(FolderData(root=str(mixed), num_workers=n), f"by {n}", size=20)) for n in (0, 2)]
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1]
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names[0])


# ---- order ----


def order(size, starts, window, rank, world_size, epoch=0):
    return list(mixed_blocks(size, Blocks(starts, window), rank, world_size, np.random.default_rng((5, epoch))))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_processes_share_blocks_without_overlap_and_read_few_at_a_time(world_size):
    size, window = 1009, 4
    starts = np.array([0, 30, 30, 31, *range(50, 1000, 25)])  # one is empty, one holds a single image
    shares = [np.concatenate(order(size, starts, window, rank, world_size)) for rank in range(world_size)]
    together = np.concatenate(shares)
    assert {len(share) for share in shares} == {size // world_size}
    assert len(set(together)) == len(together) and set(together) <= set(range(size))
    block = np.searchsorted(starts, np.arange(size), side="right") - 1
    for rank, share in enumerate(shares):
        read = block[share]
        first, last = ([np.flatnonzero(read == b)[k] for b in np.unique(read)] for k in (0, -1))
        at_once = max(sum(a <= t <= z for a, z in zip(first, last, strict=True)) for t in range(len(share)))
        assert at_once <= window + 3
        assert len(np.unique(read)) <= len(starts) / world_size + 3
        assert not np.array_equal(share, np.concatenate(order(size, starts, window, rank, world_size, epoch=1)))
    left_out = [set(range(size)) - set(np.concatenate(order(size, starts, window, 0, 1, e))) for e in range(3)]
    assert left_out == [set(), set(), set()]


def test_images_of_a_window_are_mixed():
    share = np.concatenate(order(4000, np.arange(0, 4000, 100), 8, 0, 1))
    assert len(np.unique(share[1000:1100] // 100)) >= 7
    rank = np.empty(4000)
    rank[share] = np.arange(4000)
    distance = np.abs(np.diff(rank))  # of neighbours in the pack
    assert np.median(distance[np.arange(3999) % 100 != 99]) > 100


@pytest.mark.parametrize("stop", [0, 1, 3, 6])
def test_a_resumed_epoch_goes_on_where_it_stopped(stop):
    blocks = Blocks(np.arange(0, 103, 7), 3)
    whole, resumed = (TrainBatches(103, 8, 5, 1, 2, blocks=blocks) for _ in range(2))
    resumed.resume_at = (2, stop)
    for batches in (whole, resumed):
        batches.set_epoch(2)
    assert list(resumed) == list(whole)[stop:] and len(list(whole)) == len(whole) == 7


def test_few_blocks_are_shuffled_as_any_other_source():
    blocks = Blocks(np.arange(0, 100, 25), 4)
    assert list(TrainBatches(100, 8, 5, blocks=blocks)) == list(TrainBatches(100, 8, 5))


def test_an_epoch_takes_no_more_memory_when_there_are_more_images():
    def peak(size):
        blocks = Blocks(np.arange(0, size, 500), 10)
        tracemalloc.start()
        met = sum(map(len, TrainBatches(size, 64, 0, blocks=blocks))), sum(map(len, EvalBatches(size, 64)))
        assert met == (size // 64 * 64, size)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10_000)
    assert peak(200_000) < 1.5 * peak(20_000) + 8 * 2 * 400  # two numbers a block


# ---- training ----

NET = ("--config", ROOT / "configs/model/cnn.yaml", "--config", ROOT / "configs/trainer/default.yaml", *QUIET)
NET += ("--model.backbone.depth=1", "--model.backbone.width=4", "--data.batch_size=8", "--data.image_size=16")
SHARDS = ("--config", ROOT / "configs/data/shards.yaml", "--data.root=pack", "--data.window=2")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_run_that_is_killed_within_an_epoch_goes_on_with_the_same_images(imgcls, monkeypatch, mixed, kind, workers):
    packed(FolderData(root=str(mixed)))
    data = SHARDS if kind == "shards" else ("--config", ROOT / "configs/data/folder.yaml", f"--data.root={mixed}")
    words = [*data, *NET, f"--data.num_workers={workers}", "--trainer.max_epochs=3"]
    seen: list = []
    step = Classifier.training_step

    def watched(self, batch, *arguments):
        seen.append((self.trainer.current_epoch, batch["index"].tolist(), batch["image"].double().sum().item()))
        if self.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, *arguments)

    monkeypatch.setattr(Classifier, "training_step", watched)
    kill_at = None
    assert imgcls("fit", *words, "--run_dir", "whole")[0] == 0
    whole, per_epoch = seen.copy(), sum(epoch == 0 for epoch, *_ in seen)
    assert per_epoch > 4 and whole[0][1] != whole[per_epoch][1]
    seen.clear()
    kill_at = per_epoch + 2
    assert imgcls("fit", *words, "--run_dir", "part")[0] == 143
    kill_at = None
    code, _, err = imgcls("fit", "--resume", "part", *QUIET)
    assert code == 0, err
    assert seen == whole
    assert same(weights("whole/checkpoints/last.ckpt"), weights("part/checkpoints/last.ckpt"))


@pytest.mark.slow
def test_two_processes_meet_a_prime_number_of_images_once(imgcls, tmp_path):
    for part, count in (("train", 97), ("val", 31), ("test", 53)):
        for k in range(count):
            write_image(tmp_path / "files" / part / "ab"[k % 2] / f"{k}.png", k % 2, (20, 16), seed=k)
    packed(FolderData(root="files"), shard_mb=0.01)
    assert len(list(Path("pack").glob("train-*.tar"))) > 8
    Path("recorder.py").write_text(
        "from lightning import Callback\n\n\nclass Recorder(Callback):\n"
        "    def on_train_batch_start(self, trainer, module, batch, number):\n"
        "        with open(f'seen-{trainer.world_size}-{trainer.global_rank}', 'a') as file:\n"
        "            print(trainer.current_epoch, *batch['index'].tolist(), file=file)\n"
    )
    Path("arm.yaml").write_text("# recorded\ntrainer: {callbacks: [{class_path: recorder.Recorder}]}\n")
    words = [*SHARDS, *NET, "--config", "arm.yaml", "--trainer.max_epochs=2", "--test_after_fit=true"]
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--data.num_workers=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "imgcls", "fit", *map(str, words), *two, "--run_dir=two"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [
        [list(map(int, line.split())) for line in Path(f"seen-2-{rank}").read_text().splitlines()] for rank in (0, 1)
    ]
    for epoch in (0, 1):
        met = [number for of_rank in seen for at, *numbers in of_rank if at == epoch for number in numbers]
        assert len(met) == len(set(met)) == 96
    table = rows("two/predictions/test.csv")
    assert [int(row["index"]) for row in table] == list(range(53))
    assert len(rows("two/predictions/val.csv")) == 31
    before = json.loads(Path("two/metrics.json").read_text())
    code, _, err = imgcls("test", "--run", "two", "--trainer.devices=1", "--trainer.strategy=auto", *QUIET[1:])
    assert code == 0, err
    after = json.loads(Path("two/metrics.json").read_text())
    assert all(after[k] == pytest.approx(before[k], abs=1e-5) for k in after if k.startswith("test/"))
    again = rows("two/predictions/test.csv")
    assert [(row["path"], row["prediction"]) for row in again] == [(row["path"], row["prediction"]) for row in table]


def test_the_command_packs_and_the_pack_trains_as_its_source(imgcls, mixed):
    folder = ("--config", ROOT / "configs/data/folder.yaml", f"--data.root={mixed}")
    code, out, err = imgcls("pack", *folder, "--out", "pack", "--shard_mb=0.02", *QUIET)
    assert code == 0 and "test: 22 images" in out, err
    words = ["fit", *SHARDS, *NET, "--trainer.max_epochs=1", "--test_after_fit=true"]
    code, _, err = imgcls(*words, "--run_dir=run")
    assert code == 0, err
    names = {path.relative_to(mixed).as_posix() for path in (mixed / "test").rglob("*.*") if path.is_file()}
    tested = rows("run/predictions/test.csv")
    assert {row["path"] for row in tested} == names
    code, _, err = imgcls("predict", "--run=run", "--trainer.accelerator=cpu", "--data.num_workers=0")
    assert code == 0, err
    predicted = [(row["path"], row["prediction"]) for row in rows("run/predictions/predict.csv")]
    assert predicted == [(row["path"], row["prediction_name"]) for row in tested]
    known = json.loads(Path("run/environment.json").read_text())
    assert known["data"]["class_names"] == ["a.b c", "grüner Frosch"]
    assert not Path("runs").exists()


# ---- from a URL ----


@pytest.fixture
def served(mixed):
    """A pack behind HTTP; names of requests."""
    packed(FolderData(root=str(mixed)))
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            if self.command == "GET":
                asked.append(self.path.rpartition("/")[2])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=Path.cwd()))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/pack", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_pack_is_read_from_a_url_and_each_shard_comes_once(served):
    url, asked = served
    near = opened(ShardData(root="pack", window=2, batch_size=8, num_workers=0))
    far = opened(ShardData(root=url, window=2, batch_size=8, num_workers=2, download_to="kept"))
    for one, other in zip(near.train_dataloader(), far.train_dataloader(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    shards = [name for name in asked if name.endswith(".tar")]
    assert len(shards) == len(set(shards)) == len(list(Path("pack").glob("train-*.tar")))
    before = len(asked)
    again = opened(ShardData(root=url, download_to="kept"))
    by_name(again, "train", RESIZE_CROPS[0])
    assert asked[before:] == ["pack.json"]


def test_the_next_shard_comes_before_it_is_needed(served):
    url, _ = served
    source, index = opened(ShardData(root=url, window=2, download_to="kept")).parts["train"]
    shards = len(source.shards)
    for _ in TrainBatches(len(index), 4, 0, blocks=source.blocks(index)):  # no image is read
        pass
    until = time.monotonic() + 30
    while len(list(Path("kept").rglob("train-*.tar"))) < shards - 1 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(list(Path("kept").rglob("train-*.tar"))) >= shards - 1  # nobody announces the first


def room(folder):
    total = 0
    for path in Path(folder).rglob("*.tar"):
        with suppress(FileNotFoundError):  # gone since it was listed
            total += path.stat().st_size
    return total


def test_downloads_keep_to_their_room(mixed):
    packed(FolderData(root=str(mixed)))
    memory = fsspec.filesystem("memory")
    memory.put("pack", "/bucket/pack", recursive=True)
    largest = max(path.stat().st_size for path in Path("pack").glob("*.tar"))
    with pytest.raises(UserError, match="--data.download_gb: 1e-05 has no room for twice --data.window 2 shards"):
        ShardData(root="memory://bucket/pack", download_gb=1e-5, window=2)
    limit = 4.5 * largest
    options = {"download_to": "kept", "download_gb": limit / 1e9, "window": 2}
    far, near = opened(ShardData(root="memory://bucket/pack", **options)), opened(ShardData(root="pack", window=2))
    before = set(threading.enumerate())
    source, index = far.parts["train"]
    for batch in TrainBatches(len(index), 4, 0, blocks=source.blocks(index)):
        assert torch.equal(source.images(batch, RESIZE_CROPS[0]), near.parts["train"][0].images(batch, RESIZE_CROPS[0]))
        assert room("kept") <= limit + 2 * largest  # what comes ahead and what is needed at once may come together
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert room("kept") <= limit
    assert not list(Path("kept").rglob("*.part"))
    assert len(list(Path("kept").rglob("train-*.tar"))) < len(list(Path("pack").glob("train-*.tar")))
    memory.rm("/bucket/pack", recursive=True)


def test_a_store_that_fails_now_and_then_is_asked_again(mixed, monkeypatch):
    packed(FolderData(root=str(mixed)))
    system, failures = type(fsspec.filesystem("file")), [2]
    original = system.get_file

    def get_file(self, *arguments, **options):
        if failures[0]:
            failures[0] -= 1
            raise ConnectionResetError("reset by peer")
        return original(self, *arguments, **options)

    monkeypatch.setattr(system, "get_file", get_file)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    url = f"file://{Path.cwd()}/pack"
    opened(ShardData(root=url, download_to="kept"))
    failures[0] = 100
    with pytest.raises(UserError, match=r"pack/\w+.\w+: cannot be read \(reset by peer\)"):
        opened(ShardData(root=url, download_to="elsewhere"))


def test_mistakes_with_urls_are_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no pack.json"):
        ShardData(root=f"file://{tmp_path}/nowhere")
    with pytest.raises(UserError, match="nosuch://x: cannot be read .*nosuch"):
        ShardData(root="nosuch://x")
    with pytest.raises(UserError, match="http://127.0.0.1:9/x: cannot be read"):
        ShardData(root="http://127.0.0.1:9/x")


# ---- damage ----


def test_broken_images_are_all_named_before_anything_is_written_or_left_out(mixed):
    broken = ["test/a.b c/0.x.png", "train/a.b c/0.x.png", "train/grüner Frosch/2.x.JPEG"]
    for name in broken:
        (mixed / name).write_bytes((mixed / name).read_bytes()[:70])
    with pytest.raises(UserError) as error:
        packed(FolderData(root=str(mixed)))
    assert all(name in str(error.value) for name in broken[1:])
    assert not list(Path.cwd().glob("*pack*"))
    packed(FolderData(root=str(mixed), on_error="skip"))
    assert json.loads(Path("pack/pack.json").read_text())["skipped"] == 3
    assert [row["name"] for row in rows("pack/skipped.csv")] == broken
    data = opened(ShardData(root="pack"))
    names = {name for part in PARTS for name in by_name(data, part, RESIZE_CROPS[0])}
    assert names.isdisjoint(broken) and len(names) == 60 + 22 + 4 - 3


def test_a_pack_that_was_interrupted_is_none_and_the_next_is_whole(mixed, monkeypatch):
    encoded = FileSource.encoded
    with monkeypatch.context() as patch:

        def stop(self, number):
            if number == 40:
                raise KeyboardInterrupt
            return encoded(self, number)

        patch.setattr(FileSource, "encoded", stop)
        with pytest.raises(KeyboardInterrupt):
            packed(FolderData(root=str(mixed)))
    assert not Path("pack").exists()
    with pytest.raises(UserError, match="holds no pack.json"):
        ShardData(root=".pack.part")
    packed(FolderData(root=str(mixed)))
    assert not Path(".pack.part").exists()
    opened(ShardData(root="pack"))


def test_mistakes_of_the_command_are_one_line(imgcls, mixed, monkeypatch):
    folder = ["pack", "--config", ROOT / "configs/data/folder.yaml", f"--data.root={mixed}", *QUIET]
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("mine")
    for words, message in (
        ([], "--out: name a folder for the pack"),
        (["--out", "full"], "--out full: is not an empty folder"),
        (["--out", "full/thesis.tex"], "is not an empty folder"),
        (["--out", "p", "--shard_mb=0"], "--shard_mb 0.0"),
        (["--out", "p", "--size=0"], "--size 0"),
        (["--out", "p", "--data.label_noise=0.1"], "--data.label_noise: a pack holds labels as they are"),
    ):
        code, _, err = imgcls(*folder, *words)
        assert code == 2 and message in err, err
    assert Path("full/thesis.tex").read_text() == "mine" and not Path("p").exists()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imgcls.commands.pack._add", full)
    code, _, err = imgcls(*folder, "--out", "p")
    assert code == 2 and "--out p: cannot be written ([Errno 28] No space left on device)" in err
    assert not Path("p").exists()


def test_a_damaged_pack_is_named(mixed):
    packed(FolderData(root=str(mixed)), "good")

    def damaged(name, change):
        shutil.rmtree("pack", ignore_errors=True)
        shutil.copytree("good", "pack")
        change(Path("pack") / name)

    def cut(path):
        path.write_bytes(path.read_bytes()[:-1])

    def edit(key, value):
        return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    for name, change, message in (
        ("train-000001.tar", Path.unlink, "pack/train-000001.tar: is missing, expected"),
        ("test-000000.tar", cut, "pack/test-000000.tar: has .* bytes, expected"),
        ("val.index", cut, "pack/val.index: has .* bytes, expected"),
        ("train.jsonl", cut, "pack/train.jsonl: has .* bytes, expected"),
        ("pack.json", cut, "pack/pack.json: is damaged"),
        ("pack.json", Path.unlink, "pack: holds no pack.json"),
        ("pack.json", edit("format", 2), "is of format 2, known here is 1"),
        ("pack.json", edit("class_names", ["one"]), "labels of the train part are no numbers of classes"),
    ):
        damaged(name, change)
        with pytest.raises(UserError, match=message):
            opened(ShardData(root="pack"))
    damaged("test-000000.tar", lambda path: path.write_bytes(bytes(path.stat().st_size)))
    source, index = opened(ShardData(root="pack")).parts["test"]
    with pytest.raises(BrokenImage, match=r"pack/test-000000.tar: test/.*cannot be read as an image"):
        source.images(index.tolist(), RESIZE_CROPS[0])
