import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from imgcls.classifier import Classifier
from imgcls.deploy import formats
from imgcls.deploy.graph import Exported, ResizeCropInGraph
from imgcls.finetune.base import FineTune
from imgcls.finetune.full import Full
from imgcls.finetune.l2_sp import L2SP
from imgcls.finetune.logistic_probe import LogisticProbe
from imgcls.finetune.lora import LoRA
from imgcls.finetune.neighbours import Neighbours
from imgcls.images.decode import ResizeCrop, decode, resize_crop_batch
from imgcls.models.cnn import CNN
from imgcls.models.resnet import ResNet
from imgcls.models.timm import TimmBackbone
from imgcls.runs.folder import RunFolder
from imgcls.runs.temperature import write_calibration

from .conftest import QUIET, ROOT

SIZES = [(32, 32), (64, 64), (1, 1), (2, 9), (21, 80), (90, 31), (131, 100)]  # width, height
MODES = ["RGB", "L", "RGBA", "P", "CMYK"]


def photo(size: tuple[int, int], seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Smooth coloured patches with some grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 8, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).convert(mode)


# ---- framing ----


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize, crop", [(32, 32), (37, 32), (224, 196)])
def test_framing_gives_the_pixels_of_pillow_and_torchvision(resize, crop, interpolation):
    resize_crop = ResizeCrop(3, resize, crop, interpolation)
    framing = ResizeCropInGraph(resize_crop)
    for size in [*SIZES, (crop, crop), (2 * resize, 2 * resize), (crop, crop + 1), (640, 480)]:
        image = photo(size, seed=sum(size))
        pixels = decode(image, replace(resize_crop, crop=0))
        assert pixels.shape == (3, size[1], size[0])
        found = framing(pixels[None])
        pillow, torchvision = decode(image, resize_crop).float(), resize_crop_batch(pixels[None], resize_crop).float()
        # the two differ among themselves: the weights of one have 22 bits, those of the other 15
        for theirs in (pillow, torchvision):
            assert (found - theirs).abs().max() <= 2, size
            assert (found != theirs).float().mean() < 0.2, size
        assert min((found != theirs).float().mean() for theirs in (pillow, torchvision)) < 0.1, size
    exact = torch.randint(0, 256, (2, 3, crop, crop), dtype=torch.uint8)
    assert torch.equal(framing(exact), exact.float())


def test_sizes_are_rounded_as_in_training():
    resize_crop = ResizeCrop(1, 10, 8, "bilinear")  # shorter sides of 4, 20 and 40 px give halves, which round to even
    for width in range(4, 90, 2):
        for height in range(4, 90, 7):
            image = torch.randint(0, 256, (1, 1, height, width), dtype=torch.uint8)
            assert (ResizeCropInGraph(resize_crop)(image) - resize_crop_batch(image, resize_crop)).abs().max() <= 2, (
                width,
                height,
            )


# ---- models ----


def vit(channels: int, image_size: int) -> TimmBackbone:
    small = {"depth": 2, "embed_dim": 48, "num_heads": 2, "patch_size": 8}
    return TimmBackbone(channels, image_size, name="vit_tiny_patch16_224", weights="none", options=small)


def efficientnet(channels: int, image_size: int) -> TimmBackbone:
    return TimmBackbone(channels, image_size, name="test_efficientnet", weights="none")


def cnn(channels: int, image_size: int) -> CNN:
    return CNN(channels, image_size, depth=2, width=8)


def resnet(channels: int, image_size: int) -> ResNet:
    return ResNet(channels, image_size, blocks=(1, 1), width=8)


