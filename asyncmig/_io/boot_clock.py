"""The clock that counts from boot, and the id of the boot: for times in files that several processes share.

Within one boot, this clock is the same for all processes, and setting the wall clock does not change it.
"""

import time
from pathlib import Path

__all__ = ["boot_id", "boot_time"]


def boot_id() -> str | None:
    """Return the id of this boot, 32 hexadecimal digits; None on a system without one, or without such a clock."""
    try:
        time.clock_gettime(time.CLOCK_BOOTTIME)
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")
    except (AttributeError, OSError, ValueError):
        return None


_HAS_BOOT_CLOCK = boot_id() is not None


def boot_time() -> float:
    """Return the seconds since boot, including suspended time; on a system without `boot_id`, the wall clock."""
    if _HAS_BOOT_CLOCK:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time()  # noqa: TID251 - it must have the same meaning in the next process
