"""What is exported of a run: one graph from uint8 images of any size to calibrated class probabilities."""

import torch
from torch import Tensor, nn

from imgcls.classifier import Classifier
from imgcls.images.decode import ResizeCrop


class ResizeCropInGraph(nn.Module):
    """Resize and central crop as `ResizeCrop` says, of images whose size is known only when the graph runs.

    Antialiased interpolation is linear and separable, so it is two matrix products, one along each axis, with weights
    that are computed in the graph. After each product pixels are rounded to whole grey levels, as Pillow's and
    torchvision's kernels for uint8 do: the result is theirs, but for single levels where rounding is close.

    Args:
        resize_crop: How images are resized and cropped.
    """

    def __init__(self, resize_crop: ResizeCrop) -> None:
        super().__init__()
        self.resize_crop = resize_crop

    def forward(self, image: Tensor) -> Tensor:
        """Float grey levels 0..255 (B, C, crop, crop) of uint8 images (B, C, H, W)."""
        resize_crop, lengths = self.resize_crop, image.shape[-2:]
        size = torch.stack([torch.full((), n, dtype=torch.float64, device=image.device) for n in lengths])
        resized = (size * resize_crop.resize / size.min()).floor().clamp(min=resize_crop.crop)
        resized = torch.where((size == resize_crop.crop).all(), size, resized)  # it has the final size already
        rows, columns = (self._weights(n, size[k], resized[k]) for k, n in enumerate(lengths))
        return _whole(rows @ _whole(image.float() @ columns.T))

    def _weights(self, length: int, size: Tensor, resized: Tensor) -> Tensor:
        """Weight of each of the image's pixels along an axis for each pixel that the crop keeps, (crop, length)."""
        step = size / resized
        first = ((resized - self.resize_crop.crop) / 2).round()
        kept = torch.arange(self.resize_crop.crop, dtype=torch.float64, device=size.device)
        given = torch.arange(length, dtype=torch.float64, device=size.device)
        # in units of the filter, which widens with the step when the image shrinks
        distance = (given + 0.5 - (kept[:, None] + first + 0.5) * step).abs() / step.clamp(min=1)
        if self.resize_crop.interpolation == "bilinear":
            weight = (1 - distance).clamp(min=0)
        else:  # Keys, Cubic convolution interpolation, IEEE Trans. ASSP 1981, with a = -1/2
            near = (1.5 * distance - 2.5) * distance.square() + 1
            far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
            weight = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
        return (weight / weight.sum(1, keepdim=True)).float()


def _whole(pixels: Tensor) -> Tensor:
    # halves are common (an image halved or doubled) and go up; float32 leaves them a hair off on either side
    return (pixels + 0.5001).floor().clamp(0, 255)


class Exported(nn.Module):
    """A trained classifier with all that comes before and after it.

    Where the kind of labels has cuts, `label` comes beside the probabilities: what is decided on, see `Task.decided`.

    Args:
        model: The classifier, merged; it is changed, and not to be used otherwise.
        resize_crop: How images are resized and cropped.
        mean: Per channel, in 0..1.
        std: Per channel, in 0..1.
        temperature: Divides the logits.
    """

    def __init__(
        self, model: Classifier, resize_crop: ResizeCrop, mean: list[float], std: list[float], temperature: float
    ):
        super().__init__()
        self.resize_crop, self.backbone, self.head = ResizeCropInGraph(resize_crop), model.backbone, model.head
        self.link = model.loss.link
        for name, buffer in list(self.head.named_buffers(recurse=False)):
            if buffer.ndim == 0:  # a number such as the neighbours' k: to the graph it would be data
                delattr(self.head, name)
                setattr(self.head, name, buffer.item())
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch.export.save wants it so
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(-1, 1, 1)))
        self.register_buffer("shift", torch.tensor(mean).view(-1, 1, 1) / torch.tensor(std).view(-1, 1, 1))
        self.flip, self.temperature, self.task = model.flip_at_test, temperature, model.task
        self.register_buffer("cut", model.cut)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Probabilities (B, K) of uint8 images (B, C, H, W)."""
        image = self.resize_crop(image) * self.scale - self.shift
        if self.flip:
            both = self.link(self.head(self.backbone(torch.cat((image, image.flip(-1))))))
            logits = both.unflatten(0, (2, -1)).mean(0)
        else:
            logits = self.link(self.head(self.backbone(image)))
        probability = self.task.probability(logits / self.temperature)
        return probability if self.cut is None else (probability, self.task.decided(logits, self.cut))
