"""The sections of the certification: each yields its figures."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
import yaml

from imgcls.__main__ import main as imgcls_main
from imgcls.augment.other_libraries import stock_kornia, torchvision_per_sample
from imgcls.cli.measuring import now
from imgcls.system.files import read_json
from imgcls.system.resources import cores

from ..conftest import QUIET, ROOT
from .presets import MEAN, PRESETS, STD, augmented, batch, preset
from .report import Figure
from .synthetic import write_photos
from .waits import waits

LOOPS = ["bare loop", "bare loop again (A/A)", "whole trainer"]


class Size(NamedTuple):
    """How much is done; sides are in pixels, the others are counts."""

    small: int  # images of 28 px
    small_batch: int
    network: str  # of torchvision, at `side`
    side: int
    batch: int
    steps: int
    photo_batch: int
    workers: int
    one_by_one: int  # images of a batch of `batch` that torchvision augments, one after the other


SIZES = {
    "cuda": Size(60_000, 512, "resnet50", 224, 256, 20, 128, cores(), 32),
    "cpu": Size(256, 64, "resnet18", 32, 4, 3, 4, 1, 2),
}


class Failed(Exception):
    """A section that did not do what it should; the text says what."""


class OverTime(BaseException):
    """A section took longer than it may; no library takes it for an error of its own."""


@dataclass
class Certificate:
    """What has been found, and what the sections need to know."""

    device: torch.device
    work: Path
    fashion_mnist: Path | None
    raw: dict[str, Any] = field(default_factory=dict)
    presets: dict[str, dict[str, float | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def toy(self) -> bool:
        return self.device.type == "cpu"

    @property
    def size(self) -> Size:
        return SIZES[self.device.type]

    def trainer(self) -> list[str]:
        """Words for the fastest training on the device."""
        files = ["configs/trainer/default.yaml", *([] if self.toy else ["configs/trainer/gpu.yaml"])]
        on = "cpu" if self.toy else "gpu"
        return [*(w for f in files for w in ("--config", f)), *QUIET, f"--trainer.accelerator={on}"]

    def synthetic(self, name: str, count: int, classes: int, side: int, planes: int, batch_size: int) -> list[str]:
        """Words for random images that are on the device."""
        options = {"count": count, "classes": classes, "side": side, "planes": planes, "batch_size": batch_size}
        options |= {"val_fraction": 0, "test_fraction": 0, "cache": "device"}
        data = {"class_path": "tests.gpu.synthetic.SyntheticData", "init_args": options}
        path = self.work / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"data": data}))
        return ["--config", str(path)]

    def benchmark(self, name: str, *words: object, rounds: int, steps: int, stages: list[str]) -> dict[str, Any]:
        """Figures of the verb `benchmark`."""
        out = self.work / f"{name}.json"
        limits = f"--rounds={1 if self.toy else rounds}", f"--steps={steps}", f"--stages={json.dumps(stages)}"
        imgcls("benchmark", *words, *limits, f"--json={out}")
        self.raw[name] = read_json(out)
        if not self.raw[name]["valid"] and not self.toy:
            self.notes.append(f"{name}: the same loop twice gave a ratio of {self.raw[name]['ratios']['a_over_a']:.3f}")
        return self.raw[name]


def imgcls(*words: object) -> None:
    """A verb in this process; what it says of a failure is what the section's failure says."""
    os.environ.pop("IMGCLS_RUN_DIR", None)
    with redirect_stderr(StringIO()) as said:
        code = imgcls_main([str(word) for word in words])
    sys.stderr.write(said.getvalue())
    if code:
        raise Failed(f"{words[0]}: exit status {code}: {last_line(said.getvalue())}")


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def process(*words: object) -> float:
    """A verb as a process of its own, as a user starts it; returns its seconds."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "imgcls", *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{words[0]}: exit status {done.returncode}: {last_line(done.stderr)}")
    return time.perf_counter() - started


def tests(c: Certificate) -> Iterator[Figure]:
    """Every verb, resuming, equality with the CPU, precisions, all presets."""
    report = c.work / "tests.xml"
    # what takes long there, such as verbs that start processes, is tested on CPUs elsewhere
    chosen = "gpu and not slow" if c.toy else "gpu"
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", chosen, "-W", "default", "--disable-warnings"]
    given = {**os.environ, "IMGCLS_DEVICE": c.device.type}
    with subprocess.Popen([*command, f"--junitxml={report}"], cwd=ROOT, env=given) as running:
        try:
            code = running.wait()
        except OverTime:
            running.send_signal(signal.SIGINT)  # it still writes what it has
            code = running.wait(30)
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    left_out = {case.get("name"): skipped.get("message") for case in cases for skipped in case.iter("skipped")}
    c.raw["tests"] = {"failed": bad, "skipped": left_out}
    c.notes += [f"left out: {name}: {why}" for name, why in left_out.items()]
    yield Figure("tests that passed", len(cases) - len(bad) - len(left_out))
    yield Figure("tests that failed", len(bad), aim=0, at_most=True)
    yield Figure("tests left out", len(left_out))
    if code:
        raise Failed(f"pytest: exit status {code}; failed: {', '.join(map(str, bad)) or 'it did not come to its end'}")


def demo(c: Certificate) -> Iterator[Figure]:
    """`make demo` without its set-up."""
    toy = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--model.backbone.width=8"] if c.toy else []
    on = f"--trainer.accelerator={'cpu' if c.toy else 'gpu'}"
    words = "--config", "experiments/demo.yaml", *QUIET, on, *toy, "--run_dir", c.work / "demo"
    yield Figure("demo: fit and test, the whole process", process("fit", *words), "s")
    yield Figure("demo: test accuracy", read_json(c.work / "demo/metrics.json")["test/acc"])


def fashion(c: Certificate) -> Iterator[Figure]:
    """A small CNN on 60,000 gray images of 28 px that are in the device's memory."""
    if c.fashion_mnist:
        data = ["--config", "configs/data/torchvision.yaml", "--data.name=FashionMNIST", "--data.val_fraction=0"]
        data += [f"--data.root={c.fashion_mnist}", f"--data.batch_size={c.size.small_batch}"]
        data += ["--data.cache=device"]
    else:
        data = c.synthetic("fashion", c.size.small, 10, 28, 1, c.size.small_batch)
    model = ["--config", "configs/augment/flip.yaml", "--config", "configs/model/cnn.yaml", "--model.backbone.depth=6"]
    steps = c.size.small // c.size.small_batch
    words = [*data, *model, "--model.backbone.width=16", *c.trainer()]
    yield from ratio(
        f"28 px, {c.size.small_batch} a batch", c.benchmark("fashion", *words, rounds=5, steps=steps, stages=LOOPS), 0.9
    )
    if c.fashion_mnist:
        words = ["--config", "experiments/five_minutes.yaml", *c.trainer(), *data[2:], "--data.batch_size=256"]
        words += ["--model.backbone.width=64", "--trainer.limit_train_batches=1.0", "--trainer.max_epochs=20"]
        words += ["--trainer.max_epochs=1", "--model.backbone.width=8"] if c.toy else []
        seconds = process("fit", *words, "--run_dir", c.work / "fashion")
        accuracy = read_json(c.work / "fashion/metrics.json")["test/acc"]
        yield Figure("Fashion-MNIST: test accuracy", accuracy, aim=0.94)
        yield Figure("Fashion-MNIST: fit and test, the whole process", seconds, "s", aim=60, at_most=True)


