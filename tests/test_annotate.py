"""`annotate`: laws of the choice, what is written, what is left out, what is refused."""

import csv
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.data.table import TableData
from imgcls.evaluate import annotation
from imgcls.evaluate.annotation import CANDIDATES, choose
from imgcls.images.sources import FileSource
from imgcls.runs.folder import RunFolder
from imgcls.runs.temperature import write_calibration

from .conftest import QUIET, ROOT, write_image

CPU = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--data.num_workers=0")
TABLE = "rank,path,label,prediction,confidence,second,confidence_of_second,uncertainty".split(",")
CONFIGS = ("data/folder", "trainer/default", "model/cnn")
SMALL_CNN = ("--model.backbone.depth=1", "--model.backbone.width=4", "--data.image_size=16", "--trainer.max_epochs=2")


def drawn(count: int, features: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, features)).astype(np.float32), rng.random(count)


def clusters(count: int, each: int, seed: int = 0) -> np.ndarray:
    """`each` points at each of `count` places, far apart beside their own spread."""
    rng = np.random.default_rng(seed)
    return (50 * np.eye(count).repeat(each, 0) + 0.1 * rng.normal(size=(count * each, count))).astype(np.float32)


@pytest.mark.parametrize("count", [1, 7, 100, 499])
def test_so_many_are_chosen_none_twice_and_the_same_again(count):
    feature, margin = drawn(500)
    chosen = choose(feature, margin, count)
    assert len(set(chosen.tolist())) == len(chosen) == count and chosen.dtype == np.int64
    assert (choose(feature, margin, count) == chosen).all()
    if 1 < count < 100:
        assert set(choose(feature, margin, count, seed=1)) != set(chosen)


@pytest.mark.parametrize("count", [20, 21, 1000])
def test_where_there_are_no_more_all_are_ranked_by_margin(count):
    feature, margin = drawn(20)
    assert (choose(feature, margin, count) == np.argsort(margin)).all()


