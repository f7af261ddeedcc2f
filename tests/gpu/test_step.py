"""Ten steps of a real fit during which torch raises an error as soon as the host waits for the GPU.

Written without a GPU at hand; not run yet.
"""

import pytest
import torch
from lightning import Callback

from imgcls.augment.mixing import MixUp
from imgcls.data.sample import SampleData
from imgcls.training.ema import EMA
from imgcls.training.nonfinite import NonFinite

from ..test_classifier import classifier
from ..test_classifier import fit as fit_on_cpu
from ..test_step import MODELS as ON_META

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


class NoWaits(Callback):
    """From the start of the fourth step to the end of the thirteenth."""

    steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 3:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.steps += torch.cuda.get_sync_debug_mode() == 2
        if batch_idx == 12:
            torch.cuda.set_sync_debug_mode("default")


def fit(model, *callbacks, augment=None, **options):
    """Twenty batches on the GPU; the loader's worker pins them, see `--data.num_workers`."""
    watch = NoWaits()
    data = SampleData(batch_size=16, augment=augment)
    options |= {"accelerator": "gpu", "devices": 1, "benchmark": True}
    try:
        fit_on_cpu(model, data, **options, callbacks=[*callbacks, watch], limit_train_batches=20)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.steps == 10


MODELS = ON_META | {"SGD": {"optimizer": lambda groups: torch.optim.SGD(groups, momentum=0.9)}}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", MODELS)
def test_the_host_never_waits(name, precision):
    fit(classifier(**MODELS[name]), NonFinite(), EMA(), precision=precision, gradient_clip_val=1.0)


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_neither_to_leave_steps_out_nor_to_scale_the_loss(policy, precision):
    fit(classifier(), NonFinite(policy), augment=MixUp(), precision=precision)


def test_the_mode_sees_a_wait():
    class Look(Callback):
        def on_before_backward(self, trainer, pl_module, loss) -> None:
            loss.item()

    with pytest.raises(RuntimeError, match="synchroniz"):
        fit(classifier(), Look())
