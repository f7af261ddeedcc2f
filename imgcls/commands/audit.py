"""Broken images, duplicates, leaks, wrong labels; a clean table: --config FILE… [--run RUN_DIR]."""

import json
import logging
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.cli.arguments import configures, gives, take
from imgcls.cli.configs import as_config, config_files, expand_configs, read_config
from imgcls.cli.lightning import LightningVerb
from imgcls.data.audited import PARTS, Images
from imgcls.data.base import ImageDataModule, Part
from imgcls.data.clean_table import add_column, write_clean_table
from imgcls.data.folder import names_classes
from imgcls.errors import UserError, printable
from imgcls.evaluate.cleaning import Reason, clean, disagreeing, together
from imgcls.evaluate.duplicates import groups_of, members, near_duplicates
from imgcls.pages.audit_page import FOUND, write_page
from imgcls.runs.held_out import held_out
from imgcls.runs.run import find_runs
from imgcls.system.files import write_json

log = logging.getLogger(__name__)
OF_LABELLED = {"two_labels", "leaks", "near_leaks", "label_errors"}  # what images without labels and parts cannot have
BLANK = 1.0  # gray levels by which the pixels of a blank image differ, standard deviation
TINY = 0.25  # the shorter side as a share of the median one
LONG = 4.0  # the longer side by the shorter one
NO_LABEL = "(no label)"
Found = dict[str, int]


class Audit(LightningVerb):
    """`python -m imgcls audit`."""

    needs_model = False

    def expand(self, words: list[str]) -> list[str]:
        """Several runs; the first one's data unless other data is given. What cannot be read is found, not an error."""
        runs: list[str] = []
        while gives(words, "--run"):
            run, words = take(words, "--run")
            runs.append(str(run))
        if runs and not any("data" in read_config(file) for file in config_files(expand_configs(words))):
            data = find_runs(runs, "--run")[0].folder.read_config()["data"]
            words = [*as_config({"data": data | {"init_args": data["init_args"] | {"augment": None}}}), *words]
        words = super().expand(words)
        words += [f"--runs={json.dumps(runs)}"] if runs else []
        return [*words, "--data.on_error=skip"] if runs or configures(words, "data") else words

    def before_instantiate_classes(self) -> None:
        """Look through a folder whose sub-folders name no classes without labels."""
        data = self.config.data
        options = data.init_args
        if data.class_path == "imgcls.data.folder.FolderData" and options.root:
            root = Path(options.root).expanduser()
            if root.is_dir() and not names_classes(root, options.parts):
                log.info(f"{printable(str(root))}: no sub-folders that could be classes: audited without labels")
                data.class_path = "imgcls.data.files.FilesData"
                del options["parts"]
                options.class_names = ["", ""]  # for the model, which is not used
        super().before_instantiate_classes()

    def work(
        self,
        out: Path = Path("audit"),
        runs: list[str] | None = None,
        predictions: list[Path] | None = None,
        drop_label_errors: bool = False,
        strict: bool = False,
    ) -> int:
        """Look through all images before training: broken ones, duplicates, leaks, two labels; after it, label errors.

        Args:
            out: Folder for audit.html, audit.json and the cleaned table, clean.csv, which keeps near duplicates as
                groups; with --data.val_fraction=0 --data.test_fraction=0 none is left out as a leak from a carved part.
            runs: Runs, or folders of runs, whose validation and test predictions tell which labels are probably wrong;
                each `--run DIR` adds one.
            predictions: Tables with such predictions from elsewhere, as `predict` writes them: a column `path` and the
                probability of each class. They must come from models that were not trained on the image.
            drop_label_errors: Leave such training images out of the cleaned table.
            strict: Exit with 1 if anything was found.
        """
        found = audit(self.datamodule, out, runs or [], predictions or [], drop_label_errors)
        return int(strict and any(found.values()))


main = Audit.main


