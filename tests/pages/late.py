"""A simulated stream that does its work as late as it may: what a device is free to do.

The simulator's own stream works at once, so it forgives a host that reads or writes memory too
early. This one works when somebody waits, and no further than he waits for.
"""

from collections import deque

from numbadsd.kernels.cuda.sim_driver import SimDriver, SimEvent, SimStream


class LateEvent(SimEvent):
    """An event that brings its stream's work up to itself when it is waited for."""

    def __init__(self, stream):
        super().__init__()
        self._stream, self._recorded, self._happened = stream, 0, 0

    def recorded(self):
        """Return what makes the event happen as it was recorded last."""
        self._recorded += 1
        number = self._recorded

        def happen():
            self._happen()
            self._happened = number

        return happen

    def synchronize(self):
        self._stream.waits += 1
        while self._happened < self._recorded:
            self._stream.pending.popleft()()


class LateStream(SimStream):
    """Work that waits until it is waited for; counts the waits."""

    def __init__(self):
        super().__init__()
        self.pending, self.waits = deque(), 0

    def _do(self, work):
        (self.pending if self._captured is None else self._captured).append(work)

    def record(self, event=None):
        event = LateEvent(self) if event is None else event
        self._do(event.recorded())
        return event

    def synchronize(self):
        while self.pending:
            self.pending.popleft()()


def use_late_streams(monkeypatch):
    """Make every new stream of the simulated device a late one."""
    monkeypatch.setattr(SimDriver, "stream", lambda self: LateStream())
