from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from imgcls.errors import UserError

Parameters = dict[str, Any]
"""Random parameters of a batch, by name: tensors with a row for each image, on the CPU, and plain values."""
Tree = TypeVar("Tree")
ALIGNED = 16  # bytes


class Augmentation(nn.Module, ABC):
    """Changes a training batch on its device, each image with random parameters of its own.

    A new augmentation is one class in one file. It samples its parameters with torch's global generator, which
    the data module seeds before each step from (seed, epoch, step, rank).

    Attributes:
        on_uint8: Takes uint8 images as well as float ones (indexing only, no arithmetic).
        margin: Training images are loaded this much larger than the model expects, for a crop to choose from.
        size: Side of the images that the model expects, in pixels; set by `configure`.
        num_classes: Number of classes K; set by `configure`.
    """

    on_uint8 = False
    margin: float = 1.0
    size: int
    num_classes: int

    def configure(self, size: int, num_classes: int) -> None:
        """Called once by the data module, before the first batch."""
        self.size, self.num_classes = size, num_classes

    def check_channels(self, channels: int) -> None:
        """Called once by the data module, before the first batch.

        Raises:
            UserError: An operation is not defined for images of so many channels.
        """
        if channels not in (1, 3) and (refused := self.refused(channels)):
            raise UserError(
                f"--data.augment: not defined for {channels} channels: {', '.join(dict.fromkeys(refused))}; leave such "
                "operations out, or choose three bands with --data.bands"
            )

    def refused(self, channels: int) -> list[str]:
        """Operations that are not defined for images of so many channels, neither 1 nor 3; by default there are none.

        Those that treat each channel alike are defined, those that take channels for red, green and blue are not.
        """
        return []

    @abstractmethod
    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            image: (B, C, H, W), float32 in [0, 1], or uint8 where `on_uint8` is set.
            label: (B,) int64, or (B, K) float32 after an operation that mixes images.

        Returns:
            Image and label of the same kinds.
        """

    def normalized(self, image: Tensor, label: Tensor, normalize: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Like `forward`, and then `normalize` of the images."""
        image, label = self(image, label)
        return normalize(image), label

    @property
    def loading_crop(self) -> "LoadingCrop | None":
        """What is done first, while images are decoded, so that batches need only `after_loading`."""
        return None

    @property
    def after_loading(self) -> "Augmentation":
        """What is left to do for images that were loaded with the `loading_crop`."""
        return self


