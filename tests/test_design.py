"""The promises of the house: who imports whom, every config, light start-up, one file per addition."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .conftest import QUIET, ROOT

PACKAGE = ROOT / "imgcls"
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
EXPERIMENTS = sorted(p for p in (ROOT / "experiments").rglob("*.yaml") if p.parent.name != "sweeps")
# what each room may import of the others, beside imgcls.errors; verbs and the CLI stand above all
MAY_IMPORT = {
    "augment": {"allocator"},
    "models": set(),
    "evaluate": set(),
    "finetune": {"models"},
    "data": {"augment"},
    "runs": set(),
    "callbacks": {"evaluate", "runs", "data", "loggers"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_they_may(room):
    for path in (PACKAGE / room).glob("*.py"):
        ours = {m.split(".")[1] for m in imports(path) if m.startswith("imgcls.")} - {"errors", room}
        assert ours <= MAY_IMPORT[room], f"{path.name} imports {ours - MAY_IMPORT[room]}"
        if room in ("augment", "models", "evaluate"):
            assert not any(m.startswith("lightning") for m in imports(path)), path
        if room == "runs":
            assert not {m.split(".")[0] for m in imports(path)} & {"torch", "torchvision", "lightning", "kornia"}, path


def test_files_can_be_read_in_one_sitting():
    long = {p.name: n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 320}
    assert not long


@pytest.mark.parametrize("path", CONFIGS + EXPERIMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_configs_have_one_shape(path):
    text = path.read_text()
    assert text.startswith("# ") and len(text.splitlines()) <= 25
    allowed = {"base", "data", "model", "trainer", "checkpoint", "seed_everything", "experiment", "test_after_fit"}
    allowed |= {"robustness", "calibrate"}
    assert yaml.safe_load(text).keys() <= allowed


REQUIRED = {
    "torchvision.yaml": ["--data.name=FakeData"],
    "folder.yaml": ["--data.root=."],
    "shards.yaml": ["--data.root=."],
    "table.yaml": ["--data.table=t.csv"],
}


@pytest.mark.parametrize("path", CONFIGS + EXPERIMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_resolves(path, imgcls, capsys):
    words = ["--config", path] if path in EXPERIMENTS else []
    if path.parent.name == "recipes":
        words = ["--config", ROOT / "configs/data/sample.yaml", "--config", path, "--model.backbone.weights=none"]
        words = words[:-1] if path.stem.startswith("cifar10") else words
    elif path in CONFIGS:
        parts = [
            ROOT / "configs/data/sample.yaml",
            ROOT / "configs/model/cnn.yaml",
            ROOT / "configs/trainer/default.yaml",
        ]
        parts = [path if path.parent == p.parent and path.parent.name != "trainer" else p for p in parts]
        words = [w for p in parts for w in ("--config", p)] + ([] if path in parts else ["--config", path])
    if path.name == "real_size.yaml":
        words = ["--config", ROOT / "experiments/depth/depth-2.yaml", *words]
    needed = REQUIRED.get(path.name, []) if path.parent.name == "data" else []
    with pytest.raises(SystemExit) as end:
        imgcls("fit", *words, *needed, "--print_config")
    assert end.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert {"data", "model", "trainer"} <= resolved.keys()
    for part, options in yaml.safe_load(path.read_text()).items():
        if part in ("data", "model"):
            chosen = resolved[part]["init_args"]
            for key, value in options.get("init_args", options).items():
                if key not in ("class_path", "init_args") and not isinstance(value, dict | list | str):
                    assert chosen[key] == value, (part, key)


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in CONFIGS
        if p.parent.name in ("augment", "model", "finetune", "trainer")
        and p.name not in ("gpu.yaml", "ddp.yaml", "fsdp.yaml", "slurm.yaml", "distill.yaml")
    ],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_every_choice_takes_two_steps(path, imgcls):
    model = path if path.parent.name == "model" else ROOT / "configs/model/cnn.yaml"
    words = ["--config", ROOT / "configs/data/sample.yaml", "--config", model, "--config", path, *QUIET]
    words += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    words += ["--data.batch_size=8", "--trainer.accelerator=cpu"]
    if path.stem == "lora":  # a CNN of 3×3 convolutions has no layer for it
        words[3] = ROOT / "configs/model/timm.yaml"
    if path.stem in ("timm", "torchvision", "lora"):
        words += ["--model.backbone.weights=none", "--data.image_size=64"]
    code, _, err = imgcls("fit", *words, "--run_dir", "run")
    assert code == 0, err
    assert Path("run/metrics.json").exists()


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["fitt"]])
def test_light_answers_import_no_torch(words):
    probe = "import sys; from imgcls.__main__ import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize("verb", ["compare", "answers", "experiment", "sweep", "backbones"])
def test_help_of_light_verbs_waits_for_no_large_library(verb):
    probe = (
        "import sys; from imgcls.__main__ import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print({'torch', 'matplotlib', 'scipy.stats', 'scipy.special', 'pandas', 'wandb'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", probe, verb, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("usage:") and done.stdout.strip().splitlines()[-1] == "set()", done.stderr


def test_the_front_door_lists_every_verb(imgcls):
    from imgcls.__main__ import VERBS

    code, out, _ = imgcls()
    assert code == 0 and all(f"\n  {verb}" in out for verb in VERBS)
    code, _, err = imgcls("fitt")
    assert code == 2 and "did you mean 'fit'" in err


def test_backbones_lists_names_and_suggests_near_ones(imgcls):
    code, out, _ = imgcls("backbones", "resnet18")
    assert code == 0 and "11.7 M" in out and "torchvision" in out
    code, _, err = imgcls("backbones", "resent18")
    assert code == 2 and "resnet18" in err
