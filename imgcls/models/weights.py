"""Pre-trained weights from a local file, without running what is in it, and saying what matched."""

import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from imgcls.errors import UserError, one_line

log = logging.getLogger(__name__)

PREFIXES = {"module", "model", "_orig_mod", "backbone", "network", "net", "encoder"}
DEPTH = 3  # as wrappers are stacked: compiled, parallel, within a Lightning module
WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "state_dict_ema", "model_ema")
MIN_SHARE = 0.9  # of the values of a backbone that a file must hold


def load_weights(module: nn.Module, path: str | Path) -> str:
    """Copy the tensors of a file that match the module's by name and shape; the head's need not be there.

    Prefixes that wrappers leave (`module.`, `model.`, `_orig_mod.`, `backbone.` …) are taken off as far as it
    makes more names match. A first convolution for another number of channels is adapted.

    Args:
        module: A backbone without its head.
        path: .pth, .pt, .bin or .ckpt (loaded with weights_only=True), or .safetensors.

    Returns:
        One line that says how many tensors and which share of the values matched.

    Raises:
        UserError: The file is missing, cannot be read without running code, or holds less than 90 % of the module's
            values.
    """
    path = Path(path)
    own = module.state_dict()
    found = _unprefixed(_read(path), own)
    _adapt_first_convolution(module, found)
    matched = {k: v for k, v in found.items() if k in own and own[k].shape == v.shape}
    total = sum(v.numel() for v in own.values())
    share = sum(v.numel() for v in matched.values()) / max(total, 1)
    if share < MIN_SHARE:
        missing = [k for k in own if k not in found]
        shapes = [
            f"{k}: {tuple(found[k].shape)} in the file, {tuple(own[k].shape)} here"
            for k in own
            if k in found and own[k].shape != found[k].shape
        ]
        details = [f"missing: {', '.join(missing[:5])}"] if missing else []
        details += [f"other shapes: {'; '.join(shapes[:3])}"] if shapes else []
        raise UserError(
            f"{path}: matches {share:.0%} of the backbone's values, and {MIN_SHARE:.0%} are needed; "
            f"{'; '.join(details)}; the file begins with {', '.join(list(found)[:3])}"
        )
    module.load_state_dict(matched, strict=False)
    report = f"{path}: {len(matched)} of {len(own)} tensors matched, {share:.1%} of the values"
    log.info(report)
    return report


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Kernel (O, I, H, W) of a first convolution for another number of channels.

    More channels take the kernels in turn, each divided by the number of those that take it; fewer sum them in turn. A
    gray image copied into all channels then gives what it gave before, copied likewise.
    """
    new_C1, old_I = torch.arange(channels)[:, None], torch.arange(weight.shape[1])
    takes_CI = ((new_C1 % len(old_I) == old_I) | (old_I % channels == new_C1)).to(weight)
    return torch.einsum("oihw,ci->ochw", weight, takes_CI / takes_CI.sum(0))


def set_channels(name: str, first: nn.Conv2d, channels: int) -> None:
    """Adapt a first convolution, in place, see `adapt_channels`; `name` is for the message."""
    if first.in_channels == channels:
        return
    log.info(f"{name}: adapted from {first.in_channels} to {channels} channels")
    with torch.no_grad():
        first.weight = nn.Parameter(adapt_channels(first.weight, channels).contiguous())
    first.in_channels = channels


def first_convolution(module: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Name and module of the first convolution, or None."""
    return next(((n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d)), None)


def no_download(name: str, error: Exception) -> UserError:
    """What to say where pre-trained weights cannot be downloaded."""
    return UserError(
        f"the weights of {name} cannot be downloaded ({one_line(error)[:200]}); give a local file with "
        "--model.backbone.weights=FILE, or train from scratch with --model.backbone.weights=none"
    )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        takes = "this network has none of its own" if str(path) == "default" else "there is no such file"
        raise UserError(f"--model.backbone.weights {path}: {takes}; give a file, none, or default if it is pre-trained")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, because loading it would run code from the file; "
            "save a plain state dict (torch.save(model.state_dict(), …)) or use .safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, KeyError) as error:
        reason = one_line(error)[:200]
        raise UserError(f"{path}: cannot be read as weights, the file may be truncated ({reason})") from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise UserError(f"{path}: holds no weights by name; a state dict is expected")
    return tensors


def _unprefixed(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefix of wrappers that makes most names match, the shortest of equally good ones."""
    prefixes = {""}
    for name in tensors:
        parts = name.split(".")
        prefixes |= {".".join(parts[:n]) + "." for n in range(1, DEPTH + 1) if PREFIXES.issuperset(parts[:n])}
    best = max(sorted(prefixes, key=lambda p: (len(p), p)), key=lambda p: sum(p + name in tensors for name in own))
    return {name.removeprefix(best): v for name, v in tensors.items() if name.startswith(best)}


def _adapt_first_convolution(module: nn.Module, found: dict[str, Tensor]) -> None:
    first = first_convolution(module)
    if first is None:
        return
    key = f"{first[0]}.weight"
    wanted, given = first[1].weight, found.get(key)
    if given is None or given.ndim != 4 or given[:, 0].shape != wanted[:, 0].shape:
        return
    if given.shape[1] != wanted.shape[1]:
        log.info(f"{key}: adapted from {given.shape[1]} to {wanted.shape[1]} channels")
        found[key] = adapt_channels(given, wanted.shape[1])
