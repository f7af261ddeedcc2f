"""The formats of an exported run: the bytes of one file from a model, and a function of images from such bytes."""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from imgcls.deploy.graph import Exported
from imgcls.errors import UserError

Runner = Callable[[np.ndarray], np.ndarray]
"""uint8 images (B, C, H, W) to probabilities (B, K)."""

AXES = {0: "batch", 2: "height", 3: "width"}
OPSET = 18  # the oldest that torch's exporter writes: more runtimes know it
LARGEST = 2**31 - 1  # bytes of a protocol buffer


def _example(channels: int) -> torch.Tensor:
    return torch.zeros(2, channels, 41, 59, dtype=torch.uint8)  # the axes may have another length when the graph runs


def to_onnx(model: Exported, channels: int) -> Any:
    """The graph as `onnx.ModelProto`, without the names of this machine's files that the exporter leaves in it."""
    options: dict[str, Any] = {"dynamo": True, "dynamic_shapes": {"image": AXES}, "opset_version": OPSET}
    outputs = ["probability"] if model.cut is None else ["probability", "label"]
    options |= {"input_names": ["image"], "output_names": outputs, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its own parts
        program = torch.onnx.export(model, (_example(channels),), **options)
    proto = program.model_proto  # type: ignore[union-attr]
    for node in proto.graph.node:
        del node.metadata_props[:]
    return proto


def onnx_bytes(proto: Any, about: Mapping[str, str]) -> bytes:
    """The file, with metadata.

    Raises:
        UserError: It is larger than such a file can be.
    """
    del proto.metadata_props[:]
    for key, value in about.items():
        proto.metadata_props.add(key=key, value=value)
    if proto.ByteSize() > LARGEST:
        raise UserError("--format onnx: a file holds 2 GB at most, and this model is larger; use torch_export")
    return proto.SerializeToString()


def run_onnx(content: bytes) -> Runner:
    """The file in ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda image: session.run(["probability"], {"image": image})[0]


def torch_export_bytes(model: Exported, channels: int, about: Mapping[str, str]) -> bytes:
    """The file of `torch.export.save`, with metadata as its extra file metadata.json."""
    dynamic = {axis: torch.export.Dim(name) for axis, name in AXES.items()}
    program = torch.export.export(model, (_example(channels),), dynamic_shapes={"image": dynamic})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names this machine's files
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"metadata.json": json.dumps(about, ensure_ascii=False)})
    return content.getvalue()


def run_torch(module: torch.nn.Module) -> Runner:
    """A module in PyTorch, on the CPU."""

    def run(image: np.ndarray) -> np.ndarray:
        found = module(torch.from_numpy(image))
        return (found[0] if isinstance(found, tuple) else found).numpy()

    return run
