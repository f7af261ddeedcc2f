"""From a run to one file: build it, measure it against the run itself, and only then write it."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from imgcls.data.base import ImageDataModule, Part
from imgcls.data.options import refuse_other_data
from imgcls.deploy import formats
from imgcls.deploy.graph import Exported
from imgcls.errors import UserError
from imgcls.load import load_data, load_run
from imgcls.runs.card import describe, write_card
from imgcls.runs.folder import RunFolder, read_json, write_atomic

BATCH, CALIBRATION, JUDGED = 16, 256, 5000  # images at a time, to calibrate int8 with, and to measure its cost


def export(
    run: RunFolder, kind: str, out: Path, card: Path, images: str | None, count: int, tolerance: float, int8: bool
) -> None:
    """Write the file and its model card.

    Args:
        run: The trained run.
        kind: onnx, torch_export or safetensors.
        out: The file.
        card: The model card.
        images: A folder of images to check on, in place of the run's validation images.
        count: Number of images to check on.
        tolerance: Largest difference of a probability; with int8, validation accuracy that it may cost.
        int8: Quantise an ONNX graph.

    Raises:
        UserError: The data is not there, or the file would not do what the run does; nothing was written.
    """
    model: Any = load_run(run.path).model
    data, part = _open(run, images, "fit" if int8 else "validate")
    source, frame, temperature = data.parts[part][0], data.frame(part), _temperature(run)
    chosen = _spread(data.parts[part][1], count)
    framed = source.images(chosen, frame)
    with torch.no_grad():
        batches = [{"image": data.normalize(image), "label": image, "index": image} for image in framed.split(BATCH)]
        logits = torch.cat([model.predict_step(batch, 0)["logits"] for batch in batches])
    expected = (logits / temperature).softmax(1).numpy()
    model.finetune.merge(model.backbone)
    about = describe(run, temperature, frame.resize)
    if kind == "safetensors":
        state = model.state_dict()
        content = save({name: value.contiguous() for name, value in state.items()}, about)
        for value in state.values():
            value.zero_()
        model.load_state_dict(load(content))
    graph, cost = Exported(model, frame, data.mean, data.std, temperature).eval(), dict[str, Any]()
    if kind == "safetensors":
        runner = formats.run_torch(graph)
    elif kind == "torch_export":
        content = formats.torch_export_bytes(graph, data.channels, about)
        runner = formats.run_torch(torch.export.load(io.BytesIO(content)).module())
    else:
        proto = formats.to_onnx(graph, data.channels)
        if int8:
            proto, cost = _quantize(data, proto)
            about["int8"] = ", ".join(f"{k} {v:.4g}" for k, v in cost.items())
        content = formats.onnx_bytes(proto, about)
        runner = formats.run_onnx(content)
    whole = (source.images([number], replace(frame, crop=0))[0] for number in chosen)
    check = compare(runner, whole, framed, expected) | {"source": images or "the validation part"}
    largest = f"{check['largest']:.1e} as they are, {check['largest_in_size']:.1e} in the model's size"
    print(f"against the run, on {check['images']} images of {check['source']}: largest difference of a probability "
          f"{largest}; top-1 differs in {check['top1']}")  # fmt: skip
    lost = cost["acc_float32"] - cost["acc_int8"] if cost else 0
    if cost and lost > tolerance:
        raise UserError(f"{out}: not written, int8 costs {lost:.4f} of accuracy, beyond --tolerance {tolerance:g}")
    # not <=, for nan is beyond it too
    if not cost and not (check["largest"] <= tolerance and check["largest_in_size"] <= tolerance / 100):
        raise UserError(
            f"{out}: not written, its probabilities differ from the run's: {largest}, beyond --tolerance {tolerance:g} "
            "and a hundredth of it"
        )
    write_atomic(out, content)
    write_atomic(card, write_card(run, kind, out.name, about, check | {"bytes": len(content)}, cost))
    print(f"{kind}: {out} ({len(content) / 1e6:.1f} MB)\nmodel card: {card}")


def compare(runner: formats.Runner, whole: Iterator[Tensor], framed: Tensor, expected: np.ndarray) -> dict[str, Any]:
    """Run a file on images one by one as they were decoded, and in batches of the model's size.

    Args:
        runner: The file.
        whole: uint8 images (C, H, W) of any size.
        framed: The same images framed, (N, C, S, S).
        expected: The run's own probabilities (N, K).

    Returns:
        Number of images; largest difference of a probability of either; number of images, as they were decoded, whose
        most probable class differs (top1).
    """
    as_they_are = np.concatenate([runner(image[None].numpy()) for image in whole])
    in_size = np.concatenate([runner(image.numpy()) for image in framed.split(BATCH)])
    largest, largest_in_size = (float(np.abs(p - expected).max()) for p in (as_they_are, in_size))
    top1 = int((as_they_are.argmax(1) != expected.argmax(1)).sum())
    return {"images": len(expected), "largest": largest, "largest_in_size": largest_in_size, "top1": top1}


def _quantize(data: ImageDataModule, proto: Any) -> tuple[Any, dict[str, Any]]:
    from imgcls.deploy.int8 import cost, quantize

    small = quantize(proto, (image for image, _ in _batches(data, "train", CALIBRATION)))
    before, after = (formats.onnx_bytes(graph, {}) for graph in (proto, small))
    found = cost(formats.run_onnx(before), formats.run_onnx(after), _batches(data, "val", JUDGED))
    found |= {"bytes_float32": len(before), "bytes_int8": len(after)}
    print(f"int8 against float32, on {found['images']} validation images: accuracy {found['acc_float32']:.4f} to "
          f"{found['acc_int8']:.4f}; {len(before) / 1e6:.2f} to {len(after) / 1e6:.2f} MB; {found['speed_up']:.2f} "
          "times as fast on this CPU")  # fmt: skip
    return small, found


def _batches(data: ImageDataModule, part: Part, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Framed images (B, C, S, S) and label (B,), spread over a part."""
    source, index = data.parts[part]
    chosen = _spread(index, count)
    for numbers in (chosen[k : k + BATCH] for k in range(0, len(chosen), BATCH)):
        yield source.images(numbers, data.frame("val")).numpy(), source.label[numbers]


def _spread(index: np.ndarray, count: int) -> list[int]:
    return index[np.linspace(0, len(index) - 1, min(count, len(index))).round().astype(int)].tolist()


def _temperature(run: RunFolder) -> float:
    return read_json(run.calibration).get("temperature", 1.0)


def _open(run: RunFolder, images: str | None, stage: str) -> tuple[ImageDataModule, Part]:
    """The data to check on, opened, and its part.

    Raises:
        UserError: It is not there, or is not what the run was trained on.
    """
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
