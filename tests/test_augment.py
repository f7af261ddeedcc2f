from pathlib import Path

import pytest
import torch
import yaml
from kornia.augmentation import RandomRotation
from kornia.augmentation.auto import RandAugment

from imgcls.augment.base import on_device
from imgcls.augment.crop import RandomCrop, RandomHorizontalFlip, RandomResizedCrop
from imgcls.augment.erasing import RandomErasing
from imgcls.augment.mixing import CutMix, MixUp
from imgcls.augment.pipeline import OneOf, Pipeline, fused
from imgcls.errors import UserError

from .conftest import ROOT

PRESETS = sorted((ROOT / "configs/augment").glob("*.yaml"))
LABEL = torch.arange(64) % 10


def prepared(operation, size=28):
    operation.configure(size, 10)
    return operation


def preset(path: Path) -> Pipeline | None:
    from jsonargparse import ArgumentParser

    from imgcls.augment.base import Augmentation

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--augment", type=Augmentation | None)
    config = parser.parse_object({"augment": yaml.safe_load(path.read_text())["data"]["augment"]})
    return parser.instantiate(config).augment


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_presets_give_images_of_the_right_size_and_every_sample_its_own_draw(path, channels):
    augment = preset(path)
    if augment is None:
        assert path.stem == "none"
        return
    prepared(augment)
    side = round(28 * augment.margin)
    one = torch.randint(0, 256, (1, channels, side, side), dtype=torch.uint8)
    torch.manual_seed(0)
    image, label = augment(one.expand(64, -1, -1, -1).clone(), torch.zeros(64, dtype=torch.int64))
    assert image.shape == (64, channels, 28, 28)
    distinct = len({row.numpy().tobytes() for row in image})
    # a flip alone has two outcomes; everything else has more than the sixteen that chance must leave of 64
    assert distinct == 2 if path.stem == "flip" else distinct > 16
    noise = any(isinstance(step, RandomErasing) and any(step.std) for step in augment.operations)
    if image.is_floating_point() and not noise:
        assert image.min() >= 0 and image.max() <= 1 + 1e-5
    if label.ndim == 2:
        torch.testing.assert_close(label.sum(1), torch.ones(64))
    torch.manual_seed(0)
    again, _ = augment(one.expand(64, -1, -1, -1).clone(), torch.zeros(64, dtype=torch.int64))
    assert torch.equal(image, again)


def test_indexing_stays_on_uint8_and_arithmetic_starts_in_zero_to_one():
    image = torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8)
    crop = [RandomCrop(), RandomHorizontalFlip()]
    assert prepared(Pipeline(crop))(image, LABEL[:4])[0].dtype == torch.uint8
    still = [*crop, RandomRotation(0.0, p=1.0)]
    assert prepared(Pipeline(still))(image, LABEL[:4])[0].dtype == torch.float32


def test_kornia_policies_can_be_listed():
    image = torch.rand(4, 3, 28, 28)
    assert prepared(Pipeline([RandAugment(1, 5)]))(image, LABEL[:4])[0].shape == image.shape


@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_crop_equals_padding_and_slicing(mode):
    image = torch.rand(5, 2, 8, 8)
    crop = prepared(RandomCrop(0.25, mode), 8)
    top, left = torch.tensor([0, 4, 2, 1, 3]), torch.tensor([4, 0, 2, 3, 1])
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode=mode)
    expected = torch.stack([padded[b, :, t : t + 8, x : x + 8] for b, (t, x) in enumerate(zip(top, left, strict=True))])
    byte = (image * 255).byte().contiguous(memory_format=torch.channels_last)
    parameters = {"top": top, "left": left}
    plan = crop.plan(parameters, image.shape)
    for of, result in ((image, expected), (byte, (expected * 255).byte())):
        assert torch.equal(crop.transform(of, LABEL, parameters)[0], result)
        assert torch.equal(crop.transform_on_device(of, LABEL, plan)[0], result)


def test_crop_takes_all_places():
    image = torch.arange(36.0).view(1, 1, 6, 6).expand(400, -1, -1, -1)
    corners = prepared(RandomCrop(padding=0.0), 4)(image, LABEL)[0][:, 0, 0, 0]
    assert set(corners.int().tolist()) == {0, 1, 2, 6, 7, 8, 12, 13, 14}


@pytest.mark.parametrize("p, share", [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3)])
def test_flip_mirrors_the_share_that_was_asked_for(p, share):
    image = torch.arange(4.0).view(1, 1, 1, 4).expand(2000, -1, -1, -1)
    flipped = prepared(RandomHorizontalFlip(p))(image, LABEL)[0]
    mirrored = (flipped[:, 0, 0, 0] == 3).float().mean().item()
    assert abs(mirrored - share) < (0.04 if 0 < p < 1 else 1e-9)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_small_and_large_images_are_mirrored_alike(dtype, monkeypatch):
    image = (torch.rand(40, 3, 6, 5) * 255).to(dtype)
    before, results = image.clone(), []
    for large in (1, 1 << 20):
        monkeypatch.setattr("imgcls.augment.crop.LARGE", large)
        torch.manual_seed(0)
        results.append(RandomHorizontalFlip()(image, LABEL)[0])
    assert torch.equal(*results) and torch.equal(image, before) and not torch.equal(results[0], image)


