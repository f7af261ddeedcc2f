from pathlib import Path

import pytest
import torch
from torch import nn

from imgcls.commands.explain import last_module
from imgcls.evaluate.responses import Patch, by_channel, strongest_patches

from .conftest import TINY


def test_the_patch_is_where_the_pattern_is():
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU())
    with torch.no_grad():
        network[0].weight[0, 0] = torch.tensor([[-1.0, 1, -1], [1, 1, 1], [-1, 1, -1]])  # a cross
        network[0].weight[1, 0] = torch.tensor([[-1.0, -1, -1], [2, 2, 2], [-1, -1, -1]])  # a bar
    image = torch.zeros(20, 1, 12, 12)
    image[7, 0, 3:6, 8] = image[7, 0, 4, 7:10] = 1
    image[11, 0, 6, 1:4] = 1
    channels = strongest_patches(network, ["1"], image, channels=2, patches=1)["1"]
    assert {patches[0] for patches in channels} == {Patch(7, (3, 7, 6, 10)), Patch(11, (5, 1, 8, 4))}


@pytest.mark.parametrize(
    "shape, channels", [((2, 5, 7, 7), 5), ((2, 7, 7, 5), 5), ((2, 49, 5), 5), ((2, 5), 5), ((2, 7, 3, 3), 7)]
)
def test_every_kind_of_output_is_readby_channel(shape, channels):
    assert by_channel(torch.zeros(shape)).shape[:2] == (2, channels)


def test_a_run_is_explained(imgcls):
    assert imgcls("fit", *TINY, "--run_dir", "run", "--trainer.limit_train_batches=2")[0] == 0
    code, out, err = imgcls("explain", "--run", "run")
    assert code == 0, err
    assert "what 2 layers respond to" in out and Path("run/figures/layers.png").stat().st_size > 5_000
    code, _, err = imgcls("explain")
    assert code == 2 and "explain needs a trained run: --run RUN_DIR" in err


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_layers_of_other_networks_are_found(name):
    from imgcls.models.timm import TimmBackbone

    backbone = TimmBackbone(3, 224, name=name, weights="none").eval()
    names = [last_module(stage) for stage in backbone.stages()]
    assert len(set(names)) > 5
    found = strongest_patches(backbone, [names[0], names[-1]], torch.rand(3, 3, 224, 224), channels=2, patches=1)
    assert len(found) == 2
    for channels in found.values():
        for (patch,) in channels:
            top, left, bottom, right = patch.box
            assert 0 <= top < bottom <= 224 and 0 <= left < right <= 224
