"""Planted runs of a question, and what the answer says of its claims."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from imgcls.errors import UserError
from imgcls.pages.answer import draw_differences, write_answer
from imgcls.science.conclusion import lines_of
from imgcls.science.power_law import fit_power_law
from imgcls.science.question import arms_of, judge, read_question
from imgcls.science.statistics import compare_pairs

from .conftest import ROOT
from .test_compare import two_groups, write_run

TOML = """question = "Is it better?"
seeds = [0, 1, 2]
baseline = "plain"
metrics = ["test/acc", "robust/acc"]

[claims]
"better beats plain" = "better > plain"
"plain beats better" = "plain > better"
"same beats plain" = "same > plain"
"variation costs accuracy" = "plain:test/acc > plain:robust/acc"
"never run beats plain" = "missing > plain"
"""


def plant(folder: Path, arms: dict[str, np.ndarray], toml: str = TOML, extra: tuple[str, ...] = ()) -> Path:
    """A question's folder, and runs/NAME with one run for each row of (S, M) right predictions."""
    folder.mkdir(parents=True)
    for arm in (*arms, *extra):
        (folder / f"{arm}.yaml").write_text("# An arm.\n")
    (folder / "question.toml").write_text(toml)
    runs = folder.parent / "runs" / folder.name
    for place, (arm, rights) in enumerate(arms.items()):
        for seed, right in enumerate(rights):
            write_run(runs / arm / f"seed-{seed}", right, seed, lr=0.1 * (place + 1))
            path = runs / arm / f"seed-{seed}" / "metrics.json"
            values = json.loads(path.read_text())
            path.write_text(
                json.dumps(values | {"robust/acc": values["test/acc"] - 0.2 - 0.001 * seed, "fit/seconds": 30})
            )
    return runs


@pytest.fixture
def question(tmp_path):
    rng = np.random.default_rng(3)
    better, plain = two_groups(0.88, 0.78, 3, rng)
    same = plain[:, np.random.default_rng(0).permutation(plain.shape[1])]
    folder = tmp_path / "quality"
    runs = plant(folder, {"plain": plain, "better": better, "same": same}, extra=("missing",))
    return folder, runs


def test_claims_are_judged_by_what_was_planted(question):
    read = read_question(question[0])
    claims = {claim.text: claim for claim in judge(read, arms_of(read, question[1]))}
    assert claims["better beats plain"].verdict == "holds"
    assert claims["plain beats better"].verdict == "does not hold: the reverse does"
    assert claims["same beats plain"].verdict == "cannot tell"
    assert claims["variation costs accuracy"].verdict == "holds"
    assert claims["never run beats plain"].answer == "cannot tell: runs are missing"
    assert claims["better beats plain"].comparison.method == "t-test over seeds and test images"
    assert claims["variation costs accuracy"].comparison.method == "paired t-test over seeds"


def test_pairs_are_tested_as_scipy_does():
    a, b = [0.81, 0.85, 0.84, 0.8], [0.78, 0.83, 0.79, 0.79]
    ours, theirs = compare_pairs(a, b), stats.ttest_rel(a, b)
    interval = theirs.confidence_interval()
    assert ours.p_value == pytest.approx(theirs.pvalue)
    assert (ours.difference.low, ours.difference.high) == pytest.approx((interval.low, interval.high))
    assert np.isnan(compare_pairs([0.8], [0.7]).p_value)


def test_answers_are_written_from_the_runs_alone(question, imgcls, tmp_path):
    code, out, err = imgcls("answers", question[0], "--runs", question[1].parent, "--out", "notes/README.md")
    assert code == 0, err
    text = Path("notes/README.md").read_text()
    assert Path("notes/figures/quality.png").stat().st_size > 5_000
    assert "## Is it better?" in text and "![quality](figures/quality.png)" in text
    assert "| better beats plain | **holds** | +0." in text
    scores = [json.loads(p.read_text())["test/acc"] for p in question[1].glob("plain/*/metrics.json")]
    assert f"| plain | 3 | {np.mean(scores):.3f} [" in text and "9 runs" in out
    code, _, err = imgcls("answers", question[0], "--runs", tmp_path / "nowhere")
    assert code == 2 and "holds no finished run" in err


