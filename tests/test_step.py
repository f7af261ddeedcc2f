"""What a training step asks of the host, counted on the meta device; precision and compilation."""

import sys
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from lightning import Callback
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from imgcls.augment.mixing import MixUp
from imgcls.classifier import Classifier
from imgcls.data.options import normalize
from imgcls.data.sample import SampleData
from imgcls.errors import UserError
from imgcls.finetune.full import Full
from imgcls.finetune.gradual import Gradual
from imgcls.finetune.l2_sp import L2SP
from imgcls.finetune.linear_probe import LinearProbe
from imgcls.finetune.partial import Partial
from imgcls.losses import BinaryCrossEntropy, CrossEntropy, Focal
from imgcls.losses.class_balanced import ClassBalanced
from imgcls.losses.logit_adjustment import LogitAdjustment
from imgcls.models.resnet import ResNet
from imgcls.models.timm import TimmBackbone
from imgcls.models.torchvision import TorchvisionBackbone
from imgcls.optim import fast
from imgcls.training.distillation import Teacher
from imgcls.training.ema import EMA
from imgcls.training.nonfinite import NonFinite

from .test_classifier import classifier, fit, small


class Crossings(TorchDispatchMode):
    """Counts copies to the meta device, and looks at its values, which are all 1; a mask or nonzero raises an error."""

    def __init__(self) -> None:
        super().__init__()
        self.there = self.back = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        looked_at = function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta
        copied = function is torch.ops.aten._to_copy.default and args[0].is_meta
        if looked_at or (copied and kwargs.get("device", args[0].device).type == "cpu"):
            self.back += 1
            return 1 if looked_at else torch.ones(args[0].shape, dtype=kwargs.get("dtype", args[0].dtype))
        result = function(*args, **kwargs)
        before, after = (
            {leaf.device.type for leaf in _pytree.tree_leaves(of) if isinstance(leaf, Tensor)}
            for of in ((args, kwargs), result)
        )
        written = function is torch.ops.aten.copy_.default and args[0].is_meta and args[1].device.type == "cpu"
        self.there += written or (before == {"cpu"} and "meta" in after)
        return result


class Constructions(TorchFunctionMode):
    """Counts tensors that are made of Python's numbers on the meta device, of which the other mode sees nothing."""

    def __init__(self, crossings: Crossings) -> None:
        self.crossings = crossings

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and not isinstance(args[-1], Tensor):
            self.crossings.there += result.is_meta
        return result


class Watch(Callback):
    """Copies there, beside those of a batch, and back, from the end of each step to the end of the next."""

    def __init__(self) -> None:
        self.crossings, self.before, self.seen = Crossings(), (0, 0), []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        now = (self.crossings.there, self.crossings.back)
        self.seen.append((now[0] - self.before[0] - len(batch), now[1] - self.before[1]))
        self.before = now


def crossings(model, *callbacks, data=None, **options) -> set[tuple[int, int]]:
    """What `Watch` saw of a fit by Lightning's own loop, its set-up and first step aside."""
    watch = Watch()
    options |= {"strategy": SingleDeviceStrategy("meta"), "callbacks": [*callbacks, watch], "limit_train_batches": 8}
    lengths = patch("lightning.pytorch.loops.fit_loop.has_len_all_ranks", return_value=True)
    with patch.object(CPUAccelerator, "setup_device"), lengths, watch.crossings, Constructions(watch.crossings):
        fit(model, data or SampleData(batch_size=16), **options)
    assert len(watch.seen) == 8
    return set(watch.seen[1:])


