import copy
import importlib
import inspect
import json
import math
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

import imgcls.finetune
from imgcls.augment.crop import RandomHorizontalFlip
from imgcls.augment.mixing import MixUp
from imgcls.augment.pipeline import Pipeline
from imgcls.classifier import Classifier
from imgcls.data.sample import SampleData
from imgcls.errors import UserError
from imgcls.finetune.base import Features, FineTune
from imgcls.finetune.bias_norm import BiasNorm
from imgcls.finetune.full import Full
from imgcls.finetune.gradual import Gradual
from imgcls.finetune.l2_sp import L2SP
from imgcls.finetune.layer_decay import LayerDecay
from imgcls.finetune.logistic_probe import LogisticProbe, logistic_regression
from imgcls.finetune.lora import LoRA
from imgcls.finetune.neighbours import Neighbours, Vote
from imgcls.finetune.partial import Partial
from imgcls.losses import CrossEntropy
from imgcls.models.cnn import CNN
from imgcls.models.timm import TimmBackbone
from imgcls.models.torchvision import TorchvisionBackbone
from imgcls.runs.record import read_metrics
from imgcls.tasks import SINGLE_LABEL, find
from imgcls.tasks.multi_label import MultiLabel
from imgcls.training.distillation import Teacher

from .conftest import QUIET, ROOT, TINY
from .imagenet_weights import efficientnet_lite0
from .test_classifier import fit

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def net(channels: int = 1, image_size: int = 28) -> CNN:
    return CNN(channels, image_size, depth=4, width=4)


def classifier(finetune: FineTune, backbone=net, **options) -> Classifier:
    torch.manual_seed(0)
    defaults = {"num_classes": 10, "channels": 1, "image_size": 28, "lr": 0.05}
    return Classifier(backbone, finetune=finetune, **{**defaults, **options})


def changed(model: Classifier, before: dict[str, torch.Tensor]) -> set[str]:
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


def statistics(names) -> set[str]:
    return {n for n in names if n.rpartition(".")[2] in STATISTICS}


def variants() -> list[type[FineTune]]:
    modules = [
        importlib.import_module(f"imgcls.finetune.{m.name}") for m in pkgutil.iter_modules(imgcls.finetune.__path__)
    ]
    found = {c for m in modules for c in vars(m).values() if inspect.isclass(c) and issubclass(c, FineTune)}
    return sorted((c for c in found if not inspect.isabstract(c)), key=lambda c: c.__name__)


BACKBONES = {
    "cnn": net,
    "timm": lambda c, s: TimmBackbone(c, s, "mobilenetv3_small_050", "none"),
    "vit": lambda c, s: TimmBackbone(c, s, "vit_tiny_patch16_224", "none", {"depth": 2}),
    "torchvision": lambda c, s: TorchvisionBackbone(c, s, "resnet18", "none"),
    "torchvision vit": lambda c, s: TorchvisionBackbone(c, s, "vit_b_16", "none"),
}


# a CNN of 3×3 convolutions has no layer for low-rank updates, see test_lora_names_the_layers
PAIRS = [(cls, name) for cls in variants() for name in BACKBONES if (cls, name) != (LoRA, "cnn")]


@pytest.mark.parametrize("cls, backbone", PAIRS, ids=lambda x: getattr(x, "__name__", x))
def test_every_variant_prepares_every_backbone(cls, backbone):
    model = classifier(cls(), BACKBONES[backbone], image_size=32)
    logits = model(torch.rand(2, 1, 32, 32))
    assert logits.shape == (2, 10)
    if cls is not Neighbours:
        logits.sum().backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.requires_grad == (name in model.trained)
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(0 <= how.scale <= 1 and how.start >= 0 for how in model.trained.values())


# ---- which parameters change, and how fast ----


def test_layer_decay_gives_each_block_its_own_rate():
    model = classifier(LayerDecay(0.5), lr=1.0, weight_decay=0.1)
    stages = model.backbone.stages()
    trainer = fit(model, SampleData(batch_size=8))
    parameters = dict(model.backbone.named_parameters())
    rate = {id(p): g["initial_lr"] for g in trainer.optimizers[0].param_groups for p in g["params"]}
    for depth, stage in enumerate(stages):
        assert {rate[id(parameters[n])] for n in stage.parameters} == {0.5 ** (len(stages) - depth)}
    assert {rate[id(p)] for p in model.head.parameters()} == {1.0} and rate[
        id(parameters[stages[-1].parameters[0]])
    ] == 0.5