def trained(backbone, finetune: FineTune, image: torch.Tensor, flip: bool) -> Classifier:
    """A classifier in which everything that training moves has been moved, and that tells the images apart."""
    channels = image.shape[1]
    torch.manual_seed(0)
    model = Classifier(backbone, 4, channels, 32, finetune=finetune, flip_at_test=flip).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith(("up", "norm2.weight")):
            parameter.normal_(0, 0.2)
    model.backbone.train()
    for _ in range(20):  # BatchNorm
        model.features(image)
    model.eval()
    if isinstance(finetune, Neighbours):
        feature = model.features(image.repeat(3, 1, 1, 1) + 0.5 * torch.randn(3 * len(image), channels, 32, 32))
        model.head.feature = nn.functional.normalize(feature)
        model.head.label = torch.arange(len(feature)) % 4
        model.head.k.fill_(3)
    else:
        feature = model.features(image)
        spread = feature.std(0)
        model.head.weight.copy_(torch.randn(4, feature.shape[1]) * (spread > 1e-3) / spread.clamp(min=1e-3))
        model.head.weight /= (model.head.weight @ (feature - feature.mean(0)).T).std() / 3
        model.head.bias.copy_(-model.head.weight @ feature.mean(0))
    return model


CASES = {
    "cnn": (cnn, Full, 1, False, ResizeCrop(1, 32, 32)),
    "cnn, neighbours": (cnn, Neighbours, 3, False, ResizeCrop(3, 32, 32)),
    "resnet, L2-SP, flip": (resnet, L2SP, 3, True, ResizeCrop(3, 37, 32)),
    "vit, LoRA": (vit, lambda: LoRA(rank=4), 3, False, ResizeCrop(3, 36, 32, "bicubic")),
    "efficientnet, probe, gray": (efficientnet, LogisticProbe, 1, False, ResizeCrop(1, 36, 32, "bicubic")),
}


@pytest.mark.parametrize("case", CASES)
def test_exported_graphs_give_the_probabilities_of_the_run(case):
    backbone, finetune, channels, flip, resize_crop = CASES[case]
    mean, std = [0.4] * channels, [0.3] * channels
    images = [photo(size, k, MODES[k % len(MODES)]) for k, size in enumerate(SIZES)]
    framed = torch.stack([decode(image, resize_crop) for image in images])
    model = trained(backbone, finetune(), (framed / 255 - 0.4) / 0.3, flip)

    def run(framed: torch.Tensor) -> np.ndarray:
        image = (framed / 255 - 0.4) / 0.3
        logits = model.predict_step({"image": image, "label": image, "index": image}, 0)["logits"]
        return (logits / 1.7).softmax(1).numpy()

    expected = run(framed)
    assert np.ptp(expected, 0).max() > 0.1 and len(set(expected.argmax(1))) > 1  # the images matter
    batch = torch.randint(0, 256, (5, channels, 50, 41), dtype=torch.uint8)
    expected_of_batch = run(resize_crop_batch(batch, resize_crop))

    model.finetune.merge(model.backbone)
    exported = Exported(model, resize_crop, mean, std, 1.7).eval()
    proto = formats.to_onnx(exported, channels)
    content = formats.torch_export_bytes(exported, channels, {})
    written = formats.onnx_bytes(proto, {"key": "välue"})
    for file in (written, content):
        assert not re.search(rb"site-packages|\.py\b|" + str(ROOT).encode(), file)
    runners = [formats.run_onnx(written), formats.run_torch(torch.export.load(io.BytesIO(content)).module())]
    for runner in runners:
        assert np.abs(runner(framed.numpy()) - expected).max() < 1e-5
        assert np.abs(runner(framed[:1].numpy()) - expected[:1]).max() < 1e-5
        assert np.abs(runner(batch.numpy()) - expected_of_batch).max() < 1e-2
        for image, probability in zip(images, expected, strict=True):
            pixels = decode(image, replace(resize_crop, crop=0))
            assert np.abs(runner(pixels[None].numpy())[0] - probability).max() < 1e-2
    assert [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        channels,
        "height",
        "width",
    ]


# ---- the verb ----