def ratio(what: str, found: dict[str, Any], aim: float | None) -> Iterator[Figure]:
    for stage in ("bare loop", "whole trainer"):
        yield Figure(f"{what}: {stage}", found["stages"][stage]["images_per_second"], "images/s")
    yield Figure(f"{what}: trainer over bare loop", found["ratios"]["trainer_over_bare_loop"], aim=aim)


def network(c: Certificate) -> list[str]:
    model = ["--config", "configs/model/torchvision.yaml", f"--model.backbone.name={c.size.network}"]
    return ["--config", "configs/augment/imagenet.yaml", *model, "--model.backbone.weights=none", *c.trainer()]


def resnet(c: Certificate) -> Iterator[Figure]:
    """ResNet-50 with the augmentation of ImageNet on random images that are there."""
    data = c.synthetic("resnet", c.size.steps * c.size.batch, 1000, c.size.side, 3, c.size.batch)
    stages = ["transfer to the device", "augment and normalise", "forward, backward, step", *LOOPS]
    found = c.benchmark("resnet", *data, *network(c), rounds=3, steps=c.size.steps, stages=stages)
    yield from ratio(f"{c.size.network}, {c.size.side} px", found, 0.97)
    milliseconds = {name: figures["ms_per_batch"] for name, figures in found["stages"].items()}
    share = milliseconds["augment and normalise"] / milliseconds["bare loop"]
    yield Figure("share of its step that imagenet.yaml takes", share, aim=0.05, at_most=True)


