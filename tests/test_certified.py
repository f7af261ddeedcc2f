"""The experiment that compares each augmentation preset with torchvision's and timm's own transforms."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.data.sample import SampleData

from .conftest import ROOT

FOLDER = ROOT / "experiments/certified"


@pytest.fixture
def certified(monkeypatch):
    """The experiment's folder, from which its scripts can be imported."""
    monkeypatch.syspath_prepend(FOLDER)
    return FOLDER


def test_every_preset_has_a_peer_and_every_peer_gives_what_a_network_takes(certified):
    from certify import DATA
    from peers import PEERS

    presets = {path.stem for path in (ROOT / "configs/augment").glob("*.yaml")}
    assert set(PEERS) == presets == {preset for of in DATA.values() for preset in of}
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    data = SampleData()
    given = Image.fromarray((np.random.default_rng(0).random((28, 28)) * 255).astype(np.uint8))
    label = torch.arange(4)
    for name, peers in PEERS.items():
        for peer in peers:
            transform, mix = peer.build(data)
            image = torch.stack([transform(given) for _ in label])
            assert image.shape == (4, 1, 28, 28) and image.dtype == torch.float32 and image.isfinite().all(), name
            assert len(image.unique(dim=0)) > 1 or name == "none"
            if mix is not None:
                image, mixed = mix(image, label)
                assert image.shape == (4, 1, 28, 28) and torch.allclose(mixed.sum(1), torch.ones(4)), name


def test_a_table_says_where_they_differ(certified):
    from certify import table

    def row(p, of_seeds=True):
        side = {"scores": [0.5] * 5, "mean": {"value": 0.5, "low": 0.4, "high": 0.6}}
        difference = {"value": 0.1, "low": 0.0, "high": 0.2}
        ours = side | {"p_value": p, "difference": difference, "of_seeds": of_seeds}
        return {"data": "sample", "preset": "flip", "peer": "v2", "theirs": side, "ours": ours}

    *_, small, middling, single = table([row(0.001), row(0.02), row(0.9, of_seeds=False)]).splitlines()
    assert small.endswith("| 0.003 | **they differ** |") and middling.endswith("| 0.040 | **they differ** |")
    assert "| 5 + 5 | 0.500 | 0.500 | +0.100 [+0.000, +0.200] |" in small
    assert single.endswith("| one seed: cannot tell |")
    assert table([row(0.03), row(0.04)]).count("no difference beyond chance") == 2  # alone, each would be one


@pytest.mark.slow
def test_both_sides_are_tested_on_the_same_images(certified, monkeypatch):
    from certify import MARK, main
    from plain_loop import Task

    from imgcls.runs.folder import RunFolder
    from imgcls.runs.run import Run

    Path("table.md").write_text(f"Before.\n{MARK}\nOf old.\n")
    words = ["certify", "--data", "sample", "--presets", "flip", "--seeds", "1", "--runs", "runs", "--out", "table.md"]
    words += ["--data.train_fraction=0.04", "--trainer.max_epochs=1", "--model.backbone.width=4"]
    monkeypatch.setattr(sys, "argv", words)
    main()
    before, mark, last = Path("table.md").read_text().partition(MARK)
    assert before == "Before.\n" and "| clothes | flip | v2.RandomHorizontalFlip | 1 + 1 |" in last
    assert "Of old" not in last and "McNemar" not in last and "one seed: cannot tell" in last
    ours, theirs = (Run(RunFolder(Path("runs/sample/flip") / side / "seed-0")) for side in ("ours", "0"))
    assert ours.tested().identity == theirs.tested().identity and len(ours.tested().predictions.label) == 5000
    task = Task.of(ours.folder)
    assert len(task.train) == 80 and task.test.shape == (5000, 1, 28, 28)
    source, index = task.data.parts["test"]
    expected = task.data.normalize(source.images(index[:9].tolist(), task.data.resize_crop("test")))
    assert torch.allclose(task.test[:9], expected, atol=1e-6)
