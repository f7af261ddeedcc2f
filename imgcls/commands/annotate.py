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

from imgcls.cli.arguments import gives
from imgcls.cli.lightning import LightningVerb
from imgcls.cli.other_data import unlabelled
from imgcls.errors import UserError, one_line
from imgcls.evaluate.annotation import choose
from imgcls.images.checking import first_of
from imgcls.images.same import same_images
from imgcls.images.sources import Source
from imgcls.pages.annotate_page import write_page
from imgcls.runs.folder import RunFolder
from imgcls.runs.load import load_data, with_weights
from imgcls.runs.prediction_file import SKIPPED
from imgcls.runs.temperature import temperature
from imgcls.system.files import read_table, write_table

log = logging.getLogger(__name__)
HEADER = ("rank", "path", "label", "prediction", "confidence", "second", "confidence_of_second", "uncertainty")


@dataclass(frozen=True)
class Seen:
    """What a run says of N images, one of each that it sees alike.

    Attributes:
        index: Their numbers in the source, (N,) int64.
        feature: (N, F) float32.
        best: The two most probable classes, the first one first, (N, 2) int64.
        confidence: Their probabilities, calibrated if the run is, (N, 2) float64.
        broken: Why images cannot be read, by number.
        copies: How many further images look like one of them.
    """

    index: np.ndarray
    feature: np.ndarray
    best: np.ndarray
    confidence: np.ndarray
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
                data holds, byte for byte.
            out: Folder for annotate.csv, which has a column `label` to fill in, and annotate.html. Default: annotate/
                in the run's folder.
            ckpt_path: Checkpoint, where it is not the run's best.
        """
        if count < 1:
            raise UserError(f"--count {count}: give at least 1")
        data, folder, checkpoint = self.datamodule, out or self.run.path / "annotate", Path(str(ckpt_path))
        table = folder / "annotate.csv"
        _refuse_labelled(table)
        data.setup("predict")
        source, index = data.parts["test"]
        labelled = _labelled(self.run, source, index)
        left = index[~np.isin(index, labelled)]
        if not len(left):
            raise UserError(f"annotate: the run's own data holds all {len(index)} images; none is left to label")
        data.parts["test"] = source, left
        seen = self._look(checkpoint)
        _write_skipped(folder / "annotate.skipped.csv", source, seen.broken)
        margin = seen.confidence[:, 0] - seen.confidence[:, 1]
        chosen = choose(seen.feature, margin, count, self.config_init.seed_everything)

        names = data.class_names
        rows = [
            {
                "rank": rank,
                "path": source.names[seen.index[k]],
                "label": "",
                "prediction": names[seen.best[k, 0]],
                "confidence": round(float(seen.confidence[k, 0]), 6),
                "second": names[seen.best[k, 1]],
                "confidence_of_second": round(float(seen.confidence[k, 1]), 6),
                "uncertainty": round(float(1 - margin[k]), 6),
            }
            for rank, k in enumerate(chosen.tolist(), 1)
        ]
        write_table(table, HEADER, ([row[name] for name in HEADER] for row in rows))
        left_out = {
            "in the run's own data": len(labelled),
            "that cannot be read": len(seen.broken),
            "that are copies": seen.copies,
        }
        predicted, of_chosen = (np.bincount(of, minlength=len(names)) for of in (seen.best[:, 0], seen.best[chosen, 0]))
        facts = {
            "compared": len(seen.index),
            "left_out": {reason: number for reason, number in left_out.items() if number},
            "classes": list(zip(names, of_chosen.tolist(), predicted.tolist(), strict=True)),
            "table": table,
        }
        value_range = data.resize_crop("test").value_range
        numbers = seen.index[chosen].tolist()
        write_page(folder / "annotate.html", rows, facts, lambda row: source.original(numbers[row], value_range).image)
        _tell(facts, folder, len(rows), count)

    def _look(self, checkpoint: Path) -> Seen:
        """Features and probabilities of the images, each read once."""
        data, device = self.datamodule, self.trainer.strategy.root_device
        model = with_weights(self.model, checkpoint, device, "--ckpt_path")
        scaled_by, names = temperature(self.run, checkpoint), data.parts["test"][0].names
        total = len(data.parts["test"][1])
        feature, best = np.empty((total, model.backbone.num_features), np.float32), np.empty((total, 2), np.int64)
        confidence, index = np.empty((total, 2)), np.empty(total, np.int64)
        broken: dict[int, str] = {}
        known: set[bytes] = set()
        done = 0
        log.info(f"annotate: looking at {total} images")
        bar = Progress(
            console=self.screen.console, auto_refresh=False, disable=not self.config_init.trainer.enable_progress_bar
        )
        with bar, torch.no_grad(), self.trainer.precision_plugin.val_step_context():
            task = bar.add_task("images", total=total)
            for batch in data.predict_dataloader():
                broken |= dict(batch.get("broken", []))
                new = []
                for k, (number, pixels) in enumerate(zip(batch["index"].tolist(), batch["image"].numpy(), strict=True)):
                    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
                    if number not in broken and digest not in known:
                        known.add(digest)
                        new.append(k)
                bar.update(task, advance=len(batch["index"]), refresh=True)
                if not new:
                    continue
                image = data.normalize(batch["image"][new].to(device)).to(model.dtype)
                features = model.features(image)
                logits = model.logits(image if model.flip_at_test else features).double() / scaled_by
                top = logits.softmax(1).topk(2)
                rows = slice(done, done := done + len(new))
                feature[rows], index[rows] = features.float().cpu().numpy(), batch["index"][new].numpy()
                best[rows], confidence[rows] = top.indices.cpu().numpy(), top.values.cpu().numpy()
        if not done:
            reasons = [f"{names[number]} ({reason})" for number, reason in broken.items()]
            raise UserError(f"annotate: no image can be read: {first_of(reasons)}")
        if not (np.isfinite(feature[:done]).all() and np.isfinite(confidence[:done]).all()):
            raise UserError(f"{checkpoint}: gives features that are no finite numbers; did its training diverge?")
        kept = (of[:done] for of in (index, feature, best, confidence))
        return Seen(*kept, broken, total - done - len(broken))


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
    sources = {id(other): other for other, _ in own.parts.values()}
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


def _write_skipped(path: Path, source: Source, broken: dict[int, str]) -> None:
    if broken or path.exists():
        write_table(path, SKIPPED, [(source.names[number], reason) for number, reason in sorted(broken.items())])


def _tell(facts: dict[str, Any], folder: Path, found: int, count: int) -> None:
    left_out = ", ".join(f"{number} {reason}" for reason, number in facts["left_out"].items())
    print(f"chosen: {found} of {facts['compared']} images" + (f" (left out: {left_out})" if left_out else ""))
    if found < count:
        print(f"--count {count}: there are no more; the list has all of them, the least certain first")
    print(f"page: {folder / 'annotate.html'}\ntable, with a column `label` to fill in: {facts['table']}")
