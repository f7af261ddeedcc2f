"""Verbs that work on data and model: LightningCLI with bases, a run's folder, and data and model linked."""

import logging
import os
import signal
import sys
from abc import ABC, abstractmethod
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.callbacks import Callback, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from imgcls.classifier import Classifier
from imgcls.cli.arguments import config_folders, configures, gives, refuse_overruled, take, with_values_of_yaml
from imgcls.cli.batch_size import choose_batch_size
from imgcls.cli.configs import as_config, config_files, expand_configs
from imgcls.cli.help import HelpParser
from imgcls.cli.max_epochs import choose_max_epochs
from imgcls.cli.messages import explain
from imgcls.cli.quiet import finish_wandb, kept_messages, show_libraries
from imgcls.data.base import ImageDataModule
from imgcls.data.files import PREPARATION
from imgcls.data.options import FROM_DATA
from imgcls.errors import UserError, refusal, user_error
from imgcls.runs.environment import without_keys
from imgcls.runs.folder import RunFolder
from imgcls.runs.load import read_checkpoint
from imgcls.system.allocator import keep_freed_memory
from imgcls.system.files import read_json
from imgcls.system.modules import class_named, make_importable
from imgcls.training.checkpoint import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, Signals
from imgcls.training.loggers import build_loggers
from imgcls.training.nonfinite import NonFinite
from imgcls.training.progress import Bar, EpochTable, Screen
from imgcls.training.record import RunLogger, RunRecord
from imgcls.training.summary import print_summary
from imgcls.training.trainer import Trainer

log = logging.getLogger(__name__)

RUN_DIR = "IMGCLS_RUN_DIR"
# of one invocation, or known to a run by where it lies: none of them belongs into config.yaml
NOT_SAVED = ("config", "base", "run_dir", "resume", "ckpt_path", "robustness_baseline", "verbose", "dry_run")
# keys that a config may have beside data, model and trainer: type, default, help
KEYS: dict[str, tuple[Any, Any, str]] = {
    "experiment": (str | None, None, "Name of the folder of runs. Default: the last config's."),
    "run_dir": (str | None, None, "The run's folder. Default: runs/EXPERIMENT/TIME-SEED-ID."),
    "test_after_fit": (bool, False, "fit: test the best checkpoint at the end."),
    "calibrate": (bool, False, "test: fit a temperature to the validation images first."),
    "robustness": (bool, False, "test: under other size, lighting, noise … too."),
    "verbose": (bool, False, "Show what Lightning says, too; a run's log.txt has it anyhow."),
    "base": (list[str] | str | None, None, "In a file: files merged before it."),
}
ANY_MODEL = {"class_path": "imgcls.classifier.Classifier", "init_args": {"backbone": "imgcls.models.cnn.CNN"}}


