"""How much memory a run takes: `with peak_memory(device) as peak: ...`, then `peak.mb`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """mb: megabytes (2^20 bytes) at the peak, above what was in use at the start; None where it cannot be told."""

    mb: float | None = None


@contextmanager
def peak_memory(device: str | torch.device = "cpu") -> Iterator[Peak]:
    """Measures the memory that the work within adds at its peak: on CUDA what torch allocates, else of the process.

    Yields a `Peak`, filled at the end. On Linux the process's high-water mark is put back at the start, so that earlier
    runs do not count. Elsewhere the mark cannot be put back: `mb` is known only where the work has raised it; on a
    system without the module `resource` (Windows) it is None.
    """
    peak = Peak()
    before: float | None
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.mb = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        return
    linux = _reset()
    before = _status("VmRSS") if linux else _mark()
    yield peak
    after = _status("VmHWM") if linux else _mark()
    if before is not None and after is not None and (linux or after > before):
        peak.mb = max(0.0, after - before)


def _reset() -> bool:
    """Put the high-water mark of this process back to what it uses now; returns whether that could be done."""
    try:
        CLEAR.write_text("5")
        return _status("VmHWM") is not None and _status("VmRSS") is not None
    except OSError:
        return False


def _status(name: str) -> float | None:
    lines = [line for line in STATUS.read_text().splitlines() if line.startswith(name + ":")]
    return int(lines[0].split()[1]) / 1024 if lines else None


def _mark() -> float | None:
    """The high-water mark of this process in megabytes, or None."""
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
