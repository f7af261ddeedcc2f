"""What comes from elsewhere runs no code and reaches no other file; what is written holds no key."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from imgcls.commands.pack import pack
from imgcls.data.folder import FolderData
from imgcls.data.shards import ShardData
from imgcls.images import checking
from imgcls.images.shard_files import ShardFiles
from imgcls.runs.environment import without_keys
from imgcls.training.features import _read

from .conftest import QUIET, ROOT, write_image
from .test_cli import fit

KEY = "0123456789abcdef0123456789abcdef01234567"


class Hostile:
    """Its pickle makes a file when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture(autouse=True)
def nothing_ran():
    yield
    assert not Path("executed").exists()


def test_the_hostile_object_is_one():
    torch.save(Hostile(), "hostile.ckpt")
    torch.load("hostile.ckpt", weights_only=False)
    assert Path("executed").is_dir()
    Path("executed").rmdir()


@pytest.mark.parametrize("place", ["beside", "within"])
def test_a_hostile_checkpoint_is_refused_wherever_it_is_given(imgcls, place):
    run = fit(imgcls, "--test_after_fit=false")
    state = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    content = state | {"hyper_parameters": Hostile()} if place == "beside" else {"state_dict": {"w": Hostile()}}
    for name in ("best", "last"):
        torch.save(content, run / f"checkpoints/{name}.ckpt")
    hostile = run / "checkpoints/best.ckpt"
    words = ("--config", run / "config.yaml", *QUIET, "--run_dir", "other")
    for arguments in (
        ["validate", "--run", run],
        ["test", "--run", run],
        ["predict", "--run", run],
        ["fit", "--resume", run],
        ["fit", *words, "--ckpt_path", hostile],
        ["fit", *words, f"--model.teacher.run={run}"],
        ["fit", *words, "--config", ROOT / "configs/model/timm.yaml", f"--model.backbone.weights={hostile}"],
    ):
        code, _, err = imgcls(*arguments)
        last = err.strip().splitlines()[-1]
        assert code == 2 and ".ckpt: refused, because loading it would run code" in last, (arguments, last)


def test_hostile_caches_are_not_run(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.cwd()))
    Path("imgcls").mkdir()
    np.save("imgcls/readable.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    assert len(checking._known()) == 0
    torch.save({"feature": Hostile()}, "train-0.safetensors")
    assert _read(Path("train-0.safetensors")) is None


def test_hostile_predictions_are_not_run(imgcls):
    for lr in ("0.001", "0.01"):
        run = fit(imgcls, f"--model.lr={lr}", run=f"runs/{lr}")
    np.savez(run / "predictions/test.npz", logits=np.array([Hostile()], dtype=object), label=[0], index=[0])
    code, _, err = imgcls("compare", "runs")
    assert code == 2 and "runs/0.01/predictions/test.npz: cannot be read" in err


def test_what_a_pack_says_of_names_leads_to_no_other_file(tmp_path, monkeypatch):
    """A pack comes from elsewhere, unlike a table that the user names: its images are stretches of its own files."""
    for k in range(8):
        write_image(tmp_path / "data" / "ab"[k % 2] / f"{k}.png", k % 2, seed=k)
    facts = pack(FolderData(root=str(tmp_path / "data")), tmp_path / "pack", 1, None)
    secret = facts["parts"]["train"]
    facts["parts"] |= {"../../secret": secret, "/etc/secret": secret}
    (tmp_path / "pack/pack.json").write_text(json.dumps(facts))
    lines = (tmp_path / "pack/train.jsonl").read_bytes()
    for k in range(8):  # names of the same length, which lead out
        lines = lines.replace(f'"{"ab"[k % 2]}/{k}.png"'.encode(), b'"/e/../x"')
    (tmp_path / "pack/train.jsonl").write_bytes(lines)
    asked, path = [], ShardFiles.path
    monkeypatch.setattr(ShardFiles, "path", lambda self, name, size: asked.append(name) or path(self, name, size))
    data = ShardData(root=str(tmp_path / "pack"), num_workers=0)
    data.setup("test")
    source, index = data.parts["train"]
    assert source.names[0] == "/e/../x" and source.file(0) is None
    assert source.images(index.tolist(), data.resize_crop("train")).any()
    assert {name.partition(".")[0].partition("-")[0] for name in asked} == {"train", "val", "test"}


def test_keys_stay_out_of_a_runs_folder(imgcls, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", KEY[::-1])
    monkeypatch.setattr("sys.argv", ["imgcls", "fit", f"--api_key={KEY}", f"--trainer.logger.token={KEY[::-1]}"])
    fit(imgcls, "--trainer.logger.class_path=lightning.pytorch.loggers.WandbLogger", "--test_after_fit=false")
    command = json.loads(Path("run/environment.json").read_text())["command"]
    assert command == ["imgcls", "fit", "--api_key=REMOVED", "--trainer.logger.token=REMOVED"]
    written = [path for path in Path("run").rglob("*") if path.is_file()]
    assert len(written) > 5
    ours = [path for path in written if "wandb" not in path.parts]
    for key in (KEY, KEY[::-1]):
        assert not [path for path in ours if key.encode() in path.read_bytes()]


def test_only_keys_are_taken_out():
    text = "logger:\n  api_key: abc\n  api_key2: null\nmodel:\n  class_token: true\n  monkey: 3\n"
    clean = yaml.safe_load(without_keys(text))
    assert clean == {"logger": {"api_key": "REMOVED", "api_key2": None}, "model": {"class_token": True, "monkey": 3}}
