"""Images that are given to a trained run in place of its own, with labels or without."""

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from imgcls.cli.configs import as_config, each_option, read_config
from imgcls.cli.messages import explain
from imgcls.data.base import ImageDataModule
from imgcls.data.files import PREPARATION
from imgcls.errors import UserError
from imgcls.runs.environment import task_of
from imgcls.runs.folder import RunFolder
from imgcls.system.files import read_json

FOLDER, TABLE = "imgcls.data.folder.FolderData", "imgcls.data.table.TableData"
WITHOUT_FILES = "imgcls.data.sample.SampleData"
# these options say how images are read, and not which
SHARED = signature(ImageDataModule).parameters.keys() - {"root"}


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words of a command line, configs expanded, as those of the data and all others."""
    data: list[str] = []
    others: list[str] = []
    for flag, value, said in each_option(words):
        if flag == "--config":
            config = yaml.safe_load(value) if value.startswith("{") else read_config(Path(value))
            if "data" in config:
                data += as_config({"data": config.pop("data")})
                said = as_config(config) if config else []
            others += said
        elif flag == "--data" or flag.startswith("--data."):
            data += said
        else:
            others += said
    return data, others


def labelled_set(run: RunFolder, words: Sequence[str]) -> dict[str, Any] | None:
    """Config of a `LabelledSet` with the images that words name, prepared like the run's own.

    Args:
        run: The trained run. What the words do not say is taken from its config, the class of the data module too if
            it reads files, unless a table is named.
        words: Of the data: options and configs.

    Returns:
        None if they name no images, but perhaps how to read the run's.

    Raises:
        UserError: They cannot be understood.
    """
    given, classes = _given(words)
    if not (given - SHARED or classes):
        return None
    own = run.read_config()["data"]
    if not classes:
        kind = TABLE if "table" in given else FOLDER if own["class_path"] == WITHOUT_FILES else own["class_path"]
        kept = {k: v for k, v in own["init_args"].items() if k not in SHARED} if kind == own["class_path"] else {}
        words = [*as_config({"data": {"class_path": kind, "init_args": kept}}), *words]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(ImageDataModule, "data", fail_untyped=False)
    try:
        section = parser.parse_args(words).data.as_dict()
    except ArgumentError as error:
        raise UserError(explain(str(error), words, [], [])) from error
    taken = {k: v for k, v in own["init_args"].items() if k in SHARED - given}
    # the other data may have fewer classes, whose order is that of the run, and know best how they are labelled
    section["init_args"] |= {k: v for k, v in taken.items() if k not in ("task", "ordered")} | {"augment": None}
    outer = {k: v for k, v in section["init_args"].items() if k in SHARED - {"seed", "augment", "task", "ordered"}}
    known = read_json(run.environment)
    outer |= {"data": section, "class_names": known["data"]["class_names"], "task": task_of(known).name}
    return {"class_path": "imgcls.data.labelled.LabelledSet", "init_args": outer}


def unlabelled(run: RunFolder, own: dict[str, Any]) -> dict[str, Any]:
    """Config of a `FilesData` that is prepared like the run's own; images that cannot be read are skipped.

    Args:
        run: The trained run.
        own: Options of its data.
    """
    options = {k: own.get(k) for k in (*PREPARATION, "batch_size")}
    options |= {"class_names": read_json(run.environment)["data"]["class_names"], "cache": "none", "on_error": "skip"}
    return {"class_path": "imgcls.data.files.FilesData", "init_args": options}


def _given(words: Sequence[str]) -> tuple[set[str], bool]:
    """Names of the options of the data that words give, and whether they give its class."""
    options: set[str] = set()
    classes = False
    for flag, value, _ in each_option(words):
        if flag == "--config":
            section = yaml.safe_load(value)["data"]
            classes |= "class_path" in section
            options |= section.get("init_args", section).keys()
        elif flag in ("--data", "--data.class_path"):
            classes = True
        elif flag.startswith("--data."):
            options.add(flag.removeprefix("--data.").removeprefix("init_args.").partition(".")[0])
    return options - {"class_path", "init_args"}, classes
