import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from imgcls.commands.experiment import Job, _words, read_question
from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder

from .conftest import ROOT

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
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    config = yaml.safe_load(Path("runs/rates/high/seed-0/config.yaml").read_text())
    job = Job("high", question / "high.yaml", 0, RunFolder("runs/rates/high/seed-0"), ())
    assert config["seed_everything"] == 0 and _words(job) == ["fit", "--resume", "runs/rates/high/seed-0"]
    done = subprocess.run([*command, "--jobs", "2"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list(Path("runs/rates").rglob("metrics.json"))) == 4


def test_what_never_reached_a_checkpoint_starts_anew(question, tmp_path):
    run = RunFolder("runs/rates/low/seed-0")
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text("half")
    words = _words(Job("low", question / "low.yaml", 0, run, ("--model.lr=1",)))
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
