import math
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

from imgcls.errors import UserError
from imgcls.finetune.base import FineTune, frozen_modules
from imgcls.finetune.full import Full
from imgcls.losses import CrossEntropy, Loss
from imgcls.models.base import BackboneFactory
from imgcls.optim import OptimizerFactory, ScheduleFactory, WarmupCosine, parameter_groups

Batch = dict[str, Tensor]


class Classifier(LightningModule):
    """A backbone, a linear head, and one step for training, validation and test.

    Metrics, as `train/…`, `val/…` and `test/…`: loss, acc (top-1), and outside of training top5 (from six
    classes on), f1 (macro average) and ece (expected calibration error, 15 bins of equal width).

    Args:
        backbone: Images to features; from scratch or pre-trained.
        num_classes: Number of classes K; comes from the data.
        channels: Channels of an image; comes from the data.
        image_size: Side of an image in pixels; comes from the data.
        finetune: Which parts of the backbone are trained, and how fast.
        loss: Loss of logits and labels.
        optimizer: The optimiser, without learning rate and weight decay.
        schedule: Learning rate by optimiser step.
        lr: Peak learning rate of the head, and of the backbone unless `finetune` scales it.
        weight_decay: Of all weights but norms and biases.
        dropout: Before the head.
        class_weights: Weight of each class in the loss; `balanced`: inversely proportional to its frequency
            in the training part, with mean 1 over the images.
        compile: Compile backbone and head with torch.compile.
        channels_last: Keep images and weights in channels-last order, which convolutions prefer.
    """

    def __init__(
        self,
        backbone: BackboneFactory,
        num_classes: int,
        channels: int,
        image_size: int,
        finetune: FineTune | None = None,
        loss: Loss | None = None,
        optimizer: OptimizerFactory = torch.optim.AdamW,
        schedule: ScheduleFactory = WarmupCosine,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        dropout: float = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone(channels, image_size)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.backbone.num_features, num_classes)
        factors = (finetune or Full()).prepare(self.backbone)
        self.lr_scale = {f"backbone.{name}": factor for name, factor in factors.items()}
        self.loss = loss or CrossEntropy()
        self.optimizer, self.schedule, self.lr, self.weight_decay = optimizer, schedule, lr, weight_decay
        self.class_weights, self.compile_step, self.channels_last = class_weights, compile, channels_last
        # not in the checkpoint: the config and the training data say it again
        self.register_buffer("class_weight", _class_weight(class_weights, num_classes), persistent=False)
        self.train_totals: Tensor | None = None
        scores: dict[str, Metric | MetricCollection] = {
            "acc": MulticlassAccuracy(num_classes, average="micro"),
            "f1": MulticlassF1Score(num_classes, average="macro"),
            "ece": MulticlassCalibrationError(num_classes, n_bins=15),
        }
        if num_classes > 5:
            scores["top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
        metrics = MetricCollection(scores, compute_groups=False)
        self.metrics = nn.ModuleDict({stage: metrics.clone(prefix=f"{stage}/") for stage in ("val", "test")})
        self.mean_loss = nn.ModuleDict({stage: MeanMetric() for stage in ("val", "test")})
        self.train()  # Lightning starts in the mode that it finds: frozen parts must be in eval mode already
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of float images (B, C, H, W), normalised per channel."""
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return self.head(self.dropout(self.backbone(image)))

    def train(self, mode: bool = True) -> "Classifier":
        """Train mode, but for the frozen parts of the backbone."""
        super().train(mode)
        if mode:
            for module in frozen_modules(self.backbone):
                module.eval()
        return self

    def setup(self, stage: str) -> None:
        """Weigh the classes by the training part, and compile."""
        if self.class_weights == "balanced" and stage == "fit":
            count = torch.from_numpy(self.trainer.datamodule.class_counts()).float()  # type: ignore[attr-defined]
            # a class without a training image never occurs in the loss
            self.class_weight = count.sum() / (count > 0).sum() / count.clamp(min=1)
        if self.compile_step:
            self.backbone.compile()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the totals of an epoch that is not over, of all processes together."""
        if self.train_totals is not None:
            checkpoint["train_totals"] = self.trainer.strategy.reduce(self.train_totals.clone(), reduce_op="sum")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare the checkpoint's tensors with the model's, and go on counting.

        Raises:
            UserError: A tensor is missing, is left over, or has another shape.
        """
        mine = {k: tuple(v.shape) for k, v in self.state_dict().items()}
        theirs = {k: tuple(v.shape) for k, v in checkpoint["state_dict"].items()}
        wrong = [k for k in mine | theirs if mine.get(k) != theirs.get(k)]
        if wrong:
            first = f"{wrong[0]} is {theirs.get(wrong[0], 'missing')} there and {mine.get(wrong[0], 'missing')} here"
            raise UserError(
                f"the checkpoint does not fit the model: {len(wrong)} of {len(mine)} tensors differ ({first}); "
                "use the run's own model, classes and image size"
            )
        if "train_totals" in checkpoint and self.trainer.is_global_zero and self.trainer.state.fn == "fit":
            self.train_totals = checkpoint["train_totals"].to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch. Totals stay on the device: a logged metric would cost more than a small model's step."""
        logits, label = self(batch["image"]), batch["label"]
        loss = self.loss(logits, label, self.class_weight)
        with torch.no_grad():
            hard = label if label.ndim == 1 else label.argmax(1)
            right = (logits.argmax(1) == hard).sum()
            totals = torch.stack((loss.detach().float() * len(label), right.float(), right.new_tensor(len(label))))
            self.train_totals = totals if self.train_totals is None else self.train_totals.to(totals) + totals
        if (batch_idx + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            lr = self.trainer.optimizers[0].param_groups[-1]["lr"]
            for logger in self.loggers:  # self.log would cost a small model's step again, each step
                logger.log_metrics({"step/loss": loss.item(), "step/lr": lr}, step=self.global_step)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss and accuracy, over all processes."""
        if self.train_totals is None:
            return  # resumed at the very end of an epoch
        loss, right, count = self.trainer.strategy.reduce(self.train_totals, reduce_op="sum").tolist()
        self.train_totals = None
        self.log("train/loss", loss / count, prog_bar=True)
        self.log("train/acc", right / count, prog_bar=True)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[-1]["lr"])

    def validation_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Logits, label and index of a batch."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Logits, label and index of a batch."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Logits, label (-1 where unknown) and index of a batch."""
        return {"logits": self(batch["image"]).float(), "label": batch["label"], "index": batch["index"]}

    def _evaluate(self, batch: Batch, stage: str) -> Batch:
        output = self.predict_step(batch, 0)
        logits, label = output["logits"], output["label"]
        self.metrics[stage].update(logits, label)  # type: ignore[operator]
        # without class weights a batch's loss is a mean over its images, hence exact on any batching
        self.mean_loss[stage].update(self.loss(logits, label, None), len(label))  # type: ignore[operator]
        return output

    def on_validation_epoch_end(self) -> None:
        """Log each metric once; torchmetrics sums over all processes."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log each metric once; torchmetrics sums over all processes."""
        self._log_epoch("test")

    def _log_epoch(self, stage: str) -> None:
        metrics, mean_loss = self.metrics[stage], self.mean_loss[stage]
        values = {f"{stage}/loss": mean_loss.compute(), **metrics.compute()}  # type: ignore[operator]
        metrics.reset()  # type: ignore[operator]
        mean_loss.reset()  # type: ignore[operator]
        for name, value in values.items():
            self.log(name, value, prog_bar=name in ("val/loss", "val/acc"))

    def total_steps(self) -> int:
        """Optimiser steps of the whole run, from lengths alone.

        Lightning's own estimate builds the loader's iterator, which breaks a resumed position.
        """
        trainer = self.trainer
        if trainer.max_steps > 0:
            return trainer.max_steps
        if not trainer.max_epochs or trainer.max_epochs < 0:
            raise UserError("--trainer.max_epochs: give a number; the schedule needs to know the last step")
        batches = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        limit = trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs

    def configure_optimizers(self) -> Any:
        """Groups by learning rate and weight decay; the schedule moves by optimiser step."""
        no_decay = {f"backbone.{name}" for name in self.backbone.no_weight_decay()}
        groups = parameter_groups(self.named_parameters(), self.lr_scale, self.lr, self.weight_decay, no_decay)
        optimizer = self.optimizer(groups)
        schedule = self.schedule(optimizer, self.total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _class_weight(given: Literal["balanced"] | list[float] | None, num_classes: int) -> Tensor | None:
    if given is None or given == "balanced":
        return None
    if len(given) != num_classes:
        raise UserError(f"--model.class_weights: {len(given)} weights for {num_classes} classes")
    return torch.tensor(given)
