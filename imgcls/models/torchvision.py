import logging
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn
from torchvision import models

from imgcls.errors import UserError, near
from imgcls.models.base import Backbone, InputSpec, count_features
from imgcls.models.weights import first_convolution, load_weights, no_download, set_channels

log = logging.getLogger(__name__)

# Their pre-trained weights come with a switch inside the network that undoes ImageNet's normalisation and
# scales to -1..1. We leave it off and normalise that way from the start.
TRANSFORM_INPUT = ("googlenet", "inception_v3")


class TorchvisionBackbone(Backbone):
    """Any of torchvision's classification networks, by name, without its head.

    The head is found without a table: the last linear layer, or the last convolution where there is none.

    Args:
        channels: Channels of an image; a first convolution for RGB is adapted, see `adapt_channels`.
        image_size: Side of an image in pixels.
        name: As in `python -m imgcls backbones`.
        weights: `default` downloads torchvision's own, `none` starts from scratch, else a local file.
        options: Further arguments of torchvision's builder.

    Raises:
        UserError: Unknown name; weights that cannot be loaded or do not fit; an image size that it does not take.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        name: str = "resnet18",
        weights: str = "default",
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_name(name)
        self.network = _build(name, weights, image_size, dict(options or {}))
        _remove_head(self.network)
        if first := first_convolution(self.network):
            set_channels(*first, channels)
        if weights not in ("default", "none"):
            load_weights(self.network, weights)
        self.num_features = count_features(self, name, channels, image_size)

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, F) of images (B, C, H, W)."""
        return self.network(image).flatten(1)

    @classmethod
    def input_spec(cls, name: str = "resnet18", weights: str = "default", **options: Any) -> InputSpec:
        """From the metadata of torchvision's default weights; a local file is taken to be like them."""
        _check_name(name)
        if weights == "none":
            return InputSpec(image_size=224) if name == "maxvit_t" else InputSpec()
        preset = models.get_model_weights(name).DEFAULT.transforms()
        size, resize = preset.crop_size[0], preset.resize_size[0]
        mean, std = ([0.5] * 3, [0.5] * 3) if name in TRANSFORM_INPUT else (list(preset.mean), list(preset.std))
        return InputSpec(size, 3, mean, std, preset.interpolation.value, size / resize)


def _check_name(name: str) -> None:
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(
            f"--model.backbone.name: torchvision has no classification network {name!r}{near(name, known)}; "
            "`python -m imgcls backbones` lists all"
        )


def _build(name: str, weights: str, image_size: int, options: dict[str, Any]) -> nn.Module:
    known = models.get_model_weights(name).DEFAULT
    default = known if weights == "default" else None
    if name in TRANSFORM_INPUT:
        # with weights, the builder wants to make the auxiliary heads itself and drops them when asked
        options |= {"aux_logits": False} | ({} if default else {"init_weights": weights == "none"})
    resized = name.startswith("vit_") and image_size != known.transforms().crop_size[0]
    arguments = {"image_size": image_size} if resized else {"weights": default}
    try:
        network = models.get_model(name, **arguments, **options)
        if resized and default is not None:
            state = default.get_state_dict(progress=True, check_hash=True)
            state = models.vision_transformer.interpolate_embeddings(image_size, network.patch_size, state, "bicubic")
            network.load_state_dict(state)
            log.info(f"{name}: position embeddings interpolated to {image_size} px")
    except TypeError as error:
        raise UserError(f"--model.backbone.options: {name} does not take them ({error})") from error
    except AssertionError as error:
        raise UserError(f"--data.image_size: {name} takes multiples of its patch size, not {image_size}") from error
    except (URLError, OSError, RuntimeError) as error:
        raise no_download(name, error) from error
    if name in TRANSFORM_INPUT:
        network.transform_input = False
    return network


def _remove_head(network: nn.Module) -> None:
    layers = list(network.named_modules())
    linear = [n for n, m in layers if isinstance(m, nn.Linear)]
    head = (linear or [n for n, m in layers if isinstance(m, nn.Conv2d)])[-1]
    network.set_submodule(head, nn.Identity())
