"""Configs that an earlier version wrote, as this one takes them: a run stays of use when the package goes on."""

from typing import Any

MOVED = {"imgcls.distill.Teacher": "imgcls.training.distillation.Teacher"}
# options without effect on results, beyond rounding
REMOVED = {
    "imgcls.augment.pipeline.Pipeline": ("fuse", "compile"),
    "imgcls.data.table.TableData": ("allow_outside",),
}


def upgraded(config: Any) -> Any:
    """A config, or a part of one, with moved classes renamed and removed options left out."""
    if isinstance(config, list):
        return [upgraded(item) for item in config]
    if not isinstance(config, dict):
        return config
    config = {key: upgraded(value) for key, value in config.items()}
    name = config.get("class_path")
    if isinstance(name, str):
        config["class_path"] = MOVED.get(name, name)
    if isinstance(options := config.get("init_args"), dict):
        config["init_args"] = {k: v for k, v in options.items() if k not in REMOVED.get(name, ())}
    return config


def upgraded_run(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a run, complete: one that says nothing of a value range never had one, nor a fold to test on."""
    config = upgraded(config)
    if isinstance(data := config.get("data"), dict) and "crop_fraction" in data.get("init_args", {}):
        data["init_args"] = {"value_range": "none", "fold_part": "val"} | data["init_args"]
    return config
