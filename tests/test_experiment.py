import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import imgcls.commands.experiment
from imgcls.cli.jobs import Job
from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder
from imgcls.science.comparison import compare_groups
from imgcls.science.groups import Group
from imgcls.science.planning import narrow_enough
from imgcls.science.question import arms_of, judge, read_question
from imgcls.science.replicates import Replicates
from imgcls.science.statistics import compare_scores
from imgcls.science.until import Budget, intervals, read_budget
from imgcls.tasks import SINGLE_LABEL, find

from .conftest import ROOT
from .test_compare import write_run

ARM = """# An arm.
base: [{root}/experiments/demo.yaml]
model: {{backbone: {{depth: 2, width: 8}}, lr: {lr}}}
trainer: {{max_epochs: {epochs}, limit_train_batches: 3, logger: false, enable_progress_bar: false}}
"""


@pytest.fixture
def question(tmp_path) -> Path:
    folder = tmp_path / "experiments/rates"
    folder.mkdir(parents=True)
    for name, lr in {"low": 1e-6, "high": 1e-2}.items():
        (folder / f"{name}.yaml").write_text(ARM.format(root=ROOT, lr=lr, epochs=2))
    (folder / "question.toml").write_text('question = "Is a rate needed?"\nseeds = [0, 1]\nbaseline = "low"\n')
    return folder


def results(out: Path) -> dict[str, float]:
    return {p.parent.name: json.loads(p.read_text())["test/acc"] for p in sorted(out.rglob("metrics.json"))}


@pytest.mark.slow
def test_all_arms_run_once_and_are_compared(question, imgcls):
    code, out, err = imgcls("experiment", question, "--jobs", "2")
    assert code == 0, err
    assert "Is a rate needed?" in out and "0 of 4 runs are done" in out and "high" in out
    assert len(list(Path("runs/rates").rglob("metrics.json"))) == 4 and Path("runs/rates/compare.html").is_file()
    answer, (command, name) = Path("runs/rates/answer.md").read_text(), re.search(r"`(.+/(.+)\.yaml)`", out).groups()
    assert answer.startswith("## Is a rate needed?") and command.startswith("python -m imgcls fit --config ")
    assert name in ("low", "high") and command in answer and Path("runs/rates/answer.png").stat().st_size > 5_000
    before = {p: p.stat().st_mtime_ns for p in Path("runs/rates").rglob("metrics.json")}
    code, out, _ = imgcls("experiment", question)
    assert code == 0 and "4 of 4 runs are done" in out
    assert before == {p: p.stat().st_mtime_ns for p in Path("runs/rates").rglob("metrics.json")}
    (question / "high.yaml").write_text(ARM.format(root=ROOT, lr=0.5, epochs=2))
    code, _, err = imgcls("experiment", question)
    assert code == 2 and "was made from other settings" in err


@pytest.mark.slow
def test_a_failed_arm_does_not_stop_the_others(question, imgcls):
    (question / "broken.yaml").write_text(f"# Broken.\nbase: [{ROOT}/experiments/demo.yaml]\nmodel: {{lrr: 1}}\n")
    code, out, err = imgcls("experiment", question)
    assert code == 1 and out.count("test/acc 0.") >= 4
    assert (
        err.count("failed: broken") == 2
        and "has no option 'lrr'" in err + Path("runs/rates/broken/seed-0.log").read_text()
    )