MODELS = {
    "plain": {},
    "label smoothing": {"loss": CrossEntropy(0.1)},
    "binary": {"loss": BinaryCrossEntropy(0.1, target_threshold=0.2)},
    "focal": {"loss": Focal(label_smoothing=0.1)},
    "logit adjustment": {"loss": LogitAdjustment()},
    "class-balanced": {"loss": ClassBalanced()},
    "class weights": {"class_weights": "balanced"},
    "L2-SP": {"finetune": L2SP()},
    "gradual": {"finetune": Gradual()},
}


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Take the meta device for one that has fused optimisers, as a GPU has."""
    monkeypatch.setattr("imgcls.optim.FUSED", ("cpu", "cuda", "meta"))
    for name in ("adam", "sgd"):
        monkeypatch.setattr(sys.modules[f"torch.optim.{name}"], "_device_dtype_check_for_fused", lambda *_, **__: None)


@pytest.mark.parametrize("name", MODELS)
def test_the_host_never_waits_for_the_device(name):
    assert crossings(classifier(**MODELS[name])) == {(0, 0)}
    for policy in ("raise", "skip"):
        options = {"gradient_clip_val": 1.0, "accumulate_grad_batches": 2 if name == "focal" else 1}
        assert crossings(classifier(**MODELS[name]), EMA(), NonFinite(policy), **options) == {(0, 0)}


def test_only_to_skip_steps_without_a_fused_optimiser_the_host_looks_at_each():
    for policy, looks in (("raise", 0), ("skip", 1)):
        model = classifier(optimizer=partial(torch.optim.SGD, momentum=0.9, fused=False))
        assert crossings(model, NonFinite(policy)) == {(0, looks)}


def test_neither_with_a_teacher_nor_with_mixed_labels(monkeypatch):
    teacher, other = Teacher("run"), classifier().eval().to("meta")
    prepare = SimpleNamespace(channels=1, image_size=20, normalize=lambda image: normalize(image, [0.2], [0.3]))
    monkeypatch.setattr(
        Teacher, "load", lambda self, *_: setattr(self, "loaded", SimpleNamespace(model=other, prepare=prepare))
    )
    assert crossings(classifier(teacher=teacher)) == {(0, 0)}
    for loss in (CrossEntropy(), BinaryCrossEntropy(), Focal(), LogitAdjustment(), ClassBalanced()):
        found = crossings(classifier(loss=loss), data=SampleData(batch_size=16, augment=MixUp()))
        assert len(found) == 1 and found <= {(1, 0), (2, 0)}  # the parameters of the augmentation


def test_not_with_cached_features_of_several_views():
    data = SampleData(batch_size=16)
    data.setup("fit")
    data.use_features("train", torch.randn(len(data.parts["train"][1]), 3, 4))
    assert crossings(classifier(), data=data) == {(1, 0)}  # which view of each


def test_the_counter_sees_what_makes_the_host_wait(monkeypatch):
    original = Classifier.training_step

    def step(self, batch, batch_idx):
        label = batch["label"].new_tensor(3) + batch["label"]
        if label.sum() > 3:
            label.cpu()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", step)
    assert crossings(classifier()) == {(1, 2)}


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}])
def test_a_first_step_is_left_out_and_a_parameter_joins_later(options):
    """The kernel that updates all parameters does what one for each does; torch's fused SGD alone would not."""
    after = []
    for fused in (None, False):
        one, two = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        optimizer = fast(
            (torch.optim.SGD if options else torch.optim.AdamW)([one, two], lr=0.1, fused=fused, **options)
        )
        is_fused = optimizer.param_groups[0]["fused"]
        assert bool(is_fused) == (fused is None and "dampening" not in options)
        for step, gradient in enumerate((float("nan"), 1.0, 2.0)):
            one.grad = torch.full((4,), gradient)
            two.grad = torch.full((4,), gradient) if step == 2 else None
            if step == 0 and not is_fused:
                one.grad = None
            elif is_fused:
                optimizer.found_inf = torch.tensor(float(step == 0))
            optimizer.step()
        after.append((one.detach(), two.detach()))
    torch.testing.assert_close(after[0], after[1])
    assert after[0][0].isfinite().all() and (after[0][0] < 1).all()


def test_balanced_class_weights_leave_the_buffers_of_the_average_in_place():
    ema = EMA(decay=0.5)
    model = classifier(class_weights="balanced")
    fit(model, SampleData(batch_size=16), callbacks=[ema], limit_train_batches=3)
    names = [[name for name, _ in module.named_buffers()] for module in (model, ema._average_model.module)]
    assert names[0] == names[1] and "class_weight" in names[0]


