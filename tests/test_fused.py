"""Our faster ways against Kornia and torchvision, with the very same parameters."""

import kornia.augmentation as K
import pytest
import torch
from kornia.augmentation.container import ImageSequential
from kornia.enhance import adjust_hue
from torchvision.transforms.v2 import functional as tv

from imgcls.augment.color import plan_hue, turn_hue
from imgcls.augment.pipeline import Kornia, Pipeline, fused
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
