"""A checked file: --run RUN_DIR [--format onnx|torch_export|safetensors] [--out FILE]."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder

FORMATS = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "torch_export": (), "safetensors": ()}
SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
TOLERANCE = (
    "largest difference of a probability from the run's own; a hundredth of it for images of the model's size; "
    "default: 0.01"
)


def main(words: list[str]) -> int:
    """Write a trained run as one file that turns uint8 images into calibrated class probabilities, and check it.

    Formats: onnx for ONNX Runtime, torch_export for PyTorch without this package, safetensors for the weights by name.
    """
    parser = argparse.ArgumentParser(prog="python -m imgcls export", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--run", required=True, metavar="RUN_DIR", help="the folder of a trained run")
    parser.add_argument("--format", default="onnx", choices=FORMATS, help="default: onnx")
    parser.add_argument("--out", type=Path, help="default: model.onnx (.pt2, .safetensors) in the run's folder")
    parser.add_argument("--card", type=Path, help="the model card, Markdown; default: the file with the suffix .md")
    parser.add_argument("--images", metavar="FOLDER", help="check on these, where the run's data is not at hand")
    parser.add_argument("--count", type=int, default=64, help="images to check on; default: 64")
    parser.add_argument("--quantize", choices=("int8",), help="onnx: 8-bit integers, calibrated on training images")
    parser.add_argument("--tolerance", type=float, default=0.01, help=TOLERANCE)
    parser.add_argument("--int8_tolerance", type=float, default=0.02, help="accuracy that it may cost; default: 0.02")
    given = parser.parse_args(words)
    out = given.out or Path(given.run) / f"model{SUFFIX[given.format]}"
    card = given.card or out.with_suffix(".md")
    if card == out:
        raise UserError(f"--out {card}: is where the model card goes; name another file, or give --card FILE")
    if given.count < 1:
        raise UserError(f"--count {given.count}: give at least 1")
    if given.quantize and (given.format != "onnx" or given.images):
        raise UserError("--quantize: needs --format onnx and the run's own data, which calibrates and judges it")
    if missing := [name for name in FORMATS[given.format] if find_spec(name) is None]:
        raise UserError(f"--format {given.format}: needs {', '.join(missing)}: pip install 'imgcls[onnx]'")
    run = RunFolder.existing(given.run, "--run")
    from imgcls.deploy.checked import export

    int8 = given.int8_tolerance if given.quantize else None
    export(run, given.format, out, card, given.images, given.count, given.tolerance, int8)
    return 0
