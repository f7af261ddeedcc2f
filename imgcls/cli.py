"""The verbs that train or run a model: LightningCLI with bases, a run folder, and data and model linked."""

import logging
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.callbacks import Callback, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from imgcls.arguments import config_folders, expand_arguments, make_importable, refuse_overruled
from imgcls.callbacks.checkpoint import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, Signals
from imgcls.callbacks.evaluation import Evaluation
from imgcls.callbacks.nonfinite import NonFinite
from imgcls.callbacks.outputs import Outputs
from imgcls.callbacks.predict import PredictionTable
from imgcls.callbacks.record import RunLogger, RunRecord
from imgcls.classifier import Classifier
from imgcls.compose import config_files
from imgcls.data.base import ImageDataModule
from imgcls.errors import UserError, near
from imgcls.explain import explain
from imgcls.load import read_checkpoint
from imgcls.loggers import build_loggers
from imgcls.runs.folder import RunFolder, read_json
from imgcls.runs.record import without_keys
from imgcls.trainer import REFRESH, Trainer, plain_process_errors

log = logging.getLogger(__name__)

RUN_DIR, BATCH_SIZE = "IMGCLS_RUN_DIR", "IMGCLS_BATCH_SIZE"
WITHOUT_RUN = ("preview", "audit", "pack", "benchmark", "find_lr")  # they need no weights and leave no run's folder
# of one invocation, or known to a run by where it lies: none of them belongs into config.yaml
NOT_SAVED = (
    "config base run_dir run resume ckpt_path out count json rounds steps shard_mb size robustness_baseline".split()
)