def fit(folder: Path, *words: object) -> None:
    from imgcls.__main__ import main

    os.environ.pop("IMGCLS_RUN_DIR", None)
    configs = [ROOT / "configs" / name for name in ("data/folder.yaml", "model/cnn.yaml", "trainer/default.yaml")]
    words = [w for config in configs for w in ("--config", config)] + [*QUIET, *words]
    words += ["--data.image_size=24", "--trainer.max_epochs=2", "--data.batch_size=8", "--run_dir", folder]
    assert main([str(w) for w in ("fit", *words)]) == 0
    os.environ.pop("IMGCLS_RUN_DIR", None)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    """Photos of two classes in several sizes, modes and formats."""
    root = tmp_path_factory.mktemp("gallery")
    for number in range(48):
        label, size = number % 2, (40 + 3 * number, 70 - number)
        image = photo(size, number, MODES[number % 4] if number % 3 == 0 else "RGB")
        if label:
            image = Image.blend(image.convert("RGB"), Image.new("RGB", size, (250, 60, 20)), 0.5)
        file = root / ("dull", "orange | red")[label] / f"{number:02d}.{'png' if image.mode != 'RGB' else 'jpg'}"
        file.parent.mkdir(exist_ok=True)
        image.save(file)
    return root


@pytest.fixture(scope="module")
def run(gallery, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "gallery"
    small = ("--model.backbone.depth=2", "--model.backbone.width=8", "--data.val_fraction=0.4", "--test_after_fit=true")
    fit(folder, f"--data.root={gallery}", *small, "--model.lr=0.01", "--model.flip_at_test=true")
    write_calibration(RunFolder(folder), folder / "checkpoints/best.ckpt", {"temperature": 0.5})
    return folder


WITHOUT_TORCH = "import sys; sys.modules |= {'torch': None, 'torchvision': None, 'imgcls': None}; "


def test_onnx_runs_without_torch_by_the_example_of_its_card(run, gallery, imgcls):
    code, out, err = imgcls("export", "--run", run)
    assert code == 0, err
    Path("out").mkdir()
    for name in ("model.onnx", "model.md"):
        (run / name).rename(Path("out") / name)
    assert "largest difference of a probability" in out and sorted(os.listdir("out")) == ["model.md", "model.onnx"]
    assert imgcls("predict", "--run", run, f"--data.root={gallery}", "--out", "p.csv", *QUIET[1:])[0] == 0
    card = Path("out/model.md").read_text()
    example = re.search(r"```python\n(.*?)```", card, re.S)[1]
    shown = {}
    for name in (
        "dull/02.jpg",
        "orange | red/05.jpg",
        next(p.relative_to(gallery).as_posix() for p in gallery.rglob("*.png")),
    ):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH + example, gallery / name], capture_output=True, text=True, cwd="out"
        )
        assert done.returncode == 0, done.stderr
        shown[name] = {line[7:]: float(line[:6]) for line in done.stdout.splitlines()}
    # both divide by the temperature that was planted
    for row in Path("p.csv").read_text().splitlines()[1:]:
        name, _, _, *probability = row.split(",")
        if name in shown:
            assert shown[name]["dull"] == pytest.approx(float(probability[0]), abs=2e-3)
    one_line = re.search(r"```sh\npython -c \"(.*)\" 'model.onnx' photo.jpg", card)[1]
    words = [sys.executable, "-c", WITHOUT_TORCH + one_line, "model.onnx", gallery / "dull/02.jpg"]
    done = subprocess.run(words, capture_output=True, text=True, cwd="out")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0].strip("[]")) == pytest.approx(shown["dull/02.jpg"]["dull"], abs=1e-3)


def test_metadata_are_those_of_the_run_in_every_format(run, imgcls):
    import onnx

    for kind in ("onnx", "torch_export", "safetensors"):
        code, _, err = imgcls("export", "--run", run, "--format", kind, "--out", kind, "--count=3")
        assert code == 0, err
    of_onnx = {p.key: p.value for p in onnx.load("onnx").metadata_props}
    extra = {"metadata.json": ""}
    torch.export.load(io.BytesIO(Path("torch_export").read_bytes()), extra_files=extra)
    with safe_open("safetensors", "np") as file:
        of_safetensors = file.metadata()
    record, metrics = (json.loads((run / f"{name}.json").read_text()) for name in ("environment", "metrics"))
    assert of_onnx == json.loads(extra["metadata.json"]) == of_safetensors
    assert json.loads(of_onnx["class_names"]) == record["data"]["class_names"] == ["dull", "orange | red"]
    assert of_onnx["temperature"] == "0.5" and of_onnx["image_size"] == "24" and of_onnx["channels"] == "3"
    assert json.loads(of_onnx["mean"]) == [0.5] * 3 and of_onnx["interpolation"] == "bilinear"
    assert float(of_onnx["test/acc"]) == metrics["test/acc"] and of_onnx["run"].endswith("/gallery")
    assert json.loads(of_onnx["data_fingerprint"])["data"] == record["data"]["data"]
    assert of_onnx["git_commit"].startswith(record["git"]["commit"] if record["git"] else "")


