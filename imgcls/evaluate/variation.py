"""Test images under another size, orientation, lighting or background, and with common corruptions.

Each variation is a function of float32 images (B, C, H, W) in 0..1, a severity from 1 to 5 and a generator on the CPU,
to images of the same shape and range. Random parameters are sampled for each image.

The four first are the ways in which photos of one thing differ. The strengths of noise, contrast and JPEG are those of
Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations (ICLR 2019),
Gaussian noise, contrast and JPEG; blur is theirs at 224 px in shares of the image's side. Rain and fog are simpler than
their weather.
"""

from collections.abc import Callable

import torch
from kornia.augmentation import RandomRain
from kornia.enhance import jpeg_codec_differentiable
from kornia.filters import gaussian_blur2d
from kornia.geometry.transform import rotate, scale
from torch import Tensor
from torch.nn import functional as F

SEVERITIES = (1, 2, 3, 4, 5)
Variation = Callable[[Tensor, int, torch.Generator], Tensor]


def size(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Smaller by up to 0.4, or larger by the inverse; the border's pixels fill what becomes free."""
    factor = (0.9, 0.75, 0.6, 0.5, 0.4)[severity - 1]
    factor_B = torch.where(_coin(image, generator), 1 / factor, factor).to(image.device)
    return scale(image, factor_B[:, None].expand(-1, 2), padding_mode="border")


def orientation(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Rotated by 10 to 90 degrees to the left or to the right; the border's pixels fill what becomes free."""
    degrees = (10.0, 20.0, 35.0, 60.0, 90.0)[severity - 1]
    degrees_B = torch.where(_coin(image, generator), -degrees, degrees).to(image.device)
    return rotate(image, degrees_B, padding_mode="border")


def lighting(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Darker, x·g, or brighter, 1 - (1 - x)·g, with g down to 0.2."""
    gain = (0.8, 0.65, 0.5, 0.35, 0.2)[severity - 1]
    brighter = _coin(image, generator).to(image.device).view(-1, 1, 1, 1)
    return torch.where(brighter, 1 - (1 - image) * gain, image * gain)


def background(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """What lies outside of a centred circle fades into a smooth random texture of random colours.

    The circle has 0.8 of the image's diameter; towards the corners the texture takes up to 1/5 … all of the pixel.
    """
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    outside = ((x.square() + y.square()).sqrt().sub(0.8) / 0.2).clamp(0, 1).to(image.device) * severity / 5
    return image * (1 - outside) + _texture(image, image.shape[1], generator) * outside


def noise(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Gaussian noise of each pixel, deviation 0.08 to 0.38."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    noise = torch.randn(image.shape, generator=generator).to(image.device)
    return (image + deviation * noise).clamp(0, 1)


def blur(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Gaussian blur of deviation 1, 2, 3, 4, 6 px in an image of 224 px, and in proportion in others."""
    sigma = (1, 2, 3, 4, 6)[severity - 1] * image.shape[-1] / 224
    kernel = 2 * max(1, round(3 * sigma)) + 1
    return gaussian_blur2d(image, (kernel, kernel), (sigma, sigma), border_type="replicate")


def contrast(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Contrast about the image's own mean, 0.4 to 0.05 of what it was."""
    factor = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = image.mean((1, 2, 3), keepdim=True)
    return mean + factor * (image - mean)


def rain(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Streaks of Kornia's RandomRain, on 1 to 10 % of the image's columns times rows."""
    height, width = image.shape[-2:]
    drops = max(1, round((0.01, 0.02, 0.04, 0.07, 0.1)[severity - 1] * height * width / 4))
    length = max(2, round(height / 12))
    slant = max(1, round(width / 40))
    rainy = RandomRain((drops, drops), (length, length), (-slant, slant), p=1.0)
    seed = int(torch.randint(2**62, (), generator=generator))

    def streaked(rgb: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # Kornia samples from torch's own generator
            torch.manual_seed(seed)
            return rainy(rgb)

    return _in_color(image, streaked)


def fog(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """A bright haze of uneven density, 0.25 to 0.85 at its densest."""
    density = (0.25, 0.4, 0.55, 0.7, 0.85)[severity - 1] * (0.5 + 0.5 * _texture(image, 1, generator))
    return image * (1 - density) + 0.9 * density


def jpeg(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """JPEG of quality 25 down to 7."""
    quality = torch.full((len(image),), (25.0, 18.0, 15.0, 10.0, 7.0)[severity - 1], device=image.device)
    return _in_color(image, lambda rgb: jpeg_codec_differentiable(rgb, quality)).clamp(0, 1)


VARIATIONS: tuple[Variation, ...] = (
    size, orientation, lighting, background, noise, blur, contrast, rain, fog, jpeg
)  # fmt: skip


def vary(image: Tensor, variation: Variation, severity: int, batch: int) -> Tensor:
    """Images of one batch under a variation: the same pixels whatever the model, the device and its dtype.

    Args:
        image: (B, C, H, W) uint8.
        variation: One of VARIATIONS, or another function of that kind.
        severity: 1 to 5.
        batch: Number of the batch; random parameters depend on it alone, so that severities differ in nothing else.

    Returns:
        (B, C, H, W) float32 in 0..1.
    """
    generator = torch.Generator().manual_seed(batch)
    return variation(image.float() / 255, severity, generator)


def _coin(image: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(image), generator=generator) < 0.5


def _texture(image: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """Smooth random values in 0..1, (B, channels, H, W)."""
    coarse = torch.rand(len(image), channels, 4, 4, generator=generator).to(image.device)
    return F.interpolate(coarse, image.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)


def _in_color(image: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change images of any number of channels by what takes three: each as a gray image, unless there are three."""
    if image.shape[1] == 3:
        return change(image)
    gray = [change(channel.expand(-1, 3, -1, -1)).mean(1, keepdim=True) for channel in image.split(1, 1)]
    return torch.cat(gray, 1)
