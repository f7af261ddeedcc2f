"""Groups whose true difference is known, and what `compare` says of them."""

import base64
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import stats

from imgcls.data.sample import SampleData
from imgcls.runs.folder import RunFolder
from imgcls.runs.predictions import Predictions
from imgcls.runs.record import add_metrics
from imgcls.runs.run import find_runs
from imgcls.science.comparison import disagreements, judged, per_class
from imgcls.science.groups import Group, group_runs
from imgcls.science.planning import detectable, outlook
from imgcls.science.resampling import compare_splits, image_by_image
from imgcls.science.statistics import (
    Comparison,
    Design,
    Estimate,
    compare_images,
    compare_scores,
    holm,
    mean_over_seeds,
    verdict,
)

from .conftest import TINY

IMAGES = 1000
PARTS_OF_VARIANCE = ("of_seeds", "of_images", "of_both")


def right(
    accuracy: float, seeds: int, rng: np.random.Generator, spread: float = 0.01, hardness: float = 3.0
) -> np.ndarray:
    """(S, M) bool: images are easy or hard for all alike, and each seed has its own luck."""
    ease = rng.beta(hardness * accuracy, hardness * (1 - accuracy), IMAGES)
    luck = np.clip(accuracy + spread * rng.normal(size=(seeds, 1)), 0.01, 0.99) / accuracy
    return rng.random((seeds, IMAGES)) < np.clip(ease * luck, 0, 1)


def two_groups(first: float, second: float, seeds: int, rng: np.random.Generator, spread: float = 0.01):
    """Both judge the same images: their ease is shared."""
    ease = rng.beta(3 * 0.8, 3 * 0.2, IMAGES)

    def group(accuracy):
        luck = 1 + spread * rng.normal(size=(seeds, 1))
        return rng.random((seeds, IMAGES)) < np.clip(ease * luck * accuracy / 0.8, 0, 1)

    return group(first), group(second)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_equal_groups_are_rarely_called_different(seeds):
    rng = np.random.default_rng(seeds)
    spread = 0.0 if seeds == 1 else 0.01  # one seed speaks of the two models, whose luck is part of them
    p_values = [compare_images(*two_groups(0.8, 0.8, seeds, rng, spread)).p_value for _ in range(400)]
    # 5 % are expected, and at most as many wanted: 0.075 is two and a half standard errors above
    assert np.mean(np.array(p_values) < 0.05) <= 0.075


@pytest.mark.parametrize("seeds, power", [(3, 0.8), (5, 0.9)])
def test_large_differences_are_found(seeds, power):
    rng = np.random.default_rng(seeds)
    found = [compare_images(*two_groups(0.84, 0.78, seeds, rng)) for _ in range(100)]
    assert np.mean([c.p_value < 0.05 and c.difference.value > 0 for c in found]) >= power


def test_intervals_hold_what_they_promise():
    rng = np.random.default_rng(0)
    # ease is clipped at 1, so the true difference is that of very many images and seeds
    true = float(np.mean([np.subtract(*(g.mean() for g in two_groups(0.8, 0.76, 20, rng))) for _ in range(200)]))
    inside = []
    for _ in range(400):
        interval = compare_images(*two_groups(0.8, 0.76, 3, rng)).difference
        inside.append(interval.low <= true <= interval.high)
    assert np.mean(inside) >= 0.93


def planted(rng: np.random.Generator, seeds: tuple[int, int], shift: float, spreads=(0.05, 0.05)):
    """Groups of 1,000 images that each run gets right with a probability of its own; one is shifted by logits."""
    ease = rng.beta(1.2 * 0.87, 1.2 * 0.13, IMAGES).clip(1e-3, 1 - 1e-3)
    logits = np.log(ease / (1 - ease))
    groups = []
    for count, spread, by in zip(seeds, spreads, (shift, 0.0), strict=True):
        noisy = logits + by + rng.normal(0, spread, (count, 1)) + rng.normal(0, 0.5, (count, IMAGES))
        groups.append(rng.random(noisy.shape) < 1 / (1 + np.exp(-noisy)))
    return groups


