"""A trained run in Python: its model, its data, and what it says of other images. No code in a checkpoint is run."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning import LightningModule
from PIL import Image

from imgcls.data.base import ImageDataModule
from imgcls.data.files import PREPARATION, FilesData
from imgcls.data.options import FROM_DATA
from imgcls.errors import UserError, one_line, printable, user_error
from imgcls.images.arrays import Bands, bands_last, decode_bands, read_bands
from imgcls.images.decode import ResizeCrop, decode_file, decode_upright, reading, stack
from imgcls.runs.folder import RunFolder
from imgcls.runs.temperature import temperature
from imgcls.system.files import read_json
from imgcls.system.modules import make_importable


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a run says of N images.

    Attributes:
        class_names: The predicted class of each image, N names; of several labels all of them, `cat|dog`.
        probability: (N, K) float32, calibrated if the run is; columns in the order of the run's `class_names`.
    """

    class_names: list[str]
    probability: np.ndarray


class LoadedRun:
    """A trained run, as `imgcls.load(RUN_DIR)` gives it.

    Attributes:
        folder: The run's folder.
        model: The `Classifier` with the weights of its best checkpoint, in eval mode, its parameters frozen.
        class_names: Names of the K classes, in the order of the logits.
        prepare: How images are resized, cropped and normalised: a data module without images.
    """

    def __init__(self, folder: RunFolder, model: Any, prepare: FilesData) -> None:
        self.folder, self.model, self.prepare = folder, model, prepare
        self.class_names = prepare.class_names

    @cached_property
    def data(self) -> ImageDataModule:
        """The run's data module, as it was trained on; `setup` opens it.

        Raises:
            UserError: It cannot be built any more, as when a table is gone.
        """
        return load_data(self.folder.path, augmented=True)

    @torch.no_grad()
    def predict(self, images: Sequence[str | Path | Image.Image | np.ndarray], batch_size: int = 64) -> Predicted:
        """Class names and probabilities, the same that the command `predict` writes.

        Args:
            images: Paths of image files, PIL images, or uint8 arrays (H, W), (H, W, 3) or (H, W, 4), of any size; of a
                run on bands paths, or arrays (H, W, C) or (C, H, W) of all bands, of its files' kind of numbers.
            batch_size: Images of one pass.

        Raises:
            UserError: An image cannot be read, or an array is of another dtype or shape.
        """
        resize_crop, scaled_by = self.prepare.resize_crop("test"), temperature(self.folder)
        logits = [torch.empty(0, len(self.class_names))]
        for first in range(0, len(images), batch_size):
            some = images[first : first + batch_size]
            batch = stack((self._pixels(image, resize_crop) for image in some), len(some))
            logits.append(
                self.model.logits(self.prepare.normalize(batch).to(self.model.device, self.model.dtype)).cpu()
            )
        task = self.model.task
        found = torch.cat(logits)
        cut = None if self.model.cut is None else self.model.cut.cpu().numpy()
        names = task.text(task.decided(found.numpy(), cut), self.class_names)
        return Predicted(names, task.probability(found.double() / scaled_by).float().numpy())

    def _pixels(self, image: str | Path | Image.Image | np.ndarray, resize_crop: ResizeCrop) -> torch.Tensor:
        chosen, total = self.prepare.bands, self.prepare.num_bands
        if chosen is None or total is None:
            return _photo(image, resize_crop)
        if isinstance(image, Image.Image):
            raise UserError("predict: the run knows images of bands; give paths, or arrays of all bands")
        with reading(str, "predict: an array" if isinstance(image, np.ndarray) else printable(str(image))):
            values = bands_last(image) if isinstance(image, np.ndarray) else read_bands(Path(image))
            return decode_bands(values, Bands(tuple(chosen), total), resize_crop)


def _photo(image: str | Path | Image.Image | np.ndarray, resize_crop: ResizeCrop) -> torch.Tensor:
    if isinstance(image, str | Path):
        return decode_file(Path(image), resize_crop)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.ndim == 3 and image.shape[2] not in (3, 4):
            raise UserError(
                f"predict: an array of {image.dtype}, shape {image.shape}, is no image; give uint8 of shape (H, W), "
                "(H, W, 3) or (H, W, 4)"
            )
        image = Image.fromarray(image)
    with reading(str, "predict: an image"):
        return decode_upright(image, resize_crop)


def load_run(path: str | Path, device: torch.device | str = "cpu") -> LoadedRun:
    """Build the model of a run from its config and load its best checkpoint, without running code from either.

    Args:
        path: The run's folder.
        device: Where the model is put.

    Raises:
        UserError: The folder holds no trained run; the text says what is missing.
    """
    run = RunFolder.existing(str(path), "run")
    environment, config = read_json(run.environment), run.read_config()
    make_importable(environment.get("config_folders", []))
    data, section = config["data"]["init_args"], config["model"]
    prepare = FilesData(environment["data"]["class_names"], **{k: data.get(k) for k in PREPARATION})
    options = section["init_args"]
    options |= {fact: getattr(prepare, fact) for fact in FROM_DATA}
    options["teacher"] = None
    if "weights" in options["backbone"].get("init_args", {}):
        options["backbone"]["init_args"]["weights"] = "none"  # the checkpoint holds them
    # the class is named in the config: this module knows none, so that classifiers may load others to learn from
    model = _build(LightningModule, "model", section, run)
    return LoadedRun(run, with_weights(model, run.checkpoint(run.best), device), prepare)


def load_data(path: str | Path, images: str | Path | None = None, augmented: bool = False) -> ImageDataModule:
    """The data module of a run, or one of other images without labels, prepared like the run's.

    Args:
        path: The run's folder.
        images: A file or a folder, in place of the run's data.
        augmented: With the run's augmentation.

    Raises:
        UserError: The folder holds no run, or its data cannot be opened any more.
    """
    run = RunFolder.existing(str(path), "run")
    environment, section = read_json(run.environment), run.read_config()["data"]
    options = section["init_args"]
    if images is not None:
        prepared = {k: options.get(k) for k in PREPARATION}
        return FilesData(environment["data"]["class_names"], root=str(images), **prepared)
    make_importable(environment.get("config_folders", []))
    if not augmented:
        options["augment"] = None
    return _build(ImageDataModule, "data", section, run)


def load_evaluated(path: str | Path, name: str) -> ImageDataModule:
    """The labelled set from elsewhere on which a run was tested, `evaluations/NAME`.

    Raises:
        UserError: There is none of that name, or its images are not there any more.
    """
    run = RunFolder.existing(str(path), "run")
    section = read_json(run.evaluation_on(name).environment).get("config")
    if section is None:
        raise UserError(f"{run.path}: was not tested on {name}")
    return _build(ImageDataModule, "data", section, run)


def _build(kind: type, name: str, section: dict[str, Any], run: RunFolder) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, name, fail_untyped=False)
    try:
        return parser.instantiate(parser.parse_object({name: section}))[name]
    except (ArgumentError, ValueError) as error:
        reason = user_error(error) or f"{run.config}: its {name} cannot be built ({one_line(error)[:300]})"
        raise UserError(str(reason)) from error


def with_weights(model: Any, checkpoint: Path, device: torch.device | str, option: str = "") -> Any:
    """A classifier with the weights of a checkpoint, on a device, in eval mode, its parameters frozen.

    Raises:
        UserError: The checkpoint, which `option` named, cannot be read, or is of another model.
    """
    state = read_checkpoint(checkpoint, option)["state_dict"]
    model.check_weights(state)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False).to(device)


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