def test_partial_trains_the_last_blocks_and_freezes_the_statistics_of_the_others():
    model = classifier(Partial(blocks=1))
    last = {f"backbone.{n}" for n in model.backbone.stages()[-1].parameters}
    before = copy.deepcopy(model.state_dict())
    fit(model, SampleData(batch_size=8))
    moved = changed(model, before)
    assert moved - statistics(moved) == last | {"head.weight", "head.bias"}
    block = model.backbone.stages()[-1].name.rpartition(".")[0]
    assert statistics(moved) and all(name.startswith(f"backbone.{block}.") for name in statistics(moved))
    with pytest.raises(UserError, match="--model.finetune.blocks: 99; the backbone has 4: layers"):
        classifier(Partial(blocks=99))


@pytest.mark.parametrize("freeze_statistics", [False, True])
@pytest.mark.parametrize("cls", [Full, LayerDecay, BiasNorm, L2SP])
def test_statistics_rest_if_asked_to(cls, freeze_statistics):
    model = classifier(cls(freeze_statistics=freeze_statistics))
    before = copy.deepcopy(model.state_dict())
    fit(model, SampleData(batch_size=8))
    moved = changed(model, before)
    assert bool(statistics(moved)) != freeze_statistics
    assert "backbone.layers.0.1.weight" in moved  # the norm itself is trained


def test_bias_norm_trains_vectors_only():
    model = classifier(BiasNorm())
    before = copy.deepcopy(model.state_dict())
    fit(model, SampleData(batch_size=8))
    moved = changed(model, before)
    expected = {f"backbone.{n}" for n, p in model.backbone.named_parameters() if p.ndim == 1}
    assert moved - statistics(moved) == expected | {"head.weight", "head.bias"}


def test_stages_join_from_output_to_input():
    stages = net().stages()
    assert Gradual(epochs=2, blocks=1).starts(stages) == [8, 6, 4, 2]
    assert Gradual(epochs=1, blocks=3).starts(stages) == [2, 1, 1, 1]
    assert Gradual(epochs=3, blocks=None).starts(stages) == [3, 3, 3, 3]


