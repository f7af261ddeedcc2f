"""Does an interval continued to four times the images hold what training on them gives? On the bundled sample.

    python tests/measure_extrapolation.py [--repeats 40] [--learners ridge,patches …] [--curves FILE.json]

In each repeat another 600 of the 6,000 training images choose a penalty or a length of training, and random subsets of
162 to 1,350 of the other 5,400 are trained on, three of each size. `fit_power_law` continues their test accuracies to
2,700 and 5,400, and the interval is held against the mean over repeats that was measured there. Prints for each learner
how often it holds that and how wide it is. CPU time of 40 repeats: ridge 3 minutes, nearest 2, patches 3, mlp 11,
logistic 19, cnn 100; with --curves, accuracies are read from FILE, those not in it yet are measured and added.

Intervals that held it, of 40: at four times the images ridge 39 (mean width 0.043), nearest 40 (0.053), patches 37
(0.041), logistic 40 (0.042), mlp 39 (0.047); at twice 39, 40, 39, 40, 37 (0.028 to 0.036).
"""

import argparse
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.data.sample import SampleData
from imgcls.finetune.base import Features
from imgcls.finetune.logistic_probe import LogisticProbe
from imgcls.losses import CrossEntropy
from imgcls.models.cnn import CNN
from imgcls.science.power_law import fit_power_law

SIZES, FURTHER, SUBSETS, VALIDATION = (162, 243, 338, 472, 675, 945, 1350), (2700, 5400), 3, 600
STEPS, BATCH = 400, 64
Part = tuple[Tensor, Tensor]


@cache
def sample(part: str) -> Part:
    """Images (N, 1, 28, 28) float32 in 0..1 and labels (N,) of the bundled sample."""
    source = SampleData().open(part)
    images = torch.from_numpy(np.stack([np.asarray(source.original(k).image) for k in range(len(source))]))
    return images[:, None].float() / 255, torch.from_numpy(source.label)


@cache
def patches(part: str) -> Part:
    """Features (N, 400) by random patches as filters (Coates, Lee and Ng, AISTATS 2011), maps pooled to 2 × 2."""
    image, label = sample(part)
    rng = np.random.default_rng(0)
    train, _ = sample("train")
    spots = [(*rng.integers(0, 22, 2), rng.integers(len(train))) for _ in range(100)]
    filters = torch.stack([train[k, :, y : y + 7, x : x + 7] for y, x, k in spots])
    filters = F.normalize((filters - filters.mean((2, 3), keepdim=True)).flatten(1), dim=1).view_as(filters)
    maps = [F.adaptive_avg_pool2d(F.conv2d(batch, filters).sub(0.3).relu(), 2).flatten(1) for batch in image.split(250)]
    return torch.cat(maps), label


def pixels(part: str) -> Part:
    """Pixels (N, 784)."""
    image, label = sample(part)
    return image.flatten(1), label


def ridge(train: Part, val: Part, test: Part) -> float:
    """Least squares on one-hot labels; the penalty is chosen on validation."""
    mean, scale = train[0].mean(0), train[0].std()
    x, other, tested = (((part[0] - mean) / scale).double() for part in (train, val, test))
    target = F.one_hot(train[1], 10).double() - 0.1
    wide = x.shape[1] > len(x)
    value, vector = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    side = vector.T @ (target if wide else x.T @ target)
    found = []
    for strength in 10.0 ** torch.arange(-1, 6, 0.5):
        weight = vector @ (side / (value.clamp(min=0) + strength)[:, None])
        weight = x.T @ weight if wide else weight
        found.append(
            [float(((p @ weight).argmax(1) == y).double().mean()) for p, y in ((other, val[1]), (tested, test[1]))]
        )
    return max(found)[1]


def logistic(train: Part, val: Part, test: Part) -> float:
    """The package's logistic probe on pixels, 2 × 2 of them together."""
    few = [(F.avg_pool2d(x.view(-1, 1, 28, 28), 2).flatten(1), y) for x, y in (train, val, test)]
    head = nn.Linear(196, 10)
    parts = [Features(feature[:, None], label) for feature, label in few[:2]]
    LogisticProbe().solve(head, *parts, CrossEntropy())
    return float((head(few[2][0]).argmax(1) == test[1]).float().mean())


