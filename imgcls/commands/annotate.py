"""Which images to label next: --run RUN_DIR --data.root=UNLABELLED [--count 100] [--out DIR]."""

import csv
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from imgcls.cli.arguments import gives
from imgcls.cli.lightning import LightningVerb
from imgcls.cli.other_data import unlabelled
from imgcls.data.base import ImageDataModule
from imgcls.errors import UserError, one_line
from imgcls.evaluate.annotation import choose
from imgcls.images.checking import first_of
from imgcls.images.same import same_images
from imgcls.images.sources import ArraySource, ItemSource, Source
from imgcls.pages.annotate_page import write_page
from imgcls.runs.folder import RunFolder
from imgcls.runs.load import load_data, with_weights
from imgcls.runs.prediction_file import SKIPPED
from imgcls.runs.temperature import temperature
from imgcls.system.files import read_table, write_table

log = logging.getLogger(__name__)
TABLE = "annotate.csv"


@dataclass(frozen=True)
class Seen:
    """What a run says of N images, one of each that it sees alike.

    Attributes:
        index: Their numbers in the source, (N,) int64.
        feature: (N, F) float32.
        probability: Of each class, calibrated if the run is, (N, K) float64.
        decided: Labels that are predicted.
        broken: Why images cannot be read, by number.
        copies: How many further images look like one of them.
    """

    index: np.ndarray
    feature: np.ndarray
    probability: np.ndarray
    decided: np.ndarray
    broken: dict[int, str]
    copies: int


class Annotate(LightningVerb):
    """`python -m imgcls annotate`."""

    needs_run = True

    def config_of(self, run: RunFolder, words: list[str]) -> dict[str, Any]:
        """For images without labels, which are read once and, where they cannot be read, skipped."""
        if not gives(words, "--data.root", "--data.table", "-h", "--help"):
            raise UserError("annotate: name images that could be labelled: --data.root=FOLDER, or --data.table=LIST")
        config = super().config_of(run, words)
        return config | {"data": unlabelled(run, config["data"]["init_args"])}

    def work(self, count: int = 100, out: Path | None = None, ckpt_path: str | None = None) -> None:
        """Choose images whose labels would teach a trained run most: it is uncertain of them, and they differ.

        A test image must never be trained on, so that no part of the run's own data is chosen from.

        Args:
            count: How many images at most. Sub-folders may have any names. Left out are images that cannot be read, all
                but one of those that are the same pixels at the run's size, and files that any part of the run's own
                data holds, byte for byte (if that is of files: torchvision's data sets are not compared).
            out: Folder for annotate.csv, which has a column `label` to fill in, and annotate.html. Default: annotate/
                in the run's folder.
            ckpt_path: Checkpoint, where it is not the run's best.
        """
        if count < 1:
            raise UserError(f"--count {count}: give at least 1")
        data, folder, checkpoint = self.datamodule, out or self.run.path / "annotate", Path(str(ckpt_path))
        table = folder / TABLE
        _refuse_labelled(table)
        data.setup("predict")
        source, index = data.parts["test"]
        labelled = _labelled(self.run, source, index)
        left = index[~np.isin(index, labelled)]
        if not len(left):
            raise UserError(f"annotate: the run's own data holds all {len(index)} images; none is left to label")
        data.parts["test"] = source, left
        seen = self._look(checkpoint)
        margin = data.kind.margin(seen.probability, seen.decided)
        chosen = choose(seen.feature, margin, count, self.config_init.seed_everything)
        left_out = {"in the run's own data": len(labelled), "unreadable": len(seen.broken), "as copies": seen.copies}
        said = ", ".join(f"{number} {reason}" for reason, number in left_out.items() if number)
        _write(folder, data, seen, chosen, said)
        print(f"chosen: {len(chosen)} of {len(margin)} images" + (f" (left out: {said})" if said else ""))
        if len(chosen) < count:
            print(f"--count {count}: there are no more; the list has all of them, the least certain first")
        print(f"page: {folder / 'annotate.html'}\ntable, with a column `label` to fill in: {table}")

    def _look(self, checkpoint: Path) -> Seen:
        """What the run says of the images, each of which is read once."""
        data, device, precision = self.datamodule, self.trainer.strategy.root_device, self.trainer.precision_plugin
        model: Any = precision.convert_module(with_weights(self.model, checkpoint, device, "--ckpt_path"))
        scaled_by, total = temperature(self.run, checkpoint), len(data.parts["test"][1])
        feature, index = np.empty((total, model.backbone.num_features), np.float32), np.empty(total, np.int64)
        logits = np.empty((total, data.num_classes), np.float32)
        broken: dict[int, str] = {}
        known: set[bytes] = set()
        done = 0
        log.info(f"annotate: looking at {total} images")
        shown = self.config_init.trainer.enable_progress_bar
        bar = Progress(console=self.screen.console, auto_refresh=False, disable=not shown)
        with bar, torch.no_grad(), precision.val_step_context():
            task = bar.add_task("images", total=total)
            for batch in data.predict_dataloader():
                broken |= dict(batch.get("broken", []))
                new = [k for k, number in enumerate(batch["index"].tolist()) if number not in broken]
                new = [k for k in new if _is_new(batch["image"][k], known)]
                if new:
                    image = data.normalize(batch["image"][new].to(device)).to(model.dtype)
                    features = model.features(image)
                    found = model.logits(image if model.flip_at_test else features)
                    rows = slice(done, done := done + len(new))
                    feature[rows], index[rows] = features.float().cpu(), batch["index"][new]
                    logits[rows] = found.cpu()
                bar.update(task, advance=len(batch["index"]), refresh=True)
        if not done:
            names = data.parts["test"][0].names
            reasons = [f"{names[number]} ({reason})" for number, reason in broken.items()]
            raise UserError(f"annotate: no image can be read: {first_of(reasons)}")
        if not (np.isfinite(feature[:done]).all() and np.isfinite(logits[:done]).all()):
            raise UserError(f"{checkpoint}: gives features that are no finite numbers; did its training diverge?")
        cut = None if model.cut is None else model.cut.cpu().numpy()
        decided = model.task.decided(logits[:done], cut)
        probability = model.task.probabilities(logits[:done] / scaled_by)
        return Seen(index[:done], feature[:done], probability, decided, broken, total - done - len(broken))


