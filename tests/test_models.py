import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models as tv_models

import imgcls.models
from imgcls.errors import UserError
from imgcls.models.base import Backbone
from imgcls.models.cnn import CNN
from imgcls.models.timm import TimmBackbone
from imgcls.models.torchvision import TorchvisionBackbone
from imgcls.models.weights import load_weights, set_channels

from .imagenet_weights import efficientnet_lite0


def backbones() -> list[type[Backbone]]:
    modules = [importlib.import_module(f"imgcls.models.{m.name}") for m in pkgutil.iter_modules(imgcls.models.__path__)]
    found = {c for m in modules for c in vars(m).values() if inspect.isclass(c) and issubclass(c, Backbone)}
    return sorted((c for c in found if not inspect.isabstract(c)), key=lambda c: c.__name__)


def build(cls: type[Backbone], channels: int, size: int) -> Backbone:
    torch.manual_seed(0)
    options = {"weights": "none"} if "weights" in inspect.signature(cls.__init__).parameters else {}
    return cls(channels, size, **options)


@pytest.mark.parametrize("channels, size", [(1, 28), (3, 33), (3, 64), (5, 64)])
@pytest.mark.parametrize("cls", backbones(), ids=lambda c: c.__name__)
def test_a_backbone_keeps_its_contract(cls, channels, size):
    backbone = build(cls, channels, size)
    features = backbone(torch.rand(2, channels, size, size))
    assert features.shape == (2, backbone.num_features)
    staged = [name for stage in backbone.stages() for name in stage.parameters]
    assert sorted(staged) == sorted(name for name, _ in backbone.named_parameters())
    assert len(backbone.stages()) > 1 and len({s.name for s in backbone.stages()}) == len(backbone.stages())
    features.square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())
    assert backbone.no_weight_decay() <= {name for name, _ in backbone.named_parameters()}


def test_stages_go_from_input_to_output():
    names = [s.name for s in build(TorchvisionBackbone, 3, 64).stages()]
    assert [n.split(".")[1] for n in names if "layer" in n] == sorted(n.split(".")[1] for n in names if "layer" in n)
    assert names[0] == "network.conv1"
    first, *_, last = TimmBackbone(3, 64, "vit_tiny_patch16_224", "none").stages()
    assert "network.patch_embed.proj.weight" in first.parameters and "network.norm.weight" in last.parameters


@pytest.mark.parametrize("depth", [1, 2, 7, 20])
@pytest.mark.parametrize("size", [4, 28, 65])
def test_depth_counts_convolutions(depth, size):
    backbone = CNN(1, size, depth=depth, width=2)
    assert sum(isinstance(m, nn.Conv2d) for m in backbone.modules()) == depth
    assert backbone(torch.rand(2, 1, size, size)).shape == (2, backbone.num_features)


@pytest.mark.parametrize(
    "name, channels, size",
    [
        ("squeezenet1_1", 1, 64),
        ("mobilenet_v3_small", 1, 64),
        ("vit_b_16", 3, 64),
        ("densenet121", 3, 64),
        ("googlenet", 3, 96),
    ],
)
def test_torchvision_heads_are_found_without_a_table(name, channels, size):
    backbone = TorchvisionBackbone(channels, size, name, "none")
    assert backbone(torch.rand(2, channels, size, size)).shape == (2, backbone.num_features)


@pytest.mark.parametrize(
    "name, channels, size",
    [("vit_tiny_patch16_224", 3, 96), ("mobilenetv3_small_050", 1, 64), ("convnext_atto", 3, 64)],
)
def test_timm_networks_take_other_sizes_and_channels(name, channels, size):
    backbone = TimmBackbone(channels, size, name, "none")
    assert backbone(torch.rand(2, channels, size, size)).shape == (2, backbone.num_features)


def test_what_weights_expect_comes_from_their_metadata():
    spec = TorchvisionBackbone.input_spec(name="efficientnet_b0", weights="default")
    preset = tv_models.get_model_weights("efficientnet_b0").DEFAULT.transforms()
    assert (spec.image_size, spec.mean, spec.interpolation) == (224, preset.mean, "bicubic")
    assert spec.crop_fraction == 224 / 256 and spec.channels == 3
    spec = TimmBackbone.input_spec(name="tf_efficientnet_lite0", weights="default")
    config = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    assert (spec.image_size, tuple(spec.mean), tuple(spec.std)) == (224, config.mean, config.std)
    assert spec.interpolation == config.interpolation and spec.crop_fraction == config.crop_pct
    assert CNN.input_spec().mean is TorchvisionBackbone.input_spec(weights="none").mean is None


