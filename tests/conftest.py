import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path, tmp_path_factory):
    """Each test runs in a folder of its own, with no run, argument, environment or process group of another."""
    environment = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["imgcls"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("IMGCLS_RUN_DIR", raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)  # which a test may set for its process
    yield
    # a run on one of several processes leaves its rank and address: the next would wait for the others
    os.environ.clear()
    os.environ.update(environment)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def write_image(path: Path, label: int, size: tuple[int, int] = (40, 32), seed: int = 0) -> None:
    """A photo-like image whose colour tells its label."""
    rng = np.random.default_rng((seed, label))
    color = np.array([[230, 40, 40], [40, 200, 60], [50, 60, 230], [220, 200, 40]])[label % 4]
    pixels = np.clip(color + rng.normal(0, 30, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of 3 classes with 20 images each."""
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(("red fox", "grüner Frosch", "blue bird")):
        for number in range(20):
            write_image(root / name / f"{number:02d}.png", label, seed=number)
    return root


@pytest.fixture
def imgcls(capsys):
    """Run a command line in this process: exit code, standard output, standard error."""
    from imgcls.__main__ import main

    def run(*words) -> tuple[int, str, str]:
        os.environ.pop("IMGCLS_RUN_DIR", None)
        code = main([str(w) for w in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def messages(caplog):
    """What the package logs, whether or not a command line was run in this process."""
    log = logging.getLogger("imgcls")
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(caplog.handler)
    yield caplog
    log.removeHandler(caplog.handler)
    log.setLevel(level)


QUIET = ("--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
TINY = (
    *("--config", ROOT / "experiments/demo.yaml", *QUIET),
    *(
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=3",
        "--model.backbone.depth=2",
        "--model.backbone.width=8",
    ),
)
