from collections.abc import Sequence

import torch
from kornia.augmentation import AugmentationBase2D
from kornia.augmentation.container.base import ImageSequentialBase
from torch import Tensor, nn

from imgcls.augment.base import Augmentation, soft


class Pipeline(Augmentation):
    """Operations one after the other, on the device: our own and Kornia's.

    Args:
        operations: Applied in this order. Those that only index (crop, flip) come first on uint8 images; the
            batch turns to float32 in [0, 1] before the first that computes.
        margin: Training images are loaded this much larger than the model expects, for a crop to choose from.
    """

    on_uint8 = True

    def __init__(
        self,
        operations: Sequence[Augmentation | AugmentationBase2D | ImageSequentialBase] = (),
        margin: float = 1.0,
    ) -> None:
        super().__init__()
        self.operations = nn.ModuleList(operations)
        self.margin = margin

    def configure(self, size: int, num_classes: int) -> None:  # noqa: D102
        super().configure(size, num_classes)
        for operation in self.operations:
            if isinstance(operation, Augmentation):
                operation.configure(size, num_classes)

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) uint8 or float32; float32 in [0, 1] if an operation computed, else unchanged."""
        for operation in self.operations:
            own = isinstance(operation, Augmentation)
            if image.dtype == torch.uint8 and not (own and operation.on_uint8):
                image = image.float().div_(255)
            if own:
                image, label = operation(image, label)
            else:
                image = operation(image)
        return image, label


class OneOf(Augmentation):
    """Each image takes one of several operations, drawn evenly; images that drew the same go together."""

    def __init__(self, operations: Sequence[Augmentation]) -> None:
        super().__init__()
        self.operations = nn.ModuleList(operations)

    def configure(self, size: int, num_classes: int) -> None:  # noqa: D102
        super().configure(size, num_classes)
        for operation in self.operations:
            operation.configure(size, num_classes)  # type: ignore[operator]

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32, label (B,) or (B, K); returns labels (B, K)."""
        choice = torch.randint(len(self.operations), (len(image),))
        image, label = image.clone(), soft(label, self.num_classes).clone()
        for number, operation in enumerate(self.operations):
            chosen = (choice == number).nonzero()[:, 0].to(image.device)
            if len(chosen):
                image[chosen], label[chosen] = operation(image[chosen], label[chosen])
        return image, label