@pytest.mark.parametrize("cls", [TorchvisionBackbone, TimmBackbone])
def test_names_and_sizes_that_do_not_go_are_named(cls):
    with pytest.raises(UserError, match=r"no (classification )?network 'resnet81' \(did you mean '.*resnet18'"):
        cls(3, 64, "resnet81", "none")
    with pytest.raises(UserError, match="inception_v3 cannot take images of 28 px"):
        cls(3, 28, "inception_v3", "none")


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 12])
def test_copied_channels_give_what_gray_gave_before(channels):
    gray, before = torch.rand(2, 1, 33, 33), TorchvisionBackbone(3, 33, "resnet18", "none").eval()
    network = before.network
    expected = before(gray.expand(-1, 3, -1, -1))
    set_channels("conv1", network.conv1, channels)
    assert network.conv1.weight.shape == (64, channels, 7, 7) and network.conv1.in_channels == channels
    torch.testing.assert_close(before(gray.expand(-1, channels, -1, -1)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls, name", [(TorchvisionBackbone, "resnet18"), (TimmBackbone, "tf_efficientnet_lite0")])
def test_weights_of_other_channels_are_adapted(cls, name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    gray, five, rgb = torch.rand(2, 1, 64, 64), torch.rand(2, 5, 64, 64), cls(3, 64, name, "none").eval()
    torch.save(rgb.network.state_dict(), tmp_path / "rgb.pt")
    adapted = cls(5, 64, name, str(tmp_path / "rgb.pt")).eval()
    expected = rgb(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(adapted(gray.expand(-1, 5, -1, -1)), expected, rtol=1e-3, atol=1e-4)
    torch.save(adapted.network.state_dict(), tmp_path / "five.pt")
    again = cls(5, 64, name, str(tmp_path / "five.pt")).eval()
    assert torch.equal(again(five), adapted(five))
    if cls is TimmBackbone:  # what it would download
        own, create = rgb.network.state_dict(), timm.create_model

        def downloaded(name, pretrained, **options):
            network = create(name, **options)
            network.load_state_dict(own)
            return network

        monkeypatch.setattr(timm, "create_model", downloaded)
        adapted = cls(5, 64, name).eval()
        torch.testing.assert_close(adapted(gray.expand(-1, 5, -1, -1)), expected, rtol=1e-3, atol=1e-4)


# ---- local weights ----


def stored(path: Path, state: dict) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "model.backbone."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes_of_wrappers_are_taken_off(tmp_path, prefix, suffix):
    source, target = CNN(1, 28, 3, 4), CNN(1, 28, 3, 4)
    state = {prefix + k: v for k, v in source.state_dict().items()} | {prefix + "fc.weight": torch.ones(2)}
    report = load_weights(target, stored(tmp_path / f"w{suffix}", state))
    assert "18 of 18 tensors matched, 100.0%" in report
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())


def test_a_lightning_checkpoint_of_ours_gives_its_backbone(tmp_path):
    source = CNN(1, 28, 3, 4)
    state = {f"backbone.{k}": v for k, v in source.state_dict().items()} | {"head.weight": torch.ones(3)}
    target = CNN(1, 28, 3, 4)
    load_weights(target, stored(tmp_path / "best.ckpt", {"state_dict": state, "epoch": 3}))
    assert torch.equal(target.layers[0][0].weight, source.layers[0][0].weight)


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    path = stored(tmp_path / "other.pth", {k: v for k, v in CNN(1, 28, 1, 4).state_dict().items()})
    with pytest.raises(
        UserError, match=r"other.pth: matches \d+% .*missing: layers.1.0.weight.*begins with layers.0.0.weight"
    ):
        load_weights(CNN(1, 28, 4, 4), path)


def test_a_first_convolution_for_rgb_is_adapted(tmp_path):
    source, target = CNN(3, 28, 3, 4), CNN(1, 28, 3, 4)
    load_weights(target, stored(tmp_path / "rgb.pth", source.state_dict()))
    torch.testing.assert_close(target.layers[0][0].weight, source.layers[0][0].weight.sum(1, keepdim=True))


class Hostile:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_nothing_in_a_hostile_file_is_run(tmp_path):
    path = stored(tmp_path / "hostile.pth", {"weight": Hostile()})
    with pytest.raises(UserError, match="hostile.pth: refused, because loading it would run code"):
        load_weights(CNN(1, 28), path)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "name, content", [("a.pth", b""), ("b.pth", b"PK\x03\x04 cut"), ("c.safetensors", b"\x00" * 9)]
)
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: "):
        load_weights(CNN(1, 28), tmp_path / name)


def test_real_imagenet_weights_match_completely(tmp_path):
    path = stored(tmp_path / "lite0.safetensors", efficientnet_lite0())
    backbone = TimmBackbone(3, 224, "tf_efficientnet_lite0", str(path))
    assert backbone.num_features == 1280
    assert TimmBackbone(1, 64, "tf_efficientnet_lite0", str(path)).num_features == 1280
