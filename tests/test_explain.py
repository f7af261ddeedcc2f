from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from imgcls.commands.explain import _telling, class_maps, last_module, overlay
from imgcls.evaluate.responses import Patch, by_channel, strongest_patches
from imgcls.runs.folder import RunFolder
from imgcls.runs.load import load_data, load_run
from imgcls.runs.predictions import read_predictions
from imgcls.runs.temperature import write_calibration

from .conftest import QUIET, ROOT, TINY


def test_the_patch_is_where_the_pattern_is():
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU())
    with torch.no_grad():
        network[0].weight[0, 0] = torch.tensor([[-1.0, 1, -1], [1, 1, 1], [-1, 1, -1]])  # a cross
        network[0].weight[1, 0] = torch.tensor([[-1.0, -1, -1], [2, 2, 2], [-1, -1, -1]])  # a bar
    image = torch.zeros(20, 1, 12, 12)
    image[7, 0, 3:6, 8] = image[7, 0, 4, 7:10] = 1
    image[11, 0, 6, 1:4] = 1
    channels = strongest_patches(network, ["1"], image, channels=2, patches=1)["1"]
    assert {patches[0] for patches in channels} == {Patch(7, (3, 7, 6, 10)), Patch(11, (5, 1, 8, 4))}


@pytest.mark.parametrize(
    "shape, channels", [((2, 5, 7, 7), 5), ((2, 7, 7, 5), 5), ((2, 49, 5), 5), ((2, 5), 5), ((2, 7, 3, 3), 7)]
)
def test_every_kind_of_output_is_readby_channel(shape, channels):
    assert by_channel(torch.zeros(shape)).shape[:2] == (2, channels)


def test_a_run_is_explained(imgcls):
    assert imgcls("fit", *TINY, "--run_dir", "run", "--trainer.limit_train_batches=2")[0] == 0
    code, out, err = imgcls("explain", "--run", "run")
    assert code == 0, err
    assert "what 2 layers respond to" in out and Path("run/figures/layers.png").stat().st_size > 5_000
    assert "where it sees a class in 16 images: run/figures/grad_cam.png" in out
    assert Path("run/figures/grad_cam.png").stat().st_size > 20_000
    page = Path("run/report.html").read_text()
    assert page.index("Where classes are seen") > page.index("Confusion matrix (val)") and "What layers respond" in page
    code, _, err = imgcls("explain")
    assert code == 2 and "explain needs a trained run: --run RUN_DIR" in err


def test_mistakes_come_first_and_some_are_right(imgcls):
    assert imgcls("fit", *TINY, "--run_dir", "run", "--test_after_fit=true")[0] == 0
    data, run = load_data("run"), RunFolder("run")
    data.setup("fit")
    source, index = _telling(data, run, 12)
    predicted = read_predictions(Path("run/predictions/test.npz"))
    probability, label = predicted.probability, predicted.label
    wrong = probability[index].argmax(1) != label[index]  # test images are numbered in the order of the record
    assert source is data.parts["test"][0] and wrong.tolist() == [True] * 9 + [False] * 3
    mistakes = probability.max(1)[probability.argmax(1) != label]
    assert probability[index[:9]].max(1).tolist() == sorted(mistakes, reverse=True)[:9]
    assert len(_telling(data, run, 1)[1]) == 1
    # a record of other data says nothing of these
    for part in ("test", "val"):
        arrays = dict(np.load(f"run/predictions/{part}.npz"))
        np.savez(f"run/predictions/{part}.npz", **arrays | {"label": (arrays["label"] + 1) % 10})
    source, index = _telling(data, run, 12)
    assert source is data.parts["val"][0] and set(index) < set(data.parts["val"][1])
    assert sorted(source.label[index[:10]]) == list(range(10))
    Path("run/predictions/test.npz").write_bytes(b"PK")
    code, _, err = imgcls("explain", "--run", "run")
    assert code == 2 and "run/predictions/test.npz: cannot be read" in err and "test the run again" in err


def test_a_run_without_a_validation_part_is_explained_by_its_training_images(imgcls):
    words = [*TINY, "--run_dir", "run", "--data.val_fraction=0", "--trainer.limit_train_batches=2"]
    assert imgcls("fit", *words)[0] == 0
    code, out, err = imgcls("explain", "--run", "run")
    assert code == 0 and "where it sees a class in 16 images" in out, err