def test_the_card_says_what_the_record_knows_and_what_it_does_not(run, gallery, imgcls):
    assert imgcls("export", "--run", run, "--format", "safetensors", "--out", "w", "--card", "card.md")[0] == 0
    card, metrics = Path("card.md").read_text(), json.loads((run / "metrics.json").read_text())
    assert f"| test/acc | {metrics['test/acc']:.4f} |" in card and "95 % interval of the test accuracy" in card
    assert "CNN (depth 2, width 8, layers_per_stage 2, weights none)" in card and "seed 0, 2 epochs" in card
    assert "temperature is the run's own" in card and "was not measured" in card and "was not calibrated" not in card
    assert str(gallery) not in card and str(run) not in card and "mirror image" in card
    (run / "calibration.json").rename(run / "away")
    (run / "metrics.json").write_text(json.dumps({k: v for k, v in metrics.items() if not k.startswith("test/")}))
    try:
        assert imgcls("export", "--run", run, "--format", "safetensors", "--out", "w", "--card", "card.md")[0] == 0
    finally:
        (run / "away").rename(run / "calibration.json")
        (run / "metrics.json").write_text(json.dumps(metrics))
    card = Path("card.md").read_text()
    assert "was not calibrated" in card and "was not tested" in card and "95 %" not in card


@pytest.mark.parametrize("kind", ["onnx", "torch_export", "safetensors"])
def test_a_file_that_differs_from_the_run_is_not_written(kind, run, imgcls, monkeypatch):
    class Wrong(Exported):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(255 - image)

    monkeypatch.setattr("imgcls.deploy.checked.Exported", Wrong)
    words = ("export", "--run", run, "--format", kind, "--out", "out/model")
    code, _, err = imgcls(*words)
    assert code == 2 and "beyond --tolerance 0.01" in err and not Path("out").exists()
    if kind == "safetensors":
        assert imgcls(*words, "--tolerance=100")[0] == 0 and Path("out/model").is_file()


def test_nothing_but_nan_is_not_written(run, imgcls, monkeypatch):
    monkeypatch.setattr(
        "imgcls.deploy.checked.Exported.forward", lambda self, image: torch.full((len(image), 2), torch.nan)
    )
    code, _, err = imgcls("export", "--run", run, "--format", "safetensors", "--out", "w")
    assert code == 2 and "differ" in err and not Path("w").exists()


