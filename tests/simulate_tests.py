"""How often tests of `compare` are wrong where the truth is known: `python tests/simulate_tests.py MODE`.

`splits`: real training, without networks. Of 7,000 images of the bundled sample (or 70,000: `--folder` with the four
files of Fashion-MNIST) some are drawn as a person's data set, and two classifiers of principal components are
cross-validated or tested on random splits; their true difference at that number of training images is measured on
images that were not drawn. Counted is how often the 95 % interval misses it, and its half width, both in per cent: by
test images and splits, and by the corrected resampled t-test of scores. `--metric qwk` takes the classes for ordered.

`seeds`: two groups of normal scores whose runs of the same seed are correlated. Counted is how often the interval of
their difference misses 0, and its half width in standard deviations of a score: with and without regard to the seeds.

`until`: planted runs with what seeds, images and both do; seeds are added until intervals are as wide as seven to ten
seeds make them, and counted is how often the interval then misses the true difference.

`map`: planted classifiers of images with several labels, whose logits are made of the label, times a strength that
varies with the seed, and of what the image, the method and the image, and the run and the image do. Counted is how
often the 95 % interval of the difference of the mean average precision misses the true one, that of very many images
and of all seeds (with one seed each: of those two models), and its half width, both in per cent: by resampled images
and seeds, and by the scores of the seeds alone.
"""

import argparse
import gzip
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np

from imgcls.data.splits import stratified_order
from imgcls.evaluate.resampled import MetricOf, mean, mean_average_precision, quadratic_weighted_kappa
from imgcls.science.bootstrap import chance_of_images, compare_resampled
from imgcls.science.planning import narrow_enough
from imgcls.science.resampling import ChanceOfImages, compare_splits, image_by_image
from imgcls.science.statistics import Comparison, compare_images, compare_scores

Classifier = Callable[[np.ndarray, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
CLASSES = 10


def ridge(penalty: float, components: int) -> Classifier:
    """Least squares on one-hot labels."""

    def predict(train: np.ndarray, label: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x, t = (np.c_[part[:, :components], np.ones(len(part))] for part in (train, test))
        return (t @ np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ np.eye(CLASSES)[label])).argmax(1)

    return predict


def random_features(hidden: int) -> Classifier:
    """Least squares on a random layer, another one in each fit: a network's seed."""

    def predict(train: np.ndarray, label: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        weight, bias = rng.normal(0, 1 / 3, (train.shape[1], hidden)), rng.normal(size=hidden)
        return ridge(3.0, hidden)(
            *(np.maximum(train @ weight + bias, 0), label, np.maximum(test @ weight + bias, 0)), rng
        )

    return predict


def nearest(train: np.ndarray, label: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of the nearest image."""
    x, t = train[:, :25], test[:, :25]
    return label[(2 * t @ x.T - (x**2).sum(1)).argmax(1)]


PAIRS: dict[str, tuple[Classifier, Classifier]] = {
    "equal but for the seed": (random_features(150), random_features(150)),
    "much noise of seeds": (random_features(25), random_features(30)),
    "60 or 25 components": (ridge(3.0, 60), ridge(3.0, 25)),
    "two penalties": (ridge(3.0, 60), ridge(30.0, 60)),
    "nearest neighbour": (ridge(3.0, 60), nearest),
}
DESIGNS = {"5 folds": (5, 1), "2 × 5 folds": (5, 2), "5 × 5 folds": (5, 5), "10 folds": (10, 1),
           "3 splits": (0, 3), "10 splits": (0, 10)}  # fmt: skip
TESTED = 0.2  # of the images of a random split


def population(folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Principal components (N, 60) and labels (N,)."""
    if folder is None:
        with np.load(str(files("imgcls.data") / "sample.npz")) as arrays:
            image = np.concatenate([arrays["train_image"], arrays["test_image"]])
            label = np.concatenate([arrays["train_label"], arrays["test_label"]])
    else:
        names = ("train", "t10k")
        read = [gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())[16:] for name in names]
        label = b"".join(gzip.decompress((folder / f"{n}-labels-idx1-ubyte.gz").read_bytes())[8:] for n in names)
        image, label = np.frombuffer(b"".join(read), np.uint8), np.frombuffer(label, np.uint8)
    x = image.reshape(len(label), -1).astype(np.float32) / 255
    x -= x.mean(0)
    x = (x @ np.linalg.eigh(x.T @ x)[1][:, :-61:-1]).astype(np.float64)
    return x / np.sqrt(x.std(0)), label.astype(np.int64)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], MetricOf]] = {
    "acc": lambda prediction, label: mean(prediction == label),
    "qwk": quadratic_weighted_kappa,
}