@pytest.mark.parametrize(
    "seeds, spreads",
    [((5, 5), (0.05, 0.05)), ((3, 3), (0.2, 0.2)), ((5, 5), (0.1, 0.2)), ((3, 5), (0.2, 0.1)), ((1, 4), (0.0, 0.1))],
)
def test_what_seeds_and_images_do_together_counts_once(seeds, spreads):
    rng = np.random.default_rng(7)
    found = [compare_images(*planted(rng, seeds, 0.0, spreads)) for _ in range(600)]
    alarms = np.mean([c.p_value < 0.05 for c in found])
    # 5 % and two and a half standard errors; below one in a hundred, power would be given away
    assert 0.008 <= alarms <= 0.072


def test_a_difference_of_two_points_is_found_with_five_seeds_and_a_thousand_images():
    rng = np.random.default_rng(8)
    found = [compare_images(*planted(rng, (5, 5), 0.343)) for _ in range(400)]
    assert np.mean([c.difference.value for c in found]) == pytest.approx(0.02, abs=0.0015)
    assert np.mean([c.p_value < 0.05 and c.difference.value > 0 for c in found]) >= 0.86


def test_what_would_tell_is_what_tells():
    rng = np.random.default_rng(9)
    unclear = [compare_images(*planted(rng, (4, 4), 0.12, (0.1, 0.1))) for _ in range(200)]
    design = Design(
        (4, 4), IMAGES, *(float(np.mean([getattr(c.design, part) for c in unclear])) for part in PARTS_OF_VARIANCE)
    )
    true = float(np.mean([c.difference.value for c in unclear]))
    needed = outlook(Comparison(Estimate(true, -1, 1), 0.5, "", True, design))
    assert 5 < needed.seeds < 40 and true < needed.detectable
    found = [compare_images(*planted(rng, (needed.seeds,) * 2, 0.12, (0.1, 0.1))) for _ in range(200)]
    assert 0.7 <= np.mean([c.p_value < 0.05 for c in found]) <= 0.92


def test_what_would_tell_is_said():
    rng = np.random.default_rng(10)
    assert outlook(compare_images(*planted(rng, (1, 1), 0.0))) is None
    scores = outlook(compare_scores([0.80, 0.82, 0.81], [0.80, 0.81, 0.805]))
    assert scores.images is None and scores.seeds > 3 and "seeds each" in scores.words


def test_scores_on_splits_are_the_corrected_resampled_test():
    ours, theirs = [0.82, 0.80, 0.85, 0.79, 0.83], [0.80, 0.79, 0.81, 0.80, 0.80]
    d = np.subtract(ours, theirs)
    t = d.mean() / math.sqrt((1 / 5 + 1 / 4) * d.var(ddof=1))  # equation 9 of Nadeau and Bengio
    found = compare_splits(ours, theirs, 1 / 4)
    assert found.p_value == pytest.approx(2 * stats.t.sf(t, 4)) and found.difference.value == pytest.approx(d.mean())
    assert math.isnan(compare_splits([0.8], [0.7], 0.25).p_value)
    assert found.design.variance == pytest.approx((1 / 5 + 1 / 4) * d.var(ddof=1))
    assert detectable(found.design, runs=100) > math.sqrt(1 / 4 * d.var(ddof=1))  # overlap does not go with more splits


def test_what_runs_of_one_seed_have_in_common_cancels():
    rng = np.random.default_rng(0)
    luck, own = rng.normal(0, 0.02, 8), rng.normal(0, 0.004, (2, 8))
    ours, theirs = 0.9 + luck + own[0], 0.89 + luck + own[1]
    alone, shared = (compare_scores(ours, theirs, paired) for paired in (False, True))
    assert shared.difference.value == alone.difference.value and shared.p_value < alone.p_value
    assert shared.design.of_seeds < 0.25 * alone.design.of_seeds
    assert shared.design.of_seeds >= np.var(ours - theirs, ddof=1) / 8  # that of a paired test, and not less
    for pair in ((ours[:3], theirs[:3]), (ours, 2 * ours.mean() - ours)):  # too few; of opposite luck
        assert compare_scores(*pair, True) == compare_scores(*pair)
    with_images = compare_images(*(rng.random((8, 500)) < 0.5 + 10 * luck[:, None] for _ in range(2)), True)
    assert 0 <= with_images.design.of_seeds and with_images.p_value > 0.01


