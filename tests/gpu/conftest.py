"""The device of the tests marked `gpu`: CUDA, or the CPU at toy size where IMGCLS_DEVICE=cpu says so."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from ..conftest import QUIET, ROOT

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once: deterministic algorithms ask for it later
DEVICE = os.environ.get("IMGCLS_DEVICE", "cuda")
TOY = DEVICE == "cpu"


def pytest_collection_modifyitems(items):
    """Skip before anything is built: the tests of the whole repository are collected with these."""
    if not TOY and not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device; make gpu DEVICE=cpu tries these at toy size"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run trained on the device for two epochs, tested after."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert fit(folder, "--trainer.max_epochs=2") == 0
    return folder


@pytest.fixture
def exact(monkeypatch):
    """Convolutions in full 32-bit: a GPU's TF32 has ten bits of a mantissa."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def words(*more) -> list[str]:
    """The demo on the device: the whole of it there, a small CNN and three batches on a CPU."""
    found = ["--config", ROOT / "experiments/demo.yaml", *QUIET]
    found += [f"--trainer.accelerator={'cpu' if TOY else 'gpu'}", "--trainer.max_epochs=1"]
    if TOY:
        found += ["--model.backbone.depth=2", "--model.backbone.width=8", "--trainer.limit_train_batches=3"]
        found += ["--data.train_fraction=0.1", "--data.test_fraction=0.02", "--data.batch_size=32"]
    return [str(word) for word in (*found, *more)]


def fit(folder, *more) -> int:
    from imgcls.__main__ import main

    os.environ.pop("IMGCLS_RUN_DIR", None)
    return main(["fit", *words("--run_dir", folder, *more)])


@contextmanager
def no_waits() -> Iterator[None]:
    """On CUDA, any wait of the host for the device is an error in here."""
    if TOY:
        yield
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
