from torch import Tensor, nn

from imgcls.models.base import Backbone
from imgcls.models.weights import load_weights


class CNN(Backbone):
    """A plain convolutional network: stages of 3×3 convolutions, each halving the image and doubling the width.

    Every layer is convolution, BatchNorm, ReLU; a stage ends with 2×2 max-pooling while at least 4 pixels
    remain, and the last with the mean over all positions.

    Args:
        channels: Channels of an image.
        image_size: Side of an image in pixels.
        depth: Number of convolutions.
        width: Channels of the first stage.
        layers_per_stage: Convolutions before each pooling.
        weights: A file to start from, such as another run's checkpoints/best.ckpt; `none`: random weights.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        depth: int = 6,
        width: int = 32,
        layers_per_stage: int = 2,
        weights: str = "none",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(depth):
            stage, place = divmod(number, layers_per_stage)
            if place == 0 and stage > 0 and image_size // 2 >= 4:
                layers.append(nn.MaxPool2d(2))
                image_size, width = image_size // 2, width * 2
            layers.append(_layer(channels, width))
            channels = width
        self.layers = nn.Sequential(*layers)
        self.num_features = width
        if weights != "none":
            load_weights(self, weights)

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, F) of images (B, C, H, W)."""
        return self.layers(image).mean((2, 3))


def _layer(channels: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