def test_seeds_are_paired_where_groups_share_them(runs):
    full, probe = group_runs(find_runs([str(runs)]))[:2]
    assert full.shares_seeds(probe, "test/acc") and not full.shares_seeds(Group(probe.runs[:2]), "test/acc")
    assert not Group(probe.runs * 2).shares_seeds(Group(probe.runs * 2), "test/acc"), "a seed that comes twice"


def test_images_tested_on_splits_are_counted_one_by_one():
    """By hand, of three folds of four images each."""
    value = np.array([[1.0, 0, 0, 0], [0, 0, 0, -1], [1, 1, 0, 0]])
    scores, mean = value.mean(1), value.mean()
    images = list(zip(np.arange(12).reshape(3, 4), value, strict=True))
    of_images = 1.1 * 12 / 11 * ((value - mean) ** 2).sum() / 12**2
    beyond = scores.var(ddof=1) - (value.var(1, ddof=1) / 4).mean()
    assert beyond > 0
    found = compare_splits(scores, [0.0, 0.0, 0.0], 1 / 2, image_by_image(images))
    rest = (1 / 3 + 1 / 2) * beyond
    freedom = (of_images + rest) ** 2 / (of_images**2 / 11 + rest**2 / 2)
    assert found.p_value == pytest.approx(2 * stats.t.sf(mean / math.sqrt(of_images + rest), freedom))
    assert found.design.images == 12 and "splits or" in outlook(found).words
    # the same images tested twice, predicted alike, are not twice as many
    twice = compare_splits([*scores] * 2, [0.0] * 6, 1 / 2, image_by_image([*images, *images]))
    assert twice.design.of_images > of_images
    assert (
        compare_splits([0.5], [0.5], 1.0, image_by_image(images[:1])).p_value
        != compare_splits(scores, scores, 0.5).p_value
    )
    single = [(np.array([k]), np.array([v])) for k, v in enumerate([1.0, 0.0, -1.0, 0.0])]  # leave one out
    assert compare_splits([1.0, 0.0, -1.0, 0.0], [0.0] * 4, 1 / 3, image_by_image(single)).p_value == 1.0


def test_one_model_each_is_mcnemars_exact_test():
    group, base = np.array([[1, 1, 1, 1, 1, 0, 0, 1]], bool), np.array([[0, 0, 0, 0, 0, 1, 0, 1]], bool)
    comparison = compare_images(group, base)
    assert comparison.p_value == pytest.approx(stats.binomtest(5, 6).pvalue) and not comparison.of_seeds
    assert comparison.difference.value == pytest.approx(4 / 8)
    assert compare_images(group, group).p_value == 1.0
    assert "more seeds" in verdict(comparison, 0.01) and verdict(comparison, 0.2) == "cannot tell"


def test_scores_alone_are_welchs_test():
    a, b = [0.81, 0.83, 0.82], [0.79, 0.80, 0.78, 0.79]
    comparison, theirs = compare_scores(a, b), stats.ttest_ind(a, b, equal_var=False)
    interval = theirs.confidence_interval()
    assert comparison.p_value == pytest.approx(theirs.pvalue)
    assert (comparison.difference.low, comparison.difference.high) == pytest.approx((interval.low, interval.high))
    assert math.isnan(compare_scores([0.8], b).p_value)


def test_the_mean_has_students_interval():
    scores = [0.8, 0.82, 0.81]
    low, high = stats.t.interval(0.95, 2, np.mean(scores), stats.sem(scores))
    estimate = mean_over_seeds(scores)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((np.mean(scores), low, high))