def audit(data: ImageDataModule, out: Path, runs: list[str], predictions: list[Path], drop_label_errors: bool) -> Found:
    """Look through all images of a data set and write audit.html, audit.json and clean.csv.

    Args:
        data: The data module, not set up yet.
        out: Folder for them.
        runs: Runs, or folders of runs, whose held-out predictions tell which labels are probably wrong.
        predictions: Tables of such predictions from elsewhere.
        drop_label_errors: Leave such training images out of the cleaned table.

    Returns:
        How many there are of each thing that is wrong.
    """
    if out.exists() and not (out.is_dir() and ((out / "audit.json").is_file() or not any(out.iterdir()))):
        raise UserError(f"--out {out}: is no folder of an earlier audit and not empty; name another")
    started = time.perf_counter()
    _open(data)
    predicted_by = find_runs(runs, "--run")
    write_json(out / "audit.json", {})  # from here on the folder is an audit's
    images = Images(data)
    read = time.perf_counter()
    broken = np.array([bool(reason) for reason in images.reason])
    exact = np.unique(images.digest, return_inverse=True)[1]
    exact = np.where(broken, len(exact) + np.arange(len(exact)), exact)
    distinct = np.unique(exact, return_index=True)[1]
    distinct = np.sort(distinct[~broken[distinct]])
    log.info(f"audit: comparing {len(distinct)} different images")
    pairs, likeness, mirrored = near_duplicates(images.gray[distinct])
    pairs = distinct[pairs]
    near = groups_of(pairs, len(images))
    compared = time.perf_counter()
    known = suspects = np.empty(0, np.int64)
    suspected: list[dict[str, Any]] = []
    if runs or predictions:
        if not images.class_names:
            raise UserError("--run, --predictions: tell of labels that are wrong, and these images have none")
        probability = held_out(predicted_by, predictions, images.names, data.class_names, data.kind)
        known = np.flatnonzero(~np.isnan(probability[:, 0]))
        found_at, suggested = data.kind.label_errors(probability[known], images.label[known])
        suspects = known[found_at]
        suspected = _suspects(images, suspects, probability[suspects], suggested)
        named = [row["suggested"] or NO_LABEL for row in suspected]
        add_column(images.sources, "suggested", zip(images.rank[suspects], images.number[suspects], named, strict=True))
    wrong = np.zeros(len(images), bool)
    wrong[suspects] = [drop_label_errors and images.part(k) == "train" for k in suspects.tolist()]
    reason, of = clean(images.rank, images.said, exact, near, broken, wrong)

    left_out = np.flatnonzero(reason != Reason.KEPT).tolist()
    copies, alike = images.telling_first(members(exact)), images.telling_first(members(near))
    two_labels = [g for g in copies if disagreeing(exact[g], images.said[g]).any()]
    counted = Counter(reason.tolist())
    found: Found = {
        "broken": int(broken.sum()),
        "unusable": len(data.skipped),
        "two_labels": counted[Reason.TWO_LABELS],
        "copies": counted[Reason.COPY],
        "leaks": counted[Reason.LEAK],
        "near_leaks": counted[Reason.NEAR_LEAK],
        "near_duplicates": sum(len(group) - 1 for group in alike),
        "label_errors": len(suspects),
    }
    found = {key: number for key, number in found.items() if images.class_names or key not in OF_LABELLED}
    result: dict[str, Any] = {
        **_overview(images, broken),
        "found": found,
        "broken": [images.facts(k) | {"reason": images.reason[k]} for k in np.flatnonzero(broken).tolist()],
        "unusable": [{"part": s.part, "name": s.name, "reason": s.reason} for s in data.skipped],
        "two_labels": [list(map(images.facts, group)) for group in two_labels],
        "exact_duplicates": [list(map(images.facts, group)) for group in copies],
        "near_duplicates": [list(map(images.facts, group)) for group in alike],
        "near_pairs": [
            {"first": images.names[i], "second": images.names[j], "likeness": round(float(s), 4), "mirrored": bool(m)}
            for (i, j), s, m in zip(pairs.tolist(), likeness, mirrored, strict=True)
        ],
        "label_errors": suspected,
        "predicted": len(known),
        "left_out": [images.facts(k) | _why(images, k, reason, of) for k in left_out],
    }
    kept = reason == Reason.KEPT
    group, of_part = together(near, images.group, kept), [kept & (images.rank == k) for k in range(len(images.parts))]
    rows = zip(images.parts, images.sources, of_part, strict=True)
    table = [(part, source, images.number[chosen], group[chosen]) for part, source, chosen in rows]
    clean_table = result["clean"] = write_clean_table(out, table[::-1], images.class_names, images.task.name)
    clean_table["folds"] = f"--data.group_column={clean_table['group_column']} --data.folds=5 --data.fold=0 "
    asked = "" if data.task == ImageDataModule.native_task else f" --data.task={data.task}"
    clean_table["options"] = asked + data.kind.options if images.class_names else ""
    clean_table["folds"] += "--data.fold_part=test" + ("" if data.has_official("test") else " --data.split_column=none")
    shown = {"two_labels": two_labels, "exact": copies, "near": alike, "odd": result.pop("odd_positions")}
    shown["label_errors"] = suspects.tolist()
    result["seconds"] = {"reading": read - started, "comparing": compared - read}
    write_page(out / "audit.html", result, shown, images.facts, images.picture)
    result["seconds"]["all"] = time.perf_counter() - started
    write_json(out / "audit.json", result)
    _tell(result, out)
    return found


def _open(data: ImageDataModule) -> None:
    """Open all parts as the split lays them out, whole, with the labels as they are given, and read no image yet."""
    data.split_options = replace(data.split_options, train_fraction=1.0, folds=None, fold=0, fold_part="val")
    data.label_noise = 0.0
    data.checked |= set(PARTS)  # what cannot be read is to be found, and each image read once
    data.prepare_data()
    data.setup("test")


