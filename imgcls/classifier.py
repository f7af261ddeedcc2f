import logging
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from imgcls.errors import UserError
from imgcls.finetune.base import FineTune, frozen_modules
from imgcls.finetune.full import Full
from imgcls.losses import Loss
from imgcls.models.base import BackboneFactory, compile_backbone
from imgcls.optim import OptimizerFactory, ScheduleFactory, WarmupCosine, fast, parameter_groups, scheduler_config
from imgcls.tasks import SINGLE_LABEL, find
from imgcls.training.distillation import Teacher
from imgcls.training.features import train_on_features
from imgcls.training.trainer import total_steps

log = logging.getLogger(__name__)
Batch = dict[str, Tensor]


class Classifier(LightningModule):
    """A backbone, a linear head, and one step for training, validation and test.

    Metrics, as `train/…`, `val/…` and `test/…`: loss, acc (share of images predicted right), and outside of training
    those of `scores` of the kind of labels.

    Args:
        backbone: Images to features; from scratch or pre-trained.
        num_classes: Number of classes K; comes from the data.
        channels: Channels of an image; comes from the data.
        image_size: Side of an image in pixels; comes from the data.
        finetune: Which parts of the backbone are trained, and how fast.
        loss: Loss of logits and labels. Default: that of the kind of labels.
        teacher: A trained run to learn from as well.
        optimizer: The optimiser, without learning rate and weight decay.
        schedule: Learning rate by optimiser step; torch's ReduceLROnPlateau: by the loss of each validation.
        lr: Peak learning rate of the head, and of the backbone unless `finetune` scales it.
        weight_decay: Of all weights but norms and biases.
        dropout: Before the head.
        class_weights: Weight of each class in the loss; `balanced`: inversely proportional to its frequency
            in the training part, with mean 1 over their labels.
        flip_at_test: Outside of training, average the logits of an image and of its mirror image.
        compile: Compile the backbone in the first epoch, and again where a part joins the training later.
        channels_last: Order of images and weights in memory. Default: with convolutions, up to twice as fast in it.
        task: Kind of labels; comes from the data.

    Attributes:
        task: The kind of labels.
        cut: What logits are compared with to decide on labels, (K,), chosen in validation, where the kind does that.
    """

    cut: Tensor | None

    def __init__(
        self,
        backbone: BackboneFactory,
        num_classes: int,
        channels: int,
        image_size: int,
        finetune: FineTune | None = None,
        loss: Loss | None = None,
        teacher: Teacher | None = None,
        optimizer: OptimizerFactory = torch.optim.AdamW,
        schedule: ScheduleFactory = WarmupCosine,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        dropout: float = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        flip_at_test: bool = False,
        compile: bool = False,
        channels_last: bool | None = None,
        task: str = SINGLE_LABEL,
    ) -> None:
        super().__init__()
        self.task = find(task)
        if num_classes < self.task.fewest_classes:
            raise UserError(
                "data: has one class only, and a classifier tells at least two apart; is --data.root the folder whose "
                "sub-folders are the classes?"
            )
        self.backbone = backbone(channels, image_size)
        self.dropout = nn.Dropout(dropout)
        self.finetune = finetune or Full()
        self.automatic_optimization = not self.finetune.solves
        self.head = self.finetune.head(self.backbone.num_features, num_classes, self.task)
        self.trained = self.finetune.prepare(self.backbone)
        self.loss, self.teacher = loss or self.task.loss(), teacher
        self.loss.prepare(self.task.labels, self.task.chance(num_classes), self.finetune.solves)
        self.optimizer, self.schedule, self.lr, self.weight_decay = optimizer, schedule, lr, weight_decay
        self.class_weights, self.compile_step, self.flip_at_test = class_weights, compile, flip_at_test
        has_convolution = any(isinstance(module, nn.Conv2d) for module in self.backbone.modules())
        self.channels_last = has_convolution if channels_last is None else channels_last
        given = [1.0] * num_classes if class_weights == "balanced" else class_weights  # counted in `setup`
        weight = None if given is None else torch.tensor(given)
        if weight is not None and len(weight) != num_classes:
            raise UserError(f"--model.class_weights: {len(weight)} weights for {num_classes} classes")
        # not in the checkpoint: the config and the training data say it again
        self.register_buffer("class_weight", weight, persistent=False)
        self.train_totals: Tensor | None = None
        self.compiled, self.largest_batch = False, 0
        self.register_buffer("cut", self.task.cut(num_classes))
        self.metrics = nn.ModuleDict({stage: self.task.scores(num_classes, stage) for stage in ("val", "test")})
        self._freeze(epoch=0)
        self.train()  # Lightning starts in the mode that it finds: frozen parts must be in eval mode already
        if self.channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of float images (B, C, H, W), normalised per channel, or of their features (B, F)."""
        feature = image if image.ndim == 2 else self.features(image)
        return self.loss.link(self.head(self.dropout(feature)))

    def features(self, image: Tensor) -> Tensor:
        """Features (B, F) of float images (B, C, H, W), normalised per channel."""
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return self.backbone(image)

    def train(self, mode: bool = True) -> "Classifier":
        """Train mode, but for the parts of the backbone that are frozen now."""
        super().train(mode)
        if mode:
            for module in self.frozen:
                module.eval()
        return self

    def _freeze(self, epoch: int) -> None:
        """Tell apart what is trained in an epoch and what is frozen, or not yet trained."""
        parameters = dict(self.backbone.named_parameters())
        self.frozen_parameters = [parameters[name] for name, how in self.trained.items() if how.start > epoch]
        trainable = {parameters[name] for name, how in self.trained.items() if how.start <= epoch}
        self.frozen = list(frozen_modules(self.backbone, trainable, self.finetune.freeze_statistics))

    def on_train_epoch_start(self) -> None:
        """Freeze what is not trained in this epoch."""
        self._freeze(self.trainer.current_epoch)
        frozen = set(self.frozen_parameters)
        for name, parameter in self.backbone.named_parameters():
            if name in self.trained:
                # on several processes DDP waits for the gradient of each parameter that had one at the start
                parameter.requires_grad_(parameter not in frozen or self.trainer.world_size > 1)
        self.train()

    on_train_start = on_train_epoch_start  # a run that resumes in the middle of an epoch starts there

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Without a gradient, a parameter gets no step, no weight decay and no moments."""
        for parameter in self.frozen_parameters:
            parameter.grad = None

    def setup(self, stage: str) -> None:
        """Tell the loss how many training images each class has, weigh the classes, load the teacher, and compile."""
        if stage == "fit":
            data, device = self.trainer.datamodule, self.trainer.strategy.root_device  # type: ignore[attr-defined]
            count = torch.from_numpy(data.class_counts()).float().to(device)
            self.loss.configure(count, len(data.parts["train"][1]))
            if self.class_weights == "balanced":
                # a class without a training image never occurs in the loss
                self.class_weight = count.sum() / (count > 0).sum() / count.clamp(min=1)
            if self.teacher is not None:
                self.teacher.load(data.class_names, device, self.task)
        if self.compile_step and not self.compiled:
            compile_backbone(self.backbone, joins=len({how.start for how in self.trained.values()}))
            self.compiled = True

    def on_fit_start(self) -> None:
        """Run a frozen backbone once and train on its features, where the variant says so."""
        if self.finetune.views is None:
            return
        if self.teacher is not None:
            raise UserError("--model.teacher: learns from images, and this variant trains on features; use another")
        found = train_on_features(self.trainer, self, self.finetune.views, self.finetune.feature_dir)
        chosen = self.finetune.solve(self.head, found["train"], found.get("val"), self.task.loss())
        if chosen is not None:
            settings = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
            log.info(f"head solved on {len(found['train'].label)} images: {settings}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the totals of an epoch that is not over, a row for each process, and the cuts that validation chose."""
        if self.cut is not None:
            checkpoint["state_dict"]["cut"] = self.cut  # an average, which stands there by now, would blur them
        if self.train_totals is not None:
            checkpoint["train_totals"] = self.trainer.strategy.all_gather(self.train_totals).reshape(-1, 3).clone()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare the checkpoint's tensors with the model's, and go on counting.

        Raises:
            UserError: A tensor is missing, is left over, or has another shape.
        """
        self.check_weights(checkpoint["state_dict"])
        if "train_totals" in checkpoint and self.trainer.state.fn == "fit":
            rows, rank = checkpoint["train_totals"].reshape(-1, 3).to(self.device), self.trainer.global_rank
            if len(rows) == self.trainer.world_size:
                self.train_totals = rows[rank]  # summed in the order of a run that was not interrupted
            elif rank == 0:
                self.train_totals = rows.sum(0)

    def check_weights(self, state: dict[str, Tensor]) -> None:
        """Compare tensors by name and shape with the model's own, and make room for those that data has sized.

        Raises:
            UserError: A tensor is missing, is left over, or has another shape.
        """
        own = self.state_dict()
        for name in self.finetune.data_sized:
            if name in state:
                own[name] = self.get_buffer(name).resize_(state[name].shape)
        mine = {k: tuple(v.shape) for k, v in own.items()}
        theirs = {k: tuple(v.shape) for k, v in state.items()}
        wrong = [k for k in mine | theirs if mine.get(k) != theirs.get(k)]
        if wrong:
            first = f"{wrong[0]} is {theirs.get(wrong[0], 'missing')} there and {mine.get(wrong[0], 'missing')} here"
            raise UserError(
                f"the checkpoint does not fit the model: {len(wrong)} of {len(mine)} tensors differ ({first}); "
                "use the run's own model, classes and image size"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Loss of a batch. Totals stay on the device: a logged metric would cost more than a small model's step."""
        logits, label = self(batch["image"]), batch["label"]
        loss = self.loss(logits, label, self.class_weight)
        if self.teacher is not None:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            loss = self.teacher.combine(loss, logits, self.teacher.logits(batch["image"], data.mean, data.std))
        with torch.no_grad():
            right = self.task.hits(logits, label).sum().float()
            totals = torch.stack((loss.detach().float() * len(label), right, torch.full_like(right, len(label))))
            self.train_totals = totals if self.train_totals is None else self.train_totals.to(totals) + totals
        if self.finetune.solves:
            return None
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:
            lr = self.trainer.optimizers[0].param_groups[-1]["lr"]
            for logger in self.loggers:  # self.log would cost a small model's step again, each step
                logger.log_metrics({"step/loss": loss.item(), "step/lr": lr}, step=self.global_step)
        penalty = self.finetune.penalty(self.backbone)
        return loss if penalty is None else loss + penalty

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss and accuracy, over all processes."""
        if self.train_totals is None:
            return  # resumed at the very end of an epoch
        loss, right, count = self.trainer.strategy.reduce(self.train_totals, reduce_op="sum").tolist()
        self.train_totals = None
        self._log_position()
        self.log("train/loss", loss / count, prog_bar=True)
        self.log("train/acc", right / count, prog_bar=True)
        if self.finetune.solves:
            self.trainer.should_stop = True  # another epoch would change nothing
        else:
            self.log("train/lr", self.trainer.optimizers[0].param_groups[-1]["lr"])

    def validation_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Logits, label and index of a batch."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Logits, label and index of a batch."""
        return self._evaluate(batch, "test")

    def logits(self, image: Tensor) -> Tensor:
        """Logits (B, K) float32 outside of training, over the mirror image too where `flip_at_test` says so.

        Args:
            image: As `forward` takes it.
        """
        count = len(image)
        if self.compiled and image.ndim == 4:
            # an epoch's last batch is filled up: for one of another size, the backbone would be compiled anew
            self.largest_batch = max(self.largest_batch, count)
            image = F.pad(image, (0, 0) * 3 + (0, self.largest_batch - count))
        logits = self(image)
        if self.flip_at_test and image.ndim == 4:
            logits = (logits + self(image.flip(-1))) / 2
        return logits[:count].float()

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Logits, label (-1 where unknown) and index of a batch."""
        return {"logits": self.logits(batch["image"]), "label": batch["label"], "index": batch["index"]}

    def _evaluate(self, batch: Batch, stage: str) -> Batch:
        output = self.predict_step(batch, 0)
        logits, label = output["logits"], output["label"]
        self.metrics[stage].update(logits, label, self.loss.evaluate(logits, label))  # type: ignore[operator]
        return output

    def on_validation_epoch_end(self) -> None:
        """Log each metric once; torchmetrics sums over all processes. A schedule that watches the loss is told it."""
        found = self._log_epoch("val")
        if self.cut is not None:
            self.cut.copy_(self.metrics["val"].best_cut())  # type: ignore[operator]
        schedule = self.lr_schedulers() if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking else None
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(found["val/loss"])

    def on_test_epoch_end(self) -> None:
        """Log each metric once; torchmetrics sums over all processes."""
        self._log_epoch("test", self.cut)

    def _log_position(self) -> None:
        """Say which epoch and step figures belong to: Lightning's own count of steps differs after some resumes."""
        self.log("epoch", float(self.current_epoch))
        self.log("step", float(self.global_step))

    def _log_epoch(self, stage: str, cut: Tensor | None = None) -> dict[str, Any]:
        self._log_position()
        found = self.metrics[stage].collect(cut)  # type: ignore[operator]
        for name, value in found.items():
            self.log(name, value, prog_bar=name in ("val/loss", f"val/{self.task.metric}"))
        return found

    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return total_steps(self.trainer)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trained parameters by learning rate and weight decay."""
        no_decay = {f"backbone.{name}" for name in self.backbone.no_weight_decay()}
        scale = {f"backbone.{name}": how.scale for name, how in self.trained.items()}
        return parameter_groups(self.named_parameters(), scale, self.lr, self.weight_decay, no_decay)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of all that is trained, at its peak learning rates."""
        return fast(self.optimizer(self.parameter_groups()))

    def configure_optimizers(self) -> Any:
        """Groups by learning rate and weight decay; the schedule moves by optimiser step."""
        steps = self.total_steps()
        if self.finetune.solves:
            return None
        optimizer = self.build_optimizer()
        schedule = scheduler_config(self.schedule, optimizer, steps)
        if "monitor" in schedule:
            validated = self.trainer.limit_val_batches and len(self.trainer.datamodule.parts["val"][1])  # type: ignore[attr-defined]
            if not validated:
                raise UserError(f"--model.schedule: it watches {schedule['monitor']}, and there is no validation")
        if all(group.get("fused") for group in optimizer.param_groups) and not self.trainer.gradient_clip_val:
            # fp16's scaler leaves steps out on the device then, as if built with fused=True; Lightning would not clip
            optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
        return {"optimizer": optimizer, "lr_scheduler": schedule}
