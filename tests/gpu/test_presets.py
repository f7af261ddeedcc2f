"""Every preset of configs/augment on the device."""

import pytest
import torch

from .conftest import TOY, no_waits
from .presets import CLASSES, PRESETS, augmented, batch, preset

pytestmark = pytest.mark.gpu
SIZE, COUNT = (32, 4) if TOY else (224, 64)


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
