from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.models.base import Backbone
from imgcls.models.weights import load_weights


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al., Deep residual learning, CVPR 2016, figure 5 left).

    The last BatchNorm starts at zero, so that each block starts as its shortcut (Goyal et al., Accurate, large
    minibatch SGD, 2017, section 5.1).
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) to (B, width, H / stride, W / stride)."""
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(image)))))
        return F.relu(residual + self.shortcut(image))


class ResNet(Backbone):
    """A small residual network; the stem halves large images twice and leaves small ones as they are.

    Args:
        channels: Channels of an image.
        image_size: Side of an image in pixels; up to 64 the stem keeps the resolution.
        blocks: Number of blocks of each stage; stages after the first halve the image and double the width.
        width: Channels of the first stage.
        weights: A file to start from, such as another run's checkpoints/best.ckpt; `none`: random weights.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        blocks: Sequence[int] = (2, 2, 2),
        width: int = 32,
        weights: str = "none",
    ) -> None:
        super().__init__()
        kernel, stride = (3, 1) if image_size <= 64 else (7, 2)
        stem: list[nn.Module] = [
            nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        self.stem = nn.Sequential(*stem, *([nn.MaxPool2d(3, 2, padding=1)] if image_size > 64 else []))
        stages, before = [], width
        for number, count in enumerate(blocks):
            after = width * 2**number
            first = Block(before, after, stride=2 if number else 1)
            stages.append(nn.Sequential(first, *(Block(after, after, stride=1) for _ in range(count - 1))))
            before = after
        self.layers = nn.Sequential(*stages)
        self.num_features = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if weights != "none":
            load_weights(self, weights)

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, F) of images (B, C, H, W)."""
        return self.layers(self.stem(image)).mean((2, 3))
