from collections.abc import Sequence

from torch import Tensor, nn

from imgcls.models.base import Backbone
from imgcls.models.weights import load_weights


class MLP(Backbone):
    """Fully connected layers on the flattened pixels: what a CNN has to beat.

    Args:
        channels: Channels of an image.
        image_size: Side of an image in pixels.
        hidden: Width of each hidden layer.
        dropout: After each hidden layer.
        weights: A file to start from, such as another run's checkpoints/best.ckpt; `none`: random weights.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        hidden: Sequence[int] = (512, 256),
        dropout: float = 0.0,
        weights: str = "none",
    ) -> None:
        super().__init__()
        widths = [channels * image_size**2, *hidden]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(before, after), nn.ReLU(inplace=True), nn.Dropout(dropout))
                for before, after in zip(widths, hidden, strict=False)
            )
        )
        self.num_features = widths[-1]
        if weights != "none":
            load_weights(self, weights)

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, F) of images (B, C, H, W) of the size given at the start."""
        return self.layers(image.flatten(1))