def predictions(pair: tuple[Classifier, Classifier], x: np.ndarray, y: np.ndarray, train: np.ndarray,
                test: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    """Of both classifiers and the truth, (3, M)."""
    return np.stack([*(predict(x[train], y[train], x[test], rng) for predict in pair), y[test]])


def difference(metric: str, predicted: np.ndarray) -> float:
    """Of the second classifier's metric from the first one's."""
    first, second = (METRICS[metric](one, predicted[2])(np.ones((predicted.shape[1], 1))) for one in predicted[:2])
    return float(second[0] - first[0])


def chance(metric: str, tests: list[np.ndarray], predicted: list[np.ndarray]) -> ChanceOfImages | None:
    """As `compare` has it for the metric."""
    if metric == "acc":
        right = [(of[1] == of[2]).astype(float) - (of[0] == of[2]) for of in predicted]
        return image_by_image(list(zip(tests, right, strict=True)))
    return chance_of_images(tests, [tuple([METRICS[metric](of[k], of[2])] for k in (1, 0)) for of in predicted])


def splits(repeats: int, folder: Path | None, metric: str) -> None:
    """Print a row for each size, pair and design."""
    x, y = population(folder)
    rng = np.random.default_rng(0)
    print(
        f"{'images':>6}  {'pair':<24}{'design':<13}{'images and splits':>22}{'corrected resampled':>22}  (missed, half)"
    )
    for count in (100, 250, 600):
        for name, pair in PAIRS.items():
            for design, (folds, times) in DESIGNS.items():
                held = round(count / folds if folds else count * TESTED)
                draws = [rng.permutation(len(y))[: count - held + 4000] for _ in range(400)]
                truth = 0.0 if pair[0] is pair[1] or "equal" in name else float(np.mean([
                    difference(metric, predictions(pair, x, y, draw[: count - held], draw[count - held :], rng))
                    for draw in draws
                ]))  # fmt: skip
                missed, half = np.zeros(2), np.zeros(2)
                for _ in range(repeats):
                    own = rng.permutation(len(y))[:count]
                    tested, predicted = [], []
                    for _ in range(times):
                        order = stratified_order(y[own], int(rng.integers(2**31)))
                        for test in np.array_split(order, folds) if folds else [order[:held]]:
                            train = np.setdiff1d(order, test)
                            tested.append(test)
                            predicted.append(predictions(pair, x[own], y[own], train, test, rng))
                    scores = [difference(metric, of) for of in predicted]
                    zero = [0.0] * len(scores)
                    ratio = held / (count - held)
                    for k, known in enumerate((chance(metric, tested, predicted), None)):
                        found = compare_splits(scores, zero, ratio, known).difference
                        missed[k] += not found.low <= truth <= found.high
                        half[k] += (found.high - found.low) / 2
                columns = (
                    f"{100 * m / repeats:.1f}  {100 * h / repeats:.1f}" for m, h in zip(missed, half, strict=True)
                )
                print(f"{count:>6}  {name:<24}{design:<13}" + "".join(f"{text:>22}" for text in columns), flush=True)


def seeds(repeats: int) -> None:
    """Print a row for each number of seeds, correlation, and ratio of the groups' variances."""
    rng = np.random.default_rng(0)
    print(f"{'seeds':>5}{'r':>6}{'ratio':>7}{'without':>18}{'of the same seeds':>20}  (missed, half)")
    for count in (3, 5, 8, 12):
        for correlation in (0.0, 0.3, 0.6, 0.9):
            for ratio in (1, 3):
                missed, half = np.zeros(2), np.zeros(2)
                for _ in range(repeats):
                    first = rng.normal(size=count)
                    own = rng.normal(size=count)
                    second = np.sqrt(ratio) * (correlation * first + np.sqrt(1 - correlation**2) * own)
                    for k in range(2):
                        found = compare_scores(first, second, bool(k)).difference
                        missed[k] += not found.low <= 0 <= found.high
                        half[k] += (found.high - found.low) / 2
                columns = (f"{100 * m / repeats:.1f}  {h / repeats:.2f}" for m, h in zip(missed, half, strict=True))
                print(f"{count:>5}{correlation:>6}{ratio:>7}" + "".join(f"{text:>18}" for text in columns), flush=True)


def until(repeats: int) -> None:
    """Print a row for each number of images and spread of seeds."""
    rng = np.random.default_rng(1)
    print(f"{'images':>6}{'spread':>8}{'width':>8}  {'by':<8}{'seeds':>6}{'missed, %':>11}")
    for count in (1000, 10_000):
        for spread in (0.05, 0.15, 0.3):
            for by in ("images", "scores"):
                pilot = [_planted(rng, count, spread, 8) for _ in range(40)]
                width = float(np.median([c.high - c.low for c in (_test(by, *p).difference for p in pilot)]))
                missed, seeds = 0, []
                for _ in range(repeats):
                    group, base = _planted(rng, count, spread, 40)
                    for made in range(3, 41):
                        found = _test(by, group[:made], base[:made])
                        if narrow_enough(found, width):
                            break
                    seeds.append(made)
                    missed += not found.difference.low <= 0 <= found.difference.high
                print(
                    f"{count:>6}{spread:>8}{width:>8.4f}  {by:<8}{np.mean(seeds):>6.1f}{100 * missed / repeats:>11.1f}",
                    flush=True,
                )


def _planted(rng: np.random.Generator, images: int, spread: float, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Two groups of runs (S, M) that are equal but for chance: 0.87 right, images easy or hard."""
    ease = np.clip(rng.beta(1.04, 0.16, images), 1e-3, 1 - 1e-3)
    logit = np.log(ease / (1 - ease))
    noisy = logit + rng.normal(0, spread, (2, seeds, 1)) + rng.normal(0, 0.5, (2, seeds, images))
    group, base = rng.random(noisy.shape) < 1 / (1 + np.exp(-noisy))
    return group, base


def _test(by: str, group: np.ndarray, base: np.ndarray) -> Comparison:
    return compare_images(group, base) if by == "images" else compare_scores(group.mean(1), base.mean(1))


LABELS, STRENGTHS = 5, np.array([1.8, 1.5])


def several_labels(rng: np.random.Generator, images: int, strength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (2, S, M, K) of two groups of runs of some strengths (2, S), and labels (M, K), rare and frequent ones."""
    label = rng.random((images, LABELS)) < np.linspace(0.05, 0.4, LABELS)
    ease, of_method = rng.normal(0, 1, label.shape), rng.normal(0, 0.5, (2, 1, *label.shape))
    own = rng.normal(0, 0.5, (*strength.shape, *label.shape))
    return strength[..., None, None] * label + ease + of_method + own, label


def average_precision(repeats: int) -> None:
    """Print a row for each number of images, spread of the seeds' strengths, and number of seeds."""
    rng = np.random.default_rng(2)
    grid, known = np.linspace(0.2, 3.2, 31), []
    for strength in grid:
        logits, label = several_labels(rng, 100_000, np.full((1, 1), strength))
        known.append(mean_average_precision(logits[0, 0], label)(np.ones((len(label), 1), np.int16))[0])
    of_strength = np.polynomial.Polynomial.fit(grid, known, 6)
    of_seeds = rng.normal(size=100_000)
    print(f"{'images':>6}{'spread':>8}{'seeds':>6}{'images and seeds':>20}{'scores':>16}  (missed, half)")
    for count in (100, 500):
        whole = np.ones((count, 1), np.int16)
        for spread in (0.03, 0.15):
            for made in (1, 3, 5):
                missed, half = np.zeros(2), np.zeros(2)
                for _ in range(repeats):
                    strength = STRENGTHS[:, None] * (1 + spread * rng.normal(size=(2, made)))
                    logits, label = several_labels(rng, count, strength)
                    meant = strength if made == 1 else STRENGTHS[:, None] * (1 + spread * of_seeds)
                    truth = float(np.subtract(*of_strength(meant).mean(1)))
                    group, base = ([mean_average_precision(run, label) for run in side] for side in logits)
                    scores = [[metric_of(whole)[0] for metric_of in side] for side in (group, base)]
                    tests = compare_resampled(group, base, count), compare_scores(*scores)
                    for k, found in enumerate(test.difference for test in tests):
                        missed[k] += not found.low <= truth <= found.high
                        half[k] += (found.high - found.low) / 2
                figures = zip(missed, half, strict=True)
                columns = (f"{100 * m / repeats:.1f}  {100 * h / repeats:.1f}" if h == h else "–" for m, h in figures)
                print(f"{count:>6}{spread:>8}{made:>6}" + "".join(f"{text:>18}" for text in columns), flush=True)


def main() -> None:
    """Simulate one of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", choices=["splits", "seeds", "until", "map"])
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--metric", choices=METRICS, default="acc", help="of splits")
    options = parser.parse_args()
    if options.test == "splits":
        splits(options.repeats, options.folder, options.metric)
    else:
        {"seeds": seeds, "until": until, "map": average_precision}[options.test](options.repeats)


if __name__ == "__main__":
    main()
