"""Pre-trained networks by name: [PATTERN]."""

import argparse
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.util import find_spec

from imgcls.cli.columns import print_columns
from imgcls.errors import UserError, near

Row = tuple[str, str, str, str, str]
HEADER: Row = ("library", "name", "parameters", "image", "weights")


def main(words: list[str]) -> int:
    """List networks whose name matches a pattern, with parameters, input size, and whether weights exist."""
    parser = argparse.ArgumentParser(prog="python -m imgcls backbones", description=main.__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="part of a name, or a pattern such as 'resnet*'")
    options = parser.parse_args(words)
    if find_spec("timm") is None:
        print("timm is not installed: pip install 'imgcls[timm]' adds its networks")
    rows = [HEADER, *_torchvision(options.pattern), *_timm(options.pattern)]
    if len(rows) == 1:
        known = [name for _, name, *_ in (*_torchvision("*"), *_timm("*"))]
        raise UserError(f"backbones: no name matches {options.pattern!r}{near(options.pattern, known)}")
    print_columns(rows)
    return 0


def matches(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern with * and ?, or contains a plain text."""
    return fnmatch(name, pattern) if set("*?[") & set(pattern) else pattern in name


def _torchvision(pattern: str) -> Iterator[Row]:
    from torchvision import models

    for name in models.list_models(module=models):
        if matches(name, pattern):
            weights = models.get_model_weights(name).DEFAULT
            millions = f"{weights.meta['num_params'] / 1e6:.1f} M"
            yield "torchvision", name, millions, str(weights.transforms().crop_size[0]), "yes"


def _timm(pattern: str) -> Iterator[Row]:
    if find_spec("timm") is None:
        return
    import timm
    import torch

    names = [name for name in timm.list_models() if matches(name, pattern)]
    for name in names:
        config = timm.get_pretrained_cfg(name)
        millions = ""
        if len(names) <= 40:  # building a network takes tens of milliseconds, and timm knows a thousand
            with torch.device("meta"):
                count = sum(p.numel() for p in timm.create_model(name).parameters())
            millions = f"{count / 1e6:.1f} M"
        size = str(config.input_size[1]) if config else ""
        yield "timm", name, millions, size, "yes" if config and config.has_weights else "no"