def test_holm_by_hand():
    assert holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
    assert holm([0.5, 0.9]) == [1.0, 1.0]


# ---- runs on disk ----


def write_run(folder: Path, right: np.ndarray, seed: int, **settings) -> None:
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    config = {
        "seed_everything": seed,
        "data": {"class_path": "imgcls.data.sample.SampleData", "init_args": {"seed": seed, "batch_size": 64}},
        "model": {"class_path": "imgcls.classifier.Classifier", "init_args": settings},
        "trainer": {"max_epochs": 2, "logger": seed},
    }
    run.config.write_text(yaml.safe_dump(config))
    label = np.arange(len(right)) % 4
    logits = np.eye(4, dtype=np.float32)[np.where(right, label, (label + 1) % 4)]
    names = [f"a,{i}.png" for i in range(len(right))]
    predicted = Predictions(logits, label, np.arange(len(right)))
    predicted.write(run.predictions / "test.csv", names, ["<b>cat</b>", "dog", "fox", "owl"])
    run.metrics_json.write_text(json.dumps({"test/acc": float(right.mean()), "val/acc": 0.5}))
    data = {"data": "abc", "test": "def", "class_names": ["<b>cat</b>", "dog", "fox", "owl"]}
    run.environment.write_text(json.dumps({"data": data}))
    for epoch in range(2):
        add_metrics(run, {"val/acc": 0.4 + 0.1 * epoch + 0.01 * seed, "val/loss": 1.0 - 0.1 * epoch}, epoch, epoch)


@pytest.fixture
def runs(tmp_path) -> Path:
    rng = np.random.default_rng(1)
    full, probe = two_groups(0.85, 0.75, 3, rng)
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}
    for seed in range(3):
        write_run(tmp_path / f"runs/full/{seed}", full[seed], seed, lr=0.1, finetune={"class_path": "some.module.Full"})
        settings = {
            "lr": 0.1,
            "finetune": {"class_path": "some.module.Probe", "init_args": {"cache": True}},
            "optimizer": optimizer,
        }
        write_run(tmp_path / f"runs/probe/{seed}", probe[seed], seed, **settings)
    return tmp_path / "runs"


def test_runs_are_grouped_by_all_but_the_seed_and_named_by_what_differs(runs):
    groups = group_runs(find_runs([str(runs)]))
    assert [len(g.runs) for g in groups] == [3, 3]
    assert [g.name for g in groups] == ["model.finetune=Full", "model.finetune=Probe"]
    assert groups[1].settings["model.finetune.cache"] == "True" and "model.lr" not in groups[1].settings


def test_the_command_says_which_is_better(runs, imgcls):
    code, out, _ = imgcls("compare", runs, "--baseline", "Probe", "--json", "c.json")
    assert code == 0 and re.search(r"Full .*\+0\.\d+ \[\+0.*better", out)
    result = json.loads(Path("c.json").read_text())
    row = next(r for r in result["groups"] if "verdict" in r)
    assert row["verdict"] == "better" and row["adjusted_p"] < 0.01 and row["of_seeds"] and row["seeds"] == [0, 1, 2]
    assert result["baseline"] == "model.finetune=Probe"


