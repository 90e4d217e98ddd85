"""How much of the processor other work takes, for a progress bar that says why it is slow."""

import time

import psutil


class OtherWork:
    """Cores that other processes keep busy, between one look and the next.

    Whatever is neither idle nor this process's own counts, other machines on the same hardware (stolen time) as well.
    """

    def __init__(self):
        self.process, self.cores = psutil.Process(), psutil.cpu_count() or 1
        self.before = self._look()

    def in_the_way(self) -> float:
        """Cores that others took since the last call, where they left none idle that we could have had; else 0."""
        now = self._look()
        seconds, idle, own = (b - a for a, b in zip(self.before, now, strict=True))
        if seconds < 0.05:  # clocks of processor time tick every hundredth of a second
            return 0.0
        self.before = now
        others = self.cores - (idle + own) / seconds
        return others if others > 0.25 and idle < 0.1 * self.cores * seconds else 0.0

    def _look(self) -> tuple[float, float, float]:
        """(the time, seconds that cores were idle, seconds of cores that this process took)"""
        everyone, own = psutil.cpu_times(), self.process.cpu_times()
        idle = everyone.idle + getattr(everyone, "iowait", 0.0)
        return time.monotonic(), idle, own.user + own.system
