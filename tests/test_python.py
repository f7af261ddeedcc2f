"""The package from Python: README's own lines, and trained runs."""

import re
import subprocess
import sys
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import imgcls
from imgcls.data.folder import FolderData
from imgcls.models.cnn import CNN

from .conftest import QUIET as QUIET_WORDS
from .conftest import ROOT, TINY, write_image
from .test_cli import rows

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def test_the_import_is_light():
    probe = "import imgcls, sys; print(imgcls.__version__, 'torch' in sys.modules, 'load' in dir(imgcls))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split()[1:] == ["False", "True"], done.stderr
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        imgcls.lod  # noqa: B018


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos):
    """A calibrated run on photos that differ by colour."""
    from imgcls.__main__ import main

    folder = tmp_path_factory.mktemp("trained") / "run"
    words = [*map(str, TINY), "--config", str(ROOT / "configs/data/folder.yaml"), f"--data.root={photos}"]
    words += ["--data.image_size=24", "--data.batch_size=16", "--trainer.max_epochs=3", "--run_dir", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        patch.setattr(sys, "argv", ["imgcls"])
        patch.delenv("IMGCLS_RUN_DIR", raising=False)
        assert main(["fit", *words, "--calibrate=true"]) == 0
        patch.delenv("IMGCLS_RUN_DIR", raising=False)
    return folder


@pytest.mark.parametrize("calibrated", [True, False])
def test_predictions_are_those_of_the_command(trained, tmp_path, imgcls, calibrated):  # noqa: F811
    import imgcls as package
    from imgcls.runs.folder import RunFolder
    from imgcls.runs.temperature import write_calibration

    run_folder = RunFolder(trained)
    if calibrated:
        write_calibration(run_folder, run_folder.best, {"temperature": 2.5})
    else:
        run_folder.calibration.unlink(missing_ok=True)
    for number in range(9):
        write_image(Path(f"mine/{number}.png"), number % 3, size=(31, 50), seed=100 + number)
    write_image(Path("mine/9.jpg"), 1, size=(300, 200), seed=7)
    code, _, err = imgcls("predict", "--run", trained, "--data.root=mine", "--out", "p.csv")
    assert code == 0, err
    table = rows("p.csv")
    run = package.load(trained)
    assert run.class_names == ["blue bird", "grüner Frosch", "red fox"]
    paths = [f"mine/{row['path']}" for row in table]
    found = run.predict(paths, batch_size=4)
    assert found.class_names == [row["prediction"] for row in table]
    assert found.probability.shape == (10, 3) and found.probability.dtype == np.float32
    expected = [[float(row[name]) for name in run.class_names] for row in table]
    assert found.probability == pytest.approx(np.array(expected), abs=2e-6)
    opened = [Image.open(path) for path in paths[:9]]
    arrays = [np.asarray(image) for image in opened]
    for other in (opened, arrays):  # of lossless files: the pixels are the same
        assert np.array_equal(run.predict(other, batch_size=4).probability[:8], found.probability[:8])


def test_other_kinds_of_images_are_taken_or_refused_in_one_line(trained):
    run = imgcls.load(trained)
    gray = np.full((40, 30), 128, np.uint8)
    transparent = np.dstack([np.full((40, 30, 3), 128, np.uint8), np.full((40, 30), 255, np.uint8)])
    same = run.predict([gray, np.dstack([gray] * 3), transparent, Image.fromarray(gray)]).probability
    assert same == pytest.approx(np.tile(same[0], (4, 1)), abs=1e-6)
    assert run.predict([]).probability.shape == (0, 3) and run.predict([]).class_names == []
    for wrong in (gray.astype(np.float32), np.zeros((3, 40, 30), np.uint8), np.zeros(5, np.uint8)):
        with pytest.raises(imgcls.UserError, match=rf"array of {wrong.dtype}, shape .* is no image; give uint8"):
            run.predict([wrong])
    with pytest.raises(imgcls.UserError, match="gone.jpg: cannot be read as an image"):
        run.predict(["gone.jpg"])
    with pytest.raises(imgcls.UserError, match="run nowhere: does not exist"):
        imgcls.load("nowhere")


def test_model_and_data_are_the_runs(trained, photos):
    run = imgcls.load(trained)
    assert not run.model.training and not any(p.requires_grad for p in run.model.parameters())
    assert isinstance(run.data, FolderData) and run.data.root == photos and run.data.image_size == 24
    assert run.data.augment is not None and run.data is run.data
    run.data.setup("test")
    table = rows(trained / "predictions/test.csv")
    source, index = run.data.parts["test"]
    assert [source.names[i] for i in index] == [row["path"] for row in table]
    paths = [photos / row["path"] for row in table]
    assert run.predict(paths).class_names == [row["prediction_name"] for row in table]


def test_lightnings_own_trainer_trains_and_tests(photos):
    """The split is the command's, test images stay out of training, and figures are right."""
    data = FolderData(root=str(photos), image_size=24, batch_size=8)
    model = imgcls.Classifier(CNN, data.num_classes, data.channels, data.image_size, lr=1e-2)
    trainer = lightning.Trainer(max_epochs=2, **QUIET)
    trainer.fit(model, data)
    assert "test" not in data.parts
    (found,) = trainer.test(model, data, verbose=False)
    assert [len(data.parts[part][1]) for part in ("train", "val", "test")] == [48, 6, 6]
    model.eval()
    with torch.no_grad():
        right = [model.logits(data.normalize(b["image"])).argmax(1) == b["label"] for b in data.test_dataloader()]
    assert found["test/acc"] == pytest.approx(torch.cat(right).float().mean().item())
    shares = [set(data.parts[part][1].tolist()) for part in ("train", "val", "test")]
    assert len(set.union(*shares)) == sum(map(len, shares)) == 60


def test_lightnings_sampler_for_several_processes_is_refused(photos, monkeypatch):
    data = FolderData(root=str(photos), image_size=24)
    data.trainer = lightning.Trainer(**QUIET)
    data.setup("fit")
    monkeypatch.setattr(type(data.trainer), "world_size", 2)
    with pytest.raises(imgcls.UserError, match=r"Trainer\(use_distributed_sampler=False\)"):
        FolderData.setup(data, "fit")


@pytest.mark.filterwarnings("ignore:.*tensorboardX")
def test_the_readmes_python_does_what_it_says(trained, photos, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2 and all(len(re.findall(r"^\S", block, re.M)) <= 10 for block in blocks)
    Path("photos").symlink_to(photos)
    first = sorted(photos.rglob("*.png"))[0]
    for block in blocks:
        block = block.replace("RUN_DIR", str(trained)).replace("photo.jpg", str(first))
        block = block.replace('name="resnet18")', 'name="resnet18", weights="none")').replace(
            "max_epochs=5", "max_epochs=1"
        )
        block = block.replace("lightning.Trainer(", "lightning.Trainer(accelerator='cpu', enable_progress_bar=False, ")
        exec(compile(block, "README.md", "exec"), {})
    assert "test/acc" in capsys.readouterr().out


def age(path: Path) -> None:
    """Write into a run's config what version 0.1 wrote there."""
    config = yaml.safe_load(path.read_text())
    augment = config["data"]["init_args"]["augment"]
    assert augment["class_path"] == "imgcls.augment.pipeline.Pipeline"
    augment["init_args"] |= {"fuse": True, "compile": False}
    path.write_text(yaml.safe_dump(config))


def test_a_run_of_an_earlier_version_is_tested_loaded_and_repeated(trained, tmp_path, imgcls):  # noqa: F811
    """Version 0.1 wrote options of Pipeline that are gone."""
    import shutil

    import imgcls as package

    old = tmp_path / "old"
    shutil.copytree(trained, old)
    age(old / "config.yaml")
    data = package.load(old).data
    data.setup("fit")
    assert data.augment is not None and data.class_names == package.load(trained).class_names
    assert imgcls("fit", "--config", old / "config.yaml", "--run_dir", "again", *QUIET_WORDS)[0] == 0
    assert (tmp_path / "again/metrics.csv").read_text() == (trained / "metrics.csv").read_text()
    age(tmp_path / "again/config.yaml")
    assert imgcls("test", "--run", "again", *QUIET_WORDS)[0] == 0
    assert imgcls("fit", "--resume", "again", "--trainer.max_epochs=4")[0] == 0
