"""`predict`: what may be given, what is written and when, how it goes on, how files are sorted."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from imgcls.errors import UserError
from imgcls.images.sorting import folder_names, sort_files
from imgcls.runs.folder import RunFolder
from imgcls.runs.prediction_file import PredictionFile
from imgcls.runs.temperature import write_calibration

from .conftest import QUIET, ROOT, write_image

SMALL = ("--data.image_size=16", "--model.backbone.depth=1", "--model.backbone.width=4", "--data.batch_size=8")
CPU = (*QUIET[1:], "--trainer.accelerator=cpu", "--data.num_workers=0")
CONFIGS = [w for n in ("data/folder", "model/cnn", "trainer/default") for w in ("--config", ROOT / f"configs/{n}.yaml")]


def rows(path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory) -> Path:
    from imgcls.__main__ import main

    folder = tmp_path_factory.mktemp("runs") / "photos"
    words = [*CONFIGS, *QUIET, *SMALL, f"--data.root={photos}", "--trainer.max_epochs=2", "--model.lr=0.01"]
    assert main([str(w) for w in ("fit", *words, "--run_dir", folder, "--trainer.accelerator=cpu")]) == 0
    os.environ.pop("IMGCLS_RUN_DIR", None)
    return folder


@pytest.fixture(scope="module")
def pile(tmp_path_factory) -> Path:
    """100 images in four folders with the same names in each, of which three cannot be read."""
    root = tmp_path_factory.mktemp("pile")
    for number in range(100):
        write_image(root / f"{number // 25}" / f"{number % 25:02d}.png", number % 3, seed=number)
    for name in ("0/03.png", "1/20.png", "3/24.png"):
        (root / name).write_bytes(b"no image")
    return root


def predicted(imgcls, run, *words) -> list[list[str]]:
    code, _, err = imgcls("predict", "--run", run, *words, "--out", "p.csv", *CPU)
    assert code == 0, err
    return rows("p.csv")[1:]


def test_a_file_a_folder_and_a_pattern_are_predicted(imgcls, run, pile):
    everything = predicted(imgcls, run, f"--data.root={pile}")
    assert len(everything) == 97 and [r[0] for r in everything] == sorted(r[0] for r in everything)
    assert rows("p.csv")[0] == ["path", "prediction", "confidence", "blue bird", "grüner Frosch", "red fox"]
    one = predicted(imgcls, run, f"--data.root={pile}/2/07.png")
    assert [r[0] for r in one] == ["07.png"]
    of_folder = next(r for r in everything if r[0] == "2/07.png")
    assert np.allclose([float(v) for v in one[0][2:]], [float(v) for v in of_folder[2:]], atol=1e-5)
    matched = predicted(imgcls, run, f"--data.root={pile}/**/1?.png")
    assert [r[0] for r in matched] == [f"{k}/1{n}.png" for k in range(4) for n in range(10)]
    (Path("a[1]") / "deep").mkdir(parents=True)
    shutil.copy(pile / "0/00.png", "a[1]/deep/x.png")
    assert [r[0] for r in predicted(imgcls, run, "--data.root=a[1]")] == ["deep/x.png"]
    assert [r[0] for r in predicted(imgcls, run, "--data.root=a[1]/*/*.png")] == ["deep/x.png"]


def test_a_list_and_a_table_are_predicted_in_their_order(imgcls, run, pile):
    names = ["3/01.png", "./0/00.png", "2/09.png", "3/01.png", "0/../0/00.png", f"{pile}/1/01.png"]
    wanted = ["3/01.png", "./0/00.png", "2/09.png", f"{pile}/1/01.png"]
    Path("list.txt").write_bytes("\r\n".join(["\ufeff" + names[0], *names[1:], ""]).encode())
    assert [r[0] for r in predicted(imgcls, run, "--data.table=list.txt", f"--data.root={pile}")] == wanted
    table = "number;file\n" + "".join(f"{k};{name}\n" for k, name in enumerate(names))
    (pile / "table.csv").write_text(table)
    words = (f"--data.table={pile}/table.csv", "--data.path_column=file")
    assert [r[0] for r in predicted(imgcls, run, *words)] == wanted
    code, _, err = imgcls("predict", "--run", run, words[0])
    assert code == 2 and "table.csv: has no column 'path'; it has number, file (--data.path_column names an" in err
    # the table that was written is one that can be read
    assert [r[0] for r in predicted(imgcls, run, "--data.table=p.csv", f"--data.root={pile}")] == wanted


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("--data.root=nothing", "--data.root nothing: there is no such file or folder"),
        ("--data.root=*.webp", "--data.root *.webp: matches no file"),
        ("--data.root=list.txt", "--data.root list.txt: is no image; a list of images is given with --data.table=list"),
        ("--data.table=none.txt", "--data.table none.txt: there is no such file"),
        (
            "--data.table=list.txt",
            "list.txt:2: gone.png: is not there, nor is any of 2 files (relative paths begin at .",
        ),
        ("--data.root=.", "holds no image"),
        ("--min_confidence=0.5", "give --sort_into FOLDER as well"),
        ("--link=hard", "give --sort_into FOLDER as well"),
    ],
)
def test_what_cannot_be_predicted_is_named(imgcls, run, given, wanted):
    Path("list.txt").write_text("\ngone.png\nother.png\n")
    code, _, err = imgcls("predict", "--run", run, given, *CPU)
    assert code == 2 and wanted in err.strip().splitlines()[-1], err


def test_a_pattern_without_quotes_is_named(imgcls, run):
    code, _, err = imgcls("predict", "--run", run, "--data.root", "a.jpg", "b.jpg")
    assert code == 2 and "b.jpg: belongs to no option (a pattern such as '*.jpg' needs quotes" in err


def test_rows_are_there_while_the_rest_is_predicted(imgcls, run, pile, monkeypatch):
    from imgcls.classifier import Classifier

    original, seen = Classifier.predict_step, []

    def step(self, batch, batch_idx):
        seen.append(len(rows("p.csv")) - 1 + len(rows("p.skipped.csv") if Path("p.skipped.csv").exists() else [1]) - 1)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "predict_step", step)
    predicted(imgcls, run, f"--data.root={pile}")
    assert seen == [0, *range(0, 8 * 12, 8)]  # one batch is held back, for a GPU to go on meanwhile


def test_what_cannot_be_read_is_listed_and_does_not_stop_it(imgcls, run, pile):
    code, out, err = imgcls("predict", "--run", run, f"--data.root={pile}", "--out", "p.csv", *CPU)
    assert code == 0, err
    assert out.splitlines()[-1] == "predictions: p.csv (97 images, 3 could not be read: p.skipped.csv)"
    reason = "its content is no image"
    assert rows("p.skipped.csv") == [["path", "reason"], *([n, reason] for n in ("0/03.png", "1/20.png", "3/24.png"))]
    assert not Path("p.progress.json").exists() and not {"0/03.png", "1/20.png"} & {r[0] for r in rows("p.csv")}
    whole = Path("p.csv").read_bytes()
    code, _, err = imgcls(
        "predict", "--run", run, f"--data.root={pile}", "--out", "p.csv", *CPU, "--data.on_error=raise"
    )
    assert code == 2 and "3 of 100 images cannot be read" in err and Path("p.csv").read_bytes() == whole
    code, out, err = imgcls("predict", "--run", run, f"--data.root={pile}/0/03.png", "--out", "none.csv", *CPU)
    assert code == 2 and "no image could be read, 1 could not be read: none.skipped.csv" in err


def test_the_runs_own_images_are_predicted_as_they_were_tested(imgcls, run):
    code, _, err = imgcls("test", "--run", run, *CPU)
    assert code == 0, err
    code, _, err = imgcls("predict", "--run", run, *CPU)
    assert code == 0, err
    tested = [[r[1], r[6], r[4]] for r in rows(run / "predictions/test.csv")[1:]]
    assert [r[:3] for r in rows(run / "predictions/predict.csv")[1:]] == tested


@pytest.mark.slow
def test_a_network_of_the_users_own_predicts_other_images(imgcls, photos, pile):
    Path("mine").mkdir()
    Path("mine/my_network.py").write_text("from imgcls.models.cnn import CNN\n\n\nclass Net(CNN):\n    pass\n")
    model = "model:\n  class_path: imgcls.classifier.Classifier\n  init_args:\n    backbone: my_network.Net\n"
    Path("mine/net.yaml").write_text(model)
    words = [*CONFIGS[:2], "--config", "mine/net.yaml", *CONFIGS[4:], *QUIET, "--data.image_size=16"]
    code, _, err = imgcls("fit", *words, f"--data.root={photos}", "--trainer.max_epochs=1", "--run_dir", "own")
    assert code == 0, err
    probe = "import sys; from imgcls.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", probe, "predict", "--run", "own", f"--data.root={pile}/0", *CPU]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]


def test_probabilities_are_those_that_were_calibrated(imgcls, run, pile):
    plain = predicted(imgcls, run, f"--data.root={pile}/2")
    words = ("predict", "--run", run, f"--data.root={pile}/2", "--out", "c.csv", *CPU)
    write_calibration(RunFolder(run), run / "checkpoints/best.ckpt", {"temperature": 0.5})
    try:
        code, out, err = imgcls(*words)
        shutil.copy(run / "checkpoints/best.ckpt", "other.ckpt")
        with open("other.ckpt", "ab") as file:
            file.write(b"\0")  # other weights, for the hash
        assert imgcls(*words[: -len(CPU)], *CPU, "--out=other.csv", "--ckpt_path=other.ckpt")[0] == 0
    finally:
        RunFolder(run).calibration.unlink()
    assert code == 0, err
    assert out.splitlines()[-1] == "predictions: c.csv (25 images; calibrated, temperature 0.5)"
    for before, after in zip(plain, rows("c.csv")[1:], strict=True):
        squared = np.array(before[3:], float) ** 2
        assert np.allclose(np.array(after[3:], float), squared / squared.sum(), atol=1e-5)
        assert before[:2] == after[:2]
    assert rows("other.csv")[1:] == plain


# --- going on ---

SLOW = """
import sys, time
from imgcls.__main__ import main
from imgcls.classifier import Classifier
step = Classifier.predict_step
def slowly(self, batch, batch_idx):
    time.sleep(0.15)
    return step(self, batch, batch_idx)