def test_gradual_trains_what_has_joined_and_nothing_else():
    model = classifier(Gradual(epochs=1, blocks=1), weight_decay=0.5)
    data, seen = SampleData(batch_size=8), []

    from lightning import Callback

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            self.before = copy.deepcopy(pl_module.state_dict())

        def on_train_epoch_end(self, trainer, pl_module):
            moved = changed(pl_module, self.before)
            seen.append({n.split(".")[2] for n in moved if n.startswith("backbone")})
            assert {id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]} == set(
                map(id, pl_module.parameters())
            )

    fit(model, data, max_epochs=3, callbacks=[Watch()])
    blocks = [stage.name.split(".")[1] for stage in model.backbone.stages()]
    assert seen == [set(), set(blocks[-1:]), set(blocks[-2:])]


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_gradual_goes_on_in_the_middle_of_a_stage(imgcls, stop):
    words = [*TINY, "--config", ROOT / "configs/finetune/gradual.yaml", "--model.backbone.depth=4"]
    words += ["--trainer.max_epochs=3", "--test_after_fit=false", "--model.schedule=imgcls.optim.Constant"]
    assert imgcls("fit", *words, "--run_dir=whole")[0] == 0
    often = ["--last_checkpoint.every_n_train_steps=1", "--last_checkpoint.save_on_train_epoch_end=false"]
    cut = ["--trainer.max_steps", stop, "--checkpoint.monitor=null"]
    code, _, err = imgcls("fit", *words, *often, *cut, "--run_dir=cut")
    assert code == 0, err
    code, _, err = imgcls("fit", "--resume", "cut", "--trainer.max_steps=-1")
    assert code == 0, err
    whole, resumed = (
        torch.load(f"{d}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for d in ("whole", "cut")
    )
    assert whole.keys() == resumed.keys() and all(torch.equal(v, resumed[k]) for k, v in whole.items())


SPY = """
import torch
from lightning import Callback

class Spy(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        parameters = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
        torch.save(parameters, f"rank{trainer.global_rank}-{trainer.current_epoch}.pt")
"""


@pytest.mark.slow
def test_gradual_keeps_two_processes_together():
    Path("spy.py").write_text(SPY)
    Path("spy.yaml").write_text("trainer: {callbacks: [{class_path: spy.Spy}]}")
    words = [*TINY, "--config", ROOT / "configs/finetune/gradual.yaml", "--config", "spy.yaml", "--run_dir=run"]
    words += [
        "--trainer.max_epochs=3",
        "--model.backbone.depth=4",
        "--test_after_fit=false",
        "--trainer.accelerator=cpu",
    ]
    words += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "imgcls", "fit", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    epochs = [[torch.load(f"rank{r}-{e}.pt", weights_only=True) for r in (0, 1)] for e in range(3)]
    for first, second in epochs:
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    moved = [{n for n in b if not torch.equal(a[n], b[n])} for (a, _), (b, _) in zip(epochs, epochs[1:], strict=False)]
    assert "backbone.layers.0.0.weight" not in moved[0] and moved[0] > {"head.weight", "head.bias"}
    assert "backbone.layers.0.0.weight" in moved[1]


# ---- LoRA ----


@pytest.mark.parametrize("backbone", ["timm", "vit", "torchvision vit"])
def test_lora_starts_from_the_given_weights_and_merges_without_a_trace(backbone):
    build, image = BACKBONES[backbone], torch.rand(2, 1, 32, 32)
    torch.manual_seed(0)
    plain = build(1, 32).eval()
    tuned = copy.deepcopy(plain)
    trained = LoRA(rank=4).prepare(tuned)
    assert trained and all(".down" in n or ".up" in n for n in trained)
    torch.testing.assert_close(tuned(image), plain(image))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name in trained:
                parameter.normal_(std=0.3)
    before = tuned.eval()(image)
    assert not torch.allclose(before, plain(image), atol=1e-3)
    LoRA().merge(tuned)
    torch.testing.assert_close(tuned(image), before, rtol=1e-3, atol=1e-3)
    assert tuned.state_dict().keys() == plain.state_dict().keys()


def test_lora_is_the_papers_formula():
    layer = nn.Linear(6, 5)
    weight = layer.weight.detach().clone()

    class Net(CNN):
        pass

    net = Net(1, 28, 1, 4)
    net.extra = layer
    LoRA(rank=2, alpha=3.0, targets=["extra"]).prepare(net)
    update = layer.parametrizations.weight[0]
    nn.init.normal_(update.up)
    torch.testing.assert_close(layer.weight, weight + 3.0 / 2 * update.up @ update.down)


def test_lora_names_the_layers():
    with pytest.raises(UserError, match="targets: 'blocks.9.*' matches no linear layer .*network.blocks.0.attn.qkv"):
        LoRA(targets=["blocks.9.*"]).prepare(BACKBONES["vit"](1, 32))
    with pytest.raises(UserError, match="the backbone has none"):
        LoRA().prepare(net())


def test_lora_trains_its_updates_and_the_head_only():
    model = classifier(LoRA(rank=2), BACKBONES["timm"], image_size=32)
    before = copy.deepcopy(model.state_dict())
    fit(model, SampleData(batch_size=8, image_size=32))
    assert all(n.startswith("head") or n.endswith((".down", ".up")) for n in changed(model, before))


# ---- L2-SP ----


def test_l2_sp_is_the_squared_distance_from_the_start():
    model = classifier(L2SP(alpha=0.3))
    start = [p.detach().clone() for p in model.backbone.parameters()]
    assert model.finetune.penalty(model.backbone).item() == 0
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.1)
    penalty = model.finetune.penalty(model.backbone)
    assert penalty.item() == pytest.approx(0.15 * 0.01 * sum(p.numel() for p in start), rel=1e-4)
    penalty.backward()
    for parameter in model.backbone.parameters():
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 0.03))


