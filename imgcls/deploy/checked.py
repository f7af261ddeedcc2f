"""From a run to one file: build it, measure it against the run itself, and only then write it."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from imgcls.data.base import ImageDataModule, Part
from imgcls.data.options import refuse_other_data
from imgcls.deploy import formats
from imgcls.deploy.graph import Exported
from imgcls.errors import UserError
from imgcls.images.decode import ResizeCrop
from imgcls.images.sources import Source, spread
from imgcls.pages.card import describe, write_card
from imgcls.runs.folder import RunFolder
from imgcls.runs.load import load_data, load_run
from imgcls.runs.temperature import temperature
from imgcls.system.files import read_json, write_atomic
from imgcls.tasks import agree

Decide = Callable[[np.ndarray], np.ndarray]  # labels by probabilities (B, K)
Score = Callable[[np.ndarray, np.ndarray], float]  # by probabilities (N, K) and labels

BATCH, CALIBRATION, JUDGED = 16, 256, 5000  # images at a time, to calibrate int8 with, and to measure its cost


def export(
    run: RunFolder,
    kind: str,
    out: Path,
    card: Path,
    images: str | None,
    count: int,
    tolerance: float,
    int8_tolerance: float | None,
) -> None:
    """Write the file and its model card.

    Args:
        run: The trained run.
        kind: onnx, torch_export or safetensors.
        out: The file.
        card: The model card.
        images: A folder of images to check on, in place of the run's validation images.
        count: Number of images to check on.
        tolerance: Largest difference of a probability, before any quantisation; a hundredth of it where images have
            the model's size already, and no pixel is rounded.
        int8_tolerance: Quantise to int8 if that costs at most so much validation accuracy; None: do not quantise.

    Raises:
        UserError: The data is not there, or the file would not do what the run does; nothing was written.
    """
    model: Any = load_run(run.path).model
    data, part = _open(run, images, "validate" if int8_tolerance is None else "fit")
    source, resize_crop = data.parts[part][0], data.resize_crop(part)
    scaled_by = temperature(run)
    chosen = spread(data.parts[part][1], count)
    normalized = data.normalize(source.images(chosen, resize_crop)).split(BATCH)
    with torch.no_grad():
        logits = torch.cat([model.logits(i) for i in normalized])
    expected = model.task.probability(logits / scaled_by).numpy()
    cut = None if model.cut is None else model.cut / scaled_by
    thresholds = None if cut is None else model.task.probability(cut[None])[0].tolist()

    def decide(probability: np.ndarray) -> np.ndarray:
        return model.task.decided(model.task.log_odds(torch.from_numpy(probability)), cut).numpy()

    def score(probability: np.ndarray, label: np.ndarray) -> float:
        log_odds = model.task.log_odds(torch.from_numpy(probability)).numpy()
        return model.task.score(log_odds, label, None if cut is None else cut.numpy())

    model.finetune.merge(model.backbone)
    about = describe(run, scaled_by, resize_crop.resize, thresholds)
    if kind == "safetensors":
        state = model.state_dict()
        content = save({name: value.contiguous() for name, value in state.items()}, about)
        for value in state.values():
            value.zero_()
        model.load_state_dict(load(content))
    graph, cost = Exported(model, resize_crop, data.mean, data.std, scaled_by).eval(), dict[str, Any]()
    runner = formats.run_torch(graph)
    if kind == "torch_export":
        content = formats.torch_export_bytes(graph, data.channels, about)
        runner = formats.run_torch(torch.export.load(io.BytesIO(content)).module())
    elif kind == "onnx":
        proto = formats.to_onnx(graph, data.channels)
        content = formats.onnx_bytes(proto, about)
        runner = formats.run_onnx(content)
    check, where = _compare(runner, source, chosen, resize_crop, expected, decide), images or "the validation part"
    largest = f"{check['largest']:.1e} as they are, {check['largest_in_size']:.1e} in the model's size"
    print(f"against the run, on {len(chosen)} images of {where}: largest difference of a probability {largest}; "
          f"the prediction differs in {check['top1']}")  # fmt: skip
    if not (check["largest"] <= tolerance and check["largest_in_size"] <= tolerance / 100):  # nan is beyond it too
        raise UserError(
            f"{out}: not written, its probabilities differ from the run's: {largest}, beyond --tolerance {tolerance:g} "
            "and a hundredth of it"
        )
    if int8_tolerance is not None:
        proto, cost = _quantize(data, proto, score)
        if (lost := cost["acc_float32"] - cost["acc_int8"]) > int8_tolerance:
            raise UserError(
                f"{out}: not written, int8 costs {lost:.4f} of {model.task.metric_name}, beyond --int8_tolerance "
                f"{int8_tolerance:g}"
            )
        about["int8"] = json.dumps({k: round(v, 4) for k, v in cost.items()})
        content = formats.onnx_bytes(proto, about)
        check = _compare(formats.run_onnx(content), source, chosen, resize_crop, expected, decide)
    check |= {"images": len(chosen), "source": where, "bytes": len(content)}
    write_atomic(out, content)
    write_atomic(card, write_card(run, kind, out.name, about, check, cost))
    print(f"{kind}: {out} ({len(content) / 1e6:.1f} MB)\nmodel card: {card}")


def _compare(
    runner: formats.Runner,
    source: Source,
    chosen: list[int],
    resize_crop: ResizeCrop,
    expected: np.ndarray,
    decide: Decide,
) -> dict[str, Any]:
    """How far a file is from the probabilities (N, K), given images as decoded, one by one, and resized, in batches."""
    whole = (source.images([number], replace(resize_crop, crop=0)) for number in chosen)
    as_they_are = np.concatenate([runner(image.numpy()) for image in whole])
    in_size = np.concatenate([runner(image.numpy()) for image in source.images(chosen, resize_crop).split(BATCH)])
    largest, largest_in_size = (float(np.abs(p - expected).max()) for p in (as_they_are, in_size))
    top1 = int((~agree(decide(as_they_are), decide(expected))).sum())
    return {"largest": largest, "largest_in_size": largest_in_size, "top1": top1}


def _quantize(data: ImageDataModule, proto: Any, score: Score) -> tuple[Any, dict[str, Any]]:
    from imgcls.deploy.int8 import cost, quantize

    small = quantize(proto, (image for image, _ in _batches(data, "train", CALIBRATION)))
    before, after = (formats.onnx_bytes(graph, {}) for graph in (proto, small))
    runs = [formats.run_onnx(content) for content in (before, after)]
    found = cost(runs[0], runs[1], _batches(data, "val", JUDGED), score)
    found |= {"bytes_float32": len(before), "bytes_int8": len(after)}
    name = data.kind.metric_name
    print(f"int8 against float32, on {found['images']} validation images: {name} {found['acc_float32']:.4f} to "
          f"{found['acc_int8']:.4f}; {len(before) / 1e6:.2f} to {len(after) / 1e6:.2f} MB; {found['speed_up']:.2f} "
          "times as fast on this CPU")  # fmt: skip
    return small, found


def _batches(data: ImageDataModule, part: Part, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Resized and cropped images (B, C, S, S) and their labels, spread over a part."""
    source, index = data.parts[part]
    chosen = spread(index, count)
    for numbers in (chosen[k : k + BATCH] for k in range(0, len(chosen), BATCH)):
        yield source.images(numbers, data.resize_crop("val")).numpy(), source.label[numbers]


def _open(run: RunFolder, images: str | None, stage: str) -> tuple[ImageDataModule, Part]:
    """The data to check on, opened, and its part; a UserError if it is not there, or is not the run's."""
    try:
        data = load_data(run.path, images)
        data.prepare_data()
        data.setup(stage)
        if images is not None:
            return data, "test"
        known = read_json(run.environment)["data"]
        state = {"class_names": known["class_names"], "fingerprint": {k: known[k] for k in data.fingerprint}}
        refuse_other_data(state, data.class_names, data.fingerprint)
        if not len(data.parts["val"][1]):
            raise UserError("it has no validation images")
    except UserError as error:
        if images is not None:
            raise UserError(str(error).replace("--data.root", "--images")) from error
        raise UserError(f"--run {run.path}: no image to check on ({error}); --images FOLDER gives others") from error
    return data, "val"
