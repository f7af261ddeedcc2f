import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder
from imgcls.runs.record import read_metrics
from imgcls.science.sweep_file import Space, as_word, decode, encode, read_space, read_sweep

from .conftest import ROOT, TINY
from .wandb_stand_in import StandIn

SWEEP = """method: {method}
metric: {{name: val/acc, goal: maximize}}
command: [imgcls, fit, --config, {root}/experiments/demo.yaml, "${{args}}"]
parameters:
  model.lr: {lr}
  model.flip_at_test: {{values: [true, false]}}
  trainer.gradient_clip_val: {{values: [null, 1.0]}}
{more}
"""
RANGE = "{distribution: log_uniform_values, min: 1.0e-4, max: 1.0}"

# stands for fit: 9 epochs in no time, best at a rate of 0.01
FIT = """
import json, math, sys, time
from pathlib import Path
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
run = Path(sys.argv[sys.argv.index("--run_dir") + 1])
if float(options["model.lr"]) > {limit}:
    sys.exit("error: --model.lr: too much")
run.mkdir(parents=True)
rows = ["epoch,step,split,loss,acc"]
for epoch in range(9):
    value = 0.9 - 0.1 * abs(math.log10(float(options["model.lr"])) + 2) - 0.3 / (epoch + 1)
    value -= 0.05 * (options["model.flip_at_test"] == "false")
    rows.append(f"{{epoch}},{{epoch}},val,1.0,{{value}}")
    (run / "part").write_text("\\n".join(rows) + "\\n")
    (run / "part").replace(run / "metrics.csv")
    time.sleep({pause})
"""


@pytest.fixture
def sweep_file(tmp_path):
    def write(method="random", lr=RANGE, more="") -> Path:
        path = tmp_path / "rates.yaml"
        path.write_text(SWEEP.format(method=method, root=ROOT, lr=lr, more=more))
        return path

    return write


@pytest.fixture
def fake_fit(monkeypatch):
    started = []

    def prepare(limit=10.0, pause=0.0):
        def start(words, log, at_once=1):
            started.append(words)
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "w") as file:
                command = [sys.executable, "-c", FIT.format(limit=limit, pause=pause), *words]
                return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

        monkeypatch.setattr("imgcls.commands.sweep.start_run", start)
        monkeypatch.setattr("imgcls.commands.sweep.POLL", 0.02)
        return started

    return prepare


@pytest.mark.parametrize(
    "given, space",
    [
        ({"value": None}, Space([None])),
        ({"values": [1, "a", True, None, [1, 2], {"a": 1}]}, Space([1, "a", True, None, [1, 2], {"a": 1}])),
        ({"min": 2, "max": 5}, Space(None, 2, 5, integer=True)),
        ({"min": 2, "max": 5.0}, Space(None, 2, 5.0)),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25}, Space(None, 0, 1, 0.25)),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 0.1}, Space(None, 1e-4, 0.1, log=True)),
        ({"distribution": "log_uniform", "min": -5, "max": 0}, Space(None, math.exp(-5), 1.0, log=True)),
        (
            {"distribution": "q_log_uniform_values", "min": 8, "max": 512},
            Space(None, 8, 512, log=True, integer=True),
        ),
    ],
)
def test_parameters_are_read_as_wandb_means_them(given, space):
    assert read_space("here", given) == space


@pytest.mark.parametrize(
    "given, message",
    [
        (3, "3 is not a mapping"),
        ({"values": [1, 2], "probabilities": [0.1, 0.9]}, "probabilities are not supported"),
        ({"parameters": {"lr": {"value": 1}}}, "cannot be nested; write a dotted key"),
        ({"distribution": "normal", "mu": 0, "sigma": 1}, "give value, values, or min and max"),
        ({"distribution": "beta", "min": 0, "max": 1}, "'beta' is not supported"),
        ({"min": "1e-4", "max": 1}, "give two numbers"),
        ({"min": 1, "max": 1}, "the smaller first"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "min 0 is not above 0"),
    ],
)
def test_what_is_not_supported_is_named(given, message):
    with pytest.raises(UserError, match="^here: ") as error:
        read_space("here", given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("method: random", "method: simulated", "method: 'simulated' is not one of grid, random, bayes"),
        ("method: random", "method: grid", "parameters: model.lr: a grid needs values"),
        ("val/acc", "test/acc", "test/acc would choose on the test images"),
        ("maximize", "up", "a goal, maximize or minimize"),
        ("${args}", "${args_json}", "${args_json} is not supported"),
        ("imgcls, fit", "train.py", "command: write"),
        ("method: random", "methods: random", "methods: there is no such key (did you mean 'method'?)"),
    ],
)
def test_mistakes_in_a_sweep_file_are_named(sweep_file, old, new, message):
    path = sweep_file()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError) as error:
        read_sweep(path)
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("value", [1, 0.5, "a b", True, None, [1, [2]], {"class_path": "x", "init_args": {"a": 1}}])
def test_values_reach_the_command_line_as_they_are(value):
    word = as_word("model.x", decode(encode(value)))
    assert yaml.safe_load(word.partition("=")[2]) == value


def test_a_grid_is_tried_once(sweep_file, fake_fit, imgcls):
    started = fake_fit()
    path = sweep_file("grid", "{values: [0.1, 0.01]}")
    code, out, err = imgcls("sweep", path, "--count", 20, "--out", "out", "--trainer.max_epochs=9")
    assert code == 0, err
    tried = {tuple(word for word in words if word.startswith(("--model", "--trainer.gradient"))) for words in started}
    assert len(started) == len(tried) == 8 and "8 trials finished, 0 stopped early" in out
    assert all("--trainer.max_epochs=9" in words for words in started)
    best = yaml.safe_load(Path("out/best.yaml").read_text())
    assert best["model"] == {"lr": 0.01, "flip_at_test": True} and best["trainer"]["max_epochs"] == 9
    with pytest.raises(SystemExit) as end:
        imgcls("fit", "--config", "out/best.yaml", "--print_config")
    assert end.value.code == 0


