import copy
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import nn

from imgcls.classifier import Classifier
from imgcls.data.sample import SampleData
from imgcls.errors import UserError
from imgcls.finetune.full import Full
from imgcls.finetune.linear_probe import LinearProbe
from imgcls.losses import BinaryCrossEntropy, CrossEntropy, Focal
from imgcls.models.cnn import CNN
from imgcls.optim import OneCycle, Steps, WarmupCosine, parameter_groups
from imgcls.tasks import SINGLE_LABEL, find
from imgcls.training.trainer import Trainer

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]])
LABEL = torch.tensor([0, 1])
ONE_HOT = nn.functional.one_hot(LABEL, 3).float()
LOSSES = [CrossEntropy(), CrossEntropy(0.1), BinaryCrossEntropy(), BinaryCrossEntropy(0.1), Focal(), Focal(0.0, 0.1)]


def small(channels: int = 1, image_size: int = 28) -> CNN:
    return CNN(channels, image_size, depth=2, width=4)


def classifier(**options) -> Classifier:
    torch.manual_seed(0)
    return Classifier(small, num_classes=10, channels=1, image_size=28, **options)


def fit(model: Classifier, data: SampleData, **options) -> Trainer:
    defaults = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 0, "use_distributed_sampler": False}
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(**{"accelerator": "cpu", **defaults, **quiet, **options})
    trainer.fit(model, datamodule=data)
    return trainer


# ---- losses ----


@pytest.mark.parametrize("loss", LOSSES)
def test_class_and_one_hot_labels_give_the_same_loss(loss):
    torch.testing.assert_close(loss(LOGITS, LABEL, None), loss(LOGITS, ONE_HOT, None))


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_class_weights_change_nothing(loss):
    torch.testing.assert_close(loss(LOGITS, LABEL, torch.ones(3)), loss(LOGITS, LABEL, None))


def test_losses_against_their_formulas():
    p = torch.softmax(LOGITS, 1)[[0, 1], LABEL]
    torch.testing.assert_close(CrossEntropy()(LOGITS, LABEL, None), -p.log().mean())
    torch.testing.assert_close(Focal(2.0)(LOGITS, LABEL, None), (-((1 - p) ** 2) * p.log()).mean())
    torch.testing.assert_close(Focal(0.0)(LOGITS, LABEL, None), CrossEntropy()(LOGITS, LABEL, None))
    s = torch.sigmoid(LOGITS)
    by_hand = -(ONE_HOT * s.log() + (1 - ONE_HOT) * (1 - s).log()).sum(1).mean()
    torch.testing.assert_close(BinaryCrossEntropy()(LOGITS, LABEL, None), by_hand)
    mixed = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.9, 0.0]])
    full = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    by_hand = -(full * s.log() + (1 - full) * (1 - s).log()).mean()
    loss = BinaryCrossEntropy(target_threshold=0.2, reduction="mean")(LOGITS, mixed, None)
    torch.testing.assert_close(loss, by_hand)


# ---- optimiser and schedule ----


def test_groups_hold_every_trained_parameter_once_and_spare_norms_and_biases():
    model = classifier(finetune=Full(backbone_scale=0.1), lr=1.0, weight_decay=0.5)
    groups = parameter_groups(
        model.named_parameters(),
        {f"backbone.{n}": t.scale for n, t in model.trained.items()},
        1.0,
        0.5,
        {"head.weight"},
    )
    flat = [id(p) for g in groups for p in g["params"]]
    assert sorted(flat) == sorted(id(p) for p in model.parameters())
    for group in groups:
        for parameter in group["params"]:
            in_head = any(parameter is p for p in model.head.parameters())
            assert group["lr"] == (1.0 if in_head else 0.1)
            assert group["weight_decay"] == (0.0 if parameter.ndim == 1 or in_head else 0.5)


def rates(schedule, steps, peaks=(1.0, 0.1)):
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in peaks])
    scheduler = schedule(optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        scheduler.step() if len(seen) < steps else None
    return np.array(seen)


def test_warmup_cosine_at_chosen_steps():
    seen = rates(lambda o, n: WarmupCosine(o, n, warmup=0.1, final=0.2), 100)
    np.testing.assert_allclose(seen[:, 1], 0.1 * seen[:, 0])
    assert seen[0, 0] == pytest.approx(1 / 11) and seen[10, 0] == pytest.approx(1.0) and seen[:, 0].max() <= 1
    assert seen[55, 0] == pytest.approx(0.2 + 0.8 * 0.5)
    assert seen[99, 0] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 89 / 90)) / 2)


def test_one_cycle_peaks_at_each_groups_own_rate():
    seen = rates(lambda o, n: OneCycle(o, n, pct_start=0.3), 101)
    assert seen.max(0) == pytest.approx([1.0, 0.1], rel=1e-3) and seen[0, 0] == pytest.approx(1 / 25)
    assert seen[-1, 0] < 1e-3


