"""What a published recipe sets, against what its config makes of it: groups, learning rates, augmentation, EMA."""

import pytest
import yaml
from torch import nn

from imgcls.augment.erasing import RandomErasing
from imgcls.augment.mixing import CutMix, EitherMixing, MixUp
from imgcls.augment.policy import RandAugment, TrivialAugmentWide
from imgcls.commands.fit import Fit
from imgcls.training.ema import EMA

from .conftest import QUIET, ROOT

RECIPES = sorted((ROOT / "configs/recipes").glob("*.yaml"))
IMAGENET, EPOCHS = 1_281_167, {"resnet50_torchvision_v2": 600, "resnet50_rsb_a2": 300, "resnet50_rsb_a3": 100}
EPOCHS |= {"vit_mae_finetune": 100, "convnext_finetune": 30, "cifar10_resnet18": 200}
# name: optimiser, peak rate, weight decay, warm-up epochs, rate after the last step
OPTIMIZERS = {
    "resnet50_torchvision_v2": ("SGD", 0.5, 2e-5, 5, 0.0),
    "resnet50_rsb_a2": ("Lamb", 5e-3, 0.02, 5, 1e-6),
    "resnet50_rsb_a3": ("Lamb", 8e-3, 0.02, 5, 1e-6),
    "vit_mae_finetune": ("AdamW", 2e-3, 0.05, 5, 1e-6),
    "convnext_finetune": ("AdamW", 5e-5, 1e-8, 0, 1e-6),
    "cifar10_resnet18": ("SGD", 0.1, 1e-4, 0, 1e-3),
}
SIZES = {  # training size, test size, resized side
    "resnet50_torchvision_v2": (176, 224, 232),
    "resnet50_rsb_a2": (224, 224, 236),
    "resnet50_rsb_a3": (160, 224, 236),
    "vit_mae_finetune": (224, 224, 256),
    "convnext_finetune": (224, 224, 256),
    "cifar10_resnet18": (32, 32, 32),
}


@pytest.fixture(scope="module")
def built():
    """Data module, model and trainer of each recipe, as the command line builds them."""
    found = {}

    def build(name):
        if name not in found:
            words = [
                "--config",
                str(ROOT / "configs/data/sample.yaml"),
                "--config",
                str(ROOT / f"configs/recipes/{name}.yaml"),
            ]
            words += [*QUIET, "--trainer.accelerator=cpu", "--run_dir", f"run-{name}"]
            words += [] if name == "cifar10_resnet18" else ["--model.backbone.weights=none"]
            words += ["--data.crop_fraction=0.875"] if name in ("vit_mae_finetune", "convnext_finetune") else []
            found[name] = Fit(words)
        return found[name]

    return build


