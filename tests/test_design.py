"""The promises of the house: who imports whom, every config, light start-up, one file per addition."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from imgcls.commands import verbs

from .conftest import QUIET, ROOT

PACKAGE = ROOT / "imgcls"
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
EXPERIMENTS = sorted(p for p in (ROOT / "experiments").rglob("*.yaml") if p.parent.name != "sweeps")
# what each package, and each module beside them, may import of the others; from the ground up
MAY_IMPORT = {
    "errors": "",
    "system": "errors",
    "augment": "errors system",
    "models": "errors system",
    "evaluate": "errors",
    "finetune": "errors models losses tasks",
    "losses": "errors",
    "optim": "errors",
    "images": "errors system",
    "tasks": "errors losses evaluate",
    "data": "errors system images augment tasks",
    "runs": "errors system images data tasks",
    "science": "errors system runs",
    "pages": "errors system runs science",
    "training": "errors system evaluate finetune images data runs pages tasks",
    "classifier": "errors evaluate finetune losses models optim tasks training",
    "deploy": "errors system images data runs pages tasks classifier",
    "cli": "errors system data runs training classifier",
    "commands": "errors system augment models evaluate images data runs science pages training classifier deploy cli",
    "__main__": "errors cli commands",
}
NO_TORCH = {"errors", "system", "runs", "science", "pages"}
NO_LIGHTNING = NO_TORCH | {"augment", "models", "evaluate", "finetune", "losses", "optim", "images", "deploy"}
LOADS_A_RUN = "load.py"  # the one module of imgcls.runs that makes a model of a run


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it, ours and others'."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_the_rules_name_every_package():
    assert {package_of(name) for name in MODULES} - {"imgcls"} == MAY_IMPORT.keys()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_they_may(package):
    allowed = {*MAY_IMPORT[package].split(), package, "imgcls"}
    for name, path in MODULES.items():
        if package_of(name) != package:
            continue
        found = imports(path)
        ours = {package_of(m) for m in found if m.split(".")[0] == "imgcls"}
        assert ours <= allowed, f"{name} imports {ours - allowed}"
        others = {m.split(".")[0] for m in found}
        loads = package == "runs" and path.name == LOADS_A_RUN
        if package in NO_TORCH and not loads:
            assert not others & {"torch", "torchvision", "kornia", "torchmetrics"}, name
            assert package != "runs" or not ours & {"images", "data"}, name
        if package in NO_LIGHTNING and not loads:
            assert "lightning" not in others, name


def test_no_circle_of_files():
    """Taking away, again and again, the files that import none of those left ends with no file."""
    left = {name: {m for m in imports(path) if m in MODULES and m != name} for name, path in MODULES.items()}
    while ready := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in ready}
    assert not left, f"files that import each other, or what does: {sorted(left)}"


def test_files_can_be_read_in_one_sitting():
    long = {p.name: n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 345}
    assert not long


@pytest.mark.parametrize("path", CONFIGS + EXPERIMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_configs_have_one_shape(path):
    text = path.read_text()
    assert text.startswith("# ") and len(text.splitlines()) <= 25
    allowed = {"base", "data", "model", "trainer", "checkpoint", "seed_everything", "experiment", "test_after_fit"}
    allowed |= {"robustness", "calibrate"}
    assert yaml.safe_load(text).keys() <= allowed


def test_the_readme_of_configs_is_what_the_command_writes(imgcls):
    code, _, err = imgcls("configs", "--folder", ROOT / "configs", "--out", "README.md")
    assert code == 0, err
    written = Path("README.md").read_text()
    assert written == (ROOT / "configs/README.md").read_text(), "python -m imgcls configs --out configs/README.md"
    assert all(f"]({path.relative_to(ROOT / 'configs').as_posix()}): " in written for path in CONFIGS)
    code, out, _ = imgcls("configs", "lora", "--folder", ROOT / "configs")
    assert out == "finetune/lora.yaml  Low-rank updates of linear layers and 1×1 convolutions, and the head.\n"
    assert "did you mean 'finetune'" in imgcls("configs", "finetne", "--folder", ROOT / "configs")[2]


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
        if p.parent.name in ("augment", "model", "loss", "finetune", "trainer")
        and p.name not in ("gpu.yaml", "ddp.yaml", "fsdp.yaml", "slurm.yaml", "distill.yaml")
        and p.name != "cumulative_link.yaml"  # the sample's classes have no order, see test_cumulative_link
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


@pytest.mark.parametrize("verb", ["compare", "answers", "experiment", "sweep", "backbones", "configs"])
def test_help_of_light_verbs_waits_for_no_large_library(verb):
    probe = (
        "import sys; from imgcls.__main__ import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print({'torch', 'matplotlib', 'scipy.stats', 'scipy.special', 'pandas', 'wandb'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", probe, verb, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("usage:") and done.stdout.strip().splitlines()[-1] == "set()", done.stderr


VERB = '''"""Counts the images of the data: --config FILE…."""

from imgcls.cli.lightning import LightningVerb


class Count(LightningVerb):
    """`python -m imgcls count`."""

    needs_model = False

    def work(self, part: str = "train", fail: bool = False) -> int:
        """Count the images of a part.

        Args:
            part: Which part.
            fail: End with the exit code 3.
        """
        self.datamodule.setup("fit")
        print(f"{part}: {len(self.datamodule.parts[part][1])}")
        return 3 if fail else 0


main = Count.main
'''


def test_a_verb_is_one_file(imgcls, monkeypatch, tmp_path, capsys):
    """Put beside the others, it is in the help, has its options, and works."""
    from imgcls import commands

    (tmp_path / "count.py").write_text(VERB)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    code, out, _ = imgcls()
    assert code == 0 and "\n  count       Counts the images of the data: --config FILE…\n" in out
    sample = ["--config", ROOT / "configs/data/sample.yaml"]
    assert imgcls("count", *sample, "--part=val")[:2] == (0, "val: 600\n")
    assert imgcls("count", *sample, "--fail=true")[0] == 3
    code, _, err = imgcls("count", *sample, "--prat=val")
    assert code == 2 and err.endswith("--prat: there is no such option (did you mean 'part'?)\n")
    with pytest.raises(SystemExit):
        imgcls("count", "--help")
    out = capsys.readouterr().out
    assert "Count the images of a part." in out and "Which part." in out


def test_the_front_door_lists_every_verb(imgcls):

    code, out, _ = imgcls()
    assert code == 0 and all(f"\n  {verb}" in out for verb in verbs())
    code, _, err = imgcls("fitt")
    assert code == 2 and "did you mean 'fit'" in err


def test_backbones_lists_names_and_suggests_near_ones(imgcls):
    code, out, _ = imgcls("backbones", "resnet18")
    assert code == 0 and "11.7 M" in out and "torchvision" in out
    code, _, err = imgcls("backbones", "resent18")
    assert code == 2 and "resnet18" in err
