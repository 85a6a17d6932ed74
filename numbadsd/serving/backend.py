"""What executes a step: the port that the engine asks, and its implementation over a cache."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np

from numbadsd.decode.path import DecodePath
from numbadsd.decode.prefill import PromptAttention
from numbadsd.pages.cache import PagedKvCache
from numbadsd.pages.staging import TransferStats
from numbadsd.serving.plan import Chunk
from numbadsd.types import StageTimes, TokenSource

MAX_PROMPT_TOKENS = 4096  # of a prompt that are made at a time


@dataclass
class DecodeTimes:
    """Where the time of decode steps went, summed over steps, in milliseconds."""

    steps: list[StageTimes] = field(default_factory=list)

    def add(self, times: StageTimes) -> None:
        """Add one step's times."""
        self.steps.append(times)

    @property
    def stages(self) -> dict[str, float]:
        """Milliseconds of each stage and overhead."""
        total: dict[str, float] = {}
        for times in self.steps:
            for name in ("score_ms", "topk_ms", "gather_ms", "attend_ms", "kernel_ms"):
                total[name] = total.get(name, 0.0) + getattr(times, name)
            for name, value in times.overheads_ms.items():
                total[f"{name}_ms"] = total.get(f"{name}_ms", 0.0) + value
        return total


class DevicePages(Protocol):
    """What a backend asks of a `DevicePagePool`, whose module needs CUDA."""

    stats: TransferStats
    stream: object  # with synchronize()


class Backend(Protocol):
    """What the engine asks for in a step, in this order. Position p of a request is its p-th token.

    `lap` is called with the name of a stage when it ends: "payload" for tokens that are made, any
    other for what an engine would have to do with tokens of a model.
    """

    times: DecodeTimes

    def reserve(self, request_id: int, num_pages: int) -> None:
        """Give a request its first pages."""

    def write_prompts(self, chunks: Sequence[Chunk], lap: Callable[[str], None]) -> None:
        """Put prompt tokens in their requests' pages."""

    def attend_prompts(self, chunks: Sequence[Chunk], lap: Callable[[str], None]) -> None:
        """Compute the causal attention of prompt tokens that are in their pages, in one pass."""

    def decode(
        self, request_ids: tuple[int, ...], positions: np.ndarray, lap: Callable[[str], None]
    ) -> None:
        """Attend one token of each request to what is before it, and append it."""

    def release(self, request_ids: Sequence[int]) -> None:
        """Forget requests and free their pages; those that hold none are passed over."""

    def wait(self) -> None:
        """Wait until all that was asked for is done: a device may be behind."""