def photos(c: Certificate) -> Iterator[Figure]:
    """JPEG files, decoded by all CPU cores and by the device: as fast as they come, and for ResNet-50."""
    steps = 4 * c.size.workers  # half of them until workers are no longer ahead, see `benchmark`
    size = write_photos(c.work / "photos", c.size.photo_batch * steps)
    yield Figure("size of a JPEG file of 500 × 375", size / 1000, "kB")
    data = ["--config", "configs/data/folder.yaml", f"--data.root={c.work / 'photos'}", "--data.cache=none"]
    data += ["--data.val_fraction=0", "--data.test_fraction=0", f"--data.image_size={c.size.side}"]
    data += [f"--data.batch_size={c.size.photo_batch}", f"--data.num_workers={c.size.workers}"]
    small = ["--config", "configs/augment/flip.yaml", "--config", "configs/model/cnn.yaml"]
    small += ["--model.backbone.depth=1", "--model.backbone.width=8", *c.trainer()]
    rate: dict[str, float] = {}
    for decoder in ["cpu"] if c.toy else ["cpu", "cuda"]:
        choice = f"--data.decoder={decoder}"
        for name, model in {"a tiny network": small, c.size.network: network(c)}.items():
            found = c.benchmark(
                f"photos, {decoder}, {name}", *data, *model, choice, steps=steps, rounds=2, stages=["whole trainer"]
            )
            images = found["stages"]["whole trainer"]["images_per_second"]
            yield Figure(f"JPEG files, decoder {decoder}: {name}", images, "images/s")
            rate.setdefault(decoder, images)
    if "cuda" in rate:
        yield Figure(f"JPEG files, device over {c.size.workers} cores", rate["cuda"] / rate["cpu"], aim=3)


def augmentation(c: Certificate) -> Iterator[Figure]:
    """Every preset, beside Kornia's and torchvision's way to do the same on the same device."""
    step = c.raw.get("resnet", {}).get("stages", {}).get("bare loop", {}).get("ms_per_batch")
    for name in PRESETS:
        augment = preset(name, c.size.side)
        image, label = batch(augment, c.size.batch, c.size.side, c.device)
        few = image[: c.size.one_by_one], label[: c.size.one_by_one]
        kornia, torchvision = (way(augment, MEAN, STD) for way in (stock_kornia, torchvision_per_sample))
        ways = {"ours": (lambda a, i, k: lambda: augmented(a, i, k))(augment, image, label)}
        if kornia is not None:
            ways["kornia"] = (lambda w, i, k: lambda: w(i, k))(kornia, image, label)
        if torchvision is not None:
            ways["torchvision"] = (lambda w, i, k: lambda: w(i, k))(torchvision, *few)
        with torch.no_grad():
            for way in list(ways)[1:]:
                try:
                    ways[way]()
                except Exception as error:  # another library's, which is no failure of ours
                    c.notes.append(f"{name}: {way} fails ({type(error).__name__}: {last_line(str(error))})")
                    del ways[way]
            seconds = interleaved(ways, 1 if c.toy else 3, c.device)
            with waits(c.device) as found:
                augmented(augment, image, label)
        count = {"torchvision": len(few[0])}
        speed = {way: count.get(way, len(image)) / value for way, value in seconds.items()}
        c.presets[name] = {f"{way}, images/s": speed.get(way) for way in ("ours", "kornia", "torchvision")}
        c.presets[name]["share of the ResNet step"] = 1000 * seconds["ours"] / step if step else None
        c.presets[name]["waits"] = None if c.toy else len(found)
    shares = [row["share of the ResNet step"] for row in c.presets.values()]
    if step:
        yield Figure("largest share of the ResNet step, of all presets", max(shares), aim=0.05, at_most=True)
    if not c.toy:
        yield Figure(
            "waits of all presets, a step each", sum(r["waits"] for r in c.presets.values()), aim=0, at_most=True
        )


def interleaved(ways: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            started = now(device)
            way()
            seconds[name].append(now(device) - started)
    return {name: float(np.median(times[1:])) for name, times in seconds.items()}


def waiting(c: Certificate) -> Iterator[Figure]:
    """Waits of the host in steps of a real `fit`, logging aside."""
    look, first = 2 if c.toy else 10, 2 if c.toy else 5
    batch_size = max(2, c.size.batch // 4)
    data = c.synthetic("waits", (look + first + 1) * batch_size, 10, c.size.side, 3, batch_size)
    kinds = {
        "imagenet.yaml": [],
        "rsb_a2.yaml, EMA": ["--config", "configs/augment/rsb_a2.yaml", "--config", "configs/trainer/ema.yaml"],
    }
    for number, (name, words) in enumerate(kinds.items()):
        out = c.work / f"waits {number}.json"
        arguments = {"out": str(out), "first": first, "steps": look}
        callback = yaml.safe_dump(
            {"class_path": "tests.gpu.waits.Waits", "init_args": arguments}, default_flow_style=True
        )
        limits = ["--trainer.max_epochs=1", "--trainer.log_every_n_steps=1000", "--test_after_fit=false"]
        limits += [f"--trainer.callbacks+={callback}", "--run_dir", c.work / f"waits {number}"]
        imgcls("fit", *data, *network(c), *words, *limits)
        found = read_json(out)
        c.raw[f"waits, {name}"] = {place: found.count(place) for place in sorted(set(found))}
        if not c.toy:
            yield Figure(f"waits per step of fit: {name}", len(found) / look, aim=0, at_most=True)
