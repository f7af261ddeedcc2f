"""What an exported file says of itself: metadata inside it, and a model card beside it, from the run's record alone."""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from imgcls import __version__
from imgcls.pages.page import template
from imgcls.runs.environment import task_of
from imgcls.runs.folder import RunFolder
from imgcls.runs.run import Run
from imgcls.system.files import read_json

NO_FINGERPRINT = ("class", "task", "class_names", "class_counts", "images")


def describe(
    run: RunFolder, temperature: float, resize: int, thresholds: Sequence[float] | None = None
) -> dict[str, str]:
    """Metadata of a run's exported model, each value a text; other values are written as JSON.

    Args:
        run: The run.
        temperature: By which the exported model divides its logits.
        resize: Length to which the shorter side of an image is resized, in pixels.
        thresholds: Probability of each class above which it is decided on, where the kind of labels has such.
    """
    record, options, metrics = read_json(run.environment), _options(run), read_json(run.metrics_json)
    data, git, task = record["data"], record.get("git"), task_of(record)
    values: dict[str, Any] = {
        "imgcls": __version__,
        "run": "/".join(run.path.resolve().parts[-2:]),
        "date": date.today().isoformat(),
        "git_commit": git and git["commit"] + (" with uncommitted changes" if git["dirty"] else ""),
        "data_fingerprint": {k: v for k, v in data.items() if k not in NO_FINGERPRINT},
        "task": task.name,
        "class_names": data["class_names"],
        **{k: options["data"][k] for k in ("image_size", "channels", "mean", "std", "interpolation")},
        "resize": resize,
        "value_range": None if (known := options["data"].get("value_range")) == "none" else known,
        **{k: options["data"].get(k) for k in ("bands", "num_bands")},
        "temperature": temperature,
        "thresholds": thresholds,
        "flip_at_test": options["model"]["flip_at_test"],
        **{k: metrics.get(k) for k in (f"val/{task.metric}", f"test/{task.metric}")},
    }
    texts = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in values.items()}
    return {k: v for k, v in texts.items() if v != "null"}


def write_card(
    run: RunFolder, kind: str, file: str, about: Mapping[str, str], check: Mapping[str, Any], int8: Mapping[str, Any]
) -> str:
    """The model card, Markdown.

    Args:
        run: The run.
        kind: onnx, torch_export or safetensors.
        file: Name of the exported file.
        about: Its metadata.
        check: How far it is from the run: images, source, largest, largest_in_size, top1; and its bytes.
        int8: Cost and gain of quantisation, or empty.
    """
    known = Run(run)
    return template("card.md").render(
        kind=kind,
        file=file,
        about=about,
        check=check,
        int8=int8,
        record=known.environment,
        metrics={k: v for k, v in known.metrics.items() if v is not None},
        monitor=known.settings.get("checkpoint.monitor") or "",
        **_options(run),
        words=_words,
        task=task_of(known.environment),
        calibration=read_json(run.calibration) if float(about["temperature"]) != 1 else {},
    )


def _options(run: RunFolder) -> dict[str, Any]:
    config = run.read_config()
    return {part: config[part]["init_args"] for part in ("data", "model")}


def _words(value: Any) -> str:
    """A setting as text: a class with its options; of a path its last part, as folders are one machine's own."""
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    if isinstance(value, dict):
        options = value.get("init_args", {}) if "class_path" in value else value
        inside = ", ".join(f"{k} {_words(v)}" for k, v in options.items() if v not in (None, False, [], {}))
        name = value.get("class_path", "").rpartition(".")[2]
        return f"{name} ({inside})" if name and inside else name or inside
    return str(value).rstrip("/").rpartition("/")[2]
