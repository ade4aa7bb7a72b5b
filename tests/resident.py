"""How much memory a run needs, as Linux tells it: the peak of what is resident, VmHWM in
/proc/self/status, which can be set back."""

from pathlib import Path

from minilm_inf.terminal.progress import bytes_in


def reset_peak() -> int:
    """Set the mark of the peak back to what is resident now: bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_peak()


def resident_peak() -> int:
    """The peak of resident memory since it was last set back, in bytes."""
    return bytes_in("/proc/self/status")["VmHWM"]
