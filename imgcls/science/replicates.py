"""Over what the arms of a question are repeated: seeds, random splits of the images, folds of cross-validation."""

from dataclasses import dataclass

from imgcls.science.groups import FOLD, SPLIT


@dataclass(frozen=True)
class Replicate:
    """One run of each arm.

    Attributes:
        seed: Of the run.
        name: Of its folder: `seed-N`, `seed-N-split-R` or `seed-N-split-R-fold-K`.
        options: Of its fit, which say how the images are split.
    """

    seed: int
    name: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Replicates:
    """The runs of each arm, in rounds: a round is one seed or, with folds or repeats, one repeat with all its seeds.

    Attributes:
        seeds: Of the runs on each split.
        folds: Each fold is the test part once; 0 without cross-validation.
        repeats: How many times the images are split anew; 0 leaves the split to the arms.
    """

    seeds: list[int]
    folds: int = 0
    repeats: int = 0

    @property
    def over(self) -> tuple[str, ...]:
        """Settings that tell the splits from one another, see `Group`."""
        return (FOLD, SPLIT) if self.folds else (SPLIT,) if self.repeats else ()

    @property
    def rounds(self) -> int:
        """How many rounds the question asks for."""
        return max(1, self.repeats) if self.over else len(self.seeds)

    def round(self, number: int) -> list[Replicate]:
        """A round, from 0; beyond those that the question asks for with the next seed or repeat."""
        if not self.over:
            beyond = max(self.seeds) + 1 + number - len(self.seeds)
            seed = self.seeds[number] if number < len(self.seeds) else beyond
            return [Replicate(seed, f"seed-{seed}")]
        split, tested = f"--data.split_seed={number}", (f"--data.folds={self.folds}", "--data.fold_part=test")
        found = []
        for seed in self.seeds:
            name = f"seed-{seed}-split-{number}"
            for fold in range(self.folds):
                found.append(Replicate(seed, f"{name}-fold-{fold}", (*tested, f"--data.fold={fold}", split)))
            if not self.folds:
                found.append(Replicate(seed, name, (split,)))
        return found

    def __str__(self) -> str:
        """Such as `seeds 0, 1, 2 on 2 splits of 5 folds`."""
        folds = f" of {self.folds} folds" if self.folds else ""
        splits = f" on {self.rounds} {'splits' if self.rounds > 1 else 'split'}{folds}" if self.over else ""
        return f"seeds {', '.join(map(str, self.seeds))}{splits}"


def over_of(name: str) -> tuple[str, ...]:
    """What the name of a run's folder says of `Replicates.over`."""
    return tuple(key for key in (FOLD, SPLIT) if f"-{key.rpartition('.')[2].removesuffix('_seed')}-" in name)
