"""A trained run as a model, and its data, in memory, outside of any trainer."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jsonargparse import ArgumentError, ArgumentParser

from imgcls.arguments import FRAMING, make_importable
from imgcls.compose import read_config
from imgcls.errors import UserError, user_error
from imgcls.runs.folder import RunFolder, read_json

if TYPE_CHECKING:
    from imgcls.data.base import ImageDataModule


@dataclass(frozen=True)
class LoadedRun:
    """A trained classifier with what its images must look like.

    Attributes:
        model: The classifier with the weights of its best checkpoint, in eval mode.
        class_names: Names of the classes, in the order of the logits.
        image_size: Side in pixels.
        channels: 1 or 3.
        mean: Mean per channel, in 0..1.
        std: Standard deviation per channel, in 0..1.
    """

    model: torch.nn.Module
    class_names: list[str]
    image_size: int
    channels: int
    mean: list[float]
    std: list[float]


def load_run(path: str | Path, device: torch.device | str = "cpu") -> LoadedRun:
    """Build the model of a run from its config and load its best checkpoint, without running code from either.

    Raises:
        UserError: The folder holds no trained run; the text says what is missing.
    """
    from imgcls.classifier import Classifier

    run = RunFolder.existing(str(path), "run")
    environment = read_json(run.environment)
    make_importable(environment.get("config_folders", []))
    config = read_config(run.config)
    data, section = config["data"]["init_args"], config["model"]
    class_names = environment["data"]["class_names"]
    options = section["init_args"]
    options |= {"num_classes": len(class_names), "channels": data["channels"], "image_size": data["image_size"]}
    options["teacher"] = None
    if "weights" in options["backbone"].get("init_args", {}):
        options["backbone"]["init_args"]["weights"] = "none"  # the checkpoint holds them
    model = _build(Classifier, "model", section, run)
    state = read_checkpoint(run.checkpoint(run.best))["state_dict"]
    model.check_weights(state)
    model.load_state_dict(state)
    facts = {k: data[k] for k in ("image_size", "channels", "mean", "std")}
    return LoadedRun(model.eval().requires_grad_(False).to(device), class_names, **facts)


def load_data(path: str | Path, images: str | Path | None = None) -> "ImageDataModule":
    """The data module of a run, or one of other images without labels, framed and normalised like the run's.

    Args:
        path: The run's folder.
        images: A file or a folder, in place of the run's data.

    Raises:
        UserError: The folder holds no run, or its data cannot be opened any more.
    """
    from imgcls.data.base import ImageDataModule
    from imgcls.data.files import FilesData

    run = RunFolder.existing(str(path), "run")
    environment, section = read_json(run.environment), read_config(run.config)["data"]
    options = section["init_args"]
    if images is not None:
        return FilesData(environment["data"]["class_names"], root=str(images), **{k: options[k] for k in FRAMING})
    make_importable(environment.get("config_folders", []))
    options["augment"] = None
    return _build(ImageDataModule, "data", section, run)


def _build(kind: type, name: str, section: dict[str, Any], run: RunFolder) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, name)
    try:
        return parser.instantiate(parser.parse_object({name: section}))[name]
    except (ArgumentError, ValueError) as error:
        reason = user_error(error) or f"{run.config}: its {name} cannot be built ({' '.join(str(error).split())[:300]})"
        raise UserError(str(reason)) from error


def read_checkpoint(path: Path, option: str = "", way_out: str = "") -> dict[str, Any]:
    """What a checkpoint holds, its tensors mapped into memory; no code in it is run.

    Args:
        path: The file.
        option: That named it.
        way_out: What to do if it is damaged.

    Raises:
        UserError: It is not there, cannot be read, or only by running code in it.
    """
    if not path.is_file():
        raise UserError(f"{option} {path}: there is no such file".lstrip())
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, because loading it would run code from the file") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: is truncated or is no checkpoint ({reason}){way_out}") from error
