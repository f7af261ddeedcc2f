"""What layers respond to, where classes are seen: --run RUN_DIR [--images FILES] [--out DIR]."""

import os
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from imgcls.classifier import Classifier
from imgcls.cli.lightning import LightningVerb
from imgcls.data.base import ImageDataModule
from imgcls.data.files import PREPARATION, FilesData
from imgcls.data.sampling import with_unlabelled
from imgcls.data.splits import rarest, stratified_order
from imgcls.errors import UserError
from imgcls.evaluate.figures import image_grid, save
from imgcls.evaluate.grad_cam import grad_cam
from imgcls.evaluate.responses import Patch, strongest_patches
from imgcls.images.arrays import as_shown
from imgcls.images.sources import Source
from imgcls.models.base import Stage
from imgcls.pages.report import write_report
from imgcls.runs.folder import RunFolder
from imgcls.runs.load import with_weights
from imgcls.runs.predictions import read_predictions
from imgcls.runs.temperature import temperature

IMAGES, LAYERS, CHANNELS, PATCHES = 1000, 8, 8, 4


class Explain(LightningVerb):
    """`python -m imgcls explain`."""

    needs_run = True

    def work(
        self, out: Path | None = None, images: str | None = None, count: int = 16, ckpt_path: str | None = None
    ) -> None:
        """Draw what each layer of a trained model responds to, and where in images it sees a class.

        Args:
            out: Folder for the pictures. Default: figures/ in the run's folder, and its report shows them.
            images: A file, a folder or a pattern of images in which to look for classes. Default: the run's most
                confident mistakes, and some that are right.
            count: How many of them at most.
            ckpt_path: Checkpoint, where it is not the run's best.
        """
        if count < 1:
            raise UserError(f"--count {count}: give at least 1")
        checkpoint, device, folder = Path(str(ckpt_path)), self.trainer.strategy.root_device, out or self.run.figures
        model, data = with_weights(self.model, checkpoint, device, "--ckpt_path"), self.datamodule
        data.prepare_data()
        data.setup("fit")
        draw_layers(model, data, device, folder / "layers.png")
        if images is None:
            source, index = _telling(data, self.run, count)
        else:
            source = _files(data, images)
            index = np.arange(min(count, len(source)))
        pictures = class_maps(model, data, source, index, device, temperature(self.run, checkpoint))
        if pictures is None:
            print("where it sees a class: a network without feature maps cannot tell")
        else:
            save(image_grid(pictures[0].numpy(), pictures[1], columns=6), folder / "grad_cam.png")
            print(f"where it sees a class in {len(index)} images: {folder / 'grad_cam.png'}")
        if out is None:
            write_report(self.run)


main = Explain.main


def draw_layers(model: Classifier, data: ImageDataModule, device: torch.device, path: Path) -> None:
    """Draw what layers respond to among the images of the validation part, without one of the training part."""
    source, index = _own_images(data)
    image = source.images(index[:IMAGES].tolist(), data.resize_crop("val"))
    names = list(dict.fromkeys(last_module(stage) for stage in model.backbone.stages()))
    names = [names[round(k * (len(names) - 1) / (LAYERS - 1))] for k in range(LAYERS)] if len(names) > LAYERS else names
    layers = strongest_patches(model.backbone, names, data.normalize(image).to(device), CHANNELS, PATCHES)
    save(layers_figure(layers, as_shown(image)), path)
    print(f"what {len(layers)} layers respond to: {path}")


def _files(data: ImageDataModule, images: str) -> Source:
    """Images without labels, prepared as the run's are."""
    prepared = {k: getattr(data, k) for k in PREPARATION}
    try:
        files = FilesData(data.class_names, root=images, **prepared).open("test")
    except UserError as error:
        raise UserError(str(error).replace("--data.root", "--images")) from error
    assert files is not None  # it has found some
    return files


