import logging
import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning import Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from imgcls.errors import UserError, one_line
from imgcls.runs.folder import RunFolder
from imgcls.system.modules import class_named
from imgcls.system.network import unreachable

log = logging.getLogger(__name__)
NO_KEY = "no API key (`wandb login` sets one)"


def _surviving(method: Callable[..., None]) -> Any:
    """The method of `Wandb`, on rank 0, whose first failure is a warning and later ones nothing."""

    @wraps(method)
    def attempt(self: "Wandb", *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # those of a service that is gone are of many kinds
            if not self.lost:
                log.warning(
                    f"W&B: its record ends here ({one_line(error)}); training goes on, metrics.csv has every epoch, "
                    f"and `wandb sync {self.save_dir}/wandb/*run-*` sends what there is"
                )
            self.lost = True
            # W&B says goodbye to its service when Python ends, and would say at length that it is gone
            sys.unraisablehook = _quiet_about_connections

    return rank_zero_only(attempt)


class Wandb(WandbLogger):
    """W&B's record, without which training goes on: whatever happens to it costs one warning."""

    lost = False

    @property
    def experiment(self) -> Any:
        """W&B's run; offline where the server does not let it begin."""
        import wandb

        try:
            return super().experiment
        except wandb.errors.Error as error:
            log.warning(f"W&B: {one_line(error)}; the record stays in {self.save_dir}/wandb")
            self._wandb_init |= {"mode": "offline"}
            return super().experiment

    def _summarize(self, values: Mapping[str, float], kept: bool = False) -> None:
        """Set values of the summary; with `kept`, what is logged under their names later does not change them."""
        for name in values if kept else ():  # by name: Lightning has defined *, which would win over val/*
            self.experiment.define_metric(name, step_metric="trainer/global_step", summary="none")
        self.experiment.summary.update(values)

    log_metrics = _surviving(WandbLogger.log_metrics)
    log_hyperparams = _surviving(WandbLogger.log_hyperparams)
    log_image = _surviving(WandbLogger.log_image)
    finalize = _surviving(WandbLogger.finalize)
    summarize = _surviving(_summarize)


def wandb_loggers(trainer: Trainer) -> list[Wandb]:
    """The trainer's records of W&B; there is one at most, unless a config says otherwise."""
    return [logger for logger in trainer.loggers if isinstance(logger, Wandb)]


def log_figures(trainer: Trainer, part: str, figures: Mapping[str, np.ndarray]) -> None:
    """Have W&B show figures, uint8 (H, W, 3) by name, of a part of the data."""
    for logger in wandb_loggers(trainer):
        for name, pixels in figures.items():
            logger.log_image(f"{part}/{name}", [pixels])


def _quiet_about_connections(report: Any) -> None:
    if not isinstance(report.exc_value, ConnectionError):
        sys.__unraisablehook__(report)


def build_loggers(configured: Any, run: RunFolder, experiment: str, config_text: str) -> list[Logger]:
    """The loggers of `trainer.logger`, with W&B's record in the run's folder and under its name.

    They are not built with the trainer's other parts, because W&B shows and filters by the config that it has
    from the start, and the resolved one is known only once the data is.

    Args:
        configured: A class with its arguments, a list of such, or a switch.
        run: The run's folder.
        experiment: Its name; runs of one experiment are a group in W&B.
        config_text: Text of config.yaml.
    """
    if configured is None or isinstance(configured, bool):
        return []
    loggers = []
    for logger in configured if isinstance(configured, list) else [configured]:
        options = {**logger.get("init_args", {}).as_dict(), **logger.get("dict_kwargs", {})}
        kind = class_named(logger.class_path)
        try:
            if kind is WandbLogger:
                kind = Wandb
                options |= _wandb_options(options, run, experiment, yaml.safe_load(config_text))
            loggers.append(kind(**{k: v for k, v in options.items() if v is not None}))
        except ImportError as error:
            raise UserError(
                f"--trainer.logger: {one_line(error)}; {logger.class_path} needs it, --trainer.logger=false does not"
            ) from error
    return loggers


def names_wandb(configured: Any) -> bool:
    """Whether W&B's is among the loggers of `trainer.logger`."""
    return "WandbLogger" in str(configured)


def _wandb_options(options: dict[str, Any], run: RunFolder, experiment: str, config: dict[str, Any]) -> dict[str, Any]:
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")  # a killed run loses 1 s, not 15
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "120")  # what was not sent by then is sent by `wandb sync`
    default = {"name": run.path.name, "id": run.path.name, "group": experiment, "tags": parts_of(config)}
    default |= {"job_type": f"seed {config['seed_everything']}"}
    chosen: dict[str, Any] = {key: options.get(key) or value for key, value in default.items()}
    chosen |= {"save_dir": str(run.path.resolve()), "resume": "allow", "config": config}
    online = not options.get("offline") and os.environ.get("WANDB_MODE", "online") == "online"
    if online and rank_zero_only.rank == 0 and (reason := wandb_unusable()):  # type: ignore[attr-defined]
        chosen |= {"offline": True, "mode": "offline"}
        # without a key, nobody has asked for more than the record here
        level = logging.DEBUG if reason == NO_KEY else logging.WARNING
        log.log(level, f"W&B: {reason}; the record stays in {run.path}/wandb")
    return chosen


def parts_of(config: dict[str, Any]) -> list[str]:
    """Names of data set, backbone and, where there is one, way of fine-tuning."""
    data, model = config["data"], config["model"]["init_args"]
    parts = [part for part in (data, model["backbone"], model["finetune"]) if part]
    names = [p.get("init_args", {}).get("name") or p["class_path"].rpartition(".")[2] for p in parts]
    return [name[:64] for name in names]


def wandb_unusable() -> str | None:
    """Why runs cannot be sent to W&B now; None if they can."""
    import wandb

    url = wandb.setup().settings.base_url
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    has_key = "WANDB_API_KEY" in os.environ or netrc.is_file()
    if has_key and (reason := unreachable(url)):  # login would wait far longer
        return f"{url} cannot be reached ({reason})"
    try:
        return None if wandb.login(prompt=False) else NO_KEY
    except (wandb.errors.Error, ValueError) as error:
        return one_line(error)