class LightningVerb(LightningCLI, ABC):
    """A verb that works on a data module, a model and a trainer, which are built from configs and options.

    A new verb is a subclass in a file of `imgcls/commands`: its options are the arguments of `work`, which does what
    the verb is for.

    Attributes:
        needs_run: It is for a trained run, `--run RUN_DIR`, whose config, folder and best checkpoint are then given.
        needs_model: Without it, any model will do where the configs name none.
        trains: It makes a run of its own.
        needs_weights: It begins with the backbone's pre-trained weights.
        run: The run's folder; one that `trains` is no verb's but fit's is never written to.
        options: Values of the arguments of `work`.

    Args:
        words: What follows the verb on the command line.
        kept: What is logged meanwhile.
    """

    needs_run = False
    needs_model = True
    trains = needs_weights = False
    run: RunFolder

    def __init__(self, words: list[str], kept: MemoryHandler | None = None) -> None:
        self.kept, self.screen = kept, Screen()
        self.verb = type(self).__module__.rpartition(".")[2]
        self.words = with_values_of_yaml(words)
        super().__init__(
            Classifier,
            ImageDataModule,
            save_config_callback=None,  # RunRecord saves it: at fit only, once, into the run's folder
            trainer_class=Trainer,
            parser_class=HelpParser,
            trainer_defaults={
                "logger": {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "imgcls"}},
                # our samplers shard: none repeated in evaluation, position kept in training
                "use_distributed_sampler": False,
            },
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @classmethod
    def main(cls, words: list[str]) -> int:
        """Do the work. Returns the exit code.

        Raises:
            UserError: The user made a mistake, whatever library met it.
        """
        keep_freed_memory()
        with kept_messages() as kept:
            try:
                verb = cls(words, kept)
                return verb.work(**verb.options) or 0
            except SIGTERMException:
                return 128 + signal.SIGTERM  # stopped is not done: Lightning would exit with 0
            except Exception as error:
                cause = user_error(error) or refusal(error)
                if cause is None:
                    raise
                raise cause from error
            finally:
                finish_wandb(failed=sys.exc_info()[0] is not None)

    @abstractmethod
    def work(self) -> int | None:
        """Do what the verb is for; its arguments are the verb's options.

        Returns:
            The exit code, where it is not 0.
        """

    def callbacks(self) -> list[Callback]:
        """What the work needs beside the run's record."""
        return []

    def expand(self, words: list[str]) -> list[str]:
        """Words with all written out that they say in short: bases of configs, and `--run`.

        Raises:
            UserError: The folder is not a run's; an option does not go with the verb.
        """
        run, words = take(words, "--run")
        if run is not None and not self.needs_run:
            raise UserError(f"--run {run}: {self.verb} takes no trained run; its config is --config {run}/config.yaml")
        if run is not None:
            return self.expand_run(RunFolder.existing(run, "--run"), words)
        if self.needs_run and not gives(words, "--ckpt_path", "-h", "--help", "--print_config"):
            raise UserError(f"{self.verb} needs a trained run: --run RUN_DIR")
        words = expand_configs(words)
        return words if self.needs_model or configures(words, "model") else [*as_config({"model": ANY_MODEL}), *words]

    def expand_run(self, run: RunFolder, words: list[str]) -> list[str]:
        """What `--run` stands for."""
        self.files.append(run.config)
        make_importable(read_json(run.environment).get("config_folders", []))
        known = {action.dest.partition(".")[0] for action in self.parser._actions}
        config = {key: value for key, value in self.config_of(run, words).items() if key in known}
        checkpoint = [] if gives(words, "--ckpt_path") else ["--ckpt_path", str(run.checkpoint(run.best))]
        return [*as_config(config), "--run_dir", str(run.path), *checkpoint, *expand_configs(words)]

    def config_of(self, run: RunFolder, words: list[str]) -> dict[str, Any]:
        """The config of a run, as the verb takes it."""
        return run.read_config()

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Errors are raised, for `main` to explain; no abbreviations: a later option would change their meaning."""
        more = {"exit_on_error": False, "allow_abbrev": False, "prog": f"python -m imgcls {self.verb}"}
        return super().init_parser(**{**kwargs, **more, "description": str(type(self).work.__doc__).partition("\n")[0]})

    def _add_arguments(self, parser: LightningArgumentParser) -> None:
        self.own = parser.add_method_arguments(type(self), "work")
        if self.own:
            parser._action_groups[-1].title = f"options of {self.verb} alone"
        super()._add_arguments(parser)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The keys of a run besides data, model and trainer."""
        if self.needs_run:
            parser.add_argument("--run", type=str | None, help="A trained run's folder.")
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of the run.")
        for key, (kind, default, text) in KEYS.items():
            parser.add_argument(f"--{key}", type=kind, default=default, help=text)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Checkpoints, and the links by which data and model meet."""
        every = {"auto_insert_metric_name": False, "enable_version_counter": False}
        best = {"filename": "best", "monitor": "auto", "mode": "max", **every}
        # with save_last, Lightning would write last.ckpt only when best.ckpt is written too
        last = {"filename": "last", "save_on_train_epoch_end": True, **every}
        for key, kind, defaults in (("checkpoint", BestCheckpoint, best), ("last_checkpoint", LastCheckpoint, last)):
            parser.add_lightning_class_args(kind, key)
            parser.set_defaults({f"{key}.{k}": v for k, v in defaults.items()})
        parser.add_lightning_class_args(NonFinite, "nonfinite")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        for fact in FROM_DATA:
            parser.link_arguments(f"data.{fact}", f"model.init_args.{fact}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse after bases, `--run` and `--resume` were written out."""
        self.files: list[Path] = []
        words = self.expand(self.words)
        refuse_overruled(words)
        self.files += dict.fromkeys(config_files([*self.words, *words]))
        self.config_folders = config_folders(self.files)
        make_importable(self.config_folders)
        if gives(words, "-h", "--help"):
            parser.list_options_of(words, data=ImageDataModule, model=Classifier)  # type: ignore[attr-defined]
        try:
            self.config = parser.parse_args(words)
        except ArgumentError as error:
            raise UserError(explain(str(error), words, self.files, [a.dest for a in parser._actions])) from error
        show_libraries(self.config.verbose)
        if checkpoint := self.config.get("ckpt_path"):
            best = (path := Path(checkpoint)).with_name("best.ckpt")
            other = self.trains and path.name == "last.ckpt" and best.is_file()
            way_out = f"; go on from the best epoch with --ckpt_path {best}" if other else ""
            read_checkpoint(path, "--ckpt_path", way_out)

    def before_instantiate_classes(self) -> None:
        """Fill in what the backbone's weights expect, choose the run's folder, and keep the config's text."""
        config = self.config
        self._fill_input(config)
        self.run = self._run_folder(config)
        self.logger_config, config.trainer.logger = config.trainer.logger, False  # see instantiate_trainer
        self.unresolved = config.clone()
        init_args = config.model.init_args.backbone.get("init_args", {})
        if "weights" in init_args:
            loaded = config.get("ckpt_path") or not self.needs_weights  # a checkpoint holds them: nothing to download
            # the file of a run of a question follows that run's seed, and config.yaml still says so
            init_args.weights = "none" if loaded else init_args.weights.replace("{seed}", str(config.seed_everything))
        config.checkpoint.dirpath = config.last_checkpoint.dirpath = str(self.run.checkpoints)
        config.trainer.default_root_dir = str(self.run.path)

    def _fill_input(self, config: Any) -> None:
        backbone, data = config.model.init_args.backbone, config.data.init_args
        spec = class_named(backbone.class_path).input_spec(**backbone.get("init_args", Namespace()).as_dict())
        taken = {k: v for k, v in vars(spec).items() if v is not None and data.get(k) is None}
        data.update(Namespace(taken))
        if taken:
            log.info("images as the weights expect them: " + ", ".join(f"{k} {v}" for k, v in taken.items()))

    def _run_folder(self, config: Any) -> RunFolder:
        # processes that Lightning starts for DDP run this again; the first one's choice holds
        given = config.run_dir or os.environ.get(RUN_DIR)
        run = RunFolder(given) if given else RunFolder.new(self._experiment(), config.seed_everything)
        goes_on = config.get("resume") or config.get("ckpt_path") or RUN_DIR in os.environ
        if self.trains and run.config.exists() and not goes_on:
            raise UserError(f"--run_dir {run.path}: holds a run already; --resume {run.path} goes on with it")
        os.environ[RUN_DIR] = str(run.path)
        return run

    def _resolved(self) -> str:
        """Text of config.yaml: complete, with what data and weights decided written out."""
        config = self.unresolved
        config.trainer.logger = self.logger_config
        for fact in ("batch_size", *PREPARATION):
            if fact in config.data.init_args:
                config.data.init_args[fact] = getattr(self.datamodule, fact)
        for overruled in ("lr", "weight_decay"):  # defaults of the optimiser; the model's own set each group
            config.model.init_args.optimizer.init_args.pop(overruled, None)
        text = self.parser.dump(config, skip_unset=False, skip_validation=True)
        kept = {k: v for k, v in yaml.safe_load(text).items() if k not in NOT_SAVED}
        return without_keys(yaml.safe_dump(kept, sort_keys=False))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has: its record, its folder."""
        config = self.config_init
        self.options = {name: config[name] for name in self.own}
        if self.datamodule.batch_size == "auto":
            self.datamodule.batch_size = choose_batch_size(self.model, self.datamodule, config.trainer.accelerator)
        if self.trains and config.trainer.max_epochs == "auto":
            epochs = choose_max_epochs(self.model, self.datamodule, config.trainer)
            config.trainer.max_epochs = self.unresolved.trainer.max_epochs = epochs
        if config.checkpoint.monitor == "auto":
            monitor = f"val/{self.datamodule.kind.metric}"
            config.checkpoint.monitor = self.unresolved.checkpoint.monitor = monitor
        text = self._resolved()
        if self.trains:
            others = build_loggers(self.logger_config, self.run, self._experiment(), text)
            kwargs["logger"] = [RunLogger(self.run), *others]
        given = config.trainer.callbacks or []
        record = RunRecord(self.run, text, config.seed_everything, self.config_folders, self.kept)
        callbacks = [*given, *self.callbacks(), record, Signals(self.run), EpochTable(self.screen, self.run)]
        if config.trainer.enable_model_summary is not False and not any(isinstance(c, ModelSummary) for c in given):
            callbacks.append(ModelSummary())  # Lightning's default prints where it could log
            config.trainer.enable_model_summary = False
        self.screen.foreign_bar = any(isinstance(c, ProgressBar) for c in given)
        if not self.screen.foreign_bar:
            config.trainer.enable_progress_bar = config.trainer.enable_progress_bar is not False and self.screen.moves
            callbacks += [Bar(self.screen.console)] if config.trainer.enable_progress_bar else []
        config.trainer.callbacks = callbacks
        plugins = config.trainer.plugins if isinstance(config.trainer.plugins, list) else [config.trainer.plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config.trainer.plugins = [*filter(None, plugins), AtomicCheckpointIO()]
        if config.trainer.barebones:
            raise UserError("--trainer.barebones: leaves out a run's record and checkpoints; see the verb benchmark")
        if config.trainer.enable_checkpointing is False:
            self.parser.callback_keys = [key for key in self.parser.callback_keys if "checkpoint" not in key]
        trainer: Trainer = super().instantiate_trainer(**kwargs)  # type: ignore[assignment]
        trainer.check_processes()
        return trainer

    def _experiment(self) -> str:
        """The name given, or that of the last config, with its folders below experiments/."""
        given, files = self.config.experiment, config_files(self.words)
        if given or not files:
            return given or "default"
        parts = files[-1].with_suffix("").parts
        return "/".join(parts[parts.index("experiments") + 1 :] if "experiments" in parts else parts[-1:])

    @rank_zero_only
    def print_summary(self, *parts: str) -> None:
        """Print the run's figures on parts of the data, and where its report is."""
        robustness = self.config.robustness or self.options.get("robustness_baseline") is not None
        print_summary(self.screen, self.run, self.datamodule.class_names, parts, robustness)
