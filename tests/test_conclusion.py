"""Planted runs, and what the closing paragraph says of them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from imgcls.science.conclusion import conclusion, given
from imgcls.science.question import arms_of, read_question

from .test_answers import plant
from .test_compare import right, two_groups

TOML = 'question = "Is it better?"\nbaseline = "plain"\nnot_tried = "Anything else."\n'


def say(tmp_path: Path, arms: dict[str, np.ndarray], toml: str = TOML, rest=(), extra=(), **metrics) -> str:
    """The paragraph on planted arms, whose runs have further metrics, a function of the arm each."""
    runs = plant(tmp_path / "q", arms, toml, extra)
    for path in runs.rglob("metrics.json"):
        known = json.loads(path.read_text())
        more = {key.replace("_", "/", 1): of(path.parts[-3], known) for key, of in metrics.items()}
        path.write_text(json.dumps(known | more))
    question = read_question(tmp_path / "q")
    return conclusion(question, arms_of(question, runs), rest)


@pytest.fixture
def arms() -> dict[str, np.ndarray]:
    better, plain = two_groups(0.88, 0.78, 3, np.random.default_rng(3))
    return {"plain": plain, "better": better}


def test_a_clear_winner_is_named_with_its_lead_its_command_and_what_was_not_tried(tmp_path, arms):
    folds = ["--data.folds=5", "--data.fold", "2", "--data.fold_part=test"]
    said = say(tmp_path, arms, rest=["--data.root=my photos", *folds, "--data.batch_size", "8"])
    score = 100 * arms["better"].mean()
    lead = f"{100 * (arms['better'].mean() - arms['plain'].mean()):.1f} more than with plain, the next best"
    assert said.startswith(f"**better is best**: {score:.1f} of 100 test images right, {lead} (with 95 % confidence ")
    assert " more). To train it: " in said and "fewer" not in said
    command = f"fit --config {tmp_path}/q/better.yaml '--data.root=my photos' --data.batch_size 8`."
    assert command in said and said.endswith("Not tried: Anything else.") and "\n" not in said


@pytest.mark.parametrize(
    "seconds, take, why",
    [
        (10, "like", ", the cheapest of them (10 s a run, better 30 s)"),
        (20, "better", ": none of them is much cheaper (30 s a run)"),
    ],
)
def test_where_chance_could_do_it_what_is_cheap_is_taken_and_what_would_tell_is_said(
    tmp_path, arms, seconds, take, why
):
    arms["like"] = arms["better"].copy()
    arms["like"][:, ::100] = False
    cost = {"plain": 1, "better": 30, "like": seconds}
    said = say(tmp_path, arms, fit_seconds=lambda arm, known: cost[arm])
    assert said.startswith("**Which is best cannot be told.** better does best, with ")
    assert re.search(r" like may be as good .\S+ fewer; with 95 % confidence between \S+ fewer and \S+ more.\. ", said)
    assert (
        "Worse than better, beyond chance: plain. To tell better from like: " in said and "four times in five" in said
    )
    assert f"Until then take **{take}**{why}. To train it: `" in said and f"/{take}.yaml`" in said


def test_one_run_each_speaks_of_two_models_alone(tmp_path, arms):
    said = say(tmp_path, {name: rights[:1] for name, rights in arms.items()})
    assert said.startswith("**better is best**") and "speaks of these trained models, not of the ways" in said


def test_of_one_run_without_single_predictions_nothing_can_be_told(tmp_path, arms):
    toml = TOML + 'metric = "test/f1"\n'
    said = say(tmp_path, {n: r[:1] for n, r in arms.items()}, toml, test_f1=lambda arm, known: known["test/acc"])
    assert said.startswith(
        "**Which is best cannot be told from one run of each.** better does best, with a test/f1 of 0."
    )
    assert "confidence" not in said and "Until then take **better**. " in said and "ask with more seeds" in said


def test_of_a_loss_the_lowest_is_best(tmp_path, arms):
    toml = TOML + 'metric = "test/loss"\n'
    said = say(tmp_path, arms, toml, test_loss=lambda arm, known: 0.5 - 0.4 * known["test/acc"])
    assert said.startswith("**better is best**: a test/loss of 0.1") and " lower than with plain, the next best" in said
    assert re.search(r"confidence between 0\.\d+ and 0\.\d+ lower\)", said)


def test_missing_runs_are_named_and_a_lone_arm_is_compared_with_nothing(tmp_path, arms):
    said = say(tmp_path, {"plain": arms["plain"]}, extra=("lost", "gone"))
    assert said.startswith("plain alone has finished runs") and "left out: gone, lost." in said


def test_each_combination_of_the_axes_has_its_paragraph_and_its_options(tmp_path):
    rng = np.random.default_rng(0)
    shares = {"plain-10": 0.9, "plain-40": 0.6, "all-10": 0.7, "all-40": 0.8}
    arms = {name: right(share, 3, rng) for name, share in shares.items()}
    runs = plant(tmp_path / "q", arms, TOML)
    for path in (tmp_path / "q").glob("*-*.yaml"):
        path.rename(path.with_stem(path.stem.rpartition("-")[0]))
    axes = '[axes.epochs]\n10 = ["--trainer.max_epochs=10"]\n40 = []\n[last]\nall = ["--model.lr=1"]\n'
    (tmp_path / "q/question.toml").write_text(TOML + axes)
    question = read_question(tmp_path / "q")
    ten, forty, left = conclusion(question, arms_of(question, runs), ["--trainer.max_epochs=9"]).split("\n\n")
    assert ten.startswith("epochs 10: **plain is best**")
    assert ten.endswith("/plain.yaml --trainer.max_epochs=9 --trainer.max_epochs=10`.")
    assert forty.startswith("epochs 40: **all is best**") and forty.endswith("--trainer.max_epochs=9 --model.lr=1`.")
    assert left == "Not tried: Anything else."


def test_options_are_those_that_a_run_says_it_was_given(tmp_path, arms):
    toml = TOML + 'options = ["--data.batch_size=8"]\n[last]\nplain = ["--model.lr=1"]\n'
    runs = plant(tmp_path / "q", arms, toml)
    question = read_question(tmp_path / "q")
    assert given(question, arms_of(question, runs)) == []
    own = ["--data.batch_size=8", "--data.root=my photos", "--model.lr=1", "--data.folds=5", "--data.split_seed", "1"]
    commands = {0: ["imgcls", "fit", "--resume", "run"], 1: ["imgcls", "fit", "--run_dir", "run", *own]}
    for seed, words in commands.items():
        path = runs / f"plain/seed-{seed}/environment.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"command": words}))
    assert given(question, arms_of(question, runs)) == ["--data.root=my photos"]