Classifier.predict_step = slowly
sys.exit(main(sys.argv[1:]))
"""


def started(words, until: int) -> subprocess.Popen:
    """A slow prediction in a process of its own that has written so many lines."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SLOW, *map(str, words)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not Path("p.csv").exists() or Path("p.csv").read_bytes().count(b"\n") < until:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.slow
def test_a_killed_prediction_goes_on_to_the_same_bytes(imgcls, run, pile, monkeypatch):
    from imgcls.classifier import Classifier

    words = ("predict", "--run", run, f"--data.root={pile}", "--out", "p.csv", "--sort_into", "sorted", *CPU)
    assert imgcls(*words[:5], "whole.csv", *CPU)[0] == 0
    process = started(words, until=30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    partial = Path("p.csv").read_bytes()
    assert 30 <= partial.count(b"\n") < 90 and Path("p.progress.json").exists()
    with open("p.csv", "ab") as file:
        file.write(b"3/99.png,red f")  # what a kill in the middle of a write leaves
    original, images = Classifier.predict_step, []

    def counted(self, batch, batch_idx):
        images.append(len(batch["index"]))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "predict_step", counted)
    code, out, err = imgcls(*words)
    assert code == 0, err
    assert sum(images) <= 100 - 24  # the others were there
    assert Path("p.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert Path("p.skipped.csv").read_bytes() == Path("whole.skipped.csv").read_bytes()
    assert not Path("p.progress.json").exists()
    assert "sorted: 97 images into sorted" in out and len([p for p in Path("sorted").rglob("*.png")]) == 97


def test_sorting_that_was_stopped_goes_on(imgcls, run, pile, monkeypatch):
    from imgcls.images import sorting

    words = ("predict", "--run", run, f"--data.root={pile}", "--out", "p.csv", "--sort_into", "sorted", *CPU)
    original, count = sorting._put, []

    def fail(file, target, link):
        count.append(target)
        if len(count) == 50:
            target.with_name(sorting.PART).write_bytes(b"half")
            raise RuntimeError("power cut")
        original(file, target, link)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(sorting, "_put", fail)
        imgcls(*words)
    table = Path("p.csv").read_bytes()
    assert Path("p.progress.json").exists() and table.count(b"\n") == 98
    code, out, err = imgcls(*words)
    assert code == 0 and "sorted: 97 images into sorted\npredictions: p.csv (97 images, 3 could not" in out, err
    assert Path("p.csv").read_bytes() == table
    found = [p for p in Path("sorted").rglob("*") if p.is_file()]
    wanted = [p.read_bytes() for p in pile.rglob("*.png") if p.read_bytes() != b"no image"]
    assert sorted(p.read_bytes() for p in found) == sorted(wanted)


@pytest.mark.slow
def test_a_signal_stops_it_and_it_goes_on(imgcls, run, pile):
    words = ("predict", "--run", run, f"--data.root={pile}", "--out", "p.csv", *CPU)
    process = started(words, until=20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM and Path("p.progress.json").exists()
    assert imgcls(*words)[0] == 0
    assert len(rows("p.csv")) == 98


def test_nothing_is_mixed(imgcls, run, pile, monkeypatch):
    shutil.copytree(pile / "0", "images")
    words = ["predict", "--run", run, "--data.root=images", "--out", "p.csv", *CPU]
    assert imgcls(*words)[0] == 0
    assert imgcls(*words)[0] == 0  # a table that is complete is replaced
    half = b"".join(Path("p.csv").read_bytes().splitlines(keepends=True)[:15])

    def stopped(what: str, *more, changed=lambda: None):
        """Begin, stop and go on with something changed."""
        from imgcls.classifier import Classifier

        def fail(self, batch, batch_idx):
            raise RuntimeError("power cut")

        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
            patch.setattr(Classifier, "predict_step", fail)
            imgcls(*words)
        Path("p.csv").write_bytes(half)
        changed()
        code, _, err = imgcls(*words, *more)
        assert code == 2 and f"is part of another table, which was stopped (not the same {what});" in err, err
        assert Path("p.csv").read_bytes() == half
        Path("p.progress.json").unlink()

    shutil.copy(run / "checkpoints/best.ckpt", "other.ckpt")
    with open("other.ckpt", "ab") as file:
        file.write(b"\0")
    stopped("settings", "--data.crop_fraction=0.5")
    stopped("checkpoint", "--ckpt_path=other.ckpt")
    stopped("images", changed=lambda: shutil.copy("images/00.png", "images/zz.png"))
    stopped("images", changed=lambda: os.utime("images/07.png", ns=(1, 1)))
    Path("p.progress.json").write_text("{")
    code, _, err = imgcls(*words)
    assert code == 2 and "p.progress.json to start this one anew" in err
    Path("p.progress.json").unlink()
    assert imgcls(*words)[0] == 0 and len(rows("p.csv")) == 26


def table(path: Path, names: list[str], classes=("a\nb", 'c"d', "e,f")) -> tuple[PredictionFile, np.ndarray]:
    logits = np.random.default_rng(0).normal(size=(len(names), len(classes)))
    return PredictionFile(path, classes, names, {"checkpoint": "1"}), logits


def fill(file: PredictionFile, logits: np.ndarray, step: int, stop: int | None = None) -> None:
    for first in range(file.open(step), len(logits) if stop is None else stop, step):
        position = list(range(first, min(first + step, len(logits))))
        broken = {k: "bro\"ken, isn't it" for k in position if k % 5 == 2}
        file.write(position, logits[position], broken)
    if stop is None:
        file.complete()
    file.close()


def test_wherever_a_table_is_torn_the_rest_follows():
    names = [f'{k}, "x".png' for k in range(11)]
    whole = Path("whole.csv")
    fill(*table(whole, names), 3)
    parts = (whole, Path("whole.skipped.csv"))
    content = [p.read_bytes() for p in parts]
    there = [position for position, _ in table(whole, names)[0].rows()]
    assert there == [0, 1, 3, 4, 5, 6, 8, 9, 10] and content[1].count(b"\n") == 3
    for target, length in [(k, n) for k in (0, 1) for n in range(len(content[k]) + 1)]:
        torn = table(Path("torn.csv"), names)
        fill(*torn, 3, stop=0)
        for k, part in enumerate(("torn.csv", "torn.skipped.csv")):
            Path(part).write_bytes(content[k][:length] if k == target else content[k])
        again = table(Path("torn.csv"), names)[0]
        start = again.open(3)
        again.close()
        assert start % 3 == 0 or start == 11
        fill(*table(Path("torn.csv"), names), 3)
        assert [Path(p).read_bytes() for p in ("torn.csv", "torn.skipped.csv")] == content, (target, length)


def test_a_full_disk_is_one_line():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    file, logits = table(Path("p.csv"), ["a", "b"])
    file.open(2)
    file.close()
    file._files[file.path] = open(full, "ab", buffering=0)
    with pytest.raises(UserError, match=r"p.csv: cannot be written \(No space left on device\); the same command"):
        file.write([0, 1], logits, {})
    file.close()


@pytest.mark.slow
def test_two_processes_write_what_one_writes(imgcls, run, pile, monkeypatch):
    one = predicted(imgcls, run, f"--data.root={pile}")
    skipped = Path("p.skipped.csv").read_bytes()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def two(*words) -> list[list[str]]:
        command = [sys.executable, "-m", "imgcls", "predict", "--run", run, "--out", "two.csv", *CPU, *words]
        command += ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=7"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return rows("two.csv")[1:]

    def same(a, b) -> bool:
        return [r[0] for r in a] == [r[0] for r in b] and np.allclose(
            *([[float(v) for v in r[2:]] for r in t] for t in (a, b)), atol=1e-5
        )

    # one process began, two go on
    def fail(self, batch, batch_idx):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr("imgcls.classifier.Classifier.predict_step", fail)
        imgcls("predict", "--run", run, f"--data.root={pile}", "--out", "two.csv", *CPU)
    Path("two.csv").write_bytes(b"".join(Path("p.csv").read_bytes().splitlines(keepends=True)[:20]))
    Path("two.skipped.csv").write_bytes(skipped)
    assert same(two(f"--data.root={pile}"), one)
    assert Path("two.skipped.csv").read_bytes() == skipped
    assert len(two(f"--data.root={pile}/0/00.png")) == 1  # fewer images than processes


# --- sorting ---


def test_files_are_sorted_without_loss():
    for name, text in {"a/x.jpg": "1", "b/x.jpg": "2", "c/x.jpg": "1", "d/X.jpg": "3", "e/x-2.jpg": "4"}.items():
        Path("in", name).parent.mkdir(parents=True)
        Path("in", name).write_text(text)
    Path("out/cat").mkdir(parents=True)
    Path("out/cat/x.jpg").write_text("somebody else's")
    Path("out/cat/.imgcls.part").write_text("half a co")
    files = sorted(p for p in Path("in").rglob("*.jpg"))
    for _ in range(2):  # done again, nothing changes
        done = sort_files([(f, ["cat"], 0.9) for f in files], Path("out"), ["cat", "dog"])
        assert done == (5, 0)
        found = {p.name: p.read_text() for p in Path("out/cat").iterdir()}
        assert found.pop("x.jpg") == "somebody else's"
        assert sorted(found.values()) == ["1", "1", "2", "3", "4"]
        assert len({name.casefold() for name in found}) == 5
    assert [f.read_text() for f in files] == ["1", "2", "1", "3", "4"]


def test_files_of_several_classes_are_in_the_folder_of_each_and_those_of_none_in_another():
    for name in ("p.jpg", "q.jpg"):
        Path(name).write_text(name)
    files = [(Path("p.jpg"), ["cat", "none"], 0.9), (Path("q.jpg"), [], 0.9)]
    for _ in range(2):
        assert sort_files(files, Path("s"), ["cat", "dog", "none"]) == (2, 0)
        found = sorted(path.as_posix() for path in Path("s").rglob("*.jpg"))
        assert found == ["s/cat/p.jpg", "s/none-2/q.jpg", "s/none/p.jpg"]


def test_unsure_files_and_links_have_their_places():
    for name in ("p.jpg", "q.jpg"):
        Path(name).write_text(name)
    files = [(Path("p.jpg"), ["unsure"], 0.4), (Path("q.jpg"), ["unsure"], 0.5)]
    assert sort_files(files, Path("s"), ["unsure"], "symbolic", 0.5) == (2, 1)
    assert Path("s/unsure/p.jpg").readlink() == Path("p.jpg").absolute() and Path("s/unsure-2/q.jpg").is_symlink()
    for _ in range(2):
        assert sort_files(files, Path("h"), ["unsure"], "hard") == (2, 0)
        assert sorted(os.listdir("h/unsure")) == ["p.jpg", "q.jpg"] and Path("h/unsure/p.jpg").samefile("p.jpg")


def test_folders_have_names_that_every_system_takes():
    names = ["../up", "a/b", "a_b", "A_B", "", ".", "..", "CON", "nul.x", "x. ", "a:b\x07", "ü" * 300, ".git", "dog"]
    found = folder_names(names, ["unsure"])
    assert len({name.casefold() for name in found}) == len(names)
    assert found[2] == "a_b" and found[13] == "dog"  # they keep their own
    for name in found:
        assert name and name == Path(name).name and not name.startswith(".") and name[-1] not in " ."
        assert len(name.encode()) < 255 and not set('\\/:*?"<>|\x07') & set(name)
        assert name.split(".")[0].lower() not in ("con", "nul")


def test_images_are_sorted_by_class(imgcls, run, photos):
    shutil.copytree(photos, "images")
    before = {p: p.stat().st_mtime_ns for p in Path("images").rglob("*.png")}
    words = ("predict", "--run", run, "--data.root=images", "--out", "p.csv", *CPU)
    code, out, err = imgcls(*words, "--sort_into", "by class", "--min_confidence=0.6")
    assert code == 0, err
    table = rows("p.csv")[1:]
    wanted = {name: sum(r[1] == name and float(r[2]) >= 0.6 for r in table) for name in {r[1] for r in table}}
    wanted["unsure"] = sum(float(r[2]) < 0.6 for r in table)
    found = {p.name: len(list(p.iterdir())) for p in Path("by class").iterdir()}
    assert found == {k: n for k, n in wanted.items() if n} and sum(found.values()) == 60
    assert f"sorted: 60 images into by class ({wanted['unsure']} unsure)" in out or not wanted["unsure"]
    assert {p: p.stat().st_mtime_ns for p in Path("images").rglob("*.png")} == before
    for folder in ("images", "images/sorted", "."):
        code, _, err = imgcls(*words, "--sort_into", folder)
        assert code == 2 and "is among the images that are predicted" in err, folder
    assert json.loads(Path(run / "environment.json").read_text())  # the run is as it was
