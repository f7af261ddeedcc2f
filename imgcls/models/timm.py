import logging
from typing import Any, Literal

from torch import Tensor, nn

from imgcls.errors import UserError, near, one_line
from imgcls.models.base import Backbone, InputSpec, Stage, count_features
from imgcls.models.weights import first_convolution, load_weights, no_download, set_channels
from imgcls.system.network import unreachable

log = logging.getLogger(__name__)
USUAL = 224  # pixels; the size of images of which neither data nor user says any


class TimmBackbone(Backbone):
    """Any of timm's networks, by name, without its head.

    Args:
        channels: Channels of an image; a first convolution for others is adapted, see `adapt_channels`.
        image_size: Side of an image in pixels; networks of fixed size are built for it.
        name: As in `python -m imgcls backbones`, with or without the tag of the weights after a dot.
        weights: `default` downloads timm's own, `none` starts from scratch, else a local file.
        options: Further arguments of `timm.create_model`, such as drop_path_rate.

    Raises:
        UserError: timm is not installed; unknown name; weights that cannot be loaded or do not fit; an
            image size that the network does not take.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        name: str = "tf_efficientnet_lite0",
        weights: str = "default",
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        config = _config(name, weights)
        arguments: dict[str, Any] = {"num_classes": 0, "in_chans": channels, **(options or {})}
        if config.fixed_input_size:
            arguments["img_size"] = image_size
        self.network = _create(name, weights == "default", arguments, config.input_size[0])
        if weights not in ("default", "none"):
            load_weights(self.network, weights)
        self.num_features = count_features(self, name, channels, image_size)

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, F) of images (B, C, H, W)."""
        return self.network(image)

    def stages(self) -> list[Stage]:
        """Timm's own groups of layers, from input to output."""
        from timm.models import group_parameters

        matcher = getattr(self.network, "group_matcher", None)
        if matcher is None:
            return super().stages()
        layers = group_parameters(self.network, matcher(coarse=False), reverse=True)
        members: dict[int, list[str]] = {}
        for name, layer in layers.items():
            members.setdefault(layer, []).append(f"network.{name}")
        return [Stage(f"layer {number}", tuple(members[layer])) for number, layer in enumerate(sorted(members))]

    def no_weight_decay(self) -> set[str]:
        """What timm's model excludes: position embeddings and the like."""
        names = getattr(self.network, "no_weight_decay", set)
        return {f"network.{name}" for name in names()}

    @classmethod
    def input_spec(cls, name: str = "tf_efficientnet_lite0", weights: str = "default", **options: Any) -> InputSpec:
        """From timm's pre-trained configuration; a local file is taken to be like the default weights."""
        config = _config(name, weights)
        if weights == "none":
            least = max(config.min_input_size[1:]) if config.min_input_size else 0
            return InputSpec(image_size=config.input_size[1] if config.fixed_input_size or least > USUAL else None)
        size, mean, std = config.input_size[1], list(config.mean), list(config.std)
        interpolation: Literal["bilinear", "bicubic"] = "bicubic" if config.interpolation == "bicubic" else "bilinear"
        return InputSpec(size, 3, mean, std, interpolation, config.crop_pct)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError("timm's networks need the package timm: pip install 'imgcls[timm]'") from error
    return timm


def _config(name: str, weights: str) -> Any:
    """Timm's metadata of a network: input size, normalisation, where its weights are."""
    timm = _timm()
    known = timm.list_models()
    base = name.split(".")[0]
    if base not in known:
        raise UserError(
            f"--model.backbone.name: timm has no network {name!r}{near(base, known)}; "
            "`python -m imgcls backbones PATTERN` lists them"
        )
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if config is None:
        tags = timm.list_pretrained(f"{base}.*")
        raise UserError(f"--model.backbone.name: timm has no weights {name!r}; it has {', '.join(tags) or 'none'}")
    if weights == "default" and not config.has_weights:
        raise UserError(
            f"--model.backbone.weights: timm has no pre-trained weights of {name}; "
            "give a file or --model.backbone.weights=none"
        )
    return config


def _create(name: str, pretrained: bool, arguments: dict[str, Any], known: int) -> nn.Module:
    """A network; one of pre-trained weights is made for the number of channels that these know, and then adapted."""
    channels = arguments["in_chans"]
    if pretrained and channels != known:
        network = _create(name, pretrained, arguments | {"in_chans": known}, known)
        first = first_convolution(network)
        if first is not None and first[1].in_channels == known:
            set_channels(*first, channels)
            return network
        log.info(f"{name}: its first layer is adapted from {known} to {channels} channels by timm")
    if pretrained:
        from huggingface_hub import constants

        if unreachable(constants.ENDPOINT):
            constants.HF_HUB_OFFLINE = True  # what it has downloaded before, or an error at once in place of ten trials
    try:
        return _timm().create_model(name, pretrained=pretrained, **arguments)
    except (TypeError, AssertionError) as error:
        raise UserError(f"{name}: cannot be built with {arguments} ({one_line(error)})") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise no_download(name, error) from error