def test_a_strong_pull_holds_the_backbone():
    def distance(finetune):
        model = classifier(finetune, lr=0.01, weight_decay=0.0, optimizer=torch.optim.SGD)
        start = copy.deepcopy(model.backbone.state_dict())
        fit(model, SampleData(batch_size=32), limit_train_batches=40)
        return sum((p - start[n]).square().sum() for n, p in model.backbone.named_parameters()).sqrt().item()

    assert distance(L2SP(alpha=50.0)) < 0.5 * distance(L2SP(alpha=0.0))


# ---- distillation ----


def test_distillation_against_a_value_computed_by_hand():
    teacher = Teacher("somewhere", temperature=2.0, weight=0.25)
    student_logits, teacher_logits = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    p = 1 / (1 + math.exp(-1))  # softmax of (1, 0), the logits divided by the temperature
    divergence = (1 - p) * math.log((1 - p) / p) + p * math.log(p / (1 - p))
    loss = teacher.combine(torch.tensor(3.0), student_logits, teacher_logits)
    assert loss.item() == pytest.approx(0.75 * 3.0 + 0.25 * 4.0 * divergence, rel=1e-6)
    same = teacher.combine(torch.tensor(3.0), student_logits, student_logits)
    assert same.item() == pytest.approx(0.75 * 3.0, abs=1e-6)


def test_a_student_of_several_labels_learns_each_label_by_itself():
    teacher = Teacher("somewhere", temperature=2.0, weight=0.25)
    teacher.task = MultiLabel()
    student_logits, teacher_logits = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0)).double() * 3
    p, q = (1 / (1 + np.exp(-logits.numpy() / 2)) for logits in (teacher_logits, student_logits))
    divergence = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(1).mean()
    loss = teacher.combine(torch.tensor(3.0), student_logits, teacher_logits)
    assert loss.item() == pytest.approx(0.75 * 3.0 + 0.25 * 4.0 * divergence, rel=1e-5)
    same = teacher.combine(torch.tensor(3.0), student_logits, student_logits)
    assert same.item() == pytest.approx(0.75 * 3.0, abs=1e-6)


def test_a_student_learns_from_a_run_in_its_own_size_and_normalisation(imgcls):
    assert imgcls("fit", *TINY, "--run_dir=teacher", "--test_after_fit=false")[0] == 0
    words = [*TINY, "--config", ROOT / "configs/finetune/distill.yaml", "--test_after_fit=false"]
    student = ["--data.image_size=32", "--data.mean=[0.5]", "--model.teacher.weight=1.0"]
    code, _, err = imgcls("fit", *words, *student, "--model.teacher.run=teacher", "--run_dir=student")
    assert code == 0, err
    checkpoint = torch.load("student/checkpoints/last.ckpt", weights_only=True)
    assert not any("teacher" in name for name in checkpoint["state_dict"])
    code, _, err = imgcls("test", "--run", "student")
    assert code == 0, err


def test_the_teachers_view_of_an_image_is_its_own(imgcls):
    assert imgcls("fit", *TINY, "--run_dir=teacher", "--test_after_fit=false")[0] == 0
    teacher = Teacher("teacher")
    data = SampleData()
    teacher.load(data.class_names, torch.device("cpu"))
    data.setup("fit")
    image = data.parts["train"][0].images([1, 2, 3], data.resize_crop("val"))
    other = SampleData(mean=[0.9], std=[0.1])
    expected = teacher.loaded.model(data.normalize(image))
    torch.testing.assert_close(
        teacher.logits(other.normalize(image), other.mean, other.std), expected, atol=1e-4, rtol=0
    )
    with pytest.raises(UserError, match="knows the classes T-shirt/top"):
        teacher.load(["a", "b"], torch.device("cpu"))
    kinds = "--model.teacher.run teacher: learnt from labels of the kind single_label, the data has multi_label"
    with pytest.raises(UserError, match=kinds):
        teacher.load(data.class_names, torch.device("cpu"), MultiLabel())


# ---- frozen features ----