def test_bayes_goes_on_where_it_stopped_and_says_what_mattered(sweep_file, fake_fit, imgcls):
    started = fake_fit()
    path = sweep_file("bayes")
    assert imgcls("sweep", path, "--count", 4, "--jobs", 2, "--out", "out")[0] == 0
    assert len(started) == 4
    code, out, err = imgcls("sweep", path, "--count", 30, "--out", "out")
    assert code == 0 and len(started) == 30, err
    best = yaml.safe_load(Path("out/best.yaml").read_text())["model"]
    assert 0.002 < best["lr"] < 0.05 and best["flip_at_test"] is True
    shares = {line.split()[1]: float(line.split()[0]) for line in out.splitlines() if line[:4] in ("  0.", "  1.") and
              len(line.split()) == 2}  # fmt: skip
    assert max(shares, key=shares.get) in ("model.lr", "model.flip_at_test")
    path.write_text(path.read_text().replace("1.0e-4", "1.0e-3"))
    code, _, err = imgcls("sweep", path, "--count", 31, "--out", "out")
    assert code == 2 and "was started from another version" in err


def test_hyperband_stops_what_falls_behind(sweep_file, fake_fit, imgcls):
    fake_fit(pause=0.05)
    path = sweep_file(more="early_terminate: {type: hyperband, min_iter: 1, max_iter: 9, eta: 3}")
    code, out, err = imgcls("sweep", path, "--count", 12, "--out", "out")
    assert code == 0, err
    assert "stopped after" in out
    stopped = out.count("stopped after")
    assert f"{12 - stopped} trials finished, {stopped} stopped early" in out


def test_the_same_failure_three_times_ends_the_sweep(sweep_file, fake_fit, imgcls):
    started = fake_fit(limit=0.0)
    code, out, err = imgcls("sweep", sweep_file(), "--count", 9, "--out", "out")
    assert code == 2 and len(started) == 3
    assert "no trial has finished: error: --model.lr: too much" in err and "trial 2: failed" in out


@pytest.mark.slow
def test_a_killed_sweep_takes_up_its_run_again(sweep_file):
    path = sweep_file("grid", "{values: [0.01]}")
    text = path.read_text().replace("values: [true, false]", "values: [true]").replace("[null, 1.0]", "[null]")
    path.write_text(text)
    options = [str(word) for word in TINY[2:] if "max_epochs" not in str(word)]
    command = [sys.executable, "-m", "imgcls", "sweep", str(path), "--count", "1", "--out", "out", *options]
    command += ["--trainer.max_epochs=12", "--test_after_fit=false"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    run = RunFolder("out/0000")
    deadline = time.monotonic() + 120
    while not run.last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "1 trials finished, 0 stopped early" in done.stdout and not Path("out/0001").exists()
    rows = [int(row["epoch"]) for row in read_metrics(run) if row["split"] == "val"]
    assert rows == list(range(12))


@pytest.mark.slow
def test_wandbs_agent_runs_the_same_file(tmp_path):
    text = (ROOT / "experiments/sweeps/small_cnn.yaml").read_text()
    short = {"trainer.max_epochs": 1, "trainer.limit_train_batches": 3, "model.backbone.depth": 2}
    trials = [
        {"model.lr": 0.003, "model.flip_at_test": True, "trainer.gradient_clip_val": None, **short},
        {"model.lr": 0.01, "model.flip_at_test": False, "trainer.gradient_clip_val": 1.0, "trainer.max_epochs": 500},
    ]
    server = StandIn(text, trials, stop={1})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40}
    # the agent's ${interpreter} is the first `python` of PATH, as in an activated environment
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for name in ("experiments", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    tool = Path(sys.executable).with_name("wandb")
    with open("agent.log", "w") as log:
        agent = subprocess.Popen(
            [tool, "agent", "team/imgcls/s"], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 180
        while agent.poll() is None and time.monotonic() < deadline:
            if any(rows for rows in Path("runs").rglob("metrics.csv") if len(rows.read_text().splitlines()) > 3):
                server.stop_now.set()
            time.sleep(0.2)
        agent.kill()
    server.close()
    assert agent.returncode == 0, Path("agent.log").read_text()[-3000:]
    configs = {
        p.parent.name: yaml.safe_load(p.read_text())
        for p in Path("runs").rglob("config.yaml")
        if "wandb" not in p.parts
    }
    by_rate = {c["model"]["init_args"]["lr"]: (name, c) for name, c in configs.items()}
    assert sorted(by_rate) == [0.003, 0.01]
    for number, (rate, clip, flip) in enumerate([(0.003, None, True), (0.01, 1.0, False)]):
        name, config = by_rate[rate]
        assert config["trainer"]["gradient_clip_val"] == clip
        assert config["model"]["init_args"]["flip_at_test"] is flip
        (folder,) = Path("runs").rglob(f"{name}/wandb/offline-run-*")
        assert folder.name.endswith(f"run{number}")  # the agent's id, so that the server knows the run as its own
    metrics = {name: json.loads(p.read_text()) for name in configs for p in Path("runs").rglob(f"{name}/metrics.json")}
    assert "val/acc" in metrics[by_rate[0.003][0]]
    assert by_rate[0.01][0] not in metrics  # stopped is not done
