"""What reaches the device, and how: the same batches whatever the way, and no more copies than the way promises."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from imgcls.augment.pipeline import Pipeline
from imgcls.classifier import Classifier
from imgcls.data import prefetch, resident
from imgcls.data.folder import FolderData
from imgcls.data.sample import SampleData
from imgcls.errors import UserError

from .conftest import QUIET, ROOT, TINY
from .test_cli import rows, same, weights


def ready(data, device="cpu"):
    data.device = torch.device(device)
    data.setup("fit")
    return data


def of_sample(**options):
    return SampleData(train_fraction=0.05, batch_size=16, **options)


def of_photos(photos, **options):
    return FolderData(
        root=str(photos), image_size=16, train_size=12, augment=Pipeline(margin=1.25), batch_size=8, **options
    )


OPTIONS = [{}, {"repeats": 2}, {"sampling": "balanced"}, {"num_workers": 2}, {"label_noise": 0.3}, {"folds": 3}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["sample", "photos"])
def test_batches_from_device_memory_are_those_from_host_memory(photos, kind, options, monkeypatch):
    make = of_sample if kind == "sample" else lambda **given: of_photos(photos, **given)
    near, far = (ready(make(cache=cache, **options)) for cache in ("device", "memory"))
    assert near.fingerprint == far.fingerprint
    for rank in (0, 1):
        for data in (near, far):
            monkeypatch.setattr(data, "_rank", lambda rank=rank: (rank, 2))
            data._resume_at = (1, 2)
        same_epochs(near, far)
    assert near._resident.keys() == {"train", "val"} and not far._resident
    assert near._resident["train"] is near.train_dataloader().dataset  # made once


def same_batches(near, far):
    pairs = list(zip(near, far, strict=True))
    assert pairs
    for one, other in pairs:
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]) and value.stride() == other[name].stride(), name


def same_epochs(near, far):
    """Two epochs of training batches, and the validation batches."""
    for epoch in (0, 1):
        loaders = [data.train_dataloader() for data in (near, far)]
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        same_batches(*loaders)
    same_batches(near.val_dataloader(), far.val_dataloader())


@pytest.mark.parametrize("version", [0, 1])
def test_a_part_in_another_frame_is_fetched_and_not_held(photos, version):
    near, far = (ready(of_photos(photos, cache=cache)) for cache in ("device", "memory"))
    same_batches(near.ordered_batches("train", version), far.ordered_batches("train", version))
    assert near._resident.keys() == ({"train"} if version else set())
    near.setup("test"), far.setup("test")
    same_batches(near.test_dataloader(), far.test_dataloader())
    assert "test" not in near._resident


class Copies(TorchDispatchMode):
    """Counts tensors that come from the host to the meta device, which stands for a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, torch.Tensor)]
        arrives = isinstance(result, torch.Tensor) and result.device.type == "meta"
        self.count += arrives and any(value.device.type == "cpu" for value in given)
        return result


@pytest.mark.parametrize("cache, copies", [("device", 1), ("memory", 3)])
def test_a_batch_takes_one_copy_to_the_device(cache, copies):
    data = ready(of_sample(cache=cache), "meta")
    loader = data.train_dataloader()
    with Copies() as counted:
        batches = list(loader)
    assert counted.count == copies * len(batches) > 0
    assert all(value.device.type == "meta" for batch in batches for value in batch.values())
    assert batches[0]["image"].shape == (16, 1, 28, 28) and batches[0]["image"].dtype == torch.uint8


def test_too_little_memory_is_said_before_the_first_step(imgcls, monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda: 1_000_000)
    code, _, err = imgcls("fit", *TINY, "--data.cache=device", "--run_dir=run")
    assert code == 2 and "--data.cache=device: 5,400 images need 0.00423 GB, and 0.001 GB of the memory of cpu" in err
    assert not Path("run/metrics.csv").exists()


def test_an_image_that_is_gone_after_the_check_is_named(photos):
    shutil.copytree(photos, "own")
    data = ready(of_photos("own", cache="device", num_workers=0))
    data.caches.made.clear()  # into memory the check has put them all
    Path("own/blue bird/13.png").unlink()
    with pytest.raises(UserError, match="blue bird/13.png: cannot be read as an image"):
        data.train_dataloader()


@pytest.mark.parametrize("options", [[], ["--config", ROOT / "configs/finetune/cached_probe.yaml"]])
def test_a_killed_run_goes_on_from_device_memory_and_ends_as_one_from_host_memory(imgcls, monkeypatch, options):
    words = [*TINY, "--trainer.max_epochs=3", "--trainer.limit_train_batches=4", *options]
    assert imgcls("fit", *words, "--run_dir=far")[0] == 0
    step = Classifier.training_step

    def killed(self, batch, batch_idx):
        if self.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", killed)
        assert imgcls("fit", *words, "--data.cache=device", "--run_dir=near")[0] == 143
    code, _, err = imgcls("fit", "--resume", "near", *QUIET)
    assert code == 0, err
    assert rows("near/metrics.csv") == rows("far/metrics.csv")
    assert same(weights("near/checkpoints/last.ckpt"), weights("far/checkpoints/last.ckpt"))
    near, far = (json.loads(Path(run, "metrics.json").read_text()) for run in ("near", "far"))
    assert {k: v for k, v in near.items() if k.startswith("test/")} == {
        k: v for k, v in far.items() if k.startswith("test/")
    }