def blobs(count: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 3
    centre = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])
    return Features((centre[label] + 1.2 * torch.randn(count, 4, generator=generator))[:, None], label)


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_the_logistic_head_is_scikit_learns(strength):
    train = blobs(90, 0)
    feature = train.feature[:, 0]
    weight, bias = logistic_regression(
        feature, train.label, strength, torch.zeros(3, 4), torch.zeros(3), CrossEntropy()
    )
    theirs = LogisticRegression(C=1 / (strength * 90), tol=1e-8, max_iter=1000).fit(
        feature.numpy(), train.label.numpy()
    )
    ours = torch.softmax(feature @ weight.T + bias, 1)
    np.testing.assert_allclose(ours.numpy(), theirs.predict_proba(feature.numpy()), atol=2e-4)


def test_the_penalty_is_that_of_the_best_validation_likelihood():
    train, val, head = blobs(30, 0), blobs(300, 1), nn.Linear(4, 3)
    probe = LogisticProbe()
    chosen = probe.solve(head, train, val, CrossEntropy())["strength"]
    losses = {}
    for strength in (chosen, *probe.strengths):
        LogisticProbe([strength]).solve(head, train, val, CrossEntropy())
        losses[strength] = nn.functional.cross_entropy(head(val.feature[:, 0]), val.label).item()
    assert losses[chosen] <= min(losses.values()) * 1.001


def test_neighbours_vote_like_scikit_learns():
    train, val = blobs(90, 0), blobs(60, 1)
    head = Vote(4, 3, k=7, temperature=1e6, task=find(SINGLE_LABEL))  # so warm that all votes weigh the same
    Neighbours(k=[7], temperature=1e6).solve(head, train, None, CrossEntropy())
    theirs = KNeighborsClassifier(7, metric="cosine").fit(train.feature[:, 0].numpy(), train.label.numpy())
    share = (head(val.feature[:, 0]).exp().numpy() - 0.001 / 3) / 0.999
    np.testing.assert_allclose(share, theirs.predict_proba(val.feature[:, 0].numpy()), atol=1e-5)


def blobs_of_several(count: int, seed: int) -> Features:
    """A label for each half-space, in two versions of each image; some images have none, some all three."""
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(count, 1, 4, generator=generator) + 0.1 * torch.randn(count, 2, 4, generator=generator)
    noise = 0.5 * torch.randn(count, 3, generator=generator)
    return Features(feature, (feature[:, 0, :3] + noise > torch.tensor([-0.5, 0.0, 1.0])).float())


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_of_several_labels_the_logistic_head_is_scikit_learns_one_for_each(strength):
    train, val, head = blobs_of_several(90, 0), blobs_of_several(60, 1), nn.Linear(4, 3)
    x, y = train.feature.flatten(0, 1).numpy(), train.label.repeat_interleave(2, 0).numpy()
    scale, mean = x.std(), x.mean(0)
    each = LogisticRegression(C=1 / (strength * 180), tol=1e-8, max_iter=1000)
    theirs = OneVsRestClassifier(each).fit((x - mean) / scale, y)
    LogisticProbe([strength]).solve(head, train, None, MultiLabel().loss())
    ours = head(val.feature[:, 0]).sigmoid().detach().numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba((val.feature[:, 0].numpy() - mean) / scale), atol=5e-4)


def test_of_several_labels_the_penalty_is_that_of_the_best_validation_likelihood():
    train, val, head, loss = blobs_of_several(30, 0), blobs_of_several(300, 1), nn.Linear(4, 3), MultiLabel().loss()
    probe = LogisticProbe()
    chosen = probe.solve(head, train, val, loss)["strength"]
    losses = {}
    for strength in (chosen, *probe.strengths):
        LogisticProbe([strength]).solve(head, train, val, loss)
        logits = head(val.feature[:, 0])
        losses[strength] = nn.functional.binary_cross_entropy_with_logits(logits, val.label).item()
    assert losses[chosen] <= min(losses.values()) * 1.001 and chosen not in (probe.strengths[0], probe.strengths[-1])