def test_resized_crop_comes_to_the_models_size():
    assert prepared(RandomResizedCrop(), 24)(torch.rand(3, 3, 40, 40), LABEL[:3])[0].shape == (3, 3, 24, 24)


def test_mixup_is_the_papers_formula():
    image, label = torch.rand(2, 1, 4, 4), torch.tensor([3, 7])
    mixup = prepared(MixUp())
    parameters = mixup.parameters_of(torch.tensor([0.25, 0.9]), torch.tensor([1, 0]))
    mixed, soft = mixup.transform(image, label, parameters)
    torch.testing.assert_close(mixed[0], 0.25 * image[0] + 0.75 * image[1])
    torch.testing.assert_close(mixed[1], 0.9 * image[1] + 0.1 * image[0])
    assert soft[0, 3] == 0.25 and soft[0, 7] == 0.75


def test_cutmix_replaces_the_box_and_weighs_labels_by_area():
    image, label = torch.stack([torch.zeros(1, 4, 8), torch.ones(1, 4, 8)]), torch.tensor([3, 7])
    box = torch.tensor([[2, 1, 6, 3], [0, 0, 0, 0]])  # left, top, right, bottom
    cutmix = prepared(CutMix())
    mixed, soft = cutmix.transform(image, label, cutmix.parameters_of(box, torch.tensor([1, 0]), image.shape))
    expected = torch.zeros(4, 8)
    expected[1:3, 2:6] = 1
    assert torch.equal(mixed[0, 0], expected) and torch.equal(mixed[1], image[1])
    assert soft[0, 3] == 0.75 and soft[0, 7] == 0.25 and soft[1, 7] == 1


@pytest.mark.parametrize("operation", [MixUp(p=0.0), CutMix(p=0.0)])
def test_mixing_with_probability_zero_is_the_identity(operation):
    image = torch.rand(64, 1, 8, 8)
    mixed, soft = prepared(operation)(image, LABEL)
    torch.testing.assert_close(mixed, image)
    assert torch.equal(soft.argmax(1), LABEL) and torch.equal(soft.max(1).values, torch.ones(64))


def test_labels_of_a_mix_tell_what_is_in_the_image():
    label = torch.arange(64) % 10
    image = (label / 10).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)  # the pixels are the label
    either = OneOf([MixUp(alpha=1.0), CutMix()])
    for operation in (MixUp(alpha=1.0), CutMix(), either, Pipeline([either])):
        mixed, soft = prepared(operation)(image.clone(), label)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), soft @ (torch.arange(10) / 10), atol=1e-5, rtol=0)


def test_one_of_uses_each_operation_for_about_its_share():
    image = torch.arange(4.0).view(1, 1, 1, 4).expand(1000, -1, -1, -1)
    operation = prepared(OneOf([RandomHorizontalFlip(1.0), RandomHorizontalFlip(0.0)]))
    flipped = (operation(image, torch.zeros(1000, dtype=torch.int64))[0][:, 0, 0, 0] == 3).float().mean()
    assert 0.42 < flipped < 0.58


@pytest.mark.parametrize("channels", [1, 3])
def test_erasing_writes_a_value_or_noise_for_each_channel(channels):
    image, label = torch.zeros(400, channels, 16, 16), torch.zeros(400, dtype=torch.int64)
    mean, std = [0.2, 0.4, 0.9], [0.1, 0.2, 0.3]
    for operation in (RandomErasing(value=mean, p=1.0), RandomErasing(value=mean, std=std, p=1.0)):
        torch.manual_seed(0)
        here, _ = operation(image, label)
        torch.manual_seed(0)
        there, _ = on_device([operation], image, label)
        erased = (here != 0).any(1)
        assert torch.equal(erased, (there != 0).any(1)) and 0.02 < erased.float().mean() < 0.33
        for result in (here, there):
            inside = result.permute(1, 0, 2, 3)[:, erased]
            expected_mean, expected_std = (torch.tensor(of) for of in (mean, std if any(operation.std) else [0.0] * 3))
            if channels == 1:
                expected_mean, expected_std = expected_mean.mean(0, True), expected_std.mean(0, True)
            torch.testing.assert_close(inside.mean(1), expected_mean, atol=0.01, rtol=0)
            torch.testing.assert_close(inside.std(1), expected_std, atol=0.01, rtol=0)
    with pytest.raises(UserError, match="RandomErasing: .* 2 numbers"):
        RandomErasing(value=[0.1, 0.2])(torch.zeros(1, 3, 8, 8), label)


def test_mixing_by_batch_draws_once_and_by_image_for_each():
    shape = torch.Size((64, 1, 16, 16))
    for per, distinct in (("batch", 1), ("image", 10)):
        operations = [MixUp(alpha=1.0, per=per), CutMix(per=per)]
        for operation in (*operations, *fused([OneOf(operations, per)])):
            torch.manual_seed(0)
            share = operation.sample(shape)[0]["share"]
            assert (len(share.unique()) == 1) == (per == "batch") and len(share.unique()) >= distinct
    kinds = {operation.sample(shape)[0]["row"][0].unique().numel() == 1 for _ in range(20)}
    assert kinds == {True, False}
