"""Weights and activations of an ONNX graph as 8-bit integers, and what that costs and gains."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from timeit import timeit
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from imgcls.deploy.formats import Runner

LAYERS, AFTER_A_LAYER = ("Conv", "Gemm", "MatMul"), ("Relu", "Clip", "MaxPool")
ROUNDS = 15


class _Batches(CalibrationDataReader):
    def __init__(self, batches: Iterable[np.ndarray]) -> None:
        self.inputs = ({"image": image} for image in batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)


def quantize(proto: onnx.ModelProto, batches: Iterable[np.ndarray]) -> onnx.ModelProto:
    """Static quantisation in QDQ form: one scale per output channel of a weight, one per activation.

    What has weights is quantised from the first such layer on, with the activation function and pooling after it. The
    preprocessing keeps its whole grey levels; products of two activations (attention) and sums (residuals) keep their
    precision too. Activations are unsigned: signed ones ran at half the speed on x86.

    Args:
        proto: The float graph.
        batches: uint8 images (B, C, H, W), from whose activations the scales follow.
    """
    with TemporaryDirectory() as folder:
        given, prepared, quantized = (Path(folder, f"{name}.onnx") for name in ("float32", "prepared", "int8"))
        onnx.save(proto, given)  # a graph in memory would be written in parts, and the parts not be found again
        quant_pre_process(given, prepared, skip_symbolic_shape=True)  # BatchNorm becomes part of its convolution
        graph = onnx.load(prepared).graph
        weights = {tensor.name for tensor in graph.initializer}
        layers = [node.op_type in LAYERS and not weights.isdisjoint(node.input) for node in graph.node]
        before = layers.index(True)
        kept = [n.name for k, n in enumerate(graph.node) if k < before or (n.op_type in LAYERS and not layers[k])]
        types: dict[str, Any] = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8}
        types |= {"op_types_to_quantize": [*LAYERS, *AFTER_A_LAYER], "nodes_to_exclude": kept, "per_channel": True}
        quantize_static(prepared, quantized, _Batches(batches), **types)
        return onnx.load(quantized)


def cost(
    before: Runner,
    after: Runner,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    score: Callable[[np.ndarray, np.ndarray], float],
) -> dict[str, Any]:
    """Scores of two graphs on the same images, and how many times faster the second is on this machine's CPU.

    Args:
        before: The float graph.
        after: The other one.
        batches: uint8 images (B, C, H, W) and their labels; the first batch is timed, alternately with both, and the
            fastest rounds are compared, as whatever else runs on the machine only slows.
        score: Of probabilities (N, K) and labels, such as accuracy, `acc_float32` and `acc_int8` of the result.
    """
    found: list[tuple[np.ndarray, ...]] = []
    for image, label in batches:
        if not found:
            timed = image
        found.append((label, before(image), after(image)))
    labels, *probabilities = (np.concatenate(of) for of in zip(*found, strict=True))
    seconds = [[timeit(partial(run, timed), number=1) for run in (before, after)] for _ in range(ROUNDS)]
    fastest = np.min(seconds, axis=0)
    scores = {f"acc_{name}": score(of, labels) for name, of in zip(("float32", "int8"), probabilities, strict=True)}
    return {"images": len(labels), **scores, "speed_up": float(fastest[0] / fastest[1])}
