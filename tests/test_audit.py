"""What is planted into a data set is found, and what is not wrong is left alone."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from imgcls.data.files import FilesData
from imgcls.data.table import TableData
from imgcls.evaluate.cleaning import Reason, clean
from imgcls.evaluate.duplicates import groups_of, members, near_duplicates
from imgcls.evaluate.label_errors import confident_class, label_errors
from imgcls.images.survey import survey
from imgcls.runs.held_out import held_out
from imgcls.runs.run import find_runs
from imgcls.tasks import SINGLE_LABEL, find

from .conftest import QUIET, ROOT, write_image
from .test_cli import rows
from .test_data import write_table
from .test_nasty_files import BROKEN, ODD, write_broken, write_odd


def picture(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """Shapes and shades of many sizes, as photographs have them; no two seeds alike."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0], 3))
    for cells in (3, 5, 9, 17, 33):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise.resize(size, Image.Resampling.BICUBIC), float) / np.sqrt(cells)
    total = 255 * (total - total.min()) / (total.max() - total.min())
    return Image.fromarray(total.astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 50) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(io.BytesIO(content.getvalue()))


CHANGES = {
    "jpeg": jpeg,
    "smaller": lambda image: image.resize((67, 56), Image.Resampling.BILINEAR),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "cut": lambda image: image.crop((1, 1, image.width - 1, image.height - 1)),
    "gray": lambda image: image.convert("L"),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR))


# ---- duplicates ----


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(change):
    originals = [picture(seed) for seed in range(150)]
    copies = [CHANGES[change](image) for image in originals[::3]]
    pairs, likeness, mirrored = near_duplicates(np.stack([small(image) for image in originals + copies]))
    assert {(i, j) for i, j in pairs.tolist()} == {(3 * k, 150 + k) for k in range(50)}
    assert (mirrored == (change == "mirrored")).all() and ((likeness >= 0.9) & (likeness <= 1.0001)).all()


def test_clothes_that_look_alike_are_no_copies_but_their_copies_are():
    """28-pixel shoes are closer to each other than copies of photographs are."""
    with np.load(ROOT / "imgcls/data/sample.npz") as arrays:
        images = [Image.fromarray(pixels) for pixels in arrays["train_image"][:2000]]
    copies = [jpeg(image) for image in images[:100]]
    pairs, _, _ = near_duplicates(np.stack([small(image) for image in images + copies]))
    right = {(i, j) for i, j in pairs.tolist() if j == i + 2000}
    assert len(right) >= 97 and len(pairs) - len(right) <= 2


def test_two_images_and_copies_of_everything_are_compared_too():
    """Where all neighbours are copies, they say nothing of how near is near."""
    twice = np.stack([small(picture(0)), small(jpeg(picture(0)))])
    assert near_duplicates(twice)[0].tolist() == [[0, 1]]
    many = np.stack([small(jpeg(picture(seed), quality)) for seed in range(10) for quality in range(40, 90, 5)])
    groups = groups_of(near_duplicates(many)[0], len(many))
    assert members(groups) == [list(range(10 * k, 10 * k + 10)) for k in range(10)]


def test_of_flat_images_none_is_a_near_duplicate():
    rng = np.random.default_rng(0)
    flat = np.stack([np.full((32, 32), level, np.uint8) for level in range(100, 140)])
    noisy = flat + rng.integers(0, 3, flat.shape, dtype=np.uint8)
    assert len(near_duplicates(np.concatenate([flat, noisy]))[0]) == 0
    assert len(near_duplicates(flat[:0])[0]) == 0


def test_large_groups_stay_whole():
    """A filmed scene that stands still: not all pairs are kept, but all images are connected."""
    rng = np.random.default_rng(0)
    scene = small(picture(1)).astype(int)
    film = np.clip(scene + rng.integers(-3, 4, (3000, 32, 32)), 0, 255).astype(np.uint8)
    others = np.stack([small(picture(seed)) for seed in range(2, 300)])
    pairs, _, _ = near_duplicates(np.concatenate([film, others]))
    assert members(groups_of(pairs, 3298)) == [list(range(3000))] and len(pairs) < 200_000


