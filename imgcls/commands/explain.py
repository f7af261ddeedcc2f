import os
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from imgcls.callbacks.figures import save
from imgcls.classifier import Classifier
from imgcls.data.base import ImageDataModule
from imgcls.evaluate.responses import Patch, strongest_patches
from imgcls.models.base import Stage

IMAGES, LAYERS, CHANNELS, PATCHES = 1000, 8, 8, 4


def explain(model: Classifier, data: ImageDataModule, device: torch.device, out: Path) -> None:
    """Draw what the layers of a trained model respond to, from validation images.

    Args:
        model: With its weights.
        data: The run's data.
        device: Where it is computed.
        out: Folder for the pictures.
    """
    data.prepare_data()
    data.setup("fit")
    source, index = data.parts["val"]
    image = source.images(index[:IMAGES].tolist(), data.frame("val"))
    model.eval().requires_grad_(False).to(device)
    names = list(dict.fromkeys(last_module(stage) for stage in model.backbone.stages()))
    names = [names[round(k * (len(names) - 1) / (LAYERS - 1))] for k in range(LAYERS)] if len(names) > LAYERS else names
    layers = strongest_patches(model.backbone, names, data.normalize(image).to(device), CHANNELS, PATCHES)
    save(layers_figure(layers, image), out / "layers.png")
    print(f"what {len(layers)} layers respond to: {out / 'layers.png'}")


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
    figure = Figure(figsize=(1.05 * CHANNELS + 1.2, 1.12 * len(layers)), dpi=110)
    grid = figure.add_gridspec(
        len(layers), CHANNELS, left=1.2 / (1.05 * CHANNELS + 1.2), right=0.99, top=0.99, bottom=0.01, hspace=0.08
    )
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
