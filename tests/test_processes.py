"""Several processes are one run: every image once, the same figures, and as many processes as were asked for."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from imgcls.data.base import ImageDataModule

from .conftest import QUIET, ROOT, TINY, write_image
from .stress_resume import run
from .test_cli import rows, same, weights
from .test_nothing_lost import SLURM

SIZES = {"train": 41, "val": 13, "test": 17}  # prime: no number of processes divides them
DDP = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]


@pytest.fixture
def words(tmp_path) -> list[str]:
    """A fit on three classes with a number of images in each part that is prime."""
    for part, size in SIZES.items():
        for number in range(size):
            write_image(tmp_path / "data" / part / f"class {number % 3}" / f"{number:02}.png", number % 3, seed=number)
    words = ["--config", ROOT / "configs/data/folder.yaml", "--config", ROOT / "configs/model/cnn.yaml", *QUIET]
    words += ["--config", ROOT / "configs/augment/mix.yaml", "--data.root", tmp_path / "data", "--data.image_size=16"]
    words += ["--data.batch_size=4", "--data.num_workers=0", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
    return [*map(str, words), "--model.backbone.depth=2", "--model.backbone.width=4", "--test_after_fit=true"]


def start(words, processes, log="log"):
    ended = run([str(w) for w in words], Path(log), processes, None)
    assert ended.codes == [0] * processes, Path(log).read_text()[-3000:]


@pytest.mark.slow
def test_on_a_prime_number_of_images_two_processes_say_what_one_says(words):
    start(["fit", *words, "--run_dir=run"], 1)
    said: dict[int, list] = {}
    for processes in (1, 2):
        devices = DDP if processes == 2 else []
        for verb in ("validate", "test", "predict"):
            start([verb, "--run=run", "--trainer.enable_progress_bar=false", *devices], processes)
        tables = [rows(f"run/predictions/{name}.csv") for name in ("val", "test", "predict")]
        assert [len(table) for table in tables] == [13, 17, 17]
        assert [[int(row["index"]) for row in table] for table in tables[:2]] == [list(range(13)), list(range(17))]
        metrics = json.loads(Path("run/metrics.json").read_text())
        said[processes] = [*tables, {k: v for k, v in metrics.items() if k.startswith(("val/", "test/"))}]
    for one, two in zip(said[1][:3], said[2][:3], strict=True):
        assert [row["path"] for row in one] == [row["path"] for row in two]
        assert [row["prediction"] for row in one] == [row["prediction"] for row in two]
    one, two = said[1][3], said[2][3]
    assert one.keys() == two.keys() and len(one) > 10
    exact = [name for name in one if name.rpartition("/")[2] in ("acc", "f1", "top5", "precision", "recall")]
    assert len(exact) >= 4 and all(one[name] == two[name] for name in exact)
    assert all(two[name] == pytest.approx(one[name], abs=1e-6) for name in one)


@pytest.mark.slow
def test_two_nodes_are_two_processes(words):
    """torchrun's two nodes on loopback end with the weights of one node with two processes, bit by bit."""
    start(["fit", *words, *DDP, "--run_dir=together"], 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    command += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    options = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    nodes = [
        subprocess.Popen(
            [*command, f"--node_rank={rank}", "-m", "imgcls", "fit", *words, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said[0][-2000:] + said[1][-2000:]
    assert said[0].count("test accuracy") == 1 and "run: " not in said[1] and "epoch" not in said[1], said[1]
    (apart,) = Path("runs").glob("*/*/")  # one folder, named by the first process
    for name in ("best", "last"):
        assert same(weights(f"together/checkpoints/{name}.ckpt"), weights(apart / f"checkpoints/{name}.ckpt"))
    assert rows("together/metrics.csv") == rows(apart / "metrics.csv")
    assert json.loads((apart / "environment.json").read_text())["hardware"]["processes"] == 2


@pytest.mark.slow
def test_processes_augment_differently_and_share_one_batch(words, monkeypatch):
    """What each process trains on: other images, other draws; together the global batch of the documentation."""
    original = ImageDataModule.on_after_batch_transfer

    def recorded(self, batch, dataloader_idx):
        result = original(self, batch, dataloader_idx)
        if self.trainer.training:
            seed = torch.default_generator.initial_seed()
            with open(f"seen-{self.trainer.global_rank}.jsonl", "a") as file:
                step = [self.trainer.current_epoch, self.trainer.global_step]
                file.write(json.dumps([step, seed, batch["index"].tolist()]) + "\n")
        return result

    monkeypatch.setattr(ImageDataModule, "on_after_batch_transfer", recorded)
    start(["fit", *words, *DDP, "--run_dir=run"], 2)
    seen = [[json.loads(line) for line in Path(f"seen-{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)]
    assert len(seen[0]) == len(seen[1]) == 10  # 41 images: five steps of 2 × 4 in each of two epochs
    for one, two in zip(*seen, strict=True):
        assert one[0] == two[0] and one[1] != two[1] and len(one[2]) == len(two[2]) == 4
    for epoch in (0, 1):
        indices = [i for share in seen for step, _, index in share if step[0] == epoch for i in index]
        assert len(indices) == len(set(indices)) == 40
    groups = torch.load("run/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert np.allclose([group["initial_lr"] for group in groups], 3e-3)  # as given, not scaled by the processes


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "GROUP_RANK": "0"}
TORCHRUN |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    "environment, options, message",
    [
        (TORCHRUN, ["--trainer.devices=2"], "torchrun started 4 processes, .*devices=2 asks for 2"),
        (TORCHRUN, ["--trainer.devices=1"], "torchrun started 4 processes, .*devices=1 asks for 1"),
        (TORCHRUN, ["--trainer.devices=4", "--trainer.num_nodes=2"], "num_nodes=2 with --trainer.devices=4 asks for 8"),
        (SLURM, ["--trainer.devices=2"], "SLURM started 1 processes, .* asks for 2; .* --ntasks-per-node and srun"),
        (SLURM | {"NTASKS": "4", "NTASKS_PER_NODE": "4"}, ["--trainer.devices=2"], "SLURM started 4 processes"),
        ({k: v for k, v in SLURM.items() if k != "NTASKS_PER_NODE"} | {"NTASKS": "2"}, [], "--ntasks-per-node=2"),
    ],
)
def test_other_processes_than_were_asked_for_are_one_error(imgcls, monkeypatch, environment, options, message):
    for name, value in environment.items():
        monkeypatch.setenv(name if environment is TORCHRUN else f"SLURM_{name}", value)
    strategy = [] if options == ["--trainer.devices=1"] else ["--trainer.strategy=ddp"]
    code, _, err = imgcls("fit", *TINY, "--trainer.accelerator=cpu", *options, *strategy)
    assert code == 2
    assert re.search(message, err.strip().splitlines()[-1]), err


def test_processes_of_other_ranks_leave_the_error_to_the_first(imgcls, monkeypatch):
    for name, value in (TORCHRUN | {"RANK": "3", "LOCAL_RANK": "3"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        imgcls("fit", *TINY, "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp")
    assert ended.value.code == 2