def test_steps_fall_at_their_shares():
    seen = rates(lambda o, n: Steps(o, n, [0.5, 0.75], 0.1), 100)[:, 0]
    np.testing.assert_allclose(seen[[0, 49, 50, 74, 75, 99]], [1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("options, steps", [({}, 4), ({"accumulate_grad_batches": 2}, 2), ({"max_steps": 3}, 3)])
def test_total_steps_are_those_that_happen(options, steps):
    model = classifier(lr=0.1)
    trainer = fit(model, SampleData(batch_size=8), max_epochs=2, **options)
    assert trainer.global_step == model.total_steps() == steps


# ---- fine-tuning ----


def test_a_linear_probe_leaves_the_backbone_bit_equal_statistics_included():
    model = classifier(finetune=LinearProbe(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    trainer = fit(model, SampleData(batch_size=8))
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head.weight", "head.bias"}
    assert sum(len(g["params"]) for g in trainer.optimizers[0].param_groups) == 2
    model.train()
    assert not any(m.training for m in model.backbone.modules()) and model.head.training


def test_full_fine_tuning_changes_every_tensor():
    model = classifier(finetune=Full(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    fit(model, SampleData(batch_size=8))
    assert all(not torch.equal(v, before[k]) for k, v in model.state_dict().items())


# ---- the step ----


def test_metrics_agree_with_scikit_learn():
    model, data = classifier(), SampleData(batch_size=96)
    trainer = fit(model, data)
    values = {k: v.item() for k, v in trainer.callback_metrics.items()}
    assert set(values) == {"train/loss", "train/acc", "train/lr", "epoch", "step"}
    result = trainer.test(model, datamodule=data, verbose=False)[0]
    source, _ = data.parts["test"]
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(data.normalize(b["image"])) for b in data.test_dataloader()])
    label, prediction = source.label, logits.argmax(1).numpy()
    assert result["test/acc"] == pytest.approx(accuracy_score(label, prediction), abs=1e-6)
    assert result["test/f1"] == pytest.approx(f1_score(label, prediction, average="macro"), abs=1e-6)
    assert result["test/top5"] == pytest.approx(
        (logits.topk(5).indices == torch.tensor(label)[:, None]).any(1).float().mean()
    )
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(label))
    assert result["test/loss"] == pytest.approx(loss.item(), rel=1e-5)
    probability = find(SINGLE_LABEL).probabilities(logits.numpy())
    confidence, right = probability.max(1), prediction == label
    bins = np.minimum((confidence * 15).astype(int), 14)
    ece = sum(abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    assert result["test/ece"] == pytest.approx(ece, abs=1e-5)


def test_balanced_class_weights_follow_the_training_part():
    data = SampleData(batch_size=8)
    data.setup("fit")
    source, index = data.parts["train"]
    data.parts["train"] = (
        source,
        np.concatenate([index[source.label[index] == 0][:100], index[source.label[index] == 1][:50]]),
    )
    model = classifier(class_weights="balanced")
    fit(model, data)
    assert model.class_weight[0] == pytest.approx(0.75) and model.class_weight[1] == pytest.approx(1.5)


def test_a_wrong_number_of_class_weights_is_named():
    with pytest.raises(UserError, match="--model.class_weights: 2 weights for 10 classes"):
        classifier(class_weights=[1.0, 2.0])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_images_come_in_the_precision_of_the_model(precision):
    model = classifier(channels_last=True)
    trainer = fit(model, SampleData(batch_size=8), precision=precision, limit_train_batches=1)
    assert math.isfinite(trainer.callback_metrics["train/loss"])


def test_mixed_soft_labels_train():
    from imgcls.augment.mixing import CutMix, MixUp
    from imgcls.augment.pipeline import OneOf, Pipeline

    data = SampleData(batch_size=8, augment=Pipeline([OneOf([MixUp(), CutMix()])]))
    trainer = fit(classifier(loss=BinaryCrossEntropy()), data)
    assert math.isfinite(trainer.callback_metrics["train/loss"])


def test_flipped_images_count_as_much_as_the_images():
    model = classifier(flip_at_test=True).eval()
    image = torch.rand(3, 1, 28, 28)
    batch = {"image": image, "label": torch.zeros(3), "index": torch.arange(3)}
    with torch.no_grad():
        logits = model.predict_step(batch, 0)["logits"]
        torch.testing.assert_close(logits, (model(image) + model(image.flip(-1))) / 2)
        mirrored = model.predict_step({**batch, "image": image.flip(-1)}, 0)["logits"]
    torch.testing.assert_close(logits, mirrored)


def test_among_equal_epochs_the_last_is_kept(tmp_path):
    from imgcls.training.checkpoint import BestCheckpoint

    class Flat(Classifier):
        def on_validation_epoch_end(self):
            self.metrics["val"].collect()
            self.log(
                "val/acc", [0.5, 0.9, 0.9, 0.4][self.trainer.current_epoch] if not self.trainer.sanity_checking else 0.0
            )

    keep = BestCheckpoint(tmp_path, "best", monitor="val/acc", mode="max", enable_version_counter=False)
    model = Flat(small, num_classes=10, channels=1, image_size=28)
    options = {"max_epochs": 4, "limit_val_batches": 1, "callbacks": [keep], "enable_checkpointing": True}
    fit(model, SampleData(batch_size=8), **options)
    assert [p.name for p in tmp_path.iterdir()] == ["best.ckpt"]
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 2


def test_every_step_draws_anew_and_a_run_repeats():
    class Spy(nn.Module):
        draws: list[float] = []

    from imgcls.augment.base import Augmentation

    class Record(Augmentation):
        def forward(self, image, label):
            Spy.draws.append(torch.rand(()).item())
            return image, label

    for _ in range(2):
        fit(classifier(), SampleData(batch_size=8, augment=Record()), max_epochs=2)
        torch.rand(3)
    assert Spy.draws[:4] == Spy.draws[4:] and len(set(Spy.draws)) == 4