class CacheBackend:
    """Steps over a `PagedKvCache` and decode paths of the CPU.

    Parameters
    ----------
    cache : PagedKvCache
        With storage.
    path : DecodePath
        Decodes the batch.
    tokens : TokenSource
        What the model would say.
    attention : PromptAttention, optional
        Needed for `attend_prompts`.
    short_path : DecodePath, optional
        Decodes the requests below `gate_tokens` tokens of context, in the same step.
    gate_tokens : int
        Context from which `path` decodes; 0: all of them.
    on_outputs : callable, optional
        Called with (request ids, positions, outputs [n, H, D]) of each decode.
    device_pool : DevicePages, optional
        Pages on a GPU that follow the cache.
    waits : bool
        Wait for each decode, also where its path leaves the device to itself: then a step's time is
        the device's too. Without, the host's part of a step may overlap the step before it.
    """

    def __init__(
        self,
        cache: PagedKvCache,
        path: DecodePath,
        tokens: TokenSource,
        attention: PromptAttention | None = None,
        *,
        short_path: DecodePath | None = None,
        gate_tokens: int = 0,
        on_outputs: Callable | None = None,
        device_pool: DevicePages | None = None,
        waits: bool = False,
    ):
        self.cache, self.times = cache, DecodeTimes()
        self.device_pool, self._waits = device_pool, waits and device_pool is not None
        self.admission_transfers = TransferStats()  # those of prompts
        self.gated_tokens = 0  # decoded by `short_path`
        self._path, self._short_path, self._gate_tokens = path, short_path, gate_tokens
        self._tokens, self._attention, self._on_outputs = tokens, attention, on_outputs
        self._ids: tuple[int, ...] = ()
        self._id_array = np.empty(0, np.int64)
        self._places, self._owners = np.arange(0), np.empty(MAX_PROMPT_TOKENS, np.int64)
        self._queries = self._new_rows(0, cache.config.num_heads)
        self._keys = self._new_rows(0, cache.config.num_kv_heads)
        self._values = self._keys

    def _new_rows(self, num_tokens: int, heads: int) -> np.ndarray:
        return np.empty((num_tokens, heads, self.cache.config.head_dim), np.float32)

    def _rows(self, num_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return room for queries, keys and values of so many tokens; kept from step to step."""
        room = 1 << (num_tokens - 1).bit_length()  # not anew for every longer prompt
        if len(self._queries) < num_tokens:
            self._queries = self._new_rows(room, self.cache.config.num_heads)
        if len(self._keys) < num_tokens:
            self._keys = self._new_rows(room, self.cache.config.num_kv_heads)
            self._values = np.empty_like(self._keys)
        return self._queries[:num_tokens], self._keys[:num_tokens], self._values[:num_tokens]

    def reserve(self, request_id: int, num_pages: int) -> None:
        """Give a request its first pages."""
        self.cache.reserve_pages(request_id, num_pages)

    @property
    def transfers(self) -> TransferStats:
        """What crossed between host and device until now; zeros without a device."""
        return TransferStats() if self.device_pool is None else self.device_pool.stats

    def write_prompts(self, chunks: Sequence[Chunk], lap: Callable[[str], None]) -> None:
        """Put prompt tokens in their requests' pages."""
        if self.device_pool is None:
            return self._write_prompts(chunks, lap)
        before = asdict(self.transfers)
        self._write_prompts(chunks, lap)
        self.device_pool.stream.synchronize()  # else the next decode would seem to take it
        lap("admission")
        for name, count in asdict(self.transfers).items():
            so_far = getattr(self.admission_transfers, name)
            setattr(self.admission_transfers, name, so_far + count - before[name])

    def _write_prompts(self, chunks: Sequence[Chunk], lap: Callable[[str], None]) -> None:
        for chunk in chunks:
            end = chunk.start + chunk.count
            for first in range(chunk.start, end, MAX_PROMPT_TOKENS):
                ids, positions = self._prompt_names(chunk.request_id, first, end)
                queries, keys, values = self._rows(positions.size)
                self._tokens.make(ids, positions, queries[:0], keys, values)
                lap("payload")
                self._store_prompt(chunk.request_id, keys, values)
                lap("admission")

    def _prompt_names(self, request_id: int, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the request and the position of each token, as far as one call takes them."""
        if end > self._places.size:  # kept: most prompts begin at 0
            self._places = np.arange(1 << (end - 1).bit_length())
        positions = self._places[first : min(first + MAX_PROMPT_TOKENS, end)]
        ids = self._owners[: positions.size]
        ids.fill(request_id)
        return ids, positions

    def _make_step(self, positions: np.ndarray) -> tuple:
        """Return queries, keys and values of the batch's tokens at these positions."""
        queries, keys, values = self._rows(positions.size)
        self._tokens.make(self._id_array, positions, queries, keys, values)
        return queries, keys, values

    def _store_prompt(self, request_id: int, keys: np.ndarray, values: np.ndarray) -> None:
        self.cache.append_tokens(request_id, keys, values)

    def _store_step(self, request_ids, keys: np.ndarray, values: np.ndarray) -> None:
        self.cache.append_step(request_ids, keys, values)

    def attend_prompts(self, chunks: Sequence[Chunk], lap: Callable[[str], None]) -> None:
        """Compute the causal attention of prompt tokens that are in their pages, in one pass."""
        counts = np.array([chunk.count for chunk in chunks], np.int64)
        ids = np.repeat(np.array([chunk.request_id for chunk in chunks], np.int64), counts)
        starts = np.array([chunk.start for chunk in chunks], np.int64)
        cu_seqlens = np.concatenate(([0], np.cumsum(counts)))
        positions = np.arange(ids.size) - np.repeat(cu_seqlens[:-1] - starts, counts)
        queries, keys, values = self._rows(ids.size)
        self._tokens.make(ids, positions, queries, keys[:0], values[:0])
        lap("payload")
        request_ids = [chunk.request_id for chunk in chunks]
        outputs = self._attention.attend(queries, cu_seqlens, starts, request_ids)
        lap("prefill")
        if self._on_outputs is not None:
            self._on_outputs(ids, positions, outputs)

    def decode(
        self, request_ids: tuple[int, ...], positions: np.ndarray, lap: Callable[[str], None]
    ) -> None:
        """Attend one token of each request to what is before it, and append it."""
        if request_ids is not self._ids:  # the same tuple while nobody joins or leaves
            self._ids, self._id_array = request_ids, np.array(request_ids, np.int64)
        queries, keys, values = self._make_step(positions)
        lap("payload")
        if self._gate_tokens and positions.min() < self._gate_tokens:
            self._decode_apart(queries, positions)
        else:
            self._decode_by(self._path, queries, request_ids, positions)
        if self._waits:
            self.device_pool.stream.synchronize()
        lap("decode")
        self._store_step(request_ids, keys, values)
        lap("append")

    def _decode_apart(self, queries: np.ndarray, positions: np.ndarray) -> None:
        """Decode short contexts by one path and long ones by the other."""
        is_short = positions < self._gate_tokens
        self.gated_tokens += int(np.count_nonzero(is_short))
        for path, places in ((self._short_path, is_short), (self._path, ~is_short)):
            places = np.flatnonzero(places)
            if places.size:
                ids = tuple(self._id_array[places].tolist())
                self._decode_by(path, queries[places], ids, positions[places])

    def _decode_by(self, path, queries, request_ids, positions) -> None:
        result = path.decode(queries, request_ids)
        self.times.add(result.stages)
        if self._on_outputs is not None:
            self._on_outputs(request_ids, positions, result.outputs)

    def release(self, request_ids: Sequence[int]) -> None:
        """Forget requests and free their pages; those that hold none are passed over."""
        self.cache.release_many([r for r in request_ids if r in self.cache])

    def wait(self) -> None:
        """Wait until all that was asked for is done."""
        if self.device_pool is not None:
            self.device_pool.stream.synchronize()