class Sampled(Augmentation):
    """Samples random parameters for a whole batch on the CPU, and then applies them where the images are.

    On a CPU the images are changed one by one, or in groups, as it is fast there. On other devices, for which the host
    never waits, the same parameters go over in one copy, see `on_device`, and the number of operations does not grow
    with the batch.

    Attributes:
        only_mirrors: All it does is to mirror, left to right, the images of its parameter `mirrored` (B,) bool.
    """

    only_mirrors = False

    @abstractmethod
    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:
        """Sample parameters for a batch of that shape, (B, C, H, W).

        Returns:
            The parameters, and the shape of the batch after it.
        """

    @abstractmethod
    def transform(self, image: Tensor, label: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Carry it out on the CPU; images and labels as in `forward`, which are left alone."""

    def plan(self, parameters: Parameters, shape: torch.Size) -> Parameters:
        """What `transform_on_device` needs of the parameters for a batch of that shape, still on the CPU."""
        return parameters

    def mirrored(self, plan: Parameters, mirrored_B: Tensor) -> bool:  # noqa: N803
        """Whether the plan could be changed so that these images (B,) are also mirrored, left to right, at the end."""
        return False

    def transform_on_device(self, image: Tensor, label: Tensor, plan: Parameters) -> tuple[Tensor, Tensor]:
        """Carry it out on any device, on which the tensors of the plan are; default: as on the CPU."""
        return self.transform(image, label, plan)

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """As `Augmentation` says; sampled parameters, applied."""
        if image.device.type != "cpu":
            return on_device([self], image, label)
        parameters, _ = self.sample(image.shape)
        return self.transform(image, label, parameters)


class LoadingCrop(Sampled):
    """A random crop that may be taken from the whole image while it is decoded."""

    @abstractmethod
    def box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a crop from an image of that size, to be resized to the model's size.

        Right and bottom are the first that lie outside.
        """


class ByImage(Sampled):
    """Changes each image by itself, and no label: a batch may come in parts.

    On a CPU, a part that stays in the processor's cache goes through several operations one after the other.
    """

    @abstractmethod
    def change(self, image: Tensor, parameters: Parameters) -> Tensor:
        """Change images (b, C, H, W) on the CPU, which may be overwritten, by their rows of the parameters."""

    def transform(self, image: Tensor, label: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self.change(image.clone(), parameters), label


def on_device(operations: Sequence[Sampled], image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Sample the parameters of several operations, move them together, and apply them one after the other.

    Args:
        operations: In this order.
        image: (B, C, H, W), uint8 or float32 in [0, 1].
        label: (B,) int64 or (B, K) float32.
    """
    shape, steps = image.shape, list[tuple[Sampled, Parameters]]()
    for operation in operations:
        parameters, after = operation.sample(shape)
        if not (steps and operation.only_mirrors and steps[-1][0].mirrored(steps[-1][1], parameters["mirrored"])):
            steps.append((operation, operation.plan(parameters, shape)))
        shape = after
    plans = moved([plan for _, plan in steps], image.device)
    for (operation, _), plan in zip(steps, plans, strict=True):
        image, label = operation.transform_on_device(image if operation.on_uint8 else to_float(image), label, plan)
    return image, label


def moved(tree: Tree, device: torch.device) -> Tree:
    """Lists and dicts whose tensors go from the CPU to a device in one copy, for which the host does not wait."""
    leaves: list[Tensor] = []
    apply_to_collection(tree, Tensor, leaves.append)
    places = [0]
    for leaf in leaves:
        places.append(-(-(places[-1] + leaf.nbytes) // ALIGNED) * ALIGNED)
    packed = torch.empty(places[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")

    def seen(buffer: Tensor) -> list[Tensor]:
        spans = (buffer[start : start + leaf.nbytes] for leaf, start in zip(leaves, places, strict=False))
        return [span.view(leaf.dtype).view(leaf.shape) for leaf, span in zip(leaves, spans, strict=True)]

    for leaf, span in zip(leaves, seen(packed), strict=True):
        span.copy_(leaf)
    there = iter(seen(packed.to(device, non_blocking=True)))
    return apply_to_collection(tree, Tensor, lambda _: next(there))


def to_float(image: Tensor) -> Tensor:
    """Images (B, C, H, W) of uint8 as float32 in [0, 1], channel by channel, as colour operations go."""
    if image.dtype != torch.uint8:
        return image
    if image.device.type == "cpu":
        return image.float().contiguous().mul_(1 / 255)
    return torch.mul(image, 1 / 255, out=torch.empty(image.shape, device=image.device))


def to_bytes(image: Tensor) -> Tensor:
    """Images (B, C, H, W) of float32 in [0, 1] as the nearest uint8."""
    return image if image.dtype == torch.uint8 else (image * 255).round_().byte()


def soft(label: Tensor, num_classes: int) -> Tensor:
    """Label as probabilities (B, K) float32; one-hot for a label (B,)."""
    if label.ndim == 2:
        return label
    return torch.zeros(len(label), num_classes, device=label.device).scatter_(1, label[:, None], 1.0)


def spans(box_B4: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Which columns (B, W) and rows (B, H) of images of that shape lie in boxes: left, top, right and bottom of each.

    Right and bottom are the first that lie outside.
    """
    left, top, right, bottom = (edge[:, None] for edge in box_B4.unbind(1))
    column_W, row_H = torch.arange(shape[-1]), torch.arange(shape[-2])
    return (left <= column_W) & (column_W < right), (top <= row_H) & (row_H < bottom)