def nearest(train: Part, val: Part, test: Part) -> float:
    """The nearest neighbour."""
    return float((train[1][torch.cdist(test[0], train[0]).argmin(1)] == test[1]).float().mean())


def by_steps(model: nn.Module, train: Part, val: Part, test: Part) -> float:
    """A network trained for as many steps whatever the images; the best of four validations is tested."""
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, STEPS)
    order, found = torch.cat([torch.randperm(len(train[0])) for _ in range(BATCH * STEPS // len(train[0]) + 1)]), []
    for step in range(STEPS):
        at = order[step * BATCH : (step + 1) * BATCH]
        optimizer.zero_grad()
        F.cross_entropy(model(train[0][at]), train[1][at]).backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % (STEPS // 4) == 0:
            with torch.no_grad():
                model.eval()
                found.append([float((model(x).argmax(1) == y).float().mean()) for x, y in (val, test)])
                model.train()
    return max(found)[1]


def mlp(train: Part, val: Part, test: Part) -> float:
    """Fully connected layers on pixels."""
    layers = [nn.BatchNorm1d(784), nn.Linear(784, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)]
    return by_steps(nn.Sequential(*layers), train, val, test)


def cnn(train: Part, val: Part, test: Part) -> float:
    """The package's small CNN, on images of 14 × 14."""
    few = [(F.avg_pool2d(x.view(-1, 1, 28, 28), 2), y) for x, y in (train, val, test)]
    return by_steps(nn.Sequential(CNN(1, 14, depth=4, width=16), nn.Linear(32, 10)), *few)


LEARNERS: dict[str, tuple[Callable[[str], Part], Callable[[Part, Part, Part], float]]] = {
    "ridge": (pixels, ridge),
    "patches": (patches, ridge),
    "logistic": (pixels, logistic),
    "nearest": (pixels, nearest),
    "mlp": (pixels, mlp),
    "cnn": (pixels, cnn),
}


def curve(learner: str, repeat: int) -> dict[str, list[float]]:
    """Test accuracies by number of training images: three random subsets of each size, one of those beyond."""
    features, train = LEARNERS[learner]
    (x, y), test = features("train"), features("test")
    rng = np.random.default_rng(repeat)
    torch.manual_seed(repeat)
    order = rng.permutation(len(x))
    val, pool = order[:VALIDATION], order[VALIDATION:]
    found: dict[str, list[float]] = {}
    for size in (*SIZES, *FURTHER):
        for _ in range(SUBSETS if size in SIZES else 1):
            at = rng.permutation(pool)[:size]
            found.setdefault(str(size), []).append(train((x[at], y[at]), (x[val], y[val]), test))
    return found


def main() -> None:
    """Print a row for each learner."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--learners", default=",".join(LEARNERS))
    parser.add_argument("--curves", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(options.curves.read_text()) if options.curves and options.curves.exists() else {}
    for learner in options.learners.split(","):
        for repeat in range(options.repeats):
            if f"{learner} {repeat}" not in known:
                known[f"{learner} {repeat}"] = curve(learner, repeat)
                if options.curves:
                    options.curves.write_text(json.dumps(known))
        print(f"{learner:<9}" + report([known[f"{learner} {repeat}"] for repeat in range(options.repeats)]), flush=True)


def report(curves: list[dict[str, list[float]]]) -> str:
    """How often the intervals hold the mean accuracy that was measured, and their mean width and error."""
    laws = [fit_power_law(SIZES, [of[str(size)] for size in SIZES], 5e-4) for of in curves]
    words = []
    for images in FURTHER:
        true = float(np.mean([of[str(images)] for of in curves]))
        found = [law.accuracy(images) for law in laws if law]
        held, width = np.mean([e.low <= true <= e.high for e in found]), np.mean([e.high - e.low for e in found])
        error = np.mean([e.value - true for e in found])
        words.append(f"{images}: {true:.3f} held {held:.3f}, width {width:.3f}, error {error:+.4f}")
    return "; ".join([f"{len(curves)} repeats", *words])


if __name__ == "__main__":
    main()