def test_wandb_is_given_the_table_with_intervals_and_verdicts(runs, imgcls):
    code, out, err = imgcls("compare", runs, "--baseline", "Probe", "--wandb", "ours")
    assert code == 0 and "W&B: " in out, err
    (path,) = Path("wandb").glob("offline-run-*/files/media/table/*.json")
    table = json.loads(path.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    found = {row["verdict"]: row for row in rows}
    assert set(found) == {"baseline", "better"} and found["baseline"]["difference"] is None
    assert 0 < found["better"]["difference_low"] < found["better"]["difference"] and found["better"]["seeds"] == 3


def test_runs_on_splits_of_the_images_are_pooled(imgcls):
    rng = np.random.default_rng(3)
    for accuracy, lr in ((0.6, 0.1), (0.9, 0.2)):
        for fold in range(4):
            for seed in range(2):
                run = Path(f"runs/{lr}/{fold}-{seed}")
                write_run(run, rng.random(100) < accuracy, seed, lr=lr)
                config = yaml.safe_load((run / "config.yaml").read_text())
                config["data"]["init_args"] |= {"split_seed": fold, "value_range": [[0, 100 + fold]]}
                (run / "config.yaml").write_text(yaml.safe_dump(config))
                facts = json.loads((run / "environment.json").read_text())
                facts["data"] |= {"test": f"part {fold}", "images": {"train": 300, "val": 30}}
                (run / "environment.json").write_text(json.dumps(facts))
                scores = json.loads((run / "metrics.json").read_text())
                (run / "metrics.json").write_text(json.dumps(scores | {"test/f1": scores["test/acc"]}))
    for words in ((), ("--over", "data.split_seed")):  # found by itself, or named
        code, out, err = imgcls("compare", "runs", "--json", "c.json", *words)
        assert code == 0 and "better" in out and "pooled over data.split_seed" in out, err
        (row,) = (row for row in json.loads(Path("c.json").read_text())["groups"] if "verdict" in row)
        assert row["method"] == "t-test over test images and 4 splits" and len(row["scores"]) == 8
    code, out, err = imgcls("compare", "runs", "--json", "c.json", "--metric", "test/f1")
    base, other = json.loads(Path("c.json").read_text())["groups"]
    means = [np.reshape(group["scores"], (2, 4)).mean(0) for group in (other, base)]  # by seed, then by split
    assert other["p_value"] == pytest.approx(compare_splits(*means, 100 / 300).p_value), "of what was tested"
    base, group = sorted(group_runs(find_runs(["runs"])), key=lambda of: of.name)
    shares = [np.mean([run.tested().right for run in of.runs], 0) for of in (group, base)]  # all splits test alike here
    found = judged(group, base)
    assert np.allclose(found.group, shares[0]) and np.allclose(found.baseline, shares[1]) and len(found.row) == 100
    rows = {name: (theirs, ours) for name, theirs, ours, _ in per_class(group, base)}
    assert rows["dog"] == pytest.approx((shares[1][1::4].mean(), shares[0][1::4].mean()))
    worst = disagreements(group, base)[0]
    assert worst["group"] - worst["baseline"] == pytest.approx(np.abs(shares[0] - shares[1]).max())
    for path in Path("runs").rglob("test.npz"):
        path.unlink()
    code, out, err = imgcls("compare", "runs", "--json", "c.json")
    (row,) = (row for row in json.loads(Path("c.json").read_text())["groups"] if "verdict" in row)
    assert row["method"] == "corrected resampled t-test over 4 splits", err
    shutil.rmtree("runs/0.2/3-0")
    shutil.rmtree("runs/0.2/3-1")
    code, out, _ = imgcls("compare", "runs")
    assert code == 0 and "not run on the same splits" in out
    code, _, err = imgcls("compare", "runs", "--over", "data.split_sed")
    assert code == 2 and "--over data.split_sed: no run has this setting (did you mean 'data.split_seed'" in err


def test_equal_groups_and_single_seeds_are_honest(runs, imgcls):
    code, out, _ = imgcls("compare", runs / "full/0", runs / "probe/1")
    assert code == 0 and "two trained models" in out and "one seed only" in out
    shutil.copytree(runs / "probe", runs / "copy")
    for path in (runs / "copy").rglob("config.yaml"):
        path.write_text(path.read_text().replace("lr: 0.1", "lr: 0.2"))
    code, out, _ = imgcls("compare", runs / "probe", runs / "copy")
    assert code == 0 and "cannot tell" in out and "better" not in out and "worse" not in out
    assert "found four times in five; no number of seeds or test images alone would tell" in out  # both are the same


def test_another_test_set_is_not_paired(runs, imgcls):
    for path in (runs / "probe").rglob("environment.json"):
        path.write_text(path.read_text().replace('"def"', '"other"'))
    code, out, _ = imgcls("compare", runs)
    assert code == 0 and "no test predictions in common" in out and "worse" in out
    for path in (runs / "full").rglob("metrics.json"):
        path.write_text("{}")
    code, out, _ = imgcls("compare", runs)
    assert code == 0 and "left out, as they have no test/acc" in out


@pytest.mark.parametrize(
    "words, message",
    [
        (["gone"], "gone: there is no such folder"),
        (["."], "holds no run"),
        (["RUNS", "--metric", "test/ac"], "no run has it (did you mean 'test/acc'?)"),
        (["RUNS", "--baseline", "model"], "names no group, or several"),
    ],
)
def test_mistakes_are_named(runs, words, message, imgcls, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code, _, err = imgcls("compare", *(str(runs) if w == "RUNS" else w for w in words))
    assert code == 2 and message in err


def test_the_page_escapes_names_and_asks_nobody(runs, imgcls):
    assert imgcls("compare", runs, "--out", "page.html")[0] == 0
    page = Path("page.html").read_text()
    assert "<b>cat</b>" not in page and "&lt;b&gt;cat" in page
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", page) and "url(http" not in page
    assert page.count("<svg") == 2 and "model.finetune.cache" in page and "a,0.png" not in page.split("<summary>")[0]


def test_the_page_shows_the_images_that_groups_judge_differently(imgcls):
    for lr in ("0.001", "0.02"):
        assert imgcls("fit", *TINY, f"--model.lr={lr}", "--run_dir", f"runs/{lr}")[0] == 0
    assert imgcls("compare", "runs", "--out", "page.html")[0] == 0
    page = Path("page.html").read_text()
    rows = re.findall(r'<tr><td><img alt="" src="(data:image/jpeg;base64,[^"]+)"> test/(\d+)</td>', page)
    assert len(rows) > 5 and len(rows) == page.count("<td>test/") + page.count("> test/")
    data = SampleData()
    data.setup("test")
    source, _ = data.parts["test"]
    for uri, number in rows[:3]:
        shown = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).resize((28, 28), Image.Resampling.BOX)
        wanted = source.original(int(number)).image
        assert np.abs(np.asarray(shown, float) - np.asarray(wanted, float)).mean() < 8

    for config in Path("runs").glob("*/config.yaml"):  # the images are no longer there
        text = config.read_text()
        config.write_text(text.replace("imgcls.data.sample.SampleData", "imgcls.data.folder.FolderData"))
    code, out, _ = imgcls("compare", "runs", "--out", "page.html")
    assert code == 0 and "note: the page shows no images" in out and "<img" not in Path("page.html").read_text()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_sorting_and_toggling_work_in_a_browser(runs, imgcls, tmp_path):
    assert imgcls("compare", runs, "--out", "page.html")[0] == 0
    probe = """<script>
      window.onerror = message => document.body.setAttribute("data-error", message);
      document.querySelector("#groups th:nth-child(3)").click();
      const first = document.querySelector("#groups tbody tr").textContent;
      document.querySelector("#groups th:nth-child(3)").click();
      const other = document.querySelector("#groups tbody tr").textContent;
      document.querySelector("input[data-group='0']").click();
      const hidden = document.querySelector("[id*='-0-']").style.display;
      document.body.setAttribute("data-result", [first.includes("Probe"), other.includes("Full"), hidden].join());
    </script></body>"""
    page = Path("page.html").read_text().replace("</body>", probe)
    Path("probed.html").write_text(page)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += [
        "--disable-background-networking",
        "--no-first-run",
        "--dump-dom",
        f"file://{Path('probed.html').resolve()}",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert 'data-result="true,true,none"' in dom and "data-error" not in dom.replace('setAttribute("data-error"', "")


def test_comparing_imports_no_torch(runs):
    import sys

    from .conftest import ROOT

    code = "import sys; from imgcls.__main__ import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", str(runs)], capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
    )  # fmt: skip
    assert done.stdout.strip().splitlines()[-1] == "False", done.stderr