def test_every_recipe_is_checked():
    names = {p.stem for p in RECIPES}
    assert names == OPTIMIZERS.keys() == SIZES.keys() == EPOCHS.keys()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_optimiser_and_rates_at_chosen_steps(path, built, monkeypatch):
    cli, name = built(path.stem), path.stem
    optimizer_name, peak, decay, warmup, final = OPTIMIZERS[name]
    epochs = EPOCHS[name]
    assert cli.trainer.max_epochs == epochs
    steps = 10  # per epoch
    monkeypatch.setattr(type(cli.model), "total_steps", lambda self: epochs * steps)
    cli.model.trainer = cli.trainer
    made = cli.model.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert type(optimizer).__name__ == optimizer_name
    norms = {id(p) for m in cli.model.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm) for p in m.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            spared = parameter.ndim <= 1 or id(parameter) in norms
            assert group["weight_decay"] in ((0.0,) if spared else (decay, 0.0))
    assert max(g["weight_decay"] for g in optimizer.param_groups) == decay
    assert max(g["initial_lr"] for g in optimizer.param_groups) == pytest.approx(peak)
    factor = schedule.lr_lambdas[-1]
    if warmup:
        assert factor(0) < 0.03 and factor(warmup * steps - 1) < 1
    assert factor(warmup * steps) == pytest.approx(1.0)
    middle = warmup * steps + (epochs - warmup) * steps // 2 - 1
    if name == "cifar10_resnet18":
        assert [factor(e * steps) for e in (99, 100, 149, 150, 199)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    else:
        assert factor(middle) == pytest.approx(0.5, abs=0.02)
        assert factor(epochs * steps) * peak == pytest.approx(final, abs=1e-8)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_sizes_and_batches(path, built):
    data, (train, test, resized) = built(path.stem).datamodule, SIZES[path.stem]
    assert data.resize_crop("train").crop == train
    assert data.resize_crop("val").crop == test and abs(data.resize_crop("val").resize - resized) <= 1
    assert data.repeats == {"resnet50_torchvision_v2": 4, "resnet50_rsb_a2": 3}.get(path.stem, 1)


def test_augmentation_and_its_strengths(built):
    def operations(name):
        return {type(o): o for o in built(name).datamodule.augment.operations}

    for name, magnitude in {
        "resnet50_rsb_a2": 7,
        "resnet50_rsb_a3": 6,
        "vit_mae_finetune": 9,
        "convnext_finetune": 9,
    }.items():
        policy = operations(name)[RandAugment]
        assert (policy.magnitude, policy.std, policy.count) == (magnitude, 0.5, 2)
    assert TrivialAugmentWide in operations("resnet50_torchvision_v2")
    for name, p in {"resnet50_torchvision_v2": 0.1, "vit_mae_finetune": 0.25, "convnext_finetune": 0.25}.items():
        assert operations(name)[RandomErasing].kornia.p == p
    for name, alpha in {
        "resnet50_torchvision_v2": 0.2,
        "resnet50_rsb_a2": 0.1,
        "resnet50_rsb_a3": 0.1,
        "vit_mae_finetune": 0.8,
    }.items():
        mixup, cutmix = operations(name)[EitherMixing].operations
        assert isinstance(mixup, MixUp) and isinstance(cutmix, CutMix)
        assert (mixup.alpha, cutmix.alpha) == (alpha, 1.0)  # torchvision's script used mixup's alpha for both for years
    assert EitherMixing not in operations("convnext_finetune")


def test_loss_drop_path_and_layer_decay(built):
    for name in ("resnet50_torchvision_v2", "vit_mae_finetune", "convnext_finetune"):
        assert built(name).model.loss.label_smoothing == 0.1
    for name in ("resnet50_rsb_a2", "resnet50_rsb_a3"):
        loss = built(name).model.loss
        assert (loss.target_threshold, loss.reduction, loss.label_smoothing) == (0.2, "mean", 0.0)
    for name, decay in {"vit_mae_finetune": 0.65, "convnext_finetune": 0.8}.items():
        model = built(name).model
        factors = sorted({how.scale for how in model.trained.values()})
        assert factors[-1] == decay and factors[-2] == pytest.approx(decay**2)
    for name, rate in {"resnet50_rsb_a2": 0.05, "vit_mae_finetune": 0.1, "convnext_finetune": 0.2}.items():
        rates = [m.drop_prob for m in built(name).model.modules() if type(m).__name__ == "DropPath"]
        assert max(rates) == pytest.approx(rate)
    assert len(set(how.scale for how in built("vit_mae_finetune").model.trained.values())) >= 13


def test_moving_averages(built):
    def average(name):
        return [c for c in built(name).trainer.callbacks if isinstance(c, EMA)]

    (torchvision,) = average("resnet50_torchvision_v2")
    assert torchvision.update_every_n_steps == 32
    decay = 1 - (1 - 0.99998) * 1024 * 32 / 600
    assert torchvision.decay == pytest.approx(decay)
    (convnext,) = average("convnext_finetune")
    assert convnext.decay == pytest.approx(0.9999)
    assert not average("resnet50_rsb_a2")


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_takes_steps_on_small_images(path, imgcls):
    small = {"vit_mae_finetune": ["--model.backbone.name=vit_tiny_patch16_224"]}
    small["convnext_finetune"] = ["--model.backbone.name=convnext_atto"]
    small |= dict.fromkeys(("resnet50_rsb_a2", "resnet50_rsb_a3"), ["--model.backbone.name=resnet10t"])
    small["resnet50_torchvision_v2"] = ["--model.backbone.name=resnet18"]
    words = ["--config", ROOT / "configs/data/sample.yaml", "--config", path, *QUIET, *small.get(path.stem, [])]
    words += ["--data.image_size=32", "--data.train_size=32", "--data.batch_size=8", "--trainer.accelerator=cpu"]
    words += [
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1",
        "--run_dir=r",
    ]
    words += [] if path.stem == "cifar10_resnet18" else ["--model.backbone.weights=none"]
    code, _, err = imgcls("fit", *words)
    assert code == 0, err


def test_recipes_cite_their_source():
    for path in RECIPES:
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert len(head) >= 2 and "states" in head[0] and "Not run here" in " ".join(head), path.name
        assert yaml.safe_load(path.read_text())["model"]["class_path"] == "imgcls.classifier.Classifier"