def test_of_several_labels_neighbours_vote_on_each():
    train, val, task = blobs_of_several(90, 0), blobs_of_several(60, 1), MultiLabel()
    variant = Neighbours(k=[7], temperature=1e6)
    head = variant.head(4, 3, task)
    assert (head(val.feature[:, 0]) == 0).all()  # before training: Lightning's check of the validation loop
    variant.solve(head, train, None, task.loss())
    x, y = train.feature.flatten(0, 1).numpy(), train.label.repeat_interleave(2, 0).numpy()
    theirs = KNeighborsClassifier(7, metric="cosine").fit(x, y).predict_proba(val.feature[:, 0].numpy())
    share = (head(val.feature[:, 0]).sigmoid().numpy() - 0.0005) / 0.999
    np.testing.assert_allclose(share, np.stack([of[:, 1] for of in theirs], 1), atol=1e-5)


def test_of_several_labels_the_number_of_neighbours_is_that_of_the_best_validation_likelihood():
    train, val, task = blobs_of_several(90, 0), blobs_of_several(60, 1), MultiLabel()
    losses = {}
    for k in (1, 5, 10, 20, 50):
        head = Vote(4, 3, k, 0.07, task)
        Neighbours(k=[k]).solve(head, train, val, task.loss())
        losses[k] = nn.functional.binary_cross_entropy_with_logits(head(val.feature[:, 0]), val.label).item()
    assert Neighbours().solve(head, train, val, task.loss())["k"] == min(losses, key=losses.get) != 1


def test_neighbours_of_several_labels_are_kept_with_the_weights():
    trained, fresh = (classifier(Neighbours(), task="multi_label") for _ in range(2))
    feature, label = torch.randn(30, 1, trained.backbone.num_features), (torch.rand(30, 10) < 0.3).float()
    trained.finetune.solve(trained.head, Features(feature, label), None, trained.task.loss())
    state = trained.state_dict()
    fresh.check_weights(state)
    fresh.load_state_dict(state)
    image = torch.rand(5, 1, 28, 28)
    torch.testing.assert_close(fresh.eval()(image), trained.eval()(image))
    assert torch.equal(fresh.head.label, label)


PROBE = (*TINY, "--test_after_fit=false", "--trainer.limit_train_batches=1.0", "--data.train_fraction=0.1")


@pytest.mark.parametrize("name", ["cached_probe", "logistic_probe", "neighbours"])
def test_what_is_trained_on_features_predicts_from_images(name, imgcls):
    config = ("--config", ROOT / f"configs/finetune/{name}.yaml")
    code, _, err = imgcls("fit", *PROBE, *config, "--data.augment=null", "--run_dir=probe", "--trainer.max_epochs=2")
    assert code == 0, err
    rows = [r for r in read_metrics_of("probe") if r["split"] == "val"]
    stored = float(max(rows, key=lambda r: float(r["acc"]))["acc"])
    code, out, err = imgcls("validate", "--run", "probe")
    assert code == 0, err
    again = json.loads(Path("probe/metrics.json").read_text())["val/acc"]
    assert again == pytest.approx(stored, abs=2e-3)
    assert len(list(Path("probe/features").glob("*.safetensors"))) == 2


def read_metrics_of(folder: str):
    from imgcls.runs.folder import RunFolder

    return read_metrics(RunFolder(folder))


class SampleOfSeveral(SampleData):
    """Of the labels below 3, as many as are not below the image's class: from none to three."""

    def __init__(self, dtype: type, **options) -> None:
        super().__init__(batch_size=100, train_fraction=0.1, **options)
        self.dtype = dtype

    def setup_training_parts(self) -> None:
        super().setup_training_parts()
        for part, (source, index) in self.parts.items():
            several = (source.label[:, None] <= np.arange(10)) & (np.arange(10) < 3)
            self.parts[part] = source.relabelled(several.astype(self.dtype)), index

    def class_counts(self) -> np.ndarray:
        source, index = self.parts["train"]
        return source.label[index].sum(0)


def test_a_probe_of_several_labels_is_fitted_to_features_of_images():
    data, model = SampleOfSeveral(np.int8), classifier(LogisticProbe(), task="multi_label")
    fit(model, data)
    source, index = data.parts["train"]
    label = torch.from_numpy(source.label[index]).float()
    image = data.normalize(source.images(index, data.resize_crop("val")))
    found = nn.functional.binary_cross_entropy_with_logits(model.eval().logits(image), label)
    share = label.mean(0).clamp(1e-6, 1 - 1e-6).logit().expand_as(label)
    assert found < 0.8 * nn.functional.binary_cross_entropy_with_logits(share, label)
    assert (model.logits(image)[:, 3:] < -3).all()  # labels that no image has


