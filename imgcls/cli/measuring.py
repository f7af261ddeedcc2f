"""Time and memory, of a device that works on while the host goes on."""

import resource
import sys
import time

import torch


def now(device: torch.device) -> float:
    """Seconds on a clock that is read once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> float:
    """The most memory that was in use, of the device or on a CPU of the process, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