def _telling(data: ImageDataModule, run: RunFolder, count: int) -> tuple[Source, np.ndarray]:
    """Where the run was most confidently wrong, and for a quarter where it was right; else images of its own."""
    for part in ("test", "val"):
        record = run.predictions / f"{part}.npz"
        if record.is_file():
            predicted = read_predictions(record)
            label, index = predicted.label, predicted.index
            data.setup("test" if part == "test" else "validate")
            source = data.parts[part][0]
            if index.max(initial=-1) < len(source) and (source.label[index] == label).all():  # it is of these data
                right = np.flatnonzero(predicted.right)
                wrong = predicted.worst_mistakes(count - min(len(right), count // 4))
                evenly = right[np.linspace(0, len(right) - 1, min(len(right), count - len(wrong))).astype(int)]
                return source, index[[*wrong, *evenly]]
    source, index = _own_images(data)
    return source, index[:count]


def _own_images(data: ImageDataModule) -> tuple[Source, np.ndarray]:
    """The validation part, without one the training part; in an order in which the first are of all classes."""
    source, index = data.parts["val" if len(data.parts["val"][1]) else "train"]
    classes = rarest(with_unlabelled(data.kind.pairs(source.label[index]), len(index)), len(index))
    return source, index[stratified_order(classes, seed=0)]


def class_maps(
    model: Classifier,
    data: ImageDataModule,
    source: Source,
    index: np.ndarray,
    device: torch.device,
    scaled_by: float = 1.0,
) -> tuple[Tensor, list[str]] | None:
    """Three pictures of each image: itself, and where the model sees two classes, those that are the most telling.

    Where one label is predicted that is the class, and the right one, or the second best where it is right.

    Args:
        model: The model.
        data: How its images are resized, cropped and normalised.
        source: Where the images are.
        index: Which of them, (N,).
        device: Where it is computed.
        scaled_by: Temperature of the probabilities in the titles.

    Returns:
        Pictures (3 N, 3, H, W) uint8 and a title for each; None if the network has no feature maps.
    """
    pictures: list[Tensor] = []
    titles: list[str] = []
    names, task = data.class_names, model.task
    cut = None if model.cut is None else model.cut.cpu().numpy()
    for first in range(0, len(index), 8):  # the gradient keeps all that a pass computes
        chosen = index[first : first + 8]
        image = source.images(chosen.tolist(), data.resize_crop("val"))
        pixels = data.normalize(image).to(device)
        with torch.no_grad():
            logits = model(pixels).float().cpu().numpy()
        label, probability = source.label[chosen], task.probabilities(logits / scaled_by)
        truth, decided = task.text(label, names), task.decided(logits, cut)
        classes = [task.telling(*of) for of in zip(probability, decided, label, strict=True)]
        maps = grad_cam(model, pixels, torch.tensor(classes))
        if maps is None:
            return None
        for k, number in enumerate(chosen.tolist()):
            pictures += [as_shown(image[k]).expand(3, -1, -1), *(overlay(image[k], m) for m in maps[k].cpu())]
            said = f"is {truth[k]}" if truth[k] else ""
            shown = [f"{names[c]} {probability[k, c]:.2f}" for c in classes[k]]
            titles += [f"{source.names[number].rpartition('/')[2]}\n{said}", f"sees\n{shown[0]}", f"or\n{shown[1]}"]
    return torch.stack(pictures), titles


def overlay(image: Tensor, strength: Tensor) -> Tensor:
    """A gray image with a map in colour over it.

    Args:
        image: (C, H, W) uint8.
        strength: (H, W) in 0..1; where it is 0, the image is seen.

    Returns:
        (3, H, W) uint8.
    """
    gray = image.float().mean(0).expand(3, -1, -1)
    color = torch.from_numpy(colormaps["inferno"](strength.numpy())[..., :3]).permute(2, 0, 1).float() * 255
    return torch.lerp(gray, color, 0.7 * strength).round().to(torch.uint8)


def last_module(stage: Stage) -> str:
    """Name of the module that gives a stage's output: the one that holds all of it, else the owner of its last part."""
    owners = [name.split(".")[:-1] for name in stage.parameters]
    shared = os.path.commonprefix(owners)  # works on lists too
    return ".".join(shared if len(shared) > 1 else owners[-1])


def layers_figure(layers: dict[str, list[list[Patch]]], image: Tensor) -> Figure:
    """A row for each layer, from the first to the last, and in it `PATCHES` patches for each of some channels.

    Args:
        layers: Of `strongest_patches`.
        image: The images (N, C, H, W) uint8 to which it refers.
    """
    side = 2  # patches of one channel lie in a square
    width = 1.05 * CHANNELS + 1.2  # inches
    figure = Figure(figsize=(width, 1.12 * len(layers)), dpi=110)
    grid = figure.add_gridspec(len(layers), CHANNELS, left=1.2 / width, right=0.99, top=0.99, bottom=0.01, hspace=0.08)
    for row, (name, channels) in enumerate(layers.items()):
        for column, patches in enumerate(channels):
            cell = grid[row, column].subgridspec(side, side, wspace=0.04, hspace=0.04)
            for place, patch in enumerate(patches):
                axes = figure.add_subplot(cell[place // side, place % side])
                top, left, bottom, right = patch.box
                pixels = image[patch.image, :, top:bottom, left:right].permute(1, 2, 0).numpy()
                axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
                axes.set_aspect("auto")
                axes.axis("off")
        middle = 1 - (row + 0.5) / len(layers)
        figure.text(0.01, middle, name, fontsize=7, va="center", parse_math=False)
    return figure
