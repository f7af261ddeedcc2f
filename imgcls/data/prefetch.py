"""Batches that are on their way to a GPU while the one before is trained on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch
from torch import Tensor

from imgcls.images.sources import Batch

AHEAD = 2


class SideStream:
    """A stream of a CUDA device on which batches arrive; the host waits for none of them."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def send(self, to_device: Callable[[Batch], Batch], batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        """Begin to bring a batch to the device; it is there when the event has come."""
        with torch.cuda.stream(self.stream):
            return to_device(batch), self.stream.record_event()

    def receive(self, batch: Batch, arrived: torch.cuda.Event) -> Batch:
        """The batch for the current stream, which waits for it, and until whose use of it its memory stays its own."""
        user = torch.cuda.current_stream(self.device)
        user.wait_event(arrived)
        for value in batch.values():
            if isinstance(value, Tensor):
                value.record_stream(user)
        return batch


@cache  # the allocator keeps memory apart for each stream
def side_stream(device: torch.device | None) -> SideStream | None:
    """The one of a CUDA device; None for others."""
    return SideStream(device) if device is not None and device.type == "cuda" else None


def ahead(batches: Iterable[Batch], to_device: Callable[[Batch], Batch], side: SideStream | None) -> Iterator[Batch]:
    """Batches on the device in their order, of which the next two are on their way when one is handed over.

    An epoch's order and the position in it, which a resumed run goes on from, know nothing of it: both count batches
    that were trained on.

    Args:
        batches: As they are fetched, in pinned memory.
        to_device: Brings one to the device, without waiting.
        side: Where; None: each when its turn has come.
    """
    if side is None:
        yield from map(to_device, batches)
        return
    sent: deque[tuple[Batch, torch.cuda.Event]] = deque()
    for batch in batches:
        sent.append(side.send(to_device, batch))
        if len(sent) > AHEAD:
            yield side.receive(*sent.popleft())
    while sent:
        yield side.receive(*sent.popleft())
