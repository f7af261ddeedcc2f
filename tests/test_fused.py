"""Our faster ways against Kornia and torchvision, with the very same parameters."""

import kornia.augmentation as K
import pytest
import torch
from kornia.augmentation.container import ImageSequential
from kornia.enhance import adjust_hue
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as tv

from imgcls.augment.color import plan_hue, turn_hue
from imgcls.augment.operations import carry_out, plan
from imgcls.augment.pipeline import Kornia, Pipeline, fused
from imgcls.augment.policy import AugMix, RandAugment, TrivialAugmentWide
from imgcls.augment.warp import Warp

torch.manual_seed(0)
PHOTO = torch.rand(12, 3, 24, 33)
SMOOTH = tv.gaussian_blur(torch.rand(12, 3, 48, 48), [9, 9])
LABEL = torch.arange(12)

OPERATIONS = {
    "rotation": lambda p: K.RandomRotation(40.0, p=p),
    "affine": lambda p: K.RandomAffine(30.0, (0.2, 0.1), (0.7, 1.4), (-10.0, 10.0, -5.0, 5.0), p=p),
    "shear": lambda p: K.RandomShear((-15.0, 15.0), p=p),
    "translate": lambda p: K.RandomTranslate((-0.2, 0.2), (-0.3, 0.3), p=p),
    "horizontal flip": lambda p: K.RandomHorizontalFlip(p=p),
    "vertical flip": lambda p: K.RandomVerticalFlip(p=p),
    "resized crop": lambda p: K.RandomResizedCrop((20, 26), scale=(0.2, 0.9), p=1.0),
    "jitter": lambda p: K.ColorJitter(0.4, 0.3, 0.5, 0.2, p=p),
    "jitter in ranges": lambda p: K.ColorJitter((0.5, 1.0), (1.0, 2.0), (0.0, 0.5), (-0.1, 0.0), p=p),
    "jitter in an order": lambda p: K.ColorJitter(0.4, 0.3, 0.5, 0.2, p=p, order=(3, 0)),
    "hue": lambda p: K.ColorJitter(hue=0.5, p=p),
    "erasing": lambda p: K.RandomErasing((0.02, 0.4), (0.3, 3.3), value=0.5, p=p),
}


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_what_kornia_gives(name, p):
    operation = OPERATIONS[name](p)
    (ours,) = fused([operation])
    assert not isinstance(ours, Kornia)
    torch.manual_seed(1)
    theirs = operation(PHOTO)
    torch.manual_seed(1)
    before = PHOTO.clone()
    result, label = ours(PHOTO, LABEL)
    assert torch.equal(PHOTO, before)
    # float32 rounding, amplified where a sample point lies on the border between two pixels
    torch.testing.assert_close(result, theirs, atol=2e-4, rtol=0)
    assert torch.equal(label, LABEL)
    if p == 0 and name != "resized crop":
        assert torch.equal(result, PHOTO)


def test_neighbouring_geometric_operations_become_one_warp():
    names = ("resized crop", "horizontal flip", "rotation", "affine")
    steps = fused([*(OPERATIONS[n](1.0) for n in names), OPERATIONS["jitter"](1.0), OPERATIONS["rotation"](1.0)])
    assert [type(s).__name__ for s in steps] == ["Warp", "ColorJitter", "Warp"] and len(steps[0].operations) == 4


@pytest.mark.parametrize(
    "names", [("rotation", "affine"), ("horizontal flip", "rotation"), ("resized crop", "vertical flip", "rotation")]
)
def test_composed_geometry_agrees_with_one_after_the_other_inside_the_frame(names):
    operations = [OPERATIONS[n](1.0) for n in names]
    frame = torch.ones_like(SMOOTH)
    torch.manual_seed(2)
    theirs = ImageSequential(*operations)(torch.cat([SMOOTH, frame], 1))
    torch.manual_seed(2)
    ours, _ = fused(operations)[0](torch.cat([SMOOTH, frame], 1), LABEL)
    inside = (theirs[:, 3:] > 0.999).all(1, keepdim=True) & (ours[:, 3:] > 0.999).all(1, keepdim=True)
    assert inside.float().mean() > 0.3
    # smooth images: interpolating twice differs from once only by what it blurs
    assert ((ours - theirs)[:, :3].abs() * inside).max() < 0.05


def test_pure_index_moves_compose_exactly():
    flips = [K.RandomHorizontalFlip(p=0.5), K.RandomVerticalFlip(p=0.5), K.RandomHorizontalFlip(p=0.5)]
    (step,) = fused(flips)
    assert step.on_uint8
    torch.manual_seed(3)
    theirs = flips[2](flips[1](flips[0](PHOTO)))
    torch.manual_seed(3)
    assert torch.equal(step(PHOTO, LABEL)[0], theirs)


def test_what_cannot_be_fused_stays_kornias():
    others = [
        K.RandomAffine(30.0, padding_mode="reflection"),
        K.RandomRotation(30.0, resample="nearest"),
        K.RandomPerspective(),
        K.RandomGaussianBlur((3, 3), (0.1, 2.0)),
        K.ColorJiggle(0.1, 0.1, 0.1, 0.1),
    ]
    assert all(isinstance(step, Kornia) for step in fused(others))


# ---- policies ----

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


def test_equalize_leaves_an_even_image():
    even = torch.full((1, 1, 4, 4), 51, dtype=torch.uint8)
    assert torch.equal(carried_out(even, "equalize", 0.0), even)
    assert torch.equal(carried_out(even, "autocontrast", 0.0), even)