class ImgclsCLI(LightningCLI):
    """Parses arguments and configs, builds data module, model and trainer, and runs a verb.

    Args:
        arguments: The verb and what follows it.
    """

    run: RunFolder

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        super().__init__(
            Classifier,
            ImageDataModule,
            save_config_callback=None,  # RunRecord saves it: at fit only, once, into the run's folder
            trainer_class=Trainer,
            trainer_defaults={
                "logger": {
                    "class_path": "lightning.pytorch.loggers.WandbLogger",
                    "init_args": {"project": "imgcls"},
                },
                # our samplers shard: none repeated in evaluation, position kept in training
                "use_distributed_sampler": False,
            },
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Each verb with the arguments that are not the user's."""
        loaders = set("model dataloaders datamodule verbose weights_only return_predictions args kwargs".split())
        return {
            "fit": loaders | {"train_dataloaders", "val_dataloaders"},
            "validate": loaders,
            "test": loaders,
            "predict": loaders,
            "preview": {"model", "datamodule"},
            "audit": {"model", "datamodule"},
            "pack": {"model", "datamodule"},
            "benchmark": {"model", "datamodule"},
            "find_lr": {"model", "datamodule"},
            "explain": {"model", "datamodule"},
        }

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Errors are raised, for the front door to explain."""
        return super().init_parser(**{"exit_on_error": False, "prog": "python -m imgcls", **kwargs})

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The keys of a run besides data, model and trainer."""
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of the run.")
        parser.add_argument("--base", type=list[str] | str | None, help="In a file: files merged before it.")
        parser.add_argument(
            "--experiment", type=str | None, help="Name of the folder of runs. Default: the last config's."
        )
        parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the best checkpoint at the end.")
        parser.add_argument(
            "--robustness",
            type=bool,
            default=False,
            help="Test under other size, lighting, noise … too.",
        )
        parser.add_argument(
            "--robustness_baseline", type=str | None, help="Run whose robustness this one's is compared with."
        )
        parser.add_argument(
            "--calibrate", type=bool, default=False, help="test: fit a temperature to the validation images first."
        )
        parser.add_argument(
            "--run_dir", type=str | None, help="The run's folder. Default: runs/EXPERIMENT/TIME-SEED-ID."
        )
        parser.add_argument("--run", type=str | None, help="validate, test, predict, audit: a trained run's folder.")
        parser.add_argument("--resume", type=str | None, help="fit: the folder of an interrupted run.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Checkpoints, and the links by which data and model meet."""
        every = {"auto_insert_metric_name": False, "enable_version_counter": False}
        best = {"filename": "best", "monitor": "val/acc", "mode": "max", **every}
        # with save_last, Lightning would write last.ckpt only when best.ckpt is written too
        last = {"filename": "last", "save_on_train_epoch_end": True, **every}
        for key, kind, defaults in (("checkpoint", BestCheckpoint, best), ("last_checkpoint", LastCheckpoint, last)):
            parser.add_lightning_class_args(kind, key)
            parser.set_defaults({f"{key}.{k}": v for k, v in defaults.items()})
        parser.add_lightning_class_args(NonFinite, "nonfinite")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        for fact in ("num_classes", "channels", "image_size"):
            parser.link_arguments(f"data.{fact}", f"model.init_args.{fact}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse after bases, `--run` and `--resume` were written out."""
        arguments = expand_arguments(self.arguments)
        self._refuse_abbreviations(arguments)
        refuse_overruled(arguments)
        self.config_folders = config_folders(config_files(arguments))
        make_importable(self.config_folders)
        try:
            self.config = parser.parse_args(arguments)
        except ArgumentError as error:
            verb = self._subcommand_parsers.get(arguments[0], parser)
            options = [action.dest for action in verb._actions]
            raise UserError(explain(str(error), arguments, options)) from error
        checkpoint = self.config[arguments[0]].get("ckpt_path")
        if checkpoint:
            path = Path(checkpoint)
            best = path.with_name("best.ckpt")
            others = arguments[0] == "fit" and path.name == "last.ckpt" and best.is_file()
            read_checkpoint(
                path, "--ckpt_path", f"; go on from the best epoch with --ckpt_path {best}" if others else ""
            )

    def _refuse_abbreviations(self, arguments: list[str]) -> None:
        """An option that is added later must not change what a script means."""
        known = [action.dest for action in self._subcommand_parsers[arguments[0]]._actions]
        for word in arguments:
            key = word.partition("=")[0].removeprefix("--").rstrip("+")
            nested = key.startswith(("model.", "data.")) or ".init_args." in key or key.endswith(".help")
            if word.startswith("--") and not nested and key not in known and any(k.startswith(key) for k in known):
                raise UserError(f"--{key}: there is no such option{near(key, known)}")

    def _parse_ckpt_path(self) -> None:
        """Nothing: the config says it all, and Lightning would let a checkpoint overrule the command line."""

    def before_instantiate_classes(self) -> None:
        """Fill in what the backbone's weights expect, choose the run's folder, and keep the config's text."""
        config = self.config[self.subcommand]
        self._fill_input(config)
        self.run = self._run_folder(config)
        self.logger_config, config.trainer.logger = config.trainer.logger, False  # see _loggers
        self.unresolved = config.clone()
        if config.get("ckpt_path") or self.subcommand in WITHOUT_RUN:
            init_args = config.model.init_args.backbone.get("init_args", {})
            if "weights" in init_args:
                init_args.weights = "none"  # the checkpoint holds them: nothing to download
        config.checkpoint.dirpath = config.last_checkpoint.dirpath = str(self.run.checkpoints)
        config.trainer.default_root_dir = str(self.run.path)

    def _fill_input(self, config: Any) -> None:
        backbone, data = config.model.init_args.backbone, config.data.init_args
        module, _, name = backbone.class_path.rpartition(".")
        spec = getattr(import_module(module), name).input_spec(**backbone.get("init_args", Namespace()).as_dict())
        taken = {k: v for k, v in vars(spec).items() if v is not None and data.get(k) is None}
        for option, value in taken.items():
            data[option] = value
        if taken:
            log.info("images as the weights expect them: " + ", ".join(f"{k} {v}" for k, v in taken.items()))

    def _run_folder(self, config: Any) -> RunFolder:
        # processes that Lightning starts for DDP run this again; the first one's choice holds
        given = config.run_dir or os.environ.get(RUN_DIR)
        if given:
            run = RunFolder(given)
        else:
            run = RunFolder.new(self._experiment(), config.seed_everything)
        goes_on = config.get("resume") or config.get("ckpt_path") or RUN_DIR in os.environ
        if self.subcommand == "fit" and run.config.exists() and not goes_on:
            raise UserError(
                f"--run_dir {run.path}: holds a run already; resume it with --resume {run.path} or name another"
            )
        os.environ[RUN_DIR] = str(run.path)
        return run

    def _resolved(self) -> str:
        """Text of config.yaml: complete, with what data and weights decided written out."""
        config = self.unresolved
        config.trainer.logger = self.logger_config
        for fact in ("batch_size", "image_size", "channels", "mean", "std", "interpolation", "crop_fraction"):
            if fact in config.data.init_args:
                config.data.init_args[fact] = getattr(self.datamodule, fact)
        for overruled in ("lr", "weight_decay"):  # defaults of the optimiser; the model's own set each group
            config.model.init_args.optimizer.init_args.pop(overruled, None)
        text = self._parser(self.subcommand).dump(config, skip_unset=False, skip_validation=True)
        kept = {k: v for k, v in yaml.safe_load(text).items() if k not in NOT_SAVED}
        return without_keys(yaml.safe_dump(kept, sort_keys=False))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has: its record, its predictions, its folder."""
        config = self.config_init[self.subcommand]
        if self.datamodule.batch_size == "auto":
            self._choose_batch_size()
        text = self._resolved()
        if self.subcommand == "fit":
            kwargs["logger"] = [
                RunLogger(self.run),
                *build_loggers(self.logger_config, self.run, self._experiment(), text),
            ]
        callbacks: list[Callback] = [
            Outputs(self.run),
            Evaluation(self.run, config["calibrate"]),
            RunRecord(self.run, text, config["seed_everything"], self.config_folders),
            PredictionTable(self.run),
            Signals(self.run),
        ]
        if config["robustness"] or config["robustness_baseline"]:
            from imgcls.callbacks.robustness import Robustness

            # before the record, whose report shows its figure
            callbacks.insert(0, Robustness(self.run, config["robustness_baseline"]))
        given = config["trainer"]["callbacks"] or []
        if config["trainer"]["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in given):
            callbacks.append(TQDMProgressBar(REFRESH))
        config["trainer"]["callbacks"] = [*given, *callbacks]
        plugins = config["trainer"]["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["trainer"]["plugins"] = [*plugins, AtomicCheckpointIO()]
        with plain_process_errors():
            trainer: Trainer = super().instantiate_trainer(**kwargs)  # type: ignore[assignment]
        trainer.check_processes()
        return trainer

    def _choose_batch_size(self) -> None:
        """Measure once: processes that Lightning starts for DDP take over the choice of the first."""
        from imgcls.commands.batch_size import best_batch_size

        if BATCH_SIZE not in os.environ:
            accelerator = self.config[self.subcommand].trainer.accelerator
            on_gpu = torch.cuda.is_available() and accelerator != "cpu"
            chosen = best_batch_size(self.model, self.datamodule, torch.device("cuda" if on_gpu else "cpu"))
            os.environ[BATCH_SIZE] = str(chosen)
            log.info(f"--data.batch_size=auto: {chosen}")
        self.datamodule.batch_size = int(os.environ[BATCH_SIZE])

    def _experiment(self) -> str:
        """The name given, or that of the last config, with its folders below experiments/."""
        given, files = self.config[self.subcommand].experiment, config_files(self.arguments)
        if given or not files:
            return given or "default"
        path = files[-1].with_suffix("")
        below = path.parts[path.parts.index("experiments") + 1 :] if "experiments" in path.parts else [path.name]
        return "/".join(below)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand in (*WITHOUT_RUN, "explain"):
            return kwargs
        kwargs["weights_only"] = True  # a checkpoint from elsewhere must not run code
        extra = {"validate": {"verbose": False}, "test": {"verbose": False}, "predict": {"return_predictions": False}}
        return kwargs | extra.get(subcommand, {})

    def after_fit(self) -> None:
        """Test the best checkpoint if the experiment asks for it, and say where everything is."""
        if self.config.fit.test_after_fit and not self.trainer.interrupted:
            self.trainer.test(
                self.model,
                datamodule=self.datamodule,
                ckpt_path=str(self.run.best),
                weights_only=True,
                verbose=False,
            )
        self._print_metrics("")

    def after_validate(self) -> None:
        """Print the metrics."""
        self._print_metrics("val/")

    def after_test(self) -> None:
        """Print the metrics."""
        robust = self.config.test.robustness or self.config.test.robustness_baseline
        self._print_metrics("test/", *(["robust/"] if robust else []))

    @rank_zero_only
    def _print_metrics(self, *prefixes: str) -> None:
        metrics = {k: v for k, v in read_json(self.run.metrics_json).items() if k.startswith(prefixes)}
        print()
        for name, value in sorted(metrics.items()):
            print(f"  {name:<24}{value if isinstance(value, int | None) else format(value, '.4f')}")
        print(f"\nrun: {self.run.path}\nreport: {self.run.report}")
