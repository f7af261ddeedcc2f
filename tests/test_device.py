"""Augmentation as a GPU carries it out: the same pictures, few operations, one copy. Counted on the meta device."""

from collections import Counter

import kornia.augmentation as K
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imgcls.augment.base import moved, on_device
from imgcls.augment.color import ColorJitter
from imgcls.augment.crop import RandomCrop, RandomHorizontalFlip, RandomResizedCrop
from imgcls.augment.erasing import RandomErasing
from imgcls.augment.mixing import CutMix, MixUp
from imgcls.augment.pipeline import OneOf, Pipeline
from imgcls.augment.policy import AugMix, RandAugment, TrivialAugmentWide
from imgcls.augment.warp import Warp
from imgcls.data.options import normalize

from .test_augment import PRESETS, prepared, preset

VIEWS = "view expand slice select.int unsqueeze permute transpose t.default alias unbind detach split as_strided empty"
NHWC = torch.channels_last
LABEL = torch.arange(40) % 10


class Counted(TorchDispatchMode):
    """Counts operations on another device than the CPU, and copies to and from it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.to_device = self.to_host = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        before, after = (
            {leaf.device.type for leaf in tree_leaves(of) if isinstance(leaf, torch.Tensor)}
            for of in ((args, kwargs), result)
        )
        if before == {"cpu"} and "meta" in after:
            self.to_device += 1
        elif "meta" in before and after == {"cpu"}:
            self.to_host += 1
        elif "meta" in before | after and not any(name in str(function) for name in VIEWS.split()):
            self.operations[str(function)] += 1
        return result


def counted(augment, count, size=224, order=torch.contiguous_format) -> Counted:
    """Augment and normalise so many images on the meta device, whose constants are there already."""
    prepared(augment, size)
    side = round(size * augment.margin)
    image = torch.empty(count, 3, side, side, dtype=torch.uint8, device="meta").contiguous(memory_format=order)
    label = torch.empty(count, dtype=torch.int64, device="meta")

    def to_normal(image):
        return normalize(image, [0.5] * 3, [0.25] * 3)

    for like in (image, image.float()):
        to_normal(like)
    with Counted() as mode:
        augment.normalized(image, label, to_normal)
    return mode


CROP = [RandomResizedCrop(), RandomHorizontalFlip()]
JITTER = ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
MIX = OneOf([MixUp(), CutMix()])
LIMITS = {
    "colour": (40, lambda: [*CROP, JITTER, RandomErasing()]),
    "padded crop": (40, lambda: [RandomCrop(), RandomHorizontalFlip(), JITTER, RandomErasing()]),
    "reflected crop": (40, lambda: [RandomCrop(mode="reflect"), RandomHorizontalFlip(), JITTER, RandomErasing()]),
    "rotation": (
        40,
        lambda: [*CROP, K.RandomVerticalFlip(), K.RandomRotation(15.0), K.ColorJitter(0.4, 0.4, 0.4, 0.1)],
    ),
    "trivial": (80, lambda: [*CROP, TrivialAugmentWide(), RandomErasing(), MIX]),
    "rand": (80, lambda: [*CROP, RandAugment(p=1.0), RandomErasing(), MIX]),
    "augmix": (85, lambda: [AugMix(), RandomErasing()]),
}


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("name", LIMITS)
def test_operations_are_few_and_do_not_grow_with_the_batch(name, order):
    limit, operations = LIMITS[name]
    small, large = (sum(counted(Pipeline(operations()), n, order=order).operations.values()) for n in (128, 512))
    assert small <= limit and large <= limit
    assert large <= small + 2  # a kind of operation may be missing in a small batch


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_parameters_of_a_preset_go_over_in_one_copy(path):
    augment = preset(path)
    if augment is not None:
        mode = counted(augment, 64)
        assert (mode.to_device, mode.to_host) == (1, 0)


def images(count, channels, side):
    """Photo-like images: smooth, with some noise."""
    coarse = torch.nn.functional.interpolate(torch.rand(count, channels, 6, 6), size=(side, side), mode="bicubic")
    return ((coarse + 0.03 * torch.randn(count, channels, side, side)).clamp(0, 1) * 255).byte()


def on_both_ways(augment, image, label, seed):
    """Result on the CPU, and by the way of other devices, with the same random numbers."""
    torch.manual_seed(seed)
    here = augment(image, label)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    there = on_device(list(augment.operations), image, label)
    assert torch.equal(torch.get_rng_state(), state)  # as many numbers were drawn
    return here, there


def assert_same_pictures(mine, theirs, rough):
    """On uint8, the CPU's resize rounds twice: one level off in a sixth of the pixels, which a policy's table may put
    further apart (`rough`). All else agrees but where a number lies between two levels.
    """
    difference = (mine.double() - theirs.double()).abs() * (255 if mine.dtype == torch.float32 else 1)
    assert difference.mean() < (0.8 if rough else 0.02)
    assert (difference > (16 if rough else 1.01)).double().mean() < (2e-2 if rough else 2e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_a_device_makes_the_pictures_of_the_cpu(path, channels, dtype):
    augment = preset(path)
    if augment is None:
        return
    prepared(augment, 48)
    for step in augment.operations:
        if isinstance(step, RandomErasing):
            step.std = [0.0]  # noise is drawn where the images are
    rough = dtype == torch.uint8 and any(isinstance(step, RandomResizedCrop) for step in augment.operations)
    for seed in range(3):
        image = images(40, channels, round(48 * augment.margin))
        image = image / 255 if dtype == torch.float32 else image
        (mine, label_of_mine), (theirs, label_of_theirs) = on_both_ways(augment, image, LABEL, seed)
        assert mine.dtype == theirs.dtype and torch.equal(label_of_mine, label_of_theirs)
        assert_same_pictures(mine, theirs, rough)


def test_the_resize_of_a_device_is_that_of_the_cpu():
    crop = prepared(RandomResizedCrop(), 96)
    image = images(30, 3, 130)[..., 10:]
    parameters, _ = crop.sample(image.shape)
    plan = crop.plan(parameters, image.shape)
    for of, tolerance in ((image, 1), (image.float(), 1e-3), (image.float().contiguous(memory_format=NHWC), 1e-3)):
        here, there = crop.transform(of, LABEL, parameters)[0], crop.transform_on_device(of, LABEL, plan)[0]
        assert here.shape == there.shape == (30, 3, 96, 96) and here.dtype == there.dtype
        assert (here.float() - there.float()).abs().max() <= tolerance


@pytest.mark.parametrize("name", ["jitter", "rotation", "erasing", "flips", "hue"])
def test_an_operation_on_a_device_changes_what_it_changes_on_the_cpu(name):
    operation = {
        "jitter": lambda: JITTER,
        "hue": lambda: ColorJitter(0.0, 0.0, 0.0, 0.5, p=1.0),
        "rotation": lambda: Warp([K.RandomHorizontalFlip(), K.RandomRotation(30.0, p=0.5)]),
        "erasing": lambda: RandomErasing(value=0.3),
        "flips": lambda: Warp([K.RandomHorizontalFlip(), K.RandomVerticalFlip()]),
    }[name]()
    image = images(40, 3, 31)[..., :27] / 255
    parameters, shape = operation.sample(image.shape)
    here = operation.transform(image, LABEL, parameters)[0]
    there = operation.transform_on_device(image, LABEL, operation.plan(parameters, image.shape))[0]
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)
    same, same_there = (((of - image).abs() < 1e-6).all(3).all(2).all(1) for of in (here, there))
    assert torch.equal(same, same_there)
    assert same.any() == (name != "hue") and not same.all()


def test_a_flip_after_a_crop_costs_nothing_on_a_device():
    for crop in (RandomCrop(), RandomCrop(mode="reflect"), RandomResizedCrop()):
        alone, mirrored = (sum(counted(Pipeline(of), 64).operations.values()) for of in ([crop], [crop, CROP[1]]))
        assert alone == mirrored


@pytest.mark.parametrize("seed", range(4))
def test_what_is_moved_arrives(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 7, (6,), generator=generator).tolist()
    kinds = [torch.float32, torch.int64, torch.bool, torch.uint8, torch.float64, torch.int32]
    tensors = [(100 * torch.rand(n, 3, generator=generator)).to(kind) for n, kind in zip(sizes, kinds, strict=True)]
    tree = [{"one": tensors[0], "number": 3, "list": [tensors[1], None]}, {"rest": tensors[2:], "name": "x"}]
    arrived = moved(tree, torch.device("cpu"))
    assert arrived[0]["number"] == 3 and arrived[0]["list"][1] is None and arrived[1]["name"] == "x"
    for before, after in zip(tree_leaves(tree), tree_leaves(arrived), strict=True):
        assert not isinstance(before, torch.Tensor) or torch.equal(before, after) and before.dtype == after.dtype
