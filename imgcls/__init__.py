"""Image classification research on PyTorch Lightning: fine-tune, augment, compare, deploy.

From Python: `imgcls.load(RUN_DIR)` gives a trained run, with `predict`, `model` and `data`; `imgcls.Classifier` is the
LightningModule, and `imgcls.data` holds the data modules, for a Trainer of your own.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

# names and where they are; resolved when they are first used, as importing PyTorch takes seconds
PUBLIC = {
    "load": ("imgcls.runs.load", "load_run"),
    "Classifier": ("imgcls.classifier", "Classifier"),
    "UserError": ("imgcls.errors", "UserError"),
}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'imgcls' has no attribute {name!r}")
    module, attribute = PUBLIC[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return [*globals(), *PUBLIC]