def test_other_images_take_the_place_of_data_that_is_gone(run, gallery, imgcls):
    import shutil

    copy = Path("copy")
    shutil.copytree(run, copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace(str(gallery), "/nowhere"))
    words = ("export", "--run", copy, "--format", "safetensors", "--out", "w")
    code, _, err = imgcls(*words)
    assert code == 2 and "/nowhere" in err and "--images FOLDER" in err and not Path("w").exists()
    code, out, err = imgcls(*words, "--images", gallery)
    assert code == 0 and f"on 48 images of {gallery}" in out, err
    code, _, err = imgcls(*words, "--images", "nothing")
    assert code == 2 and "--images nothing: there is no such file or folder" in err
    # other images at the same place are not the run's validation part
    (copy / "config.yaml").write_text(config.replace(str(gallery), str(Path("fewer").resolve())))
    for file in sorted(gallery.rglob("*.jpg")):
        (target := Path("fewer") / file.relative_to(gallery)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    code, _, err = imgcls(*words)
    assert code == 2 and "--images FOLDER" in err and "differ from those" in err


def test_mistakes_are_one_line(run, imgcls, monkeypatch):
    base = ("export", "--run", run, "--out", "model.onnx")
    for words, text in [
        (("--format", "torch_export", "--quantize", "int8"), "needs --format onnx"),
        (("--format", "onnx", "--count", "0"), "at least 1"),
        (("--format", "onnx", "--card", "model.onnx"), "is where the model card goes"),
        (("--format", "onnx", "--run", "nowhere"), "--run nowhere: does not exist"),
    ]:
        code, _, err = imgcls(*base, *words)
        assert code == 2 and text in err and err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = imgcls(*base, "--format", "onnx")
    assert code == 2 and "needs onnxruntime: pip install 'imgcls[onnx]'" in err


def test_help_is_light():
    probe = (
        "import sys; from imgcls.commands.export import main\ntry: main(['export', '--help'])\nexcept SystemExit: pass"
    )
    probe += "\nprint({'torch', 'onnx', 'onnxruntime'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().splitlines()[-1] == "set()", done.stdout + done.stderr


def test_merged_weights_start_another_run(gallery, imgcls, tmp_path):
    network = {"depth": 1, "embed_dim": 24, "num_heads": 1, "patch_size": 8}
    words = ["--model.backbone=imgcls.models.timm.TimmBackbone", "--model.backbone.name=vit_tiny_patch16_224"]
    words += ["--model.backbone.options", json.dumps(network), "--model.finetune=imgcls.finetune.lora.LoRA"]
    words += ["--model.finetune.rank=2", "--model.lr=0.05", f"--data.root={gallery}"]
    fit(tmp_path / "lora", *words, "--model.backbone.weights=none")
    code, _, err = imgcls("export", "--run", "lora", "--format", "safetensors", "--out", "w.safetensors")
    assert code == 0, err
    from imgcls.runs.load import load_run

    tuned = load_run("lora").model
    fit(tmp_path / "again", *words, "--model.backbone.weights=w.safetensors", "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=1", "--model.finetune=imgcls.finetune.linear_probe.LinearProbe")  # fmt: skip
    again = load_run("again").model
    image = torch.randn(4, 3, 24, 24)
    assert torch.allclose(tuned.features(image), again.features(image), atol=1e-5)
    assert "--model.backbone.weights=w.safetensors` starts" in Path("w.md").read_text()


@pytest.mark.slow
def test_int8_is_measured_and_refused_if_it_costs_too_much(run, imgcls, monkeypatch):
    import onnx

    words = ("export", "--run", run, "--format", "onnx", "--quantize", "int8", "--out", "small.onnx")
    code, out, err = imgcls(*words)
    assert code == 0, err
    found = re.search(
        r"on (\d+) validation images: accuracy ([\d.]+) to ([\d.]+); ([\d.]+) to ([\d.]+) MB; ([\d.]+)", out
    )
    metrics = json.loads((run / "metrics.json").read_text())
    record = json.loads((run / "environment.json").read_text())
    assert int(found[1]) == record["data"]["images"]["val"]
    assert float(found[2]) == pytest.approx(metrics["val/acc"], abs=1e-4)
    model = onnx.load("small.onnx")
    assert "acc_int8" in {p.key: p.value for p in model.metadata_props}["int8"]
    quantized = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    weights = ("backbone.layers.0.0.weight", "backbone.layers.1.0.weight", "head.weight")
    assert {f"{name}_quantized" for name in weights} <= quantized and len(quantized) == 6  # and their zero points
    assert f"{found[2]} before and {found[3]} after" in Path("small.md").read_text()
    Path("small.onnx").unlink()
    monkeypatch.setattr(
        "imgcls.deploy.int8.cost", lambda *_: {"images": 9, "acc_float32": 0.9, "acc_int8": 0.8, "speed_up": 2}
    )
    code, _, err = imgcls(*words)
    assert (
        code == 2
        and "int8 costs 0.1000 of accuracy, beyond --int8_tolerance 0.02" in err
        and not Path("small.onnx").exists()
    )
