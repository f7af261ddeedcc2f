"""What the command line says in short, written out for the parser: bases, `--run`, `--resume`."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from imgcls.compose import config_files, expand_configs, read_config
from imgcls.errors import UserError
from imgcls.runs import slurm
from imgcls.runs.folder import RunFolder, read_json

FILES_DATA = "imgcls.data.files.FilesData"
DATA_ONLY = ("preview", "audit", "pack")  # verbs that look at images alone
FRAMING = ("image_size", "channels", "mean", "std", "interpolation", "crop_fraction")  # what other images share
ANY_MODEL = {"class_path": "imgcls.classifier.Classifier", "init_args": {"backbone": "imgcls.models.cnn.CNN"}}


def expand_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments with `--run DIR` and `--resume DIR` replaced by config, folder and checkpoint, and bases added.

    `predict` with a `--data.root` or `--data.table` of its own reads unlabelled images in place of the run's data.

    Raises:
        UserError: The folder is not a run's; an option does not go with the verb.
    """
    # W&B's agent writes values as Python does; true, null and lists are what the parser knows
    verb, words = arguments[0], [re.sub(r"=(None|True|False)$", _as_yaml, word) for word in arguments[1:]]
    resume, words = _take(words, "--resume")
    if verb == "audit":
        return [verb, *_audit(words)]
    run, words = _take(words, "--run")
    if verb == "fit" and resume is None and (run_again := slurm.unfinished_run()):
        # its config says what the other words said; merged again, lists that they append to would grow
        resume, words = str(run_again.path), []
    if resume is not None:
        if verb != "fit":
            raise UserError(f"--resume goes with fit; use {verb} --run {resume}")
        folder = RunFolder.existing(resume, "--resume")
        # stopped before its first checkpoint, a run begins again
        checkpoint = ["--ckpt_path", str(folder.last)] if folder.last.is_file() else []
        written = ["--config", str(folder.config), "--run_dir", resume, "--resume", resume, *checkpoint]
        return [verb, *written, *expand_configs(words)]
    if run is None:
        if verb in ("validate", "test", "predict", "explain") and not any(w.startswith("--ckpt_path") for w in words):
            if not {"-h", "--help", "--print_config"} & {w.partition("=")[0] for w in words}:
                raise UserError(f"{verb} needs a trained run: --run RUN_DIR")
        return [verb, *_with_any_model(verb, expand_configs(words))]
    if verb == "fit":
        raise UserError(f"--run goes with a trained run's verbs; use --resume {run}, or --config {run}/config.yaml")
    folder = RunFolder.existing(run, "--run")
    written = ["--config", str(folder.config), "--run_dir", run]
    if not any(w.partition("=")[0] == "--ckpt_path" for w in words):
        written += ["--ckpt_path", str(folder.checkpoint(folder.best))]
    if verb == "predict":
        own = any(w.partition("=")[0] in ("--data.root", "--data.table") for w in words)
        written[1:2] = [_to_predict(folder, own)]
    return [verb, *written, *expand_configs(words)]


def _audit(words: list[str]) -> list[str]:
    """Several runs; the first one's data unless other data is given. What cannot be read is found, not an error."""
    run, words = _take(words, "--run")
    runs = []
    while run is not None:
        runs.append(run)
        run, words = _take(words, "--run")
    words = expand_configs(words)
    if runs and not any("data" in read_config(file) for file in config_files(words)):
        from imgcls.runs.groups import find_runs

        data = read_config(find_runs(runs, "--run")[0].folder.config)["data"]
        words = ["--config", json.dumps({"data": data | {"init_args": data["init_args"] | {"augment": None}}}), *words]
    words = _with_any_model("audit", words)
    given = [f"--runs={json.dumps(runs)}"] if runs else []
    return [*words, *given, *(["--data.on_error=skip"] if given or _names("data", words) else [])]


def _with_any_model(verb: str, words: list[str]) -> list[str]:
    without = verb in DATA_ONLY and not _names("model", words)
    return ["--config", json.dumps({"model": ANY_MODEL}), *words] if without else words


def _names(part: str, words: Sequence[str]) -> bool:
    return any(w.startswith(f"--{part}") for w in words) or any(part in read_config(f) for f in config_files(words))


def refuse_overruled(arguments: Sequence[str]) -> None:
    """A learning rate or weight decay of the optimiser itself would be without effect: each group has its own.

    Raises:
        UserError: One was given; the text names the option or the file.
    """
    for word in arguments:
        found = re.fullmatch(
            r"--model\.(?:init_args\.)?optimizer\.(?:init_args\.)?(lr|weight_decay)", word.split("=")[0]
        )
        if found:
            raise UserError(f"{word}: give --model.{found[1]} instead; it sets every parameter group, scaled by depth")
    for path in config_files(arguments):
        model = read_config(path).get("model") or {}
        optimizer = model.get("init_args", model).get("optimizer")
        options = optimizer.get("init_args", optimizer) if isinstance(optimizer, dict) else {}
        for name in ("lr", "weight_decay"):
            if name in options:
                raise UserError(
                    f"{path}: model.optimizer.{name}: give model.{name} instead; it sets every parameter group"
                )


def config_folders(files: Sequence[Path]) -> list[str]:
    """Where a class named in a config may stand: beside the config, or beside those from which a run was made."""
    folders: dict[str, None] = {}
    for file in files:
        recorded = read_json(file.with_name("environment.json")).get("config_folders", [])
        folders |= dict.fromkeys([str(file.resolve().parent), *recorded])
    return list(folders)


def make_importable(folders: Sequence[str]) -> None:
    """Let Python find modules in them, behind all others."""
    sys.path += [folder for folder in folders if folder not in sys.path]


def _as_yaml(match: re.Match[str]) -> str:
    return {"None": "=null", "True": "=true", "False": "=false"}[match[0][1:]]


def _to_predict(run: RunFolder, other_images: bool) -> str:
    """The run's config, as JSON, for images that are read once and, where they cannot be read, skipped.

    Other images than the run's are without labels, framed and normalised as before.
    """
    config, record = read_config(run.config), read_json(run.environment)
    # its own modules may stand beside the configs of which it was made
    make_importable(record.get("config_folders", []))
    options = config["data"]["init_args"]
    if other_images:
        options = {k: options.get(k) for k in (*FRAMING, "batch_size")} | {"class_names": record["data"]["class_names"]}
        config["data"] = {"class_path": FILES_DATA, "init_args": options | {"on_error": "skip", "cache": "none"}}
    else:
        options |= {"on_error": "skip"} if "on_error" in options else {}
        options |= {"cache": "none"} if options.get("cache") == "memory" else {}
    return json.dumps(config)


def _take(words: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of an option, and the words without it."""
    for number, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == option:
            width = 1 if equals else 2
            if not equals and number + 1 == len(words):
                raise UserError(f"{option}: give the folder of a run after it")
            return (value if equals else words[number + 1]), words[:number] + words[number + width :]
    return None, words