def test_numbers_make_lines_and_a_power_law_over_the_images_that_runs_say_they_had(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {6: 100, 12: 200, 25: 400, 50: 800, 100: 1600}
    right = {f"percent-{p}": rng.random((3, 4000)) < 1 - (3.0 * n**-0.5 + 0.05) for p, n in sizes.items()}
    toml = 'question = "How many?"\nbaseline = "percent-100"\nxlabel = "images"\nxscale = "log"\nfit = "power law"\n'
    folder = tmp_path / "hunger"
    runs = plant(folder, right | {"other": right["percent-50"]}, toml)
    question = read_question(folder)
    for arm in question.arms:
        for path in runs.glob(f"{arm}/*/environment.json"):
            known = json.loads(path.read_text())
            known["data"]["images"] = {"train": sizes[int(arm.removeprefix("percent-").replace("other", "50"))]}
            path.write_text(json.dumps(known))
    groups = arms_of(question, runs)
    lines, others = lines_of(question, groups)
    assert [x for x, _ in lines["percent"]] == list(sizes.values()) and [g.name for g in others] == ["other"]
    text = write_answer(question, groups, tmp_path / "f.png", "f.png")
    assert "The error falls as n^−0." in text and "nothing was trained there" in text
    said = re.search(r"Twice as many \(3,200\) would bring about (\S+) \[(\S+), (\S+)\], four times (\S+) \[", text)
    doubled, low, high, four = map(float, said.groups())
    assert low <= 1 - (3.0 * 3200**-0.5 + 0.05) <= high and high - low < 0.03 and doubled < four
    needed, least = re.search(r"0\.9 would take about (\S+) \(at least (\S+)\)", text).groups()
    assert "3,000" < least < "4,000" < needed < "7,000"  # the planted law: 3,600
    assert re.search(r"`python -m imgcls fit --config \S+/percent-100.yaml`", text)
    (runs / "percent-6/seed-0/environment.json").write_text("{}")
    with pytest.raises(UserError, match="does not say how many images were trained on"):
        write_answer(question, arms_of(question, runs), tmp_path / "f.png", "f.png")


AXES = """baseline = "plain"
without = ["*-400-40"]
[axes.images]
100 = ["--data.train_fraction=0.1"]
400 = []
[axes.epochs]
10 = ["--trainer.max_epochs=10"]
40 = ["--trainer.max_epochs=40"]
"""


def test_axes_multiply_the_arms_and_each_is_compared_with_the_baseline_of_its_values(tmp_path):
    rng = np.random.default_rng(0)
    shares = {"100-10": (0.7, 0.6), "100-40": (0.7, 0.8), "400-10": (0.9, 0.9)}  # the lines cross at 100 images
    right = {f"{f}-{v}": rng.random((3, 4000)) < s[f != "plain"] for v, s in shares.items() for f in ("plain", "all")}
    runs = plant(tmp_path / "grid", right, AXES)
    for path in (tmp_path / "grid").glob("*-*.yaml"):
        path.unlink()
    for name in ("plain", "all"):
        (tmp_path / f"grid/{name}.yaml").write_text("# A file.\n")
    question = read_question(tmp_path / "grid")
    assert list(question.arms) == [f"{name}-{values}" for name in ("plain", "all") for values in shares]
    assert question.arms["all-100-40"].options == ("--data.train_fraction=0.1", "--trainer.max_epochs=40")
    groups = arms_of(question, runs)
    rows = [row.split(" | ") for row in write_answer(question, groups, tmp_path / "f.png", "f.png").splitlines()]
    verdicts = {tuple(row[:3]): row[-1].rstrip(" |") for row in rows if row[0].startswith("| ") and len(row) > 4}
    assert verdicts["| 100", "10", "all"] == "worse" and verdicts["| 100", "40", "all"] == "better"
    assert verdicts["| 400", "10", "plain"] == "baseline" and len(verdicts) == 7
    figure = draw_differences(question, groups)
    assert [axes.get_title() for axes in figure.axes] == ["100 images", "400 images"]
    (line,) = figure.axes[0].containers
    assert line.get_label() == "all" and [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["10", "40"]
    below, above = line.lines[0].get_ydata()
    assert list(line.lines[0].get_xdata()) == [0, 1] and -0.13 < below < -0.07 and 0.07 < above < 0.13


def test_the_power_law_is_found_where_it_was_planted():
    rng = np.random.default_rng(0)
    sizes, held = [50, 100, 200, 400, 800, 1600, 3200], []
    for _ in range(40):
        scores = [[1 - (2.5 * n**-0.45 + 0.04) * np.exp(0.02 * rng.normal()) for _ in range(3)] for n in sizes]
        law = fit_power_law(sizes, scores)
        assert law.rate.value == pytest.approx(0.45, abs=0.08) and law.floor.value == pytest.approx(0.04, abs=0.03)
        found = [(law.rate, 0.45), (law.floor, 0.04), (law.images(0.92), (2.5 / 0.04) ** (1 / 0.45))]
        found += [(law.accuracy(n), 1 - (2.5 * n**-0.45 + 0.04)) for n in (3200, 6400, 12800)]
        held.append([one.low <= true <= one.high for one, true in found])
    assert (np.mean(held, 0) >= 0.85).all()  # 95 % promised: fewer than 34 of 40 come once in two hundred times
    assert fit_power_law(sizes[:3], scores[:3]) is None


def test_few_sizes_leave_open_whether_there_is_a_floor():
    """Where both kinds of law fit, the interval at four times the images holds what either says."""
    sizes, laws = [100, 140, 200, 280, 400], ((3.0, 0.5, 0.0), (4.2, 0.62, 0.05))
    for scale, rate, floor in laws:
        rng = np.random.default_rng(0)
        scores = [[1 - (scale * n**-rate + floor) * np.exp(0.05 * rng.normal()) for _ in range(3)] for n in sizes]
        further = fit_power_law(sizes, scores).accuracy(1600)
        assert all(further.low < 1 - (a * 1600**-b + c) < further.high for a, b, c in laws)


def test_without_an_error_half_a_test_image_is_one():
    law = fit_power_law([10, 20, 40, 80], [[0.7], [0.8], [0.9], [1.0]], least=0.5 / 50)
    assert 0.9 < law.accuracy(80).value < 1 and law.accuracy(160).high < 1


@pytest.mark.parametrize(
    "line, message",
    [
        ('xscale = "log2"', "xscale: 'log2' is not linear or log"),
        ('fit = "line"', "fit: 'line' is not 'power law'"),
        ("metrics = 3", "metrics: 3 is not a list"),
        ('claims = {"a" = "plain >= better"}', "is not of the form 'ARM > ARM'"),
        ('claims = {"a" = "plain > best"}', "best is not one of the arms"),
        ("axes = {epochs = [10, 40]}", "axes: epochs: [10, 40] is not a table of values with a list of options"),
        ("axes = {epochs = {10 = 10}}", "axes: epochs: {'10': 10} is not a table of values"),
        ("axes = {epochs = {}}", "axes: epochs: {} is not a table of values"),
        ("without = ['best-*']", "without: 'best-*' is none of the arms plain, better"),
    ],
)
def test_mistakes_are_named(tmp_path, line, message):
    plant(
        tmp_path / "q", {"plain": np.ones((1, 4), bool), "better": np.ones((1, 4), bool)}, 'baseline = "plain"\n' + line
    )
    with pytest.raises(UserError) as error:
        read_question(tmp_path / "q")
    assert message in str(error.value)


def test_the_networks_that_are_compared_have_as_many_parameters(imgcls):
    from imgcls.models.cnn import CNN
    from imgcls.models.mlp import MLP

    head = 10 * 64 + 10
    counts = [
        sum(p.numel() for p in net.parameters()) + head
        for net in (CNN(1, 28, depth=6, width=16), MLP(1, 28, hidden=[85, 64]))
    ]
    assert counts == [72666, 72879]
    assert "hidden: [85, 64]" in (ROOT / "experiments/cnn_or_mlp/mlp.yaml").read_text()
    assert "backbone: {depth: 6, width: 16}" in (ROOT / "experiments/small_cnn.yaml").read_text()
