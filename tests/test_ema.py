"""An average of weights: the decay that it has, and no run that ends with initial weights because of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from imgcls.training.ema import EMA

from .conftest import QUIET, ROOT


def test_every_update_has_the_decay_of_the_formula():
    """Weights and running means alike; BatchNorm's counter is that of the model."""
    model = nn.BatchNorm1d(1)
    average, ema = AveragedModel(model), EMA(decay=0.5)
    expected = 0.0
    for t, value in enumerate((3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0, -5.0, 3.0, 5.0, 8.0)):
        for tensor in (model.weight.data, model.running_mean):
            tensor.fill_(value)
        model.num_batches_tracked.fill_(t + 1)
        ema.update(average, model)
        decay = min(0.5, (1 + t) / (10 + t)) if t else 0.0
        expected = decay * expected + (1 - decay) * value
        for tensor in (average.module.weight, average.module.running_mean):
            assert tensor.item() == pytest.approx(expected, rel=1e-5)
        assert average.module.num_batches_tracked == t + 1


def test_a_decay_out_of_range_is_one_line(imgcls):
    words = ["--config", ROOT / "experiments/demo.yaml", "--config", ROOT / "configs/trainer/ema.yaml"]
    code, _, err = imgcls("fit", *words, "--trainer.callbacks.decay=1.5")
    assert code == 2 and err.strip().splitlines()[-1].startswith("error: trainer.callbacks: EMA takes a decay from 0")


OLD = "# of an earlier run\ntrainer:\n  callbacks+:\n  - lightning.pytorch.callbacks.EMAWeightAveraging\n"


@pytest.mark.parametrize("ours, epochs", [(True, 20), (False, 2)])
def test_few_steps_and_early_stopping(imgcls, photos, ours, epochs):
    """Six steps an epoch: the average is as good as the weights can be, and is what is tested, now and later."""
    Path("old.yaml").write_text(OLD)
    trainer = ROOT / "configs/trainer"
    files = [ROOT / "configs/data/folder.yaml", ROOT / "configs/model/cnn.yaml", trainer / "default.yaml"]
    files += [trainer / "early_stopping.yaml", trainer / "ema.yaml" if ours else "old.yaml"]
    words = [word for file in files for word in ("--config", file)]
    words += [*QUIET, "--trainer.accelerator=cpu", f"--trainer.max_epochs={epochs}", "--test_after_fit=true"]
    words += [f"--data.root={photos}", "--data.batch_size=8", "--data.image_size=16", "--model.backbone.width=8"]
    code, _, err = imgcls("fit", *words, "--run_dir=run")
    assert code == 0, err
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert (metrics["val/acc"] == metrics["test/acc"] == 1.0) == ours
    assert metrics["fit/epochs"] < 20  # stopped ten after the first that had all images right
    before = np.load("run/predictions/test.npz")["logits"]
    assert imgcls("test", "--run", "run", *QUIET)[0] == 0
    assert np.array_equal(before, np.load("run/predictions/test.npz")["logits"])
    kept = torch.load("run/checkpoints/best.ckpt", weights_only=True)
    average, weights = kept["state_dict"], kept["current_model_state"]
    assert average.keys() == weights.keys() and not all(torch.equal(average[k], weights[k]) for k in average)
