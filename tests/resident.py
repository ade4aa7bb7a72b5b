"""How much memory a run needs, as Linux tells it: the peak of what is resident, VmHWM in
/proc/self/status, which can be set back. Only with a C library that hands back what is freed
does it say what was needed, and not what was kept for later; glibc can be told to."""

import ctypes
from pathlib import Path

from minilm_inf.terminal.progress import bytes_in

M_MMAP_THRESHOLD = -3  # mallopt's number


def keep_no_freed_memory():
    """Have the C library return at once, from now on, what is freed of a tensor."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)


def hand_back_freed_memory():
    """Have the C library return to the system what it keeps for later."""
    ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> int:
    """Set the mark of the peak back to what is resident now: bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_peak()


def resident_peak() -> int:
    """The peak of resident memory since it was last set back, in bytes."""
    return bytes_in("/proc/self/status")["VmHWM"]
