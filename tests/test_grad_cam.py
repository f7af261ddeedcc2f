import pytest
import torch
from torch import Tensor, nn

from imgcls.evaluate.grad_cam import grad_cam
from imgcls.models.cnn import CNN
from imgcls.models.mlp import MLP
from imgcls.models.resnet import ResNet
from imgcls.models.timm import TimmBackbone
from imgcls.models.torchvision import TorchvisionBackbone


class Pooled(nn.Module):
    """Two channels per pixel, the pixel and its negative part; logits are weighted means of them."""

    def __init__(self, tokens: bool = False) -> None:
        super().__init__()
        self.map, self.relu, self.head = nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Linear(2, 3, bias=False)
        self.norm, self.tokens = nn.Identity(), tokens
        with torch.no_grad():
            self.map.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
            self.head.weight.copy_(torch.tensor([[2.0, 1.0], [0.0, 4.0], [-1.0, -1.0]]))

    def forward(self, image: Tensor) -> Tensor:
        feature = self.relu(self.map(image))
        if self.tokens:
            tokens = feature.flatten(2).transpose(1, 2)
            extra = torch.full((len(tokens), 2, 2), 100.0)  # a class token and a register: no places
            return self.head(self.norm(torch.cat([extra, tokens], 1)).mean(1))
        return self.head(feature.mean((2, 3)))


@pytest.mark.parametrize("tokens", [False, True])
def test_the_map_is_the_one_computed_by_hand(tokens):
    image = torch.tensor([[3.0, -2.0], [0.0, -4.0]]).view(1, 1, 2, 2)
    # channels are [3 0; 0 0] and [0 2; 0 4]; their weights are a row of the head over the number of places
    maps = grad_cam(Pooled(tokens).eval(), image, torch.tensor([[0, 1, 2]]))
    wanted = torch.tensor([[[6.0, 2], [0, 4]], [[0, 8], [0, 16]], [[0, 0], [0, 0]]])
    wanted[0], wanted[1] = wanted[0] / 6, wanted[1] / 16
    torch.testing.assert_close(maps[0], wanted)


NETWORKS = {
    "cnn": (lambda: CNN(3, 32), 32),
    "resnet": (lambda: ResNet(3, 32), 32),
    **{
        f"torchvision {name}": (lambda name=name: TorchvisionBackbone(3, 64, name=name, weights="none"), 64)
        for name in ("resnet50", "convnext_tiny", "vit_b_16", "swin_t")
    },
    **{
        f"timm {name}": (lambda name=name: TimmBackbone(3, 64, name=name, weights="none"), 64)
        for name in ("efficientnet_b0", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "convnext_atto")
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_has_maps(name):
    torch.manual_seed(0)
    build, size = NETWORKS[name]
    backbone = build()
    network = nn.Sequential(backbone, nn.Linear(backbone.num_features, 10)).eval().requires_grad_(False)
    image, classes = torch.randn(2, 3, size, size), torch.tensor([[0, 1, 2, 3], [3, 4, 5, 6]])
    maps = grad_cam(network, image, classes)
    assert maps.shape == (2, 4, size, size) and not maps.requires_grad
    assert maps.min() >= 0 and maps.amax((2, 3)).unique().tolist() in ([1.0], [0.0, 1.0])
    assert (maps.amax((2, 3)) == 1).sum() >= 5  # random weights may have nothing that speaks for a class
    assert (maps[0, 0] - maps[0, 1]).abs().mean() > 0.01  # another class, another place
    torch.testing.assert_close(grad_cam(network, image[1:], classes[1:])[0], maps[1], atol=1e-3, rtol=0)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_without_maps_has_none():
    backbone = MLP(1, 8, hidden=(16,))
    assert (
        grad_cam(nn.Sequential(backbone, nn.Linear(16, 2)).eval(), torch.rand(3, 1, 8, 8), torch.zeros(3, 1).long())
        is None
    )


SIDE, PATCH = 40, 8


def planted(generator: torch.Generator, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise (N, 1, S, S) with a striped patch; its class (N,), the direction of the stripes; its corner (N, 2)."""
    image = torch.rand(number, 1, SIDE, SIDE, generator=generator)
    label = torch.randint(2, (number,), generator=generator)
    corner = torch.randint(SIDE - PATCH, (number, 2), generator=generator)
    for i, (y, x) in enumerate(corner.tolist()):
        image[i, 0, y : y + PATCH, x : x + PATCH] = pattern(int(label[i]))
    return image, label, corner


def pattern(label: int) -> Tensor:
    stripes = (torch.arange(PATCH) // 2 % 2).float().expand(PATCH, PATCH) * 2
    return stripes if label else stripes.T


@pytest.mark.slow
def test_the_map_lies_on_the_object_that_decides():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    backbone = CNN(1, SIDE, depth=4, width=8)
    network = nn.Sequential(backbone, nn.Linear(backbone.num_features, 2))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(150):
        image, label, _ = planted(generator, 64)
        loss = nn.functional.cross_entropy(network(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    image, label, corner = planted(generator, 100)
    assert (network(image).argmax(1) == label).float().mean() > 0.95
    maps = grad_cam(network, image, label[:, None])[:, 0]
    near = torch.zeros_like(maps)
    for i, (y, x) in enumerate(corner.tolist()):
        near[i, max(0, y - 4) : y + PATCH + 4, max(0, x - 4) : x + PATCH + 4] = 1
    share, chance = (maps * near).sum((1, 2)) / maps.sum((1, 2)).clamp_min(1e-9), near.mean((1, 2))
    assert chance.mean() < 0.17 and share.mean() > 0.6 and (share > 2 * chance).float().mean() > 0.9
    # of two objects, each class finds its own
    both = torch.rand(20, 1, SIDE, SIDE, generator=generator)
    both[:, 0, 16 : 16 + PATCH, 4 : 4 + PATCH], both[:, 0, 16 : 16 + PATCH, 28 : 28 + PATCH] = pattern(0), pattern(1)
    maps = grad_cam(network, both, torch.tensor([[0, 1]]).expand(20, 2))
    left, right = maps[..., : SIDE // 2].sum((2, 3)), maps[..., SIDE // 2 :].sum((2, 3))
    assert (left[:, 0] > right[:, 0]).float().mean() > 0.9 and (right[:, 1] > left[:, 1]).float().mean() > 0.9