class Weights(Callback):
    """The head's weights, the learning rate and the scale of the loss after each step."""

    def __init__(self) -> None:
        self.weights, self.rates, self.scales = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.weights.append(pl_module.head.weight.detach().clone())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.scales.append(trainer.scaler.get_scale() if trainer.scaler else 1.0)


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before.*optimizer.step")  # torch's, of a first step left out
@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9)])
def test_an_overflow_in_float16_is_the_scalers_business(policy, clip, optimizer):
    """Steps are left out until the scale fits; nothing is reported, and the schedule goes on."""
    seen, plain, callback = Weights(), Weights(), NonFinite(policy)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-10)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    options = {"limit_train_batches": 8, "gradient_clip_val": clip}
    model = classifier(optimizer=optimizer)
    fit(model, SampleData(batch_size=16), plugins=[precision], callbacks=[callback, seen], **options)
    fit(classifier(optimizer=optimizer), SampleData(batch_size=16), callbacks=[plain], **options)
    left_out = [scale < before for before, scale in zip([2.0**40, *seen.scales], seen.scales, strict=False)]
    assert left_out[0] and not left_out[-1] and callback.skipped == 0 and not callback.pending
    before = classifier().head.weight
    for skipped, weight in zip(left_out, seen.weights, strict=True):
        assert weight.isfinite().all() and torch.equal(weight, before) == skipped
        before = weight
    assert seen.rates == plain.rates
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_a_loss_that_is_not_finite_still_ends_a_run_in_float16(monkeypatch):
    monkeypatch.setattr(CrossEntropy, "__call__", lambda self, logits, *_: (logits * torch.nan).sum())
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(UserError, match="step 0: the loss is nan"):
        fit(classifier(), SampleData(batch_size=16), plugins=[precision], callbacks=[NonFinite()])


class Graphs(Callback):
    """How many graphs were compiled by the end of each epoch."""

    def __init__(self) -> None:
        self.numbers = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.numbers.append(counters["stats"]["unique_graphs"])


BACKBONES = {
    "cnn": small,
    "resnet": partial(ResNet, blocks=(1, 1), width=4),
    "timm": partial(TimmBackbone, name="test_resnet", weights="none"),
    "torchvision": partial(TorchvisionBackbone, name="resnet18", weights="none"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("finetune", [Full, partial(Partial, 1), L2SP, LinearProbe])
def test_nothing_is_compiled_after_the_first_epoch(monkeypatch, name, finetune):
    """Last batches, evaluation, mirror images, frozen parts and the average are in the graphs of the first."""
    torch._dynamo.reset()
    counters.clear()
    original, seen = nn.Module.compile, Graphs()
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: original(self, backend="eager", **options))
    model = Classifier(BACKBONES[name], 10, 1, 28, finetune=finetune(), compile=True, flip_at_test=True)
    data = SampleData(batch_size=48)
    data.setup("fit")
    assert len(data.parts["val"][1]) % 48
    options = {"max_epochs": 3, "limit_val_batches": 1.0, "callbacks": [seen, EMA()], "num_sanity_val_steps": 1}
    trainer = fit(model, data, **options)
    assert seen.numbers == [2, 2, 2] and counters["stats"]["unique_graphs"] == 2
    trainer.test(model, datamodule=data, verbose=False)  # in inference mode, which has a graph of its own
    assert counters["stats"]["unique_graphs"] == 3 and not counters["graph_break"]


def test_a_part_that_joins_is_compiled_then_and_a_filled_up_batch_has_the_same_logits(monkeypatch):
    torch._dynamo.reset()
    counters.clear()
    original, seen = nn.Module.compile, Graphs()
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: original(self, backend="eager", **options))
    model = classifier(finetune=Gradual(), compile=True, flip_at_test=True)
    data, options = SampleData(batch_size=48), {"max_epochs": 4, "limit_val_batches": 1.0}
    fit(model, data, **options, callbacks=[seen])
    first, second, third, last = seen.numbers  # a stage for each of two convolutions joins in the second and third
    assert first < second < third == last == counters["stats"]["unique_graphs"] and not counters["graph_break"]
    image, plain = torch.randn(7, 1, 28, 28), classifier(flip_at_test=True)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        found = model.eval().logits(image)
        assert model.largest_batch == 48 and found.shape == (7, 10)
        torch.testing.assert_close(found, plain.eval().logits(image))