def test_groups_and_their_members():
    group = groups_of(np.array([[0, 3], [3, 4], [1, 5]]), 7)
    assert members(group) == [[0, 3, 4], [1, 5]]
    assert members(groups_of(np.empty((0, 2), np.int64), 3)) == []


# ---- decisions ----


def test_what_is_left_out_and_for_whose_sake():
    #        test  test  val   train train train train train train train
    rank = [0, 0, 1, 2, 2, 2, 2, 2, 2, 2]
    label = [0, 1, 0, 0, 1, 0, 1, 1, 0, 1]
    exact = [0, 1, 2, 0, 3, 4, 4, 5, 6, 6 + 1]
    near = [0, 1, 2, 3, 1, 5, 6, 2, 8, 9]
    broken, wrong = np.zeros(10, bool), np.zeros(10, bool)
    broken[8], wrong[[7, 9]] = True, True
    reason, of = clean(*(np.array(x) for x in (rank, label, exact, near)), broken, wrong)
    two = Reason.TWO_LABELS
    assert reason.tolist() == ["", "", "", "leak", "near leak", two, two, "near leak", "broken", "label error"]
    assert of.tolist() == [-1, -1, -1, 0, 1, -1, -1, 2, -1, -1]


def test_the_first_copy_is_kept_and_near_ones_within_a_part():
    ones = np.zeros(4, np.int64)
    reason, of = clean(ones, ones, np.array([0, 1, 0, 2]), np.array([0, 0, 2, 0]), ones > 0, ones > 0)
    assert reason.tolist() == ["", "", "copy", ""] and of.tolist() == [-1, -1, 0, -1]


# ---- label errors ----


def test_thresholds_are_the_mean_confidence_of_each_class():
    probability = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.15, 0.85]])
    label = np.array([0, 0, 1, 1, 0])
    # thresholds: (0.9 + 0.7 + 0.15) / 3 = 0.583 and (0.8 + 0.6) / 2 = 0.7
    assert confident_class(probability, label).tolist() == [0, 0, 1, -1, 1]
    assert label_errors(probability, label).tolist() == [4]


@pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 0.2])
def test_planted_label_errors_are_found(share):
    """Of a model that is right nine times in ten, and mistakes class 0 for class 1 more often than others."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 8, 4000)
    logits = rng.normal(0, 1, (4000, 8))
    logits[np.arange(4000), truth] += 4
    logits[truth == 0, 1] += 2.5
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label, wrong = truth.copy(), rng.permutation(4000)[: int(4000 * share)]
    label[wrong] = (truth[wrong] + rng.integers(1, 8, len(wrong))) % 8
    found = label_errors(probability, label)
    right = np.isin(found, np.flatnonzero(label != truth))
    assert right.sum() >= 0.85 * len(wrong) and (~right).sum() <= 0.05 * len(wrong)
    assert share == 0 or right[: len(found) // 4].mean() >= 0.95
    own = probability[np.arange(4000), label]
    assert (np.diff(own[found]) >= 0).all()


def test_a_class_without_images_and_no_image_at_all_are_no_trouble():
    probability = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1]])
    assert label_errors(probability, np.array([0, 1, 0])).tolist() == []
    assert label_errors(np.empty((0, 3)), np.empty(0, np.int64)).tolist() == []


# ---- the command ----

NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture
def planted(tmp_path) -> Path:
    """train/ and test/ with two classes, one of a nasty name, and one of each thing that is wrong."""
    root = tmp_path / "planted"
    for part, start, count in (("train", 0, 30), ("test", 100, 10)):
        for k in range(count):
            folder = root / part / ("cat", NASTY)[k % 2]
            folder.mkdir(parents=True, exist_ok=True)
            picture(start + k).save(folder / f"{k}.png")
    train = root / "train" / "cat"
    Image.open(train / "0.png").save(train / "same.bmp")  # within a part, in another format
    shutil.copy(root / "test/cat/0.png", train / "leak.png")
    jpeg(Image.open(root / "test/cat/2.png")).save(train / "near leak.png")
    Image.open(train / "2.png").resize((67, 56)).save(train / "near.png")  # stays
    shutil.copy(train / "4.png", root / "train" / NASTY / "said otherwise.png")
    (train / "broken.png").write_bytes(b"no image")
    (train / f"{NASTY[:4]}b>.png").write_bytes(b"")
    picture(200).save(train / os.fsdecode(b"latin \xe9.png"))  # good, but no table can name it
    for k in range(3):
        Image.new("RGB", (96, 80), (k, 90, 90)).save(root / "train" / NASTY / f"flat {k}.png")
    return root


GONE = {
    "train/cat/same.bmp": "copy",
    "train/cat/leak.png": "leak",
    "train/cat/near leak.png": "near leak",
    "train/cat/4.png": "two labels",
    f"train/{NASTY}/said otherwise.png": "two labels",
    "train/cat/broken.png": "broken",
    "train/cat/<imgb>.png": "broken",
}


def audit_words(root: Path) -> list[str]:
    return ["--config", str(ROOT / "configs/data/folder.yaml"), f"--data.root={root}", "--data.val_fraction=0"]


def test_everything_planted_is_found_and_nothing_else(imgcls, planted):
    code, out, err = imgcls("audit", *audit_words(planted), "--out", "found")
    assert code == 0, err
    result = json.loads(Path("found/audit.json").read_text())
    assert {row["name"]: row["reason"] for row in result["left_out"]} == GONE
    assert {row["kept"] for row in result["left_out"] if row["reason"] == "leak"} == {"test/cat/0.png"}
    expected = {"broken": 2, "unusable": 0, "two_labels": 2, "copies": 1, "leaks": 1, "near_leaks": 1}
    assert result["found"] == expected | {"near_duplicates": 2, "label_errors": 0}
    assert {frozenset(i["name"] for i in group) for group in result["near_duplicates"]} == {
        frozenset({"test/cat/2.png", "train/cat/near leak.png"}),
        frozenset({"train/cat/2.png", "train/cat/near.png"}),
    }
    assert [i["name"] for i in result["odd"]["blank"]] == [f"train/{NASTY}/flat {k}.png" for k in range(3)]
    assert result["modes"] == {"RGB": 49} and result["images"]["test"] == 10
    assert "2  images that cannot be read" in out


def test_the_page_shows_nothing_of_a_name_as_markup(imgcls, planted):
    imgcls("audit", *audit_words(planted))
    page = Path("audit/audit.html").read_text()
    assert "<img src=x" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page and "<imgb>" not in page
    assert page.count("data:image/jpeg;base64,") >= 10 and "http" not in page.replace("http-equiv", "")


def test_the_cleaned_table_trains_as_it_is(imgcls, planted):
    imgcls("audit", *audit_words(planted), "--out", "found")
    table = rows(Path("found/clean.csv"))
    everything = {str(p.relative_to(planted)) for p in planted.rglob("*") if p.is_file()}
    named = {name for name in everything if "latin" not in name}
    assert {row["path"] for row in table} == named - GONE.keys() and GONE.keys() < named
    assert all(row["label"] == row["path"].split("/")[1] for row in table)
    assert {row["split"] for row in table if row["path"].startswith("test")} == {"test"}
    result = json.loads(Path("found/audit.json").read_text())
    assert result["clean"]["images"] == {p: sum(r["split"] == p for r in table) for p in ("train", "val", "test")}
    assert result["clean"]["images"]["val"] == 0
    assert result["clean"]["names_impossible"] == ["train/cat/latin \\xe9.png"]
    words = ["--config", ROOT / "configs/data/table.yaml", "--config", ROOT / "configs/model/cnn.yaml", *QUIET]
    words += ["--data.table=found/clean.csv", f"--data.root={planted}", "--data.image_size=16", "--data.batch_size=4"]
    words += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--model.backbone.depth=1"]
    code, _, err = imgcls("fit", *words, "--model.backbone.width=4", "--test_after_fit=true", "--run_dir", "run")
    assert code == 0, err
    # nothing is left to be found in it
    code, _, err = imgcls("audit", *words[:2], *words[-8:-6], "--data.table=found/clean.csv", f"--data.root={planted}")
    assert code == 0, err
    assert json.loads(Path("audit/audit.json").read_text())["left_out"] == []


def test_odd_files_are_read_as_they_are_stored_and_broken_ones_named(imgcls, tmp_path):
    write_odd(tmp_path / "nasty" / "odd")
    for k in range(14):
        write_image(tmp_path / "nasty" / "ok" / f"{k}.png", 0, seed=k)
    write_broken(tmp_path / "nasty" / "ok")
    code, _, err = imgcls("audit", *audit_words(tmp_path / "nasty"))
    assert code == 0, err
    result = json.loads(Path("audit/audit.json").read_text())
    broken = {row["name"].removeprefix("ok/"): row["reason"] for row in result["broken"]}
    assert broken.keys() == BROKEN.keys() and all(BROKEN[name] in reason for name, reason in broken.items())
    modes = {"CMYK": 1, "I;16": 1, "RGBA": 1, "P": 2, "L": 1, "RGB": 14 + len(ODD) - 6}
    assert result["modes"] == modes
    assert {image["name"] for image in result["odd"]["elongated"]} == {"odd/wide.png", "odd/tall.png"}


def test_without_data_a_line_says_so(imgcls):
    code, _, err = imgcls("audit")
    assert code == 2 and "no data given" in err


def test_strict_tells_a_script(imgcls, planted, photos):
    code, _, _ = imgcls("audit", *audit_words(planted), "--strict=true")
    assert code == 1 and Path("audit/clean.csv").is_file()
    code, _, err = imgcls("audit", *audit_words(photos), "--strict=true")
    assert code == 0, err


def test_an_audit_takes_the_place_of_an_earlier_one_and_of_nothing_else(imgcls, photos, planted):
    imgcls("audit", "--config", ROOT / "configs/data/sample.yaml", "--out", "again")
    assert Path("again/images").is_dir()
    code, _, err = imgcls("audit", *audit_words(photos), "--out", "again")
    assert code == 0, err
    assert sorted(p.name for p in Path("again").iterdir()) == ["audit.html", "audit.json", "clean.csv"]
    assert {row["path"].split("/")[0] for row in rows(Path("again/clean.csv"))} == {p.name for p in photos.iterdir()}
    code, _, err = imgcls("audit", *audit_words(photos), "--out", planted)
    assert code == 2 and "not empty" in err and (planted / "train").is_dir()


def test_images_in_memory_become_files_that_the_table_gives_back(imgcls):
    code, out, err = imgcls("audit", "--config", ROOT / "configs/data/sample.yaml", "--data.num_workers=0")
    assert code == 0, err
    data = TableData(table="audit/clean.csv", channels=1, image_size=28, num_workers=0)
    with np.load(ROOT / "imgcls/data/sample.npz") as arrays:
        for part in ("test", "train"):
            source = data.open(part)
            number = [int(Path(name).stem) for name in source.names]
            pixels = np.concatenate([source.images([k], data.resize_crop("val")).numpy() for k in range(200)])[:, 0]
            assert (pixels == arrays[f"{part}_image"][number[:200]]).all()
            names = np.array(data.class_names)[source.label]
            assert len(number) >= (998 if part == "test" else 5390)
            result = json.loads(Path("audit/audit.json").read_text())["classes"]
            assert set(names) == set(result[part])


def test_a_data_set_that_yields_images_is_audited_too(imgcls):
    words = ["--config", ROOT / "configs/data/torchvision.yaml", "--data.name=FakeData", "--data.options={size: 40}"]
    code, out, err = imgcls("audit", *words)
    assert code == 0, err
    result = json.loads(Path("audit/audit.json").read_text())
    assert result["images"] == {"train": 36, "val": 4, "test": 40} and result["width"]["most"] == 32
    assert "no table" in out and not Path("audit/clean.csv").exists() and sum(result["found"].values()) == 0


def test_what_a_table_says_beside_is_kept_and_what_is_wrong_in_it_is_listed(imgcls, tmp_path):
    for k in range(12):
        write_image(tmp_path / "images" / f"{k}.png", k % 2, seed=k)
    lines = [{"path": f"images/{k}.png", "label": "ab"[k % 2], "site": f"s,{k}"} for k in range(12)]
    table = write_table(tmp_path / "t.csv", [*lines, {"path": "images/0.png", "label": "b", "site": ""}])
    code, _, err = imgcls("audit", "--config", ROOT / "configs/data/table.yaml", f"--data.table={table}")
    assert code == 0, err
    result = json.loads(Path("audit/audit.json").read_text())
    assert [row["reason"].partition(" ")[2] for row in result["unusable"]] == [
        "is there twice, with another label or part"
    ] * 2
    kept = rows(Path("audit/clean.csv"))
    assert {row["path"]: row["site"] for row in kept} == {f"images/{k}.png": f"s,{k}" for k in range(1, 12)}


def test_a_table_of_absolute_paths_is_cleaned_to_one_below_their_common_folder(imgcls, photos, tmp_path):
    copy = tmp_path / "more" / "red.png"
    copy.parent.mkdir()
    shutil.copy(photos / "red fox/00.png", copy)
    lines = [{"path": str(path), "label": path.parent.name} for path in [*sorted(photos.rglob("*.png")), copy]]
    lines[-1]["label"] = "red fox"
    table = write_table(tmp_path / "t.csv", lines)
    words = ["--config", ROOT / "configs/data/table.yaml"]
    Path("earlier.yaml").write_text(
        "# of 0.1\ndata: {class_path: imgcls.data.table.TableData, init_args: {allow_outside: true}}\n"
    )
    code, _, err = imgcls("audit", "--config", "earlier.yaml", f"--data.table={table}", "--data.test_fraction=0")
    assert code == 0, err
    result = json.loads(Path("audit/audit.json").read_text())
    assert sum(result["found"].values()) == 1 and Path(result["clean"]["root"]) in photos.parents
    kept = {str(Path(result["clean"]["root"], row["path"])) for row in rows(Path("audit/clean.csv"))}
    assert kept < {line["path"] for line in lines} and len(kept) == 60
    cleaned = ["--data.table=audit/clean.csv", f"--data.root={result['clean']['root']}"]
    assert imgcls("audit", *words, *cleaned, "--strict=true")[0] == 0


@pytest.mark.parametrize("folders", [("", ""), ("DCIM", "DCIM"), ("train", "test")])
def test_a_folder_without_classes_is_audited_without_labels_and_not_trained_on(imgcls, tmp_path, folders):
    root = tmp_path / "pile"
    for k in range(8):
        path = root / folders[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(k).save(path)
    Image.open(path).save(path.with_name("same.bmp"))
    jpeg(Image.open(path.with_name("5.png"))).save(path.with_name("near.png"))
    path.with_name("broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (96, 80), "gray").save(path.with_name("blank.png"))
    code, out, err = imgcls("audit", *audit_words(root))
    assert code == 0, err
    result = json.loads(Path("audit/audit.json").read_text())
    assert result["found"] == {"broken": 1, "unusable": 0, "copies": 1, "near_duplicates": 1}
    assert result["images"] == {"unlabelled": 12} and "classes" not in result
    below = f"{folders[1]}/" if folders[1] else ""
    assert result["odd"]["blank"] == [{"part": None, "name": f"{below}blank.png", "label": None}]
    assert {row["name"].removeprefix(below): row["reason"] for row in result["left_out"]} == {
        "broken.jpg": "broken",
        "same.bmp": "copy",
    }
    page = Path("audit/audit.html").read_text()
    assert out.startswith("\n12 images (12 unlabelled)\n") and "label errors" not in out
    assert not any(word in page for word in ("<h2>Classes", " classes", "Label errors", "None"))
    kept = FilesData([], table="audit/clean.csv", root=str(root)).open("test")
    assert len(kept) == 10 and all(kept.file(k).is_file() for k in range(10))
    words = ["--config", ROOT / "configs/model/cnn.yaml", *QUIET, "--trainer.accelerator=cpu"]
    code, _, err = imgcls("fit", *audit_words(root), *words, "--run_dir", "run")
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err
    code, _, err = imgcls("audit", *audit_words(root), "--predictions=[p.csv]")
    assert code == 2 and "these images have none" in err


# ---- with runs ----


@pytest.fixture
def mislabelled(photos, tmp_path) -> tuple[Path, set[str]]:
    """The photos, of which three are in the wrong class."""
    root = tmp_path / "mislabelled"
    shutil.copytree(photos, root)
    names = sorted(p.name for p in root.iterdir())
    moved = {f"{names[1]}/wrong 0.png", f"{names[2]}/wrong 1.png", f"{names[0]}/wrong 2.png"}
    for k in range(3):
        (root / names[k] / f"{k:02d}.png").rename(root / names[(k + 1) % 3] / f"wrong {k}.png")
    return root, moved


@pytest.mark.slow
def test_runs_of_all_folds_tell_which_labels_are_wrong(imgcls, mislabelled):
    root, moved = mislabelled
    words = ["--config", ROOT / "configs/data/folder.yaml", "--config", ROOT / "configs/model/cnn.yaml", *QUIET]
    words += [f"--data.root={root}", "--data.image_size=8", "--data.test_fraction=0", "--data.batch_size=8"]
    words += ["--trainer.max_epochs=12", "--trainer.accelerator=cpu", "--model.backbone.depth=2", "--data.folds=3"]
    for fold in range(3):
        code, _, err = imgcls("fit", *words, f"--data.fold={fold}", "--run_dir", f"folds/{fold}")
        assert code == 0, err
    code, out, err = imgcls("audit", "--run", "folds", "--drop_label_errors=true", "--data.test_fraction=0.1")
    assert code == 0, err
    result = json.loads(Path("audit/audit.json").read_text())
    assert result["predicted"] == 60
    found = {row["name"] for row in result["label_errors"]}
    assert moved <= found and len(found) <= 5
    assert all(row["suggested"] != row["label"] for row in result["label_errors"])
    dropped = {row["name"] for row in result["left_out"] if row["reason"] == "label error"}
    assert dropped == {row["name"] for row in result["label_errors"] if row["part"] == "train"}
    assert not dropped & {row["path"] for row in rows(Path("audit/clean.csv"))}
    # kept, they are in the table with what is suggested, which a question about them leaves out of the training
    code, _, err = imgcls("audit", "--run", "folds", "--data.test_fraction=0.1", "--out", "kept")
    assert code == 0, err
    suggested = {row["path"]: row["suggested"] for row in rows(Path("kept/clean.csv"))}
    assert {path for path, said in suggested.items() if said} == found
    assert [suggested[row["name"]] for row in result["label_errors"]] == [
        r["suggested"] for r in result["label_errors"]
    ]
    # one run knows its own validation part alone
    code, _, err = imgcls("audit", "--run=folds/0", "--run=folds/1", "--out", "two")
    assert code == 0 and json.loads(Path("two/audit.json").read_text())["predicted"] == 40


def test_predictions_of_other_data_are_refused(imgcls, tmp_path, photos):
    run = tmp_path / "run"
    (run / "predictions").mkdir(parents=True)
    (run / "config.yaml").write_text("seed_everything: 0\n")
    (run / "environment.json").write_text(json.dumps({"data": {"class_names": ["red fox", "blue burd"]}}))
    code, _, err = imgcls("audit", *audit_words(photos), "--run", run)
    assert code == 2 and "--run" in err and "classes" in err
    for words in (audit_words(photos), []):
        code, _, err = imgcls("audit", *words, "--run", "nowhere")
        assert code == 2 and "--run nowhere: there is no such folder" in err
    names = sorted(p.name for p in photos.iterdir())
    (run / "environment.json").write_text(json.dumps({"data": {"class_names": names}}))
    code, _, err = imgcls("audit", *audit_words(photos), "--run", run)
    assert code == 2 and "no prediction" in err


def test_classes_in_another_order_are_matched_by_name_and_runs_averaged(tmp_path):
    for number, order in enumerate((["a", "b"], ["b", "a"])):
        run = tmp_path / str(number)
        (run / "predictions").mkdir(parents=True)
        (run / "config.yaml").write_text("{}")
        (run / "environment.json").write_text(json.dumps({"data": {"class_names": order}}))
        (run / "predictions/val.csv").write_text("index,path\n0,x\n1,y\n")
        logits = np.log([[0.9, 0.1], [0.2, 0.8]])
        np.savez(run / "predictions/val.npz", logits=logits, label=np.zeros(2), index=np.arange(2))
    found = held_out(find_runs([str(tmp_path)]), [], ["y", "z", "x"], ["a", "b"], find(SINGLE_LABEL))
    assert np.isnan(found[1]).all() and np.allclose(found[[2, 0]], 0.5)
    first = held_out(find_runs([str(tmp_path / "1")]), [], ["x"], ["a", "b"], find(SINGLE_LABEL))
    assert np.allclose(first, [[0.1, 0.9]])


def test_predictions_from_elsewhere_do_as_well(imgcls, mislabelled):
    root, moved = mislabelled
    names = sorted(p.name for p in root.iterdir())
    lines = []
    for path in sorted(root.rglob("*.png")):
        pixels = np.asarray(Image.open(path)).mean((0, 1))
        shown = {"red fox": 0, "grüner Frosch": 1, "blue bird": 2}
        score = np.exp([pixels[shown[name]] / 40 for name in names])
        name = str(path.relative_to(root))
        lines.append({"path": name, **dict(zip(names, (score / score.sum()).round(6), strict=True))})
    table = write_table(Path("p.csv"), lines)
    code, _, err = imgcls("audit", *audit_words(root), f"--predictions=[{table}]")
    assert code == 0, err
    result = json.loads(Path("audit/audit.json").read_text())
    assert {row["name"] for row in result["label_errors"]} == moved and result["predicted"] == 60
    for wrong, text in (({"red fox": 2}, "no probabilities"), ({"red fox": "much"}, "cannot be read")):
        write_table(Path("p.csv"), [line | wrong for line in lines])
        code, _, err = imgcls("audit", *audit_words(root), f"--predictions=[{table}]", "--out=other")
        assert code == 2 and "--predictions p.csv" in err and text in err
    write_table(Path("p.csv"), [{"path": "x", "redfox": 1}])
    code, _, err = imgcls("audit", *audit_words(root), f"--predictions=[{table}]", "--out=other")
    assert code == 2 and "has no column" in err


def test_large_jpegs_and_turned_ones_keep_their_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, (2400, 1600)).save(tmp_path / "large.jpg")
    picture(1, (64, 40)).save(tmp_path / "turned.jpg", exif=exif)
    picture(1, (64, 40)).save(tmp_path / "plain.jpg")
    Image.open(tmp_path / "plain.jpg").save(tmp_path / "plain.png")  # the same pixels in another format
    from imgcls.data.files import FilesData

    data = FilesData(["a"], root=str(tmp_path))
    source = data.open("test")
    found = survey(source, np.arange(4))
    assert dict(zip(source.names, found.size.tolist(), strict=True)) == {
        "large.jpg": [2400, 1600],
        "turned.jpg": [40, 64],
        "plain.jpg": [64, 40],
        "plain.png": [64, 40],
    }
    digest = dict(zip(source.names, found.digest.tolist(), strict=True))
    assert digest["plain.jpg"] == digest["plain.png"] and len(set(digest.values())) == 3
    assert source.original(source.names.index("large.jpg")).image.size == (1200, 800)