main = Annotate.main


def _labelled(run: RunFolder, source: Source, index: np.ndarray) -> list[int]:
    """Which of the images any part of the run's own data holds, byte for byte."""
    try:
        own = load_data(run.path)
        own.checked |= {"train", "val", "test"}  # what cannot be read is no business of this verb
        own.prepare_data()
        own.setup("test")
    except UserError as error:
        log.warning(f"which images have a label already cannot be told: {error}")
        return []
    # others give images as they are decoded: to encode all of them would take long, and to another file's bytes
    files = [other for other, _ in own.parts.values() if not isinstance(other, ArraySource | ItemSource)]
    sources = {id(other): other for other in files}
    found: set[int] = set()
    for other in sources.values():
        found |= same_images(source, index.tolist(), other, range(len(other))).keys()
    return sorted(found)


def _refuse_labelled(table: Path) -> None:
    """Never write over labels that somebody has filled in."""
    if not table.is_file():
        return
    try:
        labels = sum(bool(row.get("label")) for row in read_table(table))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{table}: is no table that annotate wrote ({one_line(error)}); name another --out") from error
    if labels:
        raise UserError(f"{table}: holds {labels} labels, which would be lost; name another folder with --out")


def _is_new(image: Tensor, known: set[bytes]) -> bool:
    """Whether no image with these pixels, (C, H, W) uint8, came before; its hash is then known."""
    before = len(known)
    known.add(hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest())
    return len(known) > before


def _write(folder: Path, data: ImageDataModule, seen: Seen, chosen: np.ndarray, left_out: str) -> None:
    """Write the table and the page of the chosen among the images that were seen, and what could not be read."""
    source, names, skipped = data.parts["test"][0], data.class_names, folder / "annotate.skipped.csv"
    if seen.broken or skipped.exists():
        write_table(skipped, SKIPPED, [(source.names[number], why) for number, why in sorted(seen.broken.items())])
    task, numbers = data.kind, seen.index[chosen].tolist()
    probability, decided = seen.probability[chosen], seen.decided[chosen]
    second = task.runner_up(probability, decided)
    columns = {
        "rank": range(1, len(numbers) + 1),
        "path": [source.names[number] for number in numbers],
        "label": [""] * len(numbers),
        "prediction": task.text(decided, names),
        "confidence": task.confidence(probability, decided).round(6).tolist(),
        "second": [names[k] for k in second.tolist()],
        "confidence_of_second": probability[np.arange(len(second)), second].round(6).tolist(),
        "uncertainty": (1 - task.margin(probability, decided)).round(6).tolist(),
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    write_table(folder / TABLE, list(rows[0]), [list(row.values()) for row in rows])
    counts = (np.bincount(task.pairs(of)[1], minlength=len(names)).tolist() for of in (decided, seen.decided))
    facts = {
        "compared": len(seen.index),
        "left_out": left_out,
        "classes": list(zip(names, *counts, strict=True)),
        "table": folder / TABLE,
    }
    value_range = data.resize_crop("test").value_range
    write_page(folder / "annotate.html", rows, facts, lambda row: source.original(numbers[row], value_range).image)
