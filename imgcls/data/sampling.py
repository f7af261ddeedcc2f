"""Which image comes when: the order of an epoch, and the share of a process."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import SequentialSampler

from imgcls.errors import UserError
from imgcls.images.sources import Blocks
from imgcls.tasks import Pairs


def with_unlabelled(pairs: Pairs, count: int) -> Pairs:
    """Image and class of each label; of N images those without one are a class more, which comes last."""
    image, of = pairs
    none = np.flatnonzero(np.bincount(image, minlength=count) == 0)
    return np.append(image, none), np.append(of, np.full(len(none), of.max(initial=-1) + 1))


def balanced(pairs: Pairs, count: int) -> np.ndarray:
    """Probability (N,) of each image with which all classes are sampled alike: each label adds 1 / n of its class.

    Where images have several labels, the classes that go with others come more often.

    Args:
        pairs: Image and class of each label, (P,) int64 each. Images without one are a class of their own.
        count: Number of images N.
    """
    image, of = with_unlabelled(pairs, count)
    probability = np.bincount(image, 1.0 / np.bincount(of)[of])
    return probability / probability.sum()


def mixed_blocks(
    size: int, blocks: Blocks, rank: int, world_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """A process's share of an epoch in pieces, so that it reads few blocks at a time, each in one stretch of time.

    Blocks come in random order. The processes take successive stretches of it, all of N // world_size positions,
    which begin elsewhere in every epoch. Each position waits a random time, up to that of `window` blocks: the next
    block is needed when a share of 1 / window of the one before is due. Memory is that of `window` blocks.

    Args:
        size: Number of positions N.
        blocks: Of all positions.
        rank: The process among `world_size`.
        world_size: Number of processes.
        rng: In the same state in all processes.
    """
    order = rng.permutation(len(blocks.start))
    length = np.diff(blocks.start, append=size)[order]
    left = size // world_size
    first = (rng.integers(size) + rank * left) % size
    rng = np.random.default_rng(rng.integers(2**63, size=world_size)[rank])
    block = int(np.searchsorted(np.cumsum(length), first, side="right"))
    inside = int(first - length[:block].sum())
    held, due, time = np.empty(0, np.int64), np.empty(0), 0
    while left:
        count = min(int(length[block]) - inside, left)
        held = np.append(held, blocks.start[order[block]] + np.arange(inside, inside + count))
        due = np.append(due, time + blocks.window * rng.random(count))
        left, inside, block, time = left - count, 0, (block + 1) % len(order), time + 1
        if left:
            blocks.ahead(int(order[block]))
        now = due < time if left else np.full(len(due), True)
        yield held[now][np.argsort(due[now])]
        held, due = held[~now], due[~now]


LARGEST_TAIL = 0.05
REPEATS = 1 << 20  # above the number of times that an image comes in an epoch


def drawn(epoch: int) -> int:
    """Number of the first draw of an image in an epoch."""
    return epoch * REPEATS


class TrainBatches(SequentialSampler):
    """Full batches of positions for one process; the order is a pure function of (seed, epoch).

    Batches are of one size, so that shapes stay fixed for torch.compile and BatchNorm never sees a single
    image: the tail of each epoch's order is left out, and it differs from epoch to epoch. Where that would leave
    out more than a twentieth of a small set, it is cut into one batch more, all a little smaller, if that leaves
    out less.

    Args:
        size: Number of images N.
        batch_size: Images of one batch of one process.
        seed: The run's seed.
        rank: This process among `world_size`.
        world_size: Number of processes; they share each epoch's order without overlap.
        probability: Probability (N,) of each image, sampled with replacement; None shuffles all images.
        repeats: Times that each image follows itself, shared by the processes; the epoch stays as long.
        blocks: Where reading together matters: images are shuffled by blocks, unless `probability` or `repeats` is
            given or there are no more blocks than the window has.
        draws: Yield position + N * draw: crops are drawn by the epoch, and where an image comes several times in it by
            how often it came before.

    Attributes:
        fixed: Whether each epoch has the order of the first, as `overfit_batches` asks for. Lightning would put in a
            sampler of single images, were ours not sequential ones by name.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        probability: np.ndarray | None = None,
        repeats: int = 1,
        blocks: Blocks | None = None,
        draws: bool = False,
    ) -> None:
        self.size, self.seed, self.rank, self.world_size = size, seed, rank, world_size
        share = size // world_size
        if share == 0:
            raise UserError(f"data: {size} training images cannot be shared by {world_size} processes")
        whole, tail = divmod(share, batch_size)
        smaller = share // (whole + 1)
        spares = tail > max(LARGEST_TAIL * share, share % (whole + 1))
        self.batch_size = smaller if spares else batch_size
        self.probability, self.repeats = probability, repeats
        self.draws = draws
        few = blocks is None or len(blocks.start) <= blocks.window
        self.blocks = None if few or probability is not None or repeats > 1 else blocks
        self.epoch = 0
        self.resume_at, self.fixed = (0, 0), False

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        epoch, done = self.resume_at
        start = done if epoch == self.epoch else 0
        skip, left = start * self.batch_size, len(self) - start
        ready = np.empty(0, np.int64)
        draw = self.size * drawn(self.epoch) if self.draws else 0
        for piece in self._order():
            ready, skip = np.append(ready, piece[skip:]), max(0, skip - len(piece))
            count = min(len(ready) // self.batch_size, left)
            for batch in range(count):
                yield (draw + ready[batch * self.batch_size : (batch + 1) * self.batch_size]).tolist()
            ready, left = ready[count * self.batch_size :], left - count

    def _order(self) -> Iterator[np.ndarray]:
        """Positions of this process in the epoch's order, in pieces."""
        rng = np.random.default_rng((self.seed, 0 if self.fixed else self.epoch))
        if self.blocks is not None:
            yield from mixed_blocks(self.size, self.blocks, self.rank, self.world_size, rng)
            return
        if self.probability is None:
            order = rng.permutation(self.size)
        else:
            order = rng.choice(self.size, self.size, p=self.probability)
        order = order.repeat(self.repeats)[: self.size]
        if self.draws and (self.repeats > 1 or self.probability is not None):
            order = order + self.size * _times_before(order)
        yield order[self.rank :: self.world_size]


def _times_before(order: np.ndarray) -> np.ndarray:
    """How often each number of an order (N,) came before in it, (N,) int64."""
    place = np.argsort(order, kind="stable")
    together, before = order[place], np.empty_like(order)
    before[place] = np.arange(len(order)) - np.searchsorted(together, together)
    return before


class EvalBatches(SequentialSampler):
    """Every position exactly once over all processes: a strided share each, none repeated to fill up.

    All have as many batches, as FSDP's need one another in each: one image too many makes the last one larger.

    Args:
        size: Number of images N.
        batch_size: Images of one batch of one process.
        rank: This process among `world_size`.
        world_size: Number of processes.
        start: The first position that is wanted, for predictions: a process without any then repeats the last one,
            as Lightning refuses an empty loader.
        draw: Yield position + N * draw, see `TrainBatches`.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start: int | None = None,
        draw: int = 0,
    ) -> None:
        self.positions = range((start or 0) + rank, size, world_size)
        if start is not None and not self.positions:
            self.positions = range(size - 1, size)
        self.batch_size, self.offset = batch_size, draw * size
        least = max(1, (size - (start or 0)) // world_size)
        self.batches = -(-min(least, len(self.positions)) // batch_size)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        for number in range(self.batches):
            end = (number + 1) * self.batch_size if number + 1 < self.batches else None
            yield [self.offset + position for position in self.positions[number * self.batch_size : end]]


def position(trainer: Any) -> list[int]:
    """Epoch of a Lightning Trainer, and the batches done of it if it is under way: where a resumed run goes on."""
    if not trainer:
        return [0, 0]
    loop = trainer.fit_loop
    under_way = loop.epoch_progress.current.started > loop.epoch_progress.current.completed
    return [trainer.current_epoch, loop.epoch_loop.batch_progress.current.processed if under_way else 0]