def test_several_labels_can_be_cached_augmented_but_not_mixed():
    data = SampleOfSeveral(np.int8, augment=Pipeline([RandomHorizontalFlip()]))
    model = classifier(Neighbours(views=1), task="multi_label")
    fit(model, data)
    source, index = data.parts["train"]
    label = torch.from_numpy(source.label[index]).float()  # as batches have them
    assert torch.equal(model.head.label, label.repeat_interleave(2, 0)) and model.head.label.dtype == label.dtype
    model = classifier(LogisticProbe(views=1), task="multi_label")
    with pytest.raises(UserError, match="--model.finetune.views: augmentation that mixes labels cannot be cached"):
        fit(model, SampleOfSeveral(np.float32, augment=Pipeline([MixUp()])))


def test_cached_and_uncached_probe_learn_the_same(imgcls):
    words = [*PROBE, "--config", ROOT / "configs/finetune/linear_probe.yaml", "--data.augment=null"]
    words += ["--trainer.max_epochs=3", "--model.dropout=0.2"]
    for cache in ("true", "false"):
        code, _, err = imgcls("fit", *words, f"--model.finetune.cache={cache}", "--run_dir", cache)
        assert code == 0, err
    cached, plain = ([float(r["loss"]) for r in read_metrics_of(d) if r["split"] == "train"] for d in ("true", "false"))
    assert cached == pytest.approx(plain, abs=1e-4)


def test_features_are_found_again_by_what_made_them(imgcls):
    words = [*PROBE, "--config", ROOT / "configs/finetune/cached_probe.yaml", "--model.finetune.feature_dir=shared"]
    number = []
    changes = [
        [],
        ["--model.lr=0.5"],  # the features do not depend on it
        ["--data.mean=[0.4]"],
        ["--model.finetune.views=2"],
        ["--model.finetune.views=2", "--config", str(ROOT / "configs/augment/flip.yaml")],
        ["--model.backbone.width=16"],
    ]
    for k, change in enumerate(changes):
        code, _, err = imgcls("fit", *words, *change, f"--run_dir=run{k}")
        assert code == 0, err
        number.append(len(list(Path("shared").iterdir())))
    assert number == [2, 2, 4, 5, 6, 8]
    for path in Path("shared").iterdir():
        path.write_bytes(b"damaged")
    assert imgcls("fit", *words, "--run_dir=again")[0] == 0


def test_labels_that_mix_cannot_be_cached(imgcls):
    words = [
        *PROBE,
        "--config",
        ROOT / "configs/augment/mixup.yaml",
        "--config",
        ROOT / "configs/finetune/cached_probe.yaml",
    ]
    code, _, err = imgcls("fit", *words, "--model.finetune.views=1", "--run_dir=run")
    assert code == 2 and "mixes labels" in err


@pytest.mark.slow
def test_with_few_images_real_weights_beat_training_from_scratch(imgcls, tmp_path):
    """Ten images per class of real photographs of clothes, ImageNet weights of EfficientNet-Lite0."""
    save_file(efficientnet_lite0(), tmp_path / "lite0.safetensors")
    base = ["--config", ROOT / "configs/data/sample.yaml", "--config", ROOT / "configs/model/timm.yaml", *QUIET]
    base += ["--data.train_fraction=0.02", "--data.val_fraction=0.05", "--data.image_size=64", "--data.batch_size=20"]
    base += ["--test_after_fit=true"]
    weights = f"--model.backbone.weights={tmp_path / 'lite0.safetensors'}"
    accuracy = {}
    for name, words in {
        "scratch": ["--model.backbone.weights=none", "--trainer.max_epochs=20", "--model.lr=0.002"],
        "probe": [weights, "--config", ROOT / "configs/finetune/logistic_probe.yaml"],
    }.items():
        code, out, err = imgcls("fit", *base, *words, "--run_dir", name)
        assert code == 0, err
        accuracy[name] = json.loads(Path(name, "metrics.json").read_text())["test/acc"]
    assert accuracy["probe"] > accuracy["scratch"] + 0.1, accuracy
    print(accuracy)