@pytest.mark.parametrize(
    "verb, options",
    [
        ("benchmark", ["--rounds=1", "--steps=2"]),
        ("find_lr", ["--steps=10"]),
        ("preview", []),
        ("fit", ["--dry_run=true"]),
        ("fit", ["--config", ROOT / "configs/finetune/cached_probe.yaml", "--model.finetune.views=1"]),
        ("fit", ["--calibrate=true", "--test_after_fit=true"]),
        ("fit", ["--trainer.overfit_batches=2"]),
    ],
    ids=str,
)
def test_verbs_work_from_device_memory(imgcls, verb, options):
    words = TINY if verb == "fit" else TINY[:2]
    code, _, err = imgcls(verb, *words, *options, "--data.cache=device")
    assert code == 0, err


# ---- batches on their way ----


class Fake(prefetch.SideStream):
    """A stream on which a batch arrives when it is received: what is used before is blank."""

    def __init__(self):
        self.log = []

    def send(self, to_device, batch):
        batch = to_device(batch)
        self.log.append(("send", batch["index"][0].item()))
        return {name: torch.zeros_like(value) for name, value in batch.items()}, batch

    def receive(self, batch, arrived):
        self.log.append(("receive", arrived["index"][0].item()))
        return {name: value.copy_(arrived[name]) for name, value in batch.items()}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_two_batches_are_on_their_way_when_one_is_handed_over(count):
    side, handed = Fake(), []
    batches = [{"index": torch.tensor([k])} for k in range(count)]
    for batch in prefetch.ahead(iter(batches), lambda batch: batch, side):
        handed.append(batch["index"].item())
        assert side.log[-1] == ("receive", handed[-1])
        assert [k for what, k in side.log if what == "send"] == list(range(min(count, len(handed) + 2)))
    assert handed == list(range(count)) and len(side.log) == 2 * count


def test_the_stream_that_uses_a_batch_waits_for_that_batch_alone_and_keeps_its_memory(monkeypatch):
    log, current = [], ["main"]

    class Stream:
        def __init__(self, name):
            self.name = name

        def record_event(self):
            log.append((self.name, "record"))
            return len(log)

        def wait_event(self, event):
            log.append((self.name, "wait", event))

    class Entered:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            current.append(self.stream.name)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "stream", Entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(current[-1]))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: log.append((self.item(), stream.name)))
    side = prefetch.SideStream(torch.device("cuda", 0))
    to_device = lambda batch: log.append((current[-1], "copy")) or batch  # noqa: E731
    sent = [side.send(to_device, {"index": torch.tensor(k), "broken": [(k, "why")]}) for k in (5, 6)]
    assert log == [("side", "copy"), ("side", "record")] * 2 and current == ["main"]
    log.clear()
    assert [side.receive(*one)["broken"] for one in sent] == [[(5, "why")], [(6, "why")]]
    assert log == [("main", "wait", 2), (5, "main"), ("main", "wait", 4), (6, "main")]


@pytest.mark.parametrize("cache", ["device", "memory"])
def test_a_run_with_batches_on_their_way_is_the_same_and_resumes_bit_by_bit(imgcls, monkeypatch, cache):
    words = [
        *TINY,
        "--trainer.max_epochs=3",
        "--trainer.limit_train_batches=1.0",
        "--data.train_fraction=0.04",
        "--data.batch_size=32",
    ]
    words += ["--config", ROOT / "configs/augment/mix.yaml", f"--data.cache={cache}", "--test_after_fit=true"]
    last, step = [], Classifier.training_step

    def watched(self, batch, batch_idx):
        last.append(self.trainer.is_last_batch)
        if self.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", watched)
    kill_at = None
    assert imgcls("fit", *words, "--run_dir=whole")[0] == 0
    assert last == ([False] * (len(last) // 3 - 1) + [True]) * 3 and len(last) > 6
    whole = last.copy()
    last.clear()
    side = Fake()
    monkeypatch.setattr("imgcls.data.batches.side_stream", lambda device: side)
    kill_at = len(whole) // 3 + 1
    assert imgcls("fit", *words, "--run_dir=part")[0] == 143
    kill_at = None
    code, _, err = imgcls("fit", "--resume", "part", *QUIET)
    assert code == 0, err
    assert last == whole and len(side.log) > 2 * len(whole)
    assert rows("part/metrics.csv") == rows("whole/metrics.csv")
    assert same(weights("part/checkpoints/last.ckpt"), weights("whole/checkpoints/last.ckpt"))
    assert rows("part/predictions/test.csv") == rows("whole/predictions/test.csv")


def test_an_error_of_a_worker_is_raised_in_the_main_process_as_it_is(photos):
    shutil.copytree(photos, "own")
    data = ready(of_photos("own", cache="none", num_workers=2))
    shutil.rmtree("own/blue bird")
    with pytest.raises(UserError, match=r"^blue bird/\d\d.png: cannot be read as an image \(there is no such file\)"):
        list(data.train_dataloader())