@pytest.mark.slow
def test_a_killed_experiment_goes_on(question):
    for name in ("low", "high"):
        path = question / f"{name}.yaml"
        path.write_text(
            path.read_text().replace("max_epochs: 2", "max_epochs: 30").replace("batches: 3", "batches: 20")
        )
    command = [sys.executable, "-m", "imgcls", "experiment", str(question)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    last = Path("runs/rates/high/seed-0/checkpoints/last.ckpt")
    deadline = time.monotonic() + 300
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    config = yaml.safe_load(Path("runs/rates/high/seed-0/config.yaml").read_text())
    job = Job("high", question / "high.yaml", 0, RunFolder("runs/rates/high/seed-0"), ())
    assert config["seed_everything"] == 0 and job.words_now() == ["fit", "--resume", "runs/rates/high/seed-0"]
    done = subprocess.run([*command, "--jobs", "2"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list(Path("runs/rates").rglob("metrics.json"))) == 4


def test_what_never_reached_a_checkpoint_starts_anew(question, tmp_path):
    run = RunFolder("runs/rates/low/seed-0")
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text("half")
    words = Job("low", question / "low.yaml", 0, run, ("--model.lr=1",)).words_now()
    assert words[:3] == ["fit", "--config", str(question / "low.yaml")] and words[-1] == "--model.lr=1"
    assert not run.path.exists()


def test_a_sweep_and_a_job_array_say_the_same(question, imgcls):
    code, out, _ = imgcls("experiment", question, "--print", "wandb", "--trainer.max_epochs=3")
    sweep = yaml.safe_load(out)
    assert code == 0 and sweep["parameters"]["seed_everything"]["values"] == [0, 1]
    assert [Path(p).stem for p in sweep["parameters"]["config"]["values"]] == ["low", "high"]
    assert sweep["command"][-1] == "--trainer.max_epochs=3" and "${args}" in sweep["command"]
    code, out, _ = imgcls("experiment", question, "--print", "slurm")
    assert code == 0 and "--array=0-3" in out and out.count("python -m imgcls fit") == 4
    checked = subprocess.run(["bash", "-n"], input=out, text=True)
    assert checked.returncode == 0 and not Path("runs").exists()


def test_options_of_an_axis_come_after_those_of_the_command_line(question, imgcls):
    path = question / "question.toml"
    path.write_text(
        path.read_text() + '[axes.epochs]\n1 = ["--trainer.max_epochs=1"]\n2 = ["--trainer.max_epochs=2"]\n'
    )
    code, out, _ = imgcls("experiment", question, "--print", "slurm", "--trainer.max_epochs=9")
    assert code == 0 and "--array=0-7" in out and "/low-2/seed-1 --trainer.max_epochs=9 --trainer.max_epochs=2'" in out
    code, _, err = imgcls("experiment", question, "--print", "wandb")
    assert code == 2 and "use --print slurm" in err
    path.write_text(path.read_text().partition("[axes")[0] + '[last]\nlow = ["--model.lr=1"]\n')
    code, out, _ = imgcls("experiment", question, "--print", "slurm", "--model.lr=9")
    assert code == 0 and "/low/seed-1 --model.lr=9 --model.lr=1'" in out and "/high/seed-1 --model.lr=9'" in out
    assert imgcls("experiment", question, "--print", "wandb")[0] == 2


def test_a_changed_config_among_the_options_is_noticed(question):
    extra = question.parent / "extra.yaml"
    extra.write_text("# More.\nmodel: {lr: 0.1}\n")
    job = Job("low", question / "low.yaml", 0, RunFolder("runs/rates/low/seed-0"), ("--config", str(extra)))
    before = job.settings()
    extra.write_text("# More.\nmodel: {lr: 0.2}\n")
    assert job.settings() != before


@pytest.mark.parametrize(
    "text, message",
    [
        ('seed = [1]\nbaseline = "low"', "seed: there is no such key (did you mean 'seeds'"),
        ('baseline = "lo"', "baseline 'lo' is not one of the arms high, low"),
        ("seeds = [", "is not TOML"),
        ('baseline = "low"\nfolds = 1', "folds: 1, repeats: 0: give at least 2 folds"),
        ('baseline = "low"\nrepeats = true', "repeats: True is not a whole number"),
        ('baseline = "low"\nseeds = [0, 1, 0]', "seeds: [0, 1, 0] are not numbers from 0, each once"),
        ('baseline = "low"\nlast = {lo = []}', "last: lo: is not an arm (low, high) with a list of options"),
        ('baseline = "low"\nlast = {low = "--model.lr=1"}', "last: low: is not an arm (low, high) with a list"),
    ],
)
def test_mistakes_in_a_question_are_named(question, text, message):
    (question / "question.toml").write_text(text)
    with pytest.raises(UserError) as error:
        read_question(question)
    assert message in str(error.value)


def test_the_questions_here_can_be_read():
    folders = [p.parent for p in (ROOT / "experiments").rglob("question.toml")]
    assert len(folders) >= 2
    for folder in folders:
        assert len(read_question(folder).arms) >= 2 and read_question(folder).question.endswith("?")


class StandIn:
    """In place of fits: each leaves the run of a seed's and a split's own luck, on the same images.

    Attributes:
        words: Of every fit that was started.
        images: Of each test part.
        spread: Of the seeds' luck.
        broken: Arms whose runs fail.
        clock: Seconds, of which a run takes 100.
    """

    def __init__(self) -> None:
        self.words: list[list[str]] = []
        self.images, self.spread, self.broken, self.clock = 4000, 0.02, set[str](), 0.0

    def start(self, words, log, at_once=1) -> subprocess.Popen:
        if "--print_config" in words:
            return subprocess.Popen(["true"])
        self.words.append(words)
        self.clock += 100
        path = Path(words[words.index("--run_dir") + 1])
        arm, seed = path.parent.name, int(words[words.index("--seed_everything") + 1])
        if arm in self.broken:
            log.write_text("error: it is broken\n")
            return subprocess.Popen(["false"])
        options = dict(word.removeprefix("--data.").split("=") for word in words if word.startswith("--data."))
        split, fold = int(options.get("split_seed", 0)), int(options.get("fold", 0))
        luck = np.random.default_rng([len(arm), seed, split, fold])
        # of each image: half of it is shared, half the arm's own
        shared, own = (np.random.default_rng([k, split, fold]).beta(0.8, 0.2, self.images) for k in (0, len(arm)))
        ease = (shared + own) / 2 * (0.9 if arm == "low" else 1)
        right = luck.random(self.images) < np.clip(ease * (1 + self.spread * luck.normal()), 0, 1)
        write_run(path, right, seed, lr=len(arm))
        config = yaml.safe_load((path / "config.yaml").read_text())
        config["data"]["init_args"] |= {"split_seed": split, "fold": fold}
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        data = {"data": "abc", "test": f"{split} {fold}", "images": {"train": 3 * self.images, "test": self.images}}
        (path / "environment.json").write_text(json.dumps({"data": data}))
        scores = {"test/acc": float(right.mean()), "val/acc": float(luck.normal()), "robust/acc": right.mean() - 0.05}
        (path / "metrics.json").write_text(json.dumps(scores))
        return subprocess.Popen(["true"])

    def runs(self, arm: str) -> list[str]:
        return sorted(path.parent.name for path in Path("runs/rates", arm).glob("*/metrics.json"))


@pytest.fixture
def stand_in(monkeypatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr("imgcls.cli.jobs.start_run", stand_in.start)
    monkeypatch.setattr(imgcls.commands.experiment, "time", SimpleNamespace(monotonic=lambda: stand_in.clock))
    return stand_in


def test_a_round_is_a_seed_or_a_repeat_of_all_seeds_and_folds():
    seeds = Replicates([4, 2])
    assert [one.name for number in range(4) for one in seeds.round(number)] == ["seed-4", "seed-2", "seed-5", "seed-6"]
    assert seeds.rounds == 2 and seeds.over == () and not seeds.round(3)[0].options
    splits = Replicates([0, 1], repeats=3)
    assert [one.name for one in splits.round(2)] == ["seed-0-split-2", "seed-1-split-2"] and splits.rounds == 3
    assert splits.round(2)[0].options == ("--data.split_seed=2",)
    folds = Replicates([0], folds=2)
    first, second = folds.round(1)
    assert (first.name, second.name) == ("seed-0-split-1-fold-0", "seed-0-split-1-fold-1") and folds.rounds == 1
    expected = ("--data.folds=2", "--data.fold_part=test", "--data.fold=1", "--data.split_seed=1")
    assert second.options == expected and str(folds) == "seeds 0 on 1 split of 2 folds"


def test_the_command_line_says_splits_and_seeds_in_place_of_the_question(question, imgcls):
    path = question / "question.toml"
    path.write_text(path.read_text() + "repeats = 3\n")
    code, out, err = imgcls("experiment", question, "--seeds", "7", "--folds=2", "--repeats=2", "--print", "slurm")
    assert code == 0 and "--array=0-7" in out, err
    words = "--data.folds=2 --data.fold_part=test --data.fold=1 --data.split_seed=1"
    assert f"--seed_everything 7 --run_dir runs/rates/high/seed-7-split-1-fold-1 {words}'" in out
    code, out, _ = imgcls("experiment", question, "--print", "slurm", "--model.lr=1")
    assert code == 0 and "--array=0-11" in out and "high/seed-1-split-2 --model.lr=1 --data.split_seed=2'" in out
    code, out, _ = imgcls("experiment", question, "--folds", "4", "--print", "wandb")
    sweep = yaml.safe_load(out)
    values = {key: space["values"] for key, space in sweep["parameters"].items() if key != "config"}
    assert values == {"seed_everything": [0, 1], "data.fold": [0, 1, 2, 3], "data.split_seed": [0, 1, 2]}
    assert sweep["command"][-2:] == ["--data.folds=4", "--data.fold_part=test"]


@pytest.mark.parametrize("splits", [["--repeats=3"], ["--folds=3"]])
def test_fit_takes_what_a_run_is_given(splits, question, imgcls, capsys):
    replicate = Replicates([0], **{splits[0][2:-2]: 3}).round(0)[-1]
    job = Job("low", question / "low.yaml", 0, RunFolder("runs/low/seed-0"), replicate.options)
    with pytest.raises(SystemExit) as end:
        imgcls(*job.words, "--print_config")
    data = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    assert end.value.code == 0 and data["split_seed"] == 0 and data["fold"] == (2 if "folds" in splits[0] else 0)


def test_runs_on_folds_are_pooled(question, stand_in, imgcls):
    path = question / "question.toml"
    claims = '[claims]\n"higher" = "high > low"\n"varied" = "high:test/acc > high:robust/acc"\n'
    path.write_text(path.read_text() + claims)
    code, out, err = imgcls("experiment", question, "--folds", "4", "--repeats", "2")
    assert code == 0 and "pooled over data.fold, data.split_seed" in out and len(stand_in.words) == 32, err
    assert "seeds 0, 1 on 2 splits of 4 folds" in out and "high, seed 1 split 0 fold 3: test/acc 0." in out
    read = read_question(question)
    groups = arms_of(read, Path("runs/rates"))  # of the only runs that there are, though the file says nothing of folds
    assert all(group.over == ("data.init_args.fold", "data.init_args.split_seed") for group in groups)
    assert [len(group.runs) for group in groups] == [16, 16]
    found = {claim.text: claim.comparison for claim in judge(read, groups)}
    methods = {"higher": "t-test over test images and 8 splits", "varied": "corrected resampled t-test over 8 splits"}
    assert {name: c.method for name, c in found.items()} == methods
    assert found["varied"].difference.value == pytest.approx(0.05)
    code, out, err = imgcls("experiment", question)
    assert code == 0 and "0 of 4 runs are done" in out and "pooled over" not in out, err
    assert all(len(group.runs) == 2 and not group.over for group in arms_of(read, Path("runs/rates")))


def width_after(question: Path, seeds: int) -> float:
    """Of the difference between the arms, from their first seeds."""
    low, high = arms_of(read_question(question), Path("runs/rates"))
    difference = compare_groups(Group(high.runs[:seeds]), Group(low.runs[:seeds]), "test/acc").difference
    return difference.high - difference.low


def test_runs_are_added_until_the_interval_is_narrow_and_no_further(question, stand_in, imgcls):
    code, out, err = imgcls("experiment", question, "--until", "0.03")
    assert code == 0 and "1 of 1 intervals are wider than 0.03, the widest that of high (0." in out, err
    seeds = len(stand_in.runs("high"))
    assert seeds == len(stand_in.runs("low")) > 5
    assert width_after(question, seeds) <= 0.03 and all(width_after(question, k) > 0.03 for k in range(5, seeds))
    assert f"{width_after(question, seeds):.4f}\n\nstopped: all are narrow enough" in out
    before = len(stand_in.words)
    code, out, _ = imgcls("experiment", question, "--until", "0.03")
    assert code == 0 and f"{2 * seeds} of {2 * seeds} runs are done" in out and len(stand_in.words) == before
    code, out, _ = imgcls("experiment", question, "--until", "0.025")
    more = len(stand_in.runs("high"))
    assert code == 0 and more > seeds and width_after(question, more) <= 0.025
    assert len(stand_in.words) == 2 * more, "nothing is run twice"
    for arm in ("low", "high"):
        shutil.rmtree(f"runs/rates/{arm}/seed-2")
    code, out, err = imgcls("experiment", question, "--until", "0.022")
    again = len(stand_in.runs("high"))
    assert code == 0 and again > more and len(stand_in.words) == 2 * again + 2, "that of seed 2 alone"


def test_a_round_that_was_cut_off_is_completed_first(question, stand_in, imgcls):
    stand_in.broken = {"high"}
    code, out, err = imgcls("experiment", question, "--until", "0.03")
    assert code == 1 and "stopped: runs failed" in out and err.count("it is broken") == 2
    assert len(stand_in.words) == 4, "what fails is not tried with further seeds"
    stand_in.broken = set()
    imgcls("experiment", question, "--until", "1")
    Path("runs/rates/high/seed-5").mkdir()
    code, out, _ = imgcls("experiment", question, "--until", "1")
    assert code == 0 and "10 of 12 runs are done" in out and stand_in.runs("low") == stand_in.runs("high")


def test_with_folds_a_round_is_a_repeat(question, stand_in, imgcls):
    stand_in.spread = 0.005
    code, out, err = imgcls("experiment", question, "--folds=3", "--seeds=0", "--until=0.07")
    repeats, left = divmod(len(stand_in.runs("high")), 3)
    assert code == 0 and "stopped: all are narrow enough" in out and repeats > 1 and not left, err
    assert stand_in.runs("high")[-1] == f"seed-0-split-{repeats - 1}-fold-2"


def test_a_budget_of_runs_is_kept(question, stand_in, imgcls):
    code, out, _ = imgcls("experiment", question, "--until", "0.015", "--budget", "9")
    assert code == 0 and len(stand_in.words) == 8
    assert "stopped: the budget of 9 runs: 8 were made, and the next round is 2" in out
    code, out, _ = imgcls("experiment", question, "--until", "0.015", "--budget", "2")
    assert code == 0 and len(stand_in.words) == 10, "what earlier calls made does not count"
    code, _, err = imgcls("experiment", question, "--out", "other", "--until", "0.015", "--budget", "3")
    assert code == 2 and "--budget 3: 4 runs are to be made before" in err and len(stand_in.words) == 10


def test_a_budget_of_time_is_kept(question, stand_in, imgcls):
    code, out, _ = imgcls("experiment", question, "--until", "0.015", "--budget", "15m")
    assert code == 0 and len(stand_in.words) == 8, "of 100 seconds each"
    assert "the budget of 0:15:00: 0:13:20 is over, and the next round would take about 0:03:20" in out


def test_budgets_are_read():
    assert read_budget("2h") == Budget(seconds=7200) and read_budget("1.5m") == Budget(seconds=90)
    assert read_budget("90s") == Budget(seconds=90) and read_budget("40") == Budget(runs=40)
    for text in ("0", "0h", "-3", "1.5", "2d", "h", ""):
        with pytest.raises(UserError, match="such as 2h, 30m, 90s or 40"):
            read_budget(text)


def test_without_a_budget_there_is_a_bound(question, stand_in, imgcls):
    path = question / "question.toml"
    path.write_text(path.read_text().replace("[0, 1]", "[0]") + 'metric = "val/acc"\n')
    stand_in.images = 20
    for again in (False, True):
        code, out, _ = imgcls("experiment", question, "--until", "0.001")
        assert code == 0 and len(stand_in.words) == 40 and ("(none yet): 2 more runs" in out) == (not again)
        assert "stopped: there are 20 times the runs of the question, the most without --budget" in out


def test_what_no_number_of_seeds_would_narrow_stops_at_once(question, stand_in, imgcls):
    stand_in.images, stand_in.spread = 500, 0.001
    code, out, _ = imgcls("experiment", question, "--seeds", "0,1,2", "--until", "0.02")
    assert code == 0 and len(stand_in.words) == 6 and "no number of seeds brings high below 0.0" in out
    (one,) = intervals(read_question(question), arms_of(read_question(question), Path("runs/rates")))
    estimate = 2 * 1.96 * math.sqrt(one.comparison.design.of_images)
    assert 0.02 < one.floor < estimate and one.floor == pytest.approx(estimate, rel=0.25)  # its lower bound
    needed = math.ceil((one.floor / 0.02) ** 2 * 500)
    assert f"with 500 test images; 0.02 takes more than {needed:,} of them" in out


def test_overlapping_splits_have_a_floor_that_is_rarely_too_high(question):
    rng, over, read = np.random.default_rng(0), ("split",), read_question(question)
    facts = {"data": {"images": {"train": 3, "test": 1}}}

    def planted(splits: int) -> list[Group]:
        def run(split: int) -> SimpleNamespace:
            known = {"settings": {"split": split}, "environment": facts, "tested": lambda name="test": None}
            return SimpleNamespace(metrics={"test/acc": rng.normal()}, task=find(SINGLE_LABEL), **known)

        return [Group([run(split) for split in range(splits)], name=arm, over=over) for arm in ("low", "high")]

    (many,) = intervals(read, planted(4000))
    true = 2 * 1.96 * math.sqrt(2 / 3)  # differences of two unit normals, a third as many images tested as trained on
    assert many.width == pytest.approx(true, rel=0.06) and many.floor == pytest.approx(true, rel=0.06)
    floors = [intervals(read, planted(5))[0].floor for _ in range(400)]
    assert 0.02 <= np.mean(np.array(floors) > true) <= 0.08  # 5 % are meant
    assert "as all splits are of the same images; 1 takes more than" in many.limit(1.0)


def test_an_interval_that_was_stopped_by_its_width_holds_nearly_what_it_promises():
    rng, inside = np.random.default_rng(0), []
    for _ in range(400):
        scores = rng.normal(size=(2, 3))
        while not narrow_enough(found := compare_scores(*scores), 1.5):
            scores = np.hstack([scores, rng.normal(size=(2, 1))])
        inside.append(found.difference.low <= 0 <= found.difference.high)
    assert np.mean(inside) >= 0.9  # 0.933 in 1,500, less three standard errors


@pytest.mark.parametrize(
    "words, message",
    [
        (["--budget", "2h"], "--budget: is that of --until WIDTH"),
        (["--until", "0"], "--until 0: give a width above 0"),
        (["--until", "nan"], "--until nan: give a width above 0"),
        (["--until", "0.02", "--budget", "soon"], "--budget soon: give a time or a number of runs"),
        (["--until", "0.02", "--print", "slurm"], "--until: asks the runs themselves"),
        (["--seeds", "1,b"], "--seeds 1,b: give numbers"),
        (["--folds", "1"], "folds: 1"),
        (["--seed_everything=3"], "--seed_everything: each run of the experiment is given its own; "),
        (["--repeats=2", "--data.split_seed=3"], "--data.split_seed: each run of the experiment is given its own; "),
        (["--folds=2", "--data.init_args.fold", "1"], "say it for all of them by --folds"),
    ],
)
def test_mistakes_on_the_command_line_are_named(words, message, question, stand_in, imgcls):
    code, _, err = imgcls("experiment", question, *words)
    assert code == 2 and message in err and err.count("\n") == 1 and not stand_in.words


def test_a_single_arm_has_no_interval_to_narrow(question, stand_in, imgcls):
    (question / "high.yaml").unlink()
    code, _, err = imgcls("experiment", question, "--until", "0.02")
    assert code == 2 and "has no arm to compare with the baseline low" in err and not stand_in.words


@pytest.mark.slow
def test_an_option_that_fit_refuses_is_named_once_before_any_run(question, imgcls):
    code, out, err = imgcls("experiment", question, "--model.lrr=1")
    assert code == 2 and err == "error: --model.lrr: Classifier has no option 'lrr' (did you mean 'lr'?)\n", out
    assert not list(Path("runs/rates").rglob("config.yaml"))


def test_help_says_that_options_of_fit_are_passed_on(imgcls, capsys):
    with pytest.raises(SystemExit):
        imgcls("experiment", "--help")
    text = capsys.readouterr().out
    assert "[options of fit]" in text and "--data.root=DIR" in text and "--until WIDTH" in text
