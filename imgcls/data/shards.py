"""Images of any number from tar files, in a folder or a store, in memory that does not grow with them.

The format: WebDataset's tar files, uncompressed, and beside them an index of where each image begins. Measured on
3,000 JPEG images of 27 kB, one process, bytes alone, median of five: tar with index 81,000 images/s in order and
73,000 in random order; single files 31,000; Parquet 98,000 in order, but 4,000 and 1,700 in random order with row
groups of 16 and 64 images, all of which are read for one; WebDataset's own reader, which knows no random order,
8,000. With decoding (1,350 images/s) they differ by less than the machine's noise, except for Parquet in random
order. The index gives what streaming readers give up, an image by its number: so our own splits, order,
evaluation without repeats and exact resume hold here too. Nothing new is installed, and `tar` reads a pack. LitData's
chunks, which only LitData reads, were not measured.

Memory: the index is mapped and its pages are given back shard by shard, an epoch's order is sampled as it is needed,
and shards are read by the piece. The main process of a fit took 913 MB at most with 2,000 images, 915 with 200,000
and 922 with a million (`tests/measure_shards.py` measures the loaders alone, workers included).

ImageNet-1k, on paper (1.28 M images of 110 kB, 140 GB): 1,400 shards of 100 MB, 9,000 images mixed by a window of 10.
The index has 41 MB, the names 54 MB, both mapped; each process holds 11 MB (measured: 8.6 bytes an image), and 0.2 MB
for the order of an epoch (23 MB where all are shuffled at once). A GPU that trains 2,500 images/s reads 275 MB/s and
needs 4 cores to decode (measured: 630 images/s and core, 500×375 pixels to 224); eight of them 2.2 GB/s, 32 cores,
and a `download_gb` of 16.

A billion images, on paper (110 TB): `pack --shard_mb=1000` makes 110,000 shards; a window of 10 mixes 90,000 images.
The index has 32 GB and the names 42 GB on each machine's disk; a start reads the index once, to check labels. The
order stays flat, and resuming at the end of an epoch takes 14 s on each of 8 processes (measured: 0.11 s for a
million). What breaks, first things first: packing, one process after all images were decoded once, 18 days on one
core (pack on many machines and join their indices); 8.6 bytes an image are 9 GB in each process (ranges in place of
lists of numbers); a validation part that is carved in training, or `balanced` sampling, hold 16 to 24 bytes an image
and sort them for half an hour (`pack` carves, so that training need not).
"""

from typing import Any

from imgcls.data.base import ImageDataModule, Part
from imgcls.data.options import check, refuse_other_order
from imgcls.errors import UserError
from imgcls.images.shard_files import shard_files
from imgcls.images.shards import ShardSource
from imgcls.images.sources import Source
from imgcls.tasks import SINGLE_LABEL

GB = 1e9


class ShardData(ImageDataModule):
    """A pack that `python -m imgcls pack` wrote: images of any source in tar files, in a folder or at a URL.

    An epoch reads shard after shard and mixes the images of `window` of them, see `mixed_blocks`; a pack with no more
    than that is shuffled as any other source. `balanced` sampling, and `repeats`, read any shard at any time. Training
    images were put into the pack in random order. Whatever the order, it follows from (seed, epoch): processes share it
    without overlap, and a resumed run goes on within it.

    Args:
        root: Folder or URL of the pack: s3://…, gs://…, https://….
        window: Shards among which an epoch's order mixes.
        download_to: Folder for shards that come from a URL. Default: imgcls/shards in the user's cache.
        download_gb: Room for them, in GB; it must hold twice the window of each process on a machine.
    """

    def __init__(
        self,
        root: str | None = None,
        window: int = 10,
        download_to: str | None = None,
        download_gb: float = 50.0,
        **kwargs: Any,
    ) -> None:
        if root is None:
            raise UserError("--data.root: give the folder or URL of a pack")
        check(window > 0, "window", window, "a positive number of shards")
        self.files, self.window = shard_files(root, download_to, download_gb * GB), window
        facts = self.files.facts
        self.class_names, self.native_size = facts["class_names"], facts["size"]
        self.native_task = facts.get("task", SINGLE_LABEL)
        self.native_channels, self.native_mean, self.native_std = facts["channels"], facts["mean"], facts["std"]
        largest = max(size for part in facts["parts"].values() for _, size in part["shards"])
        if "://" in root and 2 * window * largest > download_gb * GB:
            raise UserError(
                f"--data.download_gb: {download_gb} has no room for twice --data.window {window} shards of "
                f"{largest / GB:.3g} GB; give more room or a smaller window"
            )
        super().__init__(root=root, **kwargs)
        if self.task != self.native_task:
            refuse_other_order(self.in_order(self.class_names), self.class_names)
        self.value_range = self.value_range or facts.get("value_range", "none")

    def has_official(self, part: Part) -> bool:  # noqa: D102
        return part in self.files.facts["parts"]

    def open(self, part: Part) -> Source:  # noqa: D102
        return ShardSource(self.files, part, self.window)

    def setup_training_parts(self) -> None:  # noqa: D102
        super().setup_training_parts()
        if not self.split_options.folds and self.has_official("val") and self.has_official("test"):
            self.fingerprint = self.files.facts["fingerprint"]  # the parts are those of the data that was packed
        for _, index in self.parts.values():
            index.sort()  # as they lie