def test_every_cluster_is_covered():
    for seed in range(5):
        chosen = choose(clusters(12, 30, seed), drawn(360, seed=seed)[1], 12, seed)
        assert sorted(chosen // 30) == list(range(12))


def test_of_a_cluster_the_middle_is_chosen_and_large_ones_come_first():
    feature = clusters(3, 40)
    kept = np.r_[0:10, 40:80, 80:100]  # 10, 40 and 20 points
    chosen = kept[choose(feature[kept], np.full(70, 0.5), 3)]
    assert (chosen // 40).tolist() == [1, 2, 0]
    for position, own in zip(chosen, (kept[10:50], kept[50:], kept[:10]), strict=True):
        middle = feature[own].mean(0)
        assert position == own[np.square(feature[own] - middle).sum(1).argmin()]


def test_the_uncertain_are_preferred():
    feature, _ = drawn(2000)
    margin = np.full(2000, 0.9)
    uncertain = np.random.default_rng(1).permutation(2000)[: 5 * CANDIDATES]
    margin[uncertain] = 0.1
    assert np.isin(choose(feature, margin, 5), uncertain).all()
    # among candidates, too: a pull of the centre towards the uncertain half of one cluster
    line = np.linspace(0, 1, 20, dtype=np.float32)[:, None]
    assert line[choose(line, np.where(line[:, 0] < 0.5, 0.0, 0.99), 1)] < 0.3
    assert abs(line[choose(line, np.zeros(20), 1)] - 0.5) < 0.05


@pytest.mark.parametrize("margin", [np.zeros(50), np.ones(50)])
def test_copies_and_certain_images_are_no_obstacle(margin):
    feature = np.repeat(drawn(5)[0], 10, 0)
    for count in (3, 5, 20):
        chosen = choose(feature, margin, count)
        assert len(set(chosen)) == count and len(set(chosen[:5] // 10)) == min(count, 5)


def test_blocks_of_distances_do_not_matter(monkeypatch):
    feature, margin = drawn(500)
    whole = choose(feature, margin, 20)
    monkeypatch.setattr(annotation, "ROWS", 7)
    assert (choose(feature, margin, 20) == whole).all()


def rows(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def trained(photos: Path, folder: Path, configs: tuple[str, ...], *words: str) -> Path:
    from imgcls.__main__ import main

    files = [w for name in configs for w in ("--config", ROOT / f"configs/{name}.yaml")]
    words = (*files, *QUIET, f"--data.root={photos}", "--data.batch_size=8", *words, *CPU, "--run_dir", folder)
    assert main([str(w) for w in ("fit", *words)]) == 0
    os.environ.pop("IMGCLS_RUN_DIR", None)
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory) -> Path:
    return trained(photos, tmp_path_factory.mktemp("runs") / "cnn", CONFIGS, *SMALL_CNN, "--model.lr=0.01")


@pytest.fixture(scope="module")
def pile(photos, tmp_path_factory) -> Path:
    """60 images in folders, with two broken ones, two copies in other forms, and three of the run's own."""
    root = tmp_path_factory.mktemp("pile")
    for number in range(60):
        write_image(root / f"{number // 20}" / f"{number % 20:02d}.png", number % 4, seed=100 + number)
    for name in ("0/broken.png", "zero.jpg"):
        (root / name).write_bytes(b"no image")
    shutil.copy(root / "1/03.png", root / "2/copy.png")
    Image.open(root / "1/04.png").save(root / "1/04.bmp")
    for number, name in enumerate(("red fox/00.png", "blue bird/11.png", "grüner Frosch/19.png")):
        shutil.copy(photos / name, root / f"labelled {number}.png")
    return root


def annotated(imgcls, run, pile, *words) -> tuple[list[dict[str, str]], str, str]:
    code, out, err = imgcls("annotate", "--run", run, f"--data.root={pile}", "--out", "a", *CPU, *words)
    assert code == 0, err
    return rows("a/annotate.csv"), out, err


def test_a_list_and_a_page_are_written(imgcls, run, pile):
    table, out, _ = annotated(imgcls, run, pile, "--count=12")
    assert out.splitlines() == [
        "chosen: 12 of 60 images (left out: 3 in the run's own data, 2 unreadable, 2 as copies)",
        "page: a/annotate.html",
        "table, with a column `label` to fill in: a/annotate.csv",
    ]
    assert list(table[0]) == TABLE and [row["rank"] for row in table] == [str(k) for k in range(1, 13)]
    assert len({row["path"] for row in table}) == 12 and all((pile / row["path"]).is_file() for row in table)
    assert not [row for row in table if "labelled" in row["path"] or "broken" in row["path"] or row["label"]]
    assert rows("a/annotate.skipped.csv") == [
        {"path": name, "reason": "its content is no image"} for name in ("0/broken.png", "zero.jpg")
    ]
    page = Path("a/annotate.html").read_text()
    assert page.count('<img alt="" src="data:image/jpeg;base64,') == 12
    predicted = re.findall(r'<tr><td>([^<]+)</td><td class="figure">(\d+)</td><td class="figure">(\d+)</td>', page)
    assert [number for _, number, _ in predicted] == sorted((n for _, n, _ in predicted), key=int, reverse=True)
    assert sum(int(number) for _, number, _ in predicted) == 12 and sum(int(number) for *_, number in predicted) == 60
    assert {name: int(number) for name, number, _ in predicted if number != "0"} == Counter(
        row["prediction"] for row in table
    )
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|@import|<script""", page)
    written = Path("a/annotate.csv").read_bytes(), page
    annotated(imgcls, run, pile, "--count=12")
    assert (Path("a/annotate.csv").read_bytes(), Path("a/annotate.html").read_text()) == written


@pytest.fixture
def calibrated(run):
    write_calibration(RunFolder(run), RunFolder(run).best, {"temperature": 3.0})
    yield run
    RunFolder(run).calibration.unlink()


def test_numbers_are_those_of_predict(imgcls, calibrated, pile):
    table, out, _ = annotated(imgcls, calibrated, pile, "--count=1000")
    assert "\n--count 1000: there are no more; the list has all of them, the least certain first\n" in out
    assert len(table) == 60
    assert imgcls("predict", "--run", calibrated, f"--data.root={pile}", "--out", "p.csv", *CPU)[0] == 0
    predicted = {row["path"]: row for row in rows("p.csv")}
    uncertainty = []
    for row in table:
        known = predicted[row["path"]]
        classes = sorted(list(known)[3:], key=lambda name: -float(known[name]))
        assert (row["prediction"], row["second"]) == tuple(classes[:2])
        best, second = (float(known[name]) for name in classes[:2])
        got = [float(row[name]) for name in ("confidence", "confidence_of_second", "uncertainty")]
        assert got == pytest.approx([best, second, 1 - best + second], abs=1e-5)
        uncertainty.append(got[2])
    assert uncertainty == sorted(uncertainty, reverse=True)


@pytest.mark.parametrize(
    "configs, words",
    [
        (CONFIGS, (*SMALL_CNN, "--model.flip_at_test=true", "--trainer.precision=bf16-true")),
        (
            ("data/folder", "trainer/default", "model/timm", "finetune/logistic_probe"),
            ("--model.backbone.name=mobilenetv3_small_050", "--model.backbone.weights=none", "--data.image_size=32"),
        ),
    ],
    ids=["flipped", "logistic probe of timm"],
)
def test_other_runs_choose_by_their_own_features(imgcls, photos, pile, tmp_path, configs, words):
    run = trained(photos, tmp_path / "run", configs, *words)
    table, _, _ = annotated(imgcls, run, pile, "--count=60")
    assert len(table) == 60
    assert imgcls("predict", "--run", run, f"--data.root={pile}", "--out", "p.csv", *CPU)[0] == 0
    predicted = {row["path"]: float(row["confidence"]) for row in rows("p.csv")}
    for row in table:
        assert float(row["confidence"]) == pytest.approx(
            predicted[row["path"]], abs=0.01 if "flip" in str(words) else 1e-4
        )


def test_a_file_that_may_not_be_read_does_not_stop_it(imgcls, run, pile, photos, monkeypatch):
    original = FileSource.encoded

    def encoded(self, number):
        if self.root == pile and self.names[number] == "0/05.png":
            raise PermissionError(13, "Permission denied")
        return original(self, number)

    monkeypatch.setattr(FileSource, "encoded", encoded)
    monkeypatch.setattr("imgcls.images.same._sizes", lambda source, index: None)  # as if all were of one size
    table, out, _ = annotated(imgcls, run, pile, "--count=60")
    assert "3 in the run's own data, 3 unreadable" in out and len(table) == 59
    assert rows("a/annotate.skipped.csv")[0]["path"] == "0/05.png"


def test_names_are_escaped(imgcls, run):
    for number, name in enumerate(("<script>alert(1)<.png", "a&b.png", '"x".png')):
        write_image(Path("<b>") / name, number, seed=77)
    annotated(imgcls, run, "<b>")
    page = Path("a/annotate.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;.png" in page and "a&amp;b.png" in page


def test_labels_are_never_written_over_and_can_be_trained_on(imgcls, run, pile):
    annotated(imgcls, run, pile, "--count=10")
    table = rows("a/annotate.csv")
    for row, label in zip(table, "abab", strict=False):
        row["label"] = label
    with open("a/annotate.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, TABLE)
        writer.writeheader()
        writer.writerows(table)
    before = Path("a/annotate.csv").read_bytes()
    code, _, err = imgcls("annotate", "--run", run, f"--data.root={pile}", "--out", "a", *CPU)
    assert code == 2 and "a/annotate.csv: holds 4 labels, which would be lost; name another folder with --out" in err
    assert Path("a/annotate.csv").read_bytes() == before
    data = TableData("a/annotate.csv", root=str(pile), on_error="skip", val_fraction=0, test_fraction=0)
    data.setup("fit")
    source, index = data.parts["train"]
    assert data.class_names == ["a", "b"] and [source.names[k] for k in index] == [row["path"] for row in table[:4]]


def test_without_the_runs_own_data_it_says_what_it_cannot_tell(imgcls, run, pile, photos):
    alone = Path(shutil.copytree(run, "alone"))
    config = (alone / "config.yaml").read_text()
    (alone / "config.yaml").write_text(config.replace(str(photos), "/gone"))
    table, out, err = annotated(imgcls, alone, pile, "--count=63")
    assert "which images have a label already cannot be told: " in err and "/gone" in err
    assert len(table) == 63 and "own data" not in out


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["--data.root=images", "--count=0"], "--count 0: give at least 1"),
        (["--data.root=images", "--count=-3"], "--count -3: give at least 1"),
        (["--data.root=empty"], "--data.root empty: holds no image"),
        (["--data.root=nothing"], "--data.root nothing: there is no such file or folder"),
        (["--data.root=broken"], "annotate: no image can be read: x.png (its content is no image)"),
        ([], "annotate: name images that could be labelled: --data.root=FOLDER"),
        (["--data.root=PHOTOS"], "annotate: the run's own data holds all 60 images; none is left to label"),
    ],
)
def test_what_cannot_be_done_is_named(imgcls, run, photos, words, wanted):
    write_image(Path("images/1.png"), 1, seed=9)
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/x.png").write_bytes(b"no image")
    words = [word.replace("PHOTOS", str(photos)) for word in words]
    code, _, err = imgcls("annotate", "--run", run, *words, "--out", "a", *CPU)
    assert code == 2 and wanted in err.strip().splitlines()[-1], err
    assert not Path("a/annotate.csv").exists()


def test_it_needs_a_run(imgcls):
    code, _, err = imgcls("annotate", "--data.root=.")
    assert code == 2 and "annotate needs a trained run: --run RUN_DIR" in err