def _overview(images: Images, broken: np.ndarray) -> dict[str, Any]:
    """How many images there are, of which classes, sizes and colours, and which are odd."""
    parts = {part: images.rank == k for k, part in reversed(list(enumerate(images.parts)))}
    whole = np.flatnonzero(~broken)
    size = images.size[whole]
    short, long = np.sort(size, axis=1).T if len(whole) else np.empty((2, 0))
    blocks = np.array_split(images.gray[whole], len(whole) // 4096 + 1)
    spread = np.concatenate([block.std(axis=(1, 2), dtype=np.float32) for block in blocks])
    odd = {
        "blank": whole[spread < BLANK],
        "tiny": whole[short < TINY * np.median(short)] if len(whole) else whole,
        "elongated": whole[long > LONG * short],
    }
    sizes = Counter(map(tuple, size.tolist()))
    return {
        **(_of_classes(images, parts) if images.class_names else {"images": {"unlabelled": len(images)}}),
        "width": _range(size[:, 0]),
        "height": _range(size[:, 1]),
        "sizes": len(sizes),
        "common_sizes": {f"{width}×{height}": number for (width, height), number in sizes.most_common(8)},
        "modes": dict(Counter(images.mode[k] for k in whole).most_common()),
        "odd": {kind: [images.facts(k) for k in at] for kind, at in odd.items()},
        "odd_positions": {kind: at.tolist() for kind, at in odd.items()},
    }


def _of_classes(images: Images, parts: dict[Part, np.ndarray]) -> dict[str, Any]:
    """How many images the parts, given as (N,) bool, have of each class."""
    count = len(images.class_names)
    labels = {part: images.task.pairs(images.label[of])[1] for part, of in parts.items()}
    counts = {part: np.bincount(given, minlength=count).tolist() for part, given in labels.items()}
    return {
        "images": {part: int(of.sum()) for part, of in parts.items()},
        "classes": {part: dict(zip(images.class_names, number, strict=True)) for part, number in counts.items()},
        "largest_to_smallest_class": max(counts["train"]) / max(1, min(counts["train"])),
    }


def _range(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    return {"least": int(values.min()), "median": float(np.median(values)), "most": int(values.max())}


def _suspects(
    images: Images, suspects: np.ndarray, probability: np.ndarray, suggested: np.ndarray
) -> list[dict[str, Any]]:
    """Images with a label that is probably wrong, and what the models say in its place."""
    task, label = images.task, images.label[suspects]
    columns = {
        "suggested": task.text(suggested, images.class_names),
        "probability_of_label": task.confidence(probability, label).tolist(),
        "probability_of_suggested": task.confidence(probability, suggested).tolist(),
    }
    rows = zip(*columns.values(), strict=True)
    return [
        images.facts(k) | dict(zip(columns, row, strict=True)) for k, row in zip(suspects.tolist(), rows, strict=True)
    ]


def _why(images: Images, position: int, reason: np.ndarray, of: np.ndarray) -> dict[str, Any]:
    """Why an image is left out, and for whose sake."""
    why: dict[str, Any] = {"reason": str(reason[position])}
    if of[position] >= 0:
        why |= {"kept": images.names[of[position]], "kept_part": images.part(int(of[position]))}
    return why


def _tell(result: dict[str, Any], out: Path) -> None:
    """The result in the terminal."""
    parts = ", ".join(f"{number} {part}" for part, number in result["images"].items())
    labelled = "classes" in result
    classes = f", {len(result['classes']['train'])} classes" if labelled else ""
    print(f"\n{sum(result['images'].values())} images ({parts}){classes}\n")
    for key, number in result["found"].items():
        print(f"  {number:>7}  {FOUND[key]}")
    if labelled and not result["predicted"]:
        print("           label errors were not looked for: --run RUN_DIR gives predictions")
    if lost := [name for name, number in result["clean"]["classes"].get("train", {}).items() if number == 0]:
        print(f"\nno training image is left of {', '.join(lost)}")
    print(f"\npage: {out / 'audit.html'}")
    if "file" in result["clean"]:
        root = "" if result["clean"]["root"] == str(out) else f" --data.root={result['clean']['root']}"
        config = "--config configs/data/table.yaml" if labelled else "predict --run RUN_DIR"
        print(f"table: {config} --data.table={result['clean']['file']}{root}{result['clean']['options']}")
        if labelled and result["clean"]["grouped"]:
            print(f"in folds, {result['clean']['grouped']} images that look alike or are of one group kept together:")
            print(f"  {result['clean']['folds']}")
    else:
        print("no table: the images are neither files of their own nor all in memory")