GEOMETRY = {
    "rotate": (30.0, {"angle": 30.0}),
    "translate_x": (0.25, {"translate": [12, 0]}),
    "translate_y": (-0.25, {"translate": [0, -12]}),
    "shear_x": (0.3, {"shear": [16.69924, 0.0]}),  # degrees of the tangent 0.3
    "shear_y": (0.3, {"shear": [0.0, 16.69924]}),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_of_a_policy_goes_the_way_of_torchvision(name):
    value, arguments = GEOMETRY[name]
    image = (SMOOTH[:2] * 255).byte()
    ours = carried_out(image, name, value) / 255
    image = image / 255
    if name == "rotate":
        theirs = tv.rotate(image, value, interpolation=tv.InterpolationMode.BILINEAR)
    else:
        defaults = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
        theirs = tv.affine(image, **(defaults | arguments), interpolation=tv.InterpolationMode.BILINEAR)
    assert (ours - theirs)[:, :, 4:-4, 4:-4].abs().max() < 0.05
    assert (ours - image).abs().max() > 0.1


def test_trivial_augment_has_torchvisions_space():
    from torchvision.transforms import v2

    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    theirs = {"Identity": "identity", "ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "translate_x"}
    theirs |= {"TranslateY": "translate_y", "AutoContrast": "autocontrast", "Color": "color"}
    assert {theirs.get(name, name.lower()) for name in space} == set(TrivialAugmentWide.names)
    ours = TrivialAugmentWide()
    share = torch.linspace(0, 1, 31)
    for name, (magnitudes, signed) in space.items():
        number = ours.names.index(theirs.get(name, name.lower()))
        values = ours.values(torch.full((31,), number), share, torch.ones(31))
        strength = magnitudes(31, 224, 224)
        if strength is None:
            continue
        if name in ("Brightness", "Color", "Contrast", "Sharpness"):
            strength = 1 + strength
        strength = strength / {"TranslateX": 224, "TranslateY": 224, "Solarize": 1}.get(name, 1)
        torch.testing.assert_close(values, strength.float() * torch.ones(31), atol=1e-4, rtol=1e-4)
        assert signed == (not torch.equal(values, ours.values(torch.full((31,), number), share, -torch.ones(31))))


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


def test_a_warp_takes_flips_alone_without_interpolation():
    step = Warp([K.RandomHorizontalFlip(p=0.5), K.RandomRotation(30.0, p=0.3)])
    torch.manual_seed(5)
    result, _ = step(PHOTO, LABEL)
    kept = [torch.equal(r, x) or torch.equal(r, x.flip(-1)) for r, x in zip(result, PHOTO, strict=True)]
    assert 4 <= sum(kept) < 12


@pytest.mark.parametrize("size", [1, 5, 12])
def test_parts_of_a_batch_get_what_was_drawn_for_them(size, monkeypatch):
    operations = [
        OPERATIONS[name](0.5) for name in ("resized crop", "horizontal flip", "jitter", "rotation", "erasing")
    ]
    pipeline = Pipeline(operations)
    byte = (PHOTO * 255).byte()
    torch.manual_seed(4)
    whole, _ = pipeline(byte, LABEL)
    monkeypatch.setattr("imgcls.augment.pipeline.PART", 4 * size * PHOTO[0].numel())
    torch.manual_seed(4)
    parts, _ = pipeline(byte, LABEL)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)
    torch.manual_seed(4)
    normalized, label = pipeline.normalized(byte, LABEL, lambda image: image * 2 - 1)
    torch.testing.assert_close(normalized, 2 * whole - 1, atol=1e-6, rtol=0)
    assert torch.equal(label, LABEL)


@pytest.mark.parametrize("part", [1, 1 << 20])
@pytest.mark.parametrize(
    "operations",
    [
        [K.RandomHorizontalFlip(p=1.0)],
        *([OPERATIONS[first](0.1), K.RandomErasing(p=1.0)] for first in ("horizontal flip", "jitter", "rotation")),
    ],
    ids=["flip", "flip and erasing", "jitter and erasing", "rotation and erasing"],
)
@pytest.mark.parametrize("image", [PHOTO, (PHOTO * 255).byte()], ids=["float", "uint8"])
def test_a_pipeline_leaves_the_batch_that_it_is_given(operations, image, part, monkeypatch):
    monkeypatch.setattr("imgcls.augment.pipeline.PART", part)
    pipeline, before = Pipeline(operations), image.clone()
    for _ in range(8):  # in some, no image takes the first operation
        result, _ = pipeline(image, LABEL)
        assert torch.equal(image, before)
        changed = result if result.dtype == image.dtype else (result * 255).round()
        assert all(not torch.equal(one, two) for one, two in zip(changed.to(image.dtype), image, strict=True))


@pytest.mark.parametrize("twelfths", range(-6, 7))
def test_hue_is_kornias_where_its_cases_meet(twelfths):
    image = PHOTO[:1].clone()
    image[:, :, :4] = image[:, :1, :4]  # gray
    theirs = adjust_hue(image, 2 * torch.pi * twelfths / 12)
    ours = turn_hue(image, plan_hue(torch.tensor([twelfths / 12])))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("kind", [K.RandomAffine, K.RandomRotation, K.RandomShear, K.RandomTranslate])
def test_both_meanings_of_corners_are_kornias(kind, align_corners):
    argument = {K.RandomTranslate: {"translate_x": (-0.3, 0.3)}}.get(
        kind, {"shear" if kind is K.RandomShear else "degrees": 20.0}
    )
    operation = kind(**argument, p=1.0, align_corners=align_corners)
    torch.manual_seed(6)
    theirs = operation(PHOTO)
    torch.manual_seed(6)
    ours, _ = fused([operation])[0](PHOTO, LABEL)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
