import os
from importlib import import_module
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from imgcls.runs.folder import RunFolder


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
        module, _, name = logger.class_path.rpartition(".")
        options = {**logger.get("init_args", {}).as_dict(), **logger.get("dict_kwargs", {})}
        if name == "WandbLogger":
            options |= _wandb_options(options, run, experiment, yaml.safe_load(config_text))
        loggers.append(getattr(import_module(module), name)(**{k: v for k, v in options.items() if v is not None}))
    return loggers


def _wandb_options(options: dict[str, Any], run: RunFolder, experiment: str, config: dict[str, Any]) -> dict[str, Any]:
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")  # a killed run loses 1 s, not 15
    name = run.path.name
    chosen = {"save_dir": str(run.path.resolve()), "name": options["name"] or name, "id": options["id"] or name}
    chosen |= {"group": options["group"] or experiment, "resume": "allow", "config": config}
    chosen |= {"job_type": options.get("job_type") or f"seed {config['seed_everything']}"}
    chosen |= {"tags": options.get("tags") or _tags(config)}
    if not options["offline"] and "WANDB_MODE" not in os.environ and (reason := _wandb_unusable()):
        chosen |= {"offline": True, "mode": "offline"}
        rank_zero_only(print)(f"W&B: {reason}; the record stays in {run.path}/wandb")
    return chosen


def _tags(config: dict[str, Any]) -> list[str]:
    """Data set, backbone and way of fine-tuning: what one filters by first."""
    data, model = config["data"], config["model"]["init_args"]
    parts = [part for part in (data, model["backbone"], model["finetune"]) if part]
    names = [p.get("init_args", {}).get("name") or p["class_path"].rpartition(".")[2] for p in parts]
    return [name[:64] for name in names]


def _wandb_unusable() -> str | None:
    """Why runs cannot be sent to W&B now; None if they can."""
    import wandb

    try:
        return None if wandb.login(prompt=False) else "no API key (`wandb login` sets one)"
    except wandb.errors.Error as error:
        return " ".join(str(error).split())
