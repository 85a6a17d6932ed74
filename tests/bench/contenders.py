"""Other libraries' attention, made by hand: no library is needed."""

import numpy as np

from numbadsd.decode.path import make_path
from numbadsd.types import DecodeResult, StageTimes


class FakeContender:
    """Gives the outputs of our dense path, a little off, after times that it makes up."""

    version, form, forms_ms = "1.2.3", "as one batch", {"as one batch": 2.5}

    def __init__(self, on_gpu=False, *, reason=None, num_bytes=0, error=None, total_ms=2.0):
        self.name = "torch_sdpa_gpu" if on_gpu else "torch_sdpa"
        self.reason, self.num_bytes = reason, num_bytes
        self.error, self.total_ms = error, total_ms
        self.calls = []

    def host_bytes(self, model, context_tokens):
        """Return the bytes that it was made with."""
        return self.num_bytes

    def prepare(self, cache, queries, request_ids):
        """Return itself, or fail."""
        if self.error is not None:
            raise self.error
        self.path = make_path("dense_cpu", cache)
        return self

    def decode(self, queries, request_ids):
        """Return our own outputs and 0.25 more in one element."""
        self.calls.append(list(request_ids))
        outputs = np.array(self.path.decode(queries, request_ids).outputs)
        outputs[-1, 0, 0] += 0.25
        total_ms = self.total_ms * len(self.calls)
        times = StageTimes(attend_ms=total_ms, total_ms=total_ms, kernel_ms=total_ms / 2)
        return DecodeResult(outputs, None, None, times)
