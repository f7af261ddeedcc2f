"""What `VERB --help` shows: the verb's own options first, then those of data and model, the trainer's last."""

import argparse
from collections.abc import Sequence

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from imgcls.cli.configs import config_files, read_config
from imgcls.system.modules import class_named

LAST = ("model", "data", "checkpoint", "last_checkpoint", "nonfinite", "trainer")
GIVEN = {"data": {"seed"}, "model": {"num_classes", "channels", "image_size", "task"}}  # by the run, and by the data
FORMS = "\n--config brings data and model; their options, which need no `init_args`, are:\n\n"


class HelpParser(LightningArgumentParser):
    """LightningCLI's parser, with a help that begins with what is set most often."""

    classes: dict[str, type] = {}  # of data and model

    def list_options_of(self, words: Sequence[str], **default: type) -> None:
        """Have the help list the options of the classes that the configs name, else those of `default`."""
        self.classes = {}
        for key, kind in default.items():
            parts = [read_config(file).get(key) or {} for file in config_files(words)]
            named = [part["class_path"] for part in parts if "class_path" in part]
            self.classes[key] = class_named(named[-1]) if named else kind

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:  # noqa: D102
        groups = self._action_groups
        named = self.groups or {}
        options, last = groups[1], [named[key] for key in LAST]
        links = [group for group in groups if group.title == "Linked arguments"]
        own = [group for group in groups[2:] if group not in last + links]
        self.usage, self._action_groups = "%(prog)s [--config FILE …] [--KEY=VALUE …]", [*own, options]
        first = super().format_help()
        self.usage, self.description, self._action_groups = argparse.SUPPRESS, None, [*links, *last]
        rest = super().format_help()
        self._action_groups = groups
        return f"{first}{FORMS}{self._short_forms()}\n{rest}"

    def _short_forms(self) -> str:
        shown = ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
        for key, kind in self.classes.items():
            shown.add_class_arguments(kind, key, skip=GIVEN[key])
        return shown.format_help()
