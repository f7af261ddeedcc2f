"""The commands that measure: what they measure and write, never how fast it was."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from imgcls.augment.crop import RandomHorizontalFlip
from imgcls.augment.mixing import CutMix, MixUp
from imgcls.augment.other_libraries import stock_kornia, torchvision_per_sample
from imgcls.augment.pipeline import OneOf, Pipeline
from imgcls.cli.batch_size import best_batch_size
from imgcls.commands import benchmark
from imgcls.commands.find_lr import find_lr, steepest
from imgcls.data.options import seed_step
from imgcls.data.sample import SampleData
from imgcls.errors import UserError
from imgcls.optim import fast

from .conftest import ROOT, TINY
from .test_classifier import classifier


def test_the_benchmark_times_every_stage_and_both_rivals(imgcls):
    code, out, err = imgcls("benchmark", *TINY, "--rounds=2", "--steps=3", "--json=b.json")
    assert code == 0, err
    result = json.loads(Path("b.json").read_text())
    stages = result["stages"]
    assert {"augment and normalise", "stock Kornia", "torchvision v2 per image", "bare loop", "whole trainer"} <= set(
        stages
    )
    for figures in stages.values():
        assert len(figures["seconds"]) == 2 and all(s > 0 for s in figures["seconds"])
        assert figures["images_per_second"] == pytest.approx(128 * 1000 / figures["ms_per_batch"])
    assert set(result["ratios"]) >= {"a_over_a", "trainer_over_bare_loop", "augmentation_over_stock_kornia"}
    assert result["valid"] == (abs(result["ratios"]["a_over_a"] - 1) <= 0.05)
    assert "slowest stage: " in out and ("VOID" in out) != result["valid"]
    assert not Path("runs").exists()


def test_an_augmentation_without_a_counterpart_has_no_rival(imgcls):
    chains = ("--config", ROOT / "configs/augment/augmix.yaml")
    code, _, err = imgcls("benchmark", *TINY, *chains, "--rounds=1", "--steps=2", "--json=b.json")
    assert code == 0, err
    stages = json.loads(Path("b.json").read_text())["stages"]
    assert "stock Kornia" not in stages and "torchvision v2 per image" in stages


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("rival", [stock_kornia, torchvision_per_sample])
def test_rivals_mix_as_we_do(rival, several):
    """MixUp of white and black images is gray, CutMix has both, one of the two is either."""
    image, label = torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.arange(8) % 2
    image[label == 1] = 255
    label = torch.eye(2)[label] if several else label
    for mixing in ([MixUp(1.0)], [CutMix()], [OneOf([MixUp(1.0), CutMix()])]):
        augment = Pipeline([RandomHorizontalFlip(), *mixing])
        augment.configure(16, 2)
        way = rival(augment, [0.0], [1.0])
        found = [way(image, label)[0].flatten(1) for _ in range(30)]
        gray = [bool(((images > 0) & (images < 1)).any()) for images in found]
        both = [bool((images.amin(1) < images.amax(1)).any()) for images in found]
        assert any(gray) == (type(mixing[0]) is not CutMix) and any(both) == (type(mixing[0]) is not MixUp)
    assert rival(Pipeline([OneOf([MixUp(), RandomHorizontalFlip()])]), [0.0], [1.0]) is None
    assert torch.equal(rival(Pipeline(), [0.0], [1.0])(image, label), image / 255)


def test_the_benchmark_times_some_stages_alone(imgcls):
    code, out, err = imgcls("benchmark", *TINY, "--rounds=1", "--steps=2", "--stages=[whole trainer]", "--json=b.json")
    assert code == 0, err
    found = json.loads(Path("b.json").read_text())
    assert list(found["stages"]) == ["whole trainer"] and found["ratios"] == {} and "slowest" not in out
    code, _, err = imgcls("benchmark", *TINY, "--rounds=1", "--steps=2", "--stages=[trainer]")
    assert code == 2 and "--stages trainer: the stages are fetch (decode, resize, batch), transfer" in err


def test_batches_that_workers_had_ready_are_not_counted(monkeypatch):
    """Twelve batches a second apart, of which the first six come at once."""
    seconds = iter([0.0, 6.0])
    monkeypatch.setattr(benchmark, "_clocks", lambda device: np.full(2, next(seconds)))
    clock, model = benchmark._Clock(steps=12, warm_up=6), classifier()
    for number in range(12):
        clock.on_train_batch_start(None, model, None, number)
        clock.on_train_batch_end(None, model, None, None, number)
    assert clock.elapsed.tolist() == [12.0, 12.0]
    assert benchmark._Clock(steps=4, warm_up=100).warm_up == 2


def test_find_lr_suggests_a_rate_and_draws_its_curve(imgcls):
    code, out, err = imgcls("find_lr", *TINY, "--steps=40", "--out=curve.png")
    assert code == 0, err
    rate = float(out.split("--model.lr=")[1].split(";")[0])
    assert 1e-5 < rate < 10 and Path("curve.png").read_bytes().startswith(b"\x89PNG")


def test_find_lr_leaves_the_model_and_keeps_the_proportions(tmp_path):
    from imgcls.finetune.full import Full

    seen = []

    class Watch(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            super().step(closure)

    model = classifier(finetune=Full(0.1), lr=1e-3, optimizer=Watch)
    before = [p.clone() for p in model.parameters()]
    find_lr(model, SampleData(batch_size=128), torch.device("cpu"), tmp_path / "c.png", steps=40)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert max(seen[5]) == pytest.approx(10 * min(seen[5])) and max(seen[5]) > max(seen[4])


def test_the_steepest_fall_comes_before_the_minimum():
    rates = [10.0**k for k in range(-6, 1)]
    assert steepest(rates, [2.3, 2.3, 2.2, 1.5, 1.2, 1.4, math.nan]) == 1e-3
    with pytest.raises(UserError, match="does not fall"):
        steepest(rates, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])


def test_batch_size_auto_is_chosen_once_and_written_down(imgcls):
    code, _, err = imgcls("fit", *TINY, "--data.batch_size=auto", "--run_dir=run", "--test_after_fit=false")
    assert code == 0, err
    chosen = yaml.safe_load(Path("run/config.yaml").read_text())["data"]["init_args"]["batch_size"]
    assert chosen in (16, 32, 64, 128, 256, 512)


def test_the_batch_size_is_the_smallest_that_is_fast(monkeypatch):
    seconds = {16: 1.0, 32: 1.1, 64: 1.2, 128: 2.3, 256: 4.5, 512: 9.1}
    from imgcls.cli import batch_size

    monkeypatch.setattr(batch_size, "_seconds_of_a_step", lambda model, data, size, device: seconds[size])
    assert best_batch_size(classifier(), SampleData(), torch.device("cpu")) == 128

    def full(model, data, size, device):
        if size > 32:
            raise torch.OutOfMemoryError
        return 1.0

    monkeypatch.setattr(batch_size, "_seconds_of_a_step", full)
    assert best_batch_size(classifier(), SampleData(), torch.device("cpu")) == 32


def test_fused_only_where_it_can_be_and_was_not_refused():
    weight = [nn.Parameter(torch.ones(3))]
    assert fast(torch.optim.AdamW(weight)).param_groups[0]["fused"]
    assert fast(torch.optim.SGD(weight, lr=0.1)).param_groups[0]["fused"]
    assert not fast(torch.optim.AdamW(weight, fused=False)).param_groups[0]["fused"]
    assert fast(torch.optim.AdamW(weight, foreach=True)).param_groups[0]["fused"] is None
    assert "fused" not in fast(torch.optim.Rprop(weight)).param_groups[0]


def test_fused_steps_are_the_plain_ones():
    def trained(optimizer):
        for _ in range(5):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = parameter.detach() * 0.3 + 0.1
            optimizer.step()
        return optimizer.param_groups[0]["params"][0]

    torch.manual_seed(0)
    start = torch.randn(50)
    fused = trained(fast(torch.optim.AdamW([nn.Parameter(start.clone())], lr=0.1)))
    plain = trained(torch.optim.AdamW([nn.Parameter(start.clone())], lr=0.1, fused=False))
    torch.testing.assert_close(fused, plain)


def test_a_step_is_seeded_as_torch_would():
    seed_step(7, torch.device("cpu"))
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("switch, expected", [("0", "False"), ("1", "True")])
def test_the_allocator_has_a_switch(switch, expected):
    probe = "from imgcls.system.allocator import keep_freed_memory; print(keep_freed_memory())"
    done = subprocess.run(
        [sys.executable, "-c", probe], env={"IMGCLS_MALLOC": switch}, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == expected or not sys.platform.startswith("linux")