def test_titles_are_calibrated_for_the_checkpoint_that_was_calibrated(imgcls, monkeypatch):
    assert imgcls("fit", *TINY, "--run_dir", "run", "--test_after_fit=false")[0] == 0
    write_calibration(RunFolder("run"), RunFolder("run").best, {"temperature": 2.0})
    used = []
    monkeypatch.setattr("imgcls.commands.explain.class_maps", lambda *given: used.append(given[-1]))
    for checkpoint in ("best", "last"):
        code, _, err = imgcls("explain", "--run", "run", "--ckpt_path", f"run/checkpoints/{checkpoint}.ckpt")
        assert code == 0, err
    assert used == [2.0, 1.0]


def test_images_of_the_users_own_are_explained(imgcls, photos):
    assert imgcls("fit", *TINY, "--run_dir", "run", "--test_after_fit=false")[0] == 0
    code, out, err = imgcls("explain", "--run", "run", "--images", photos / "blue bird/0*.png", "--count=5", "--out=x")
    assert code == 0, err
    assert "where it sees a class in 5 images: x/grad_cam.png" in out and Path("x/layers.png").exists()
    code, _, err = imgcls("explain", "--run", "run", "--images", "nothing")
    assert code == 2 and "--images nothing: there is no such file or folder" in err
    code, _, err = imgcls("explain", "--run", "run", "--count=0")
    assert code == 2 and "--count 0: give at least 1" in err


def test_the_classes_that_are_shown(imgcls):
    assert imgcls("fit", *TINY, "--run_dir", "run", "--test_after_fit=false")[0] == 0
    loaded, data = load_run("run"), load_data("run")
    data.setup("fit")
    source, index = data.parts["val"]
    pictures, titles = class_maps(loaded.model, data, source, index[:10], torch.device("cpu"))
    assert pictures.shape == (30, 3, 28, 28) and pictures.dtype == torch.uint8 and len(titles) == 30
    logits = loaded.model(data.normalize(source.images(index[:10].tolist(), data.resize_crop("val"))))
    _, hotter = class_maps(loaded.model, data, source, index[:10], torch.device("cpu"), scaled_by=2.0)
    for k, order in enumerate(logits.argsort(1, descending=True).tolist()):
        label = source.label[index[k]]
        other = label if label != order[0] else order[1]
        for picture, number in ((1, order[0]), (2, other)):
            assert titles[3 * k + picture].split("\n")[1].rpartition(" ")[0] == data.class_names[number]
        assert titles[3 * k].endswith(f"is {data.class_names[label]}")
        assert hotter[3 * k + 1].endswith(f" {(logits[k] / 2).softmax(0).max():.2f}")
        assert (pictures[3 * k] == source.images([index[k]], data.resize_crop("val"))[0]).all()


def test_a_map_that_is_nothing_leaves_the_image():
    image = torch.arange(75, dtype=torch.uint8).view(3, 5, 5)
    assert (overlay(image, torch.zeros(5, 5)) == (image.float().mean(0)).round()).all()
    assert (overlay(image, torch.eye(5)) != overlay(image, torch.zeros(5, 5))).any(0).equal(torch.eye(5).bool())


def test_a_network_without_maps_is_explained_by_its_layers(imgcls):
    words = ["--config", ROOT / "experiments/cnn_or_mlp/mlp.yaml", *QUIET, "--trainer.limit_train_batches=2"]
    words += ["--trainer.max_epochs=1", "--test_after_fit=false", "--run_dir", "run"]
    code, _, err = imgcls("fit", *words)
    assert code == 0, err
    code, out, err = imgcls("explain", "--run", "run")
    assert code == 0 and "a network without feature maps cannot tell" in out, err


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_layers_of_other_networks_are_found(name):
    from imgcls.models.timm import TimmBackbone

    backbone = TimmBackbone(3, 224, name=name, weights="none").eval()
    names = [last_module(stage) for stage in backbone.stages()]
    assert len(set(names)) > 5
    found = strongest_patches(backbone, [names[0], names[-1]], torch.rand(3, 3, 224, 224), channels=2, patches=1)
    assert len(found) == 2
    for channels in found.values():
        for (patch,) in channels:
            top, left, bottom, right = patch.box
            assert 0 <= top < bottom <= 224 and 0 <= left < right <= 224
