"""Draw the bundled sample from the original files: `python experiments/make_sample.py FOLDER`.

FOLDER holds the four files of Fashion-MNIST as they are published, `train-images-idx3-ubyte.gz` and so on
(Debian: package `dataset-fashion-mnist`, folder /usr/share/datasets/fashion-mnist).
"""

import gzip
import sys
from pathlib import Path

import numpy as np

SEED = 0
PER_CLASS = {"train": 600, "t10k": 100}


def read(path: Path, header: int) -> np.ndarray:
    """The bytes of an IDX file after its header, uint8 (N,)."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def main(folder: Path) -> None:
    """Write imgcls/data/sample.npz: images (N, 28, 28) and labels (N,), both uint8, for train and test."""
    rng = np.random.default_rng(SEED)
    arrays: dict[str, np.ndarray] = {}
    for part, count in PER_CLASS.items():
        image = read(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        label = read(folder / f"{part}-labels-idx1-ubyte.gz", 8)
        chosen = np.sort(
            np.concatenate([rng.choice(np.flatnonzero(label == c), count, replace=False) for c in range(10)])
        )
        name = {"train": "train", "t10k": "test"}[part]
        arrays |= {f"{name}_image": image[chosen], f"{name}_label": label[chosen]}
    np.savez_compressed(Path(__file__).parents[1] / "imgcls/data/sample.npz", **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
