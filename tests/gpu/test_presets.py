"""Every preset of configs/augment on the device."""

import pytest
import torch

from imgcls.augment.base import on_device
from imgcls.augment.crop import RandomResizedCrop

from ..test_device import assert_same_pictures, images
from .conftest import TOY, no_waits
from .presets import CLASSES, PRESETS, augmented, batch, preset
from .waits import waits

pytestmark = pytest.mark.gpu
SIZE, COUNT = (32, 4) if TOY else (224, 64)


@pytest.mark.skipif(TOY, reason="a CPU does not wait")
def test_waits_are_seen(device):
    """What the other tests and figures rest on."""
    number = torch.ones(3, device=device)
    with waits(device) as found:
        number.sum().item()
        number + 1
    assert found and all(place.startswith(__file__) for place in found)
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"), no_waits():
        number.sum().item()


@pytest.mark.parametrize("name", PRESETS)
def test_ten_steps_without_a_wait(name, device):
    augment = preset(name, SIZE)
    images, labels = batch(augment, COUNT, SIZE, device)
    with torch.no_grad():
        augmented(augment, images, labels)  # constants move to the device, kernels are loaded
        with no_waits():
            found = [augmented(augment, images, labels) for _ in range(10)]
    for image, label in found:
        assert image.shape == (COUNT, 3, SIZE, SIZE) and image.device.type == device.type
        assert image.isfinite().all() and image.flatten(1).std(1).min() > 0
        assert label.shape[0] == COUNT and (
            label.ndim == 1 or torch.allclose(label.sum(1), torch.ones_like(label[:, 0]))
        )
        assert label.ndim == 1 or label.shape[1] == CLASSES
    assert any(not torch.equal(found[0][0], image) for image, _ in found[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_the_device_makes_the_pictures_of_the_cpu(name, device):
    augment, label = preset(name, 96), torch.arange(40) % CLASSES
    image = images(40, 3, round(96 * augment.margin))
    rough = any(isinstance(step, RandomResizedCrop) for step in augment.operations)
    for seed in range(3):
        torch.manual_seed(seed)
        mine, label_of_mine = augment(image, label)
        torch.manual_seed(seed)
        theirs, label_of_theirs = on_device(list(augment.operations), image.to(device), label.to(device))
        torch.testing.assert_close(label_of_mine, label_of_theirs.cpu())
        assert_same_pictures(mine, theirs.cpu(), rough)
