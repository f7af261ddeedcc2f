"""Policies against the operations, strengths and probabilities of Pillow, torchvision and timm."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy.stats import chisquare
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from imgcls.augment import policy as policies
from imgcls.augment.large_images import carry_out_each
from imgcls.augment.operations import GEOMETRIC, carry_out, plan
from imgcls.augment.policy import (
    AugMix,
    AutoAugment,
    RandAugment,
    ThreeAugment,
    TorchvisionRandAugment,
    TrivialAugmentWide,
)

torch.manual_seed(0)
PHOTOS = (tv.gaussian_blur(torch.rand(6, 3, 64, 64), [9, 9]).sub_(0.3).mul_(2.5).clamp_(0, 1) * 255).byte()
LABEL = torch.arange(12)


def kind(policy):
    return type(policy).__name__


BYTES = (torch.rand(2, 3, 32, 40) * 255).byte()
BYTES[0, :, :8] = 0
REFERENCE = {  # value, and the same by Pillow
    "brightness": (1.7, lambda x: ImageEnhance.Brightness(x).enhance(1.7)),
    "color": (0.3, lambda x: ImageEnhance.Color(x).enhance(0.3)),
    "contrast": (1.8, lambda x: ImageEnhance.Contrast(x).enhance(1.8)),
    "sharpness": (1.9, lambda x: ImageEnhance.Sharpness(x).enhance(1.9)),
    "posterize": (3.0, lambda x: ImageOps.posterize(x, 3)),
    "solarize": (100 / 255, lambda x: ImageOps.solarize(x, 100)),
    "autocontrast": (0.0, ImageOps.autocontrast),
    "equalize": (0.0, ImageOps.equalize),
    "invert": (0.0, ImageOps.invert),
}


def carried_out(image, name, value):
    choice = torch.zeros(len(image), dtype=torch.int64)
    steps = plan(choice, torch.full((len(image),), value), (name,), image.shape)
    return carry_out(image, steps)


@pytest.mark.parametrize("name", REFERENCE)
def test_an_operation_of_a_policy_gives_what_pillow_gives(name):
    value, pillows = REFERENCE[name]
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in BYTES]
    theirs = torch.stack([tv.pil_to_tensor(pillows(image)) for image in images]).int()
    difference = (carried_out(BYTES, name, value).int() - theirs).abs()
    # Pillow cuts blends to whole numbers where ours are rounded, and its arithmetic is of 32 bits
    assert difference.max() <= (1 if name in ("color", "contrast", "sharpness", "autocontrast") else 0)


def one_by_one(image, name, value):
    steps = plan(torch.zeros(len(image), dtype=torch.int64), torch.full((len(image),), value), (name,), image.shape)
    return carry_out_each(image, [steps], torch.arange(len(image)))


@pytest.mark.parametrize("way", [carried_out, one_by_one])
def test_equalize_leaves_an_even_image(way):
    even = torch.full((1, 1, 4, 4), 51, dtype=torch.uint8)
    assert torch.equal(way(even, "equalize", 0.0), even)
    assert torch.equal(way(even, "autocontrast", 0.0), even)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [*RandAugment.names, "blur", "identity"])
def test_an_operation_on_large_images_is_that_on_small_ones(name, channels, layout):
    image = torch.cat([PHOTOS, PHOTOS[:1] // 9])[:, :channels, :, :50].contiguous(memory_format=layout)
    shares = name.startswith(("shear", "translate", "solarize"))
    values = (0.0, 0.3117, -0.2113, 1.4771, -2.0) if shares else (0.1, 1.0, 1.9, 5.0)
    for value in values:
        here, there = one_by_one(image, name, value), carried_out(image, name, value)
        difference = (here.int() - there.int()).abs()
        # a number may lie between two levels as far as 32 bits tell, which is rare for these fractions of a pixel
        assert difference.max() <= 1 and difference.float().mean() < 0.03, value
        assert name in GEOMETRIC or torch.equal(here, there)


@pytest.mark.parametrize("policy", [TrivialAugmentWide(), RandAugment(p=0.7), AutoAugment(), AugMix()], ids=kind)
def test_large_images_come_in_their_order(policy, monkeypatch):
    torch.manual_seed(0)
    image = PHOTOS.repeat(4, 1, 1, 1)
    parameters, _ = policy.sample(image.shape)
    there, _ = policy.transform(image, image, parameters)
    monkeypatch.setattr(policies, "LARGE", 0)
    here, _ = policy.transform(image, image, parameters)
    assert here.dtype == there.dtype and not torch.equal(here, image)
    difference = (here.double() - there.double()).abs() * (255 if here.dtype == torch.float32 else 1)
    assert difference.mean() < 0.03


@pytest.mark.parametrize("shift", [3.0, -7.0, 64.0, -100.0])
def test_a_shift_by_whole_pixels_moves_them(shift):
    columns = np.pad(PHOTOS.numpy(), ((0, 0), (0, 0), (0, 0), (100, 100)))
    expected = columns[..., 100 - int(shift) : 164 - int(shift)]
    assert np.array_equal(one_by_one(PHOTOS, "translate_x", shift / 64).numpy(), expected)
    rows = one_by_one(PHOTOS.mT.contiguous(), "translate_y", shift / 64)
    assert np.array_equal(rows.mT.numpy(), expected)


@pytest.mark.parametrize("level", [0, 4, 9])
@pytest.mark.parametrize("policy", [TrivialAugmentWide(), TorchvisionRandAugment(), AutoAugment()], ids=kind)
def test_operations_of_torchvisions_policies_are_torchvisions(policy, level):
    reference = policy.reference(interpolation=tv.InterpolationMode.BILINEAR)
    image = PHOTOS[:2]
    for key, (strengths, signed) in policy.reference._AUGMENTATION_SPACE.items():
        number = [name.replace("_", "") for name in policy.names].index(key.lower())
        strength = strengths(policy.levels, 224, 224)
        choice, drawn = torch.full((2,), number), torch.full((2,), level)
        for sign in (1, -1):
            magnitude = 0.0 if strength is None else float(strength[level]) * (sign if signed else 1)
            if key.startswith("Translate"):
                magnitude *= 64 / 224  # the same share of these images
            theirs = reference._apply_image_or_video_transform(image, key, magnitude, reference.interpolation, {})
            value = policy.values(choice, drawn, torch.full((2,), float(sign)), image.shape)
            ours = carry_out(image, plan(choice, value, policy.names, image.shape))
            difference = (ours.int() - theirs.int()).abs()
            # torchvision cuts blends, and the image that it blends with, to whole numbers
            assert difference.max() <= (2 if key in ("Color", "Contrast", "Sharpness") else 1), key


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_geometry_of_rand_augment_is_timms(name):
    from timm.data import auto_augment as ta

    image = PHOTOS[:1]
    value = {"rotate": -20.0, "shear_x": 0.25, "shear_y": -0.25, "translate_x": 0.2, "translate_y": -0.3}[name]
    function = {n: getattr(ta, n + "_rel" * n.startswith("trans")) for n in GEOMETRIC}[name]
    given = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    # timm moves to the other side; the sign is drawn
    theirs = function(given, -value if name.startswith("translate") else value, resample=Image.Resampling.BILINEAR)
    ours = carried_out(image, name, value)[0]
    difference = (ours.int() - tv.pil_to_tensor(theirs).int()).abs()
    assert (difference > 2).float().mean() < 0.04  # at the border Pillow has black where ours fades
    assert (ours.int() - image[0].int()).abs().float().mean() > 5


def frequencies_agree(drawn, expected):
    counts = torch.bincount(drawn, minlength=len(expected)).numpy()
    return chisquare(counts, counts.sum() * np.asarray(expected)).pvalue > 1e-3


@pytest.mark.parametrize("policy", [TrivialAugmentWide(), TorchvisionRandAugment(), RandAugment()], ids=kind)
def test_operations_come_with_equal_probability(policy):
    torch.manual_seed(0)
    parameters, _ = policy.sample(torch.Size((2000, 3, 32, 32)))
    for choice, value in zip(parameters["choice"].unbind(1), parameters["value"].unbind(1), strict=True):
        effect = choice[choice >= 0]
        assert frequencies_agree(effect, [1 / len(policy.names)] * len(policy.names))
        assert abs(len(effect) / 2000 - (0.5 if isinstance(policy, RandAugment) else 1.0)) < 0.05
        turned = value[choice == policy.names.index("rotate")]
        assert 0.3 < (turned > 0).float().mean() < 0.7
        if isinstance(policy, TrivialAugmentWide):  # 31 strengths, of which 0 has no sign
            assert len(turned.abs().unique()) > 25 and turned.abs().max() <= 135
        else:
            strength = 30 * 9 / 30 if isinstance(policy, TorchvisionRandAugment) else 27.0
            assert abs(turned.abs().mean() - strength) < 1


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "svhn"])
def test_auto_augment_draws_torchvisions_pairs(name):
    torch.manual_seed(0)
    policy = AutoAugment(name)
    pairs = v2.AutoAugment(v2.AutoAugmentPolicy(name))._policies
    parameters, _ = policy.sample(torch.Size((20000, 3, 32, 32)))
    keys = [n.replace("_", "") for n in policy.names]
    for place in range(2):
        expected = np.zeros(len(keys) + 1)
        for pair in pairs:
            key, p, _ = pair[place]
            expected[keys.index(key.lower())] += p / 25
            expected[-1] += (1 - p) / 25
        drawn = parameters["choice"][:, place]
        assert frequencies_agree(torch.where(drawn < 0, len(keys), drawn)[: 2000 * 10], expected + 1e-12)


def test_three_augment_is_gray_inverted_or_blurred():
    image = PHOTOS.repeat(40, 1, 1, 1)
    policy = ThreeAugment()
    torch.manual_seed(0)
    parameters, _ = policy.sample(image.shape)
    result, _ = policy.transform(image, image, parameters)
    choice = parameters["choice"][:, 0]
    assert frequencies_agree(choice, [1 / 3] * 3)
    for given, changed, number, value in zip(image, result, choice, parameters["value"][:, 0], strict=True):
        photo = Image.fromarray(given.permute(1, 2, 0).numpy())
        theirs = [
            lambda photo: photo.convert("L").convert("RGB"),
            ImageOps.solarize,
            lambda photo: photo.filter(ImageFilter.GaussianBlur(value.item())),  # noqa: B023
        ][number](photo)
        difference = (changed.int() - tv.pil_to_tensor(theirs).int()).abs()[:, 6:-6, 6:-6]
        # Pillow blurs by boxes of whole and part pixels
        assert difference.max() <= (1, 0, 6)[number] and difference.float().mean() < 1.0


def test_rand_augment_has_timms_strengths():
    from timm.data import auto_augment as ta

    ours, hparams = RandAugment(), {"translate_pct": 0.45}
    levels = {
        "posterize": ta._posterize_increasing_level_to_arg,
        "solarize": ta._solarize_increasing_level_to_arg,
        "solarize_add": ta._solarize_add_level_to_arg,
    }
    for name, level_to_arg in levels.items():
        number = ours.names.index(name)
        for level in (0.0, 3.0, 7.5, 10.0):
            value = ours.values(torch.tensor([number]), torch.tensor([level / 10]), torch.ones(1)).item()
            expected = level_to_arg(level, hparams)[0]
            assert value * (1 if name == "posterize" else 255) == pytest.approx(expected)
    value = {n: ours.values(torch.tensor([k]), torch.ones(1), torch.ones(1)).item() for k, n in enumerate(ours.names)}
    assert (
        value["rotate"] == 30 and value["shear_x"] == pytest.approx(0.3) and value["translate_y"] == pytest.approx(0.45)
    )
    assert value["color"] == value["sharpness"] == pytest.approx(1.9)
    increasing = {n.removesuffix("Increasing").removesuffix("Rel").lower() for n in ta._RAND_INCREASING_TRANSFORMS}
    assert increasing == {n.replace("_", "") for n in ours.names}


@pytest.mark.parametrize("policy", [TrivialAugmentWide(), RandAugment(p=1.0), AugMix()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_draws_its_own_operation(policy, channels):
    one = torch.rand(1, channels, 32, 32)
    torch.manual_seed(0)
    result, _ = policy(one.expand(64, -1, -1, -1).clone(), torch.zeros(64, dtype=torch.int64))
    assert result.shape == (64, channels, 32, 32) and result.min() >= 0 and result.max() <= 1
    assert len({row.numpy().tobytes() for row in result}) > 32  # Kornia's gives one or two


def test_rand_augment_without_effect_changes_nothing():
    assert torch.equal(RandAugment(p=0.0)(BYTES, LABEL[:2])[0], BYTES)
