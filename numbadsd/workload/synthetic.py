"""Synthetic decode batches: i.i.d. uniform, and structured like the KV cache of a trained model.

`UniformWorkload` is the reference's data: independent uniform(-1, 1) queries, keys and values. Its
attention is nearly flat, so that no page stands out and only times mean something.

`StructuredWorkload` gives selection something to find. For a kv head, with unit directions:

    key(t) = COMMON                                     one offset that all keys share
           + TOPIC   * topic of t's segment             runs of tokens about the same thing
           + SEGMENT * offset of t's segment            no two segments are alike
           + NOISE   * uniform noise                    tokens of a segment differ
           + SINK    * sink direction                   only the first SINK_TOKENS tokens
           + RECENT  * exp(-age / RECENT_TOKENS) * recent direction
           + NEEDLE  * needle direction                 only the NEEDLE_TOKENS planted tokens
    query  = sqrt(head_dim) * (weighted sink, recent, topic and needle directions + background)

so that a matched component adds amplitude * weight to the logit `q.k / sqrt(head_dim)`, and all
else adds noise of about |weights| * 0.8. Heads cycle through four kinds that trained models show:
retrieval (finds the needle), topic (one cluster of segments), local (the last tokens), diffuse.

The constants were fitted, at 512 to 32k tokens and head_dim 16 to 128, to what queries and keys of
small trained encoders and decoders show (theirs / ours at 8k tokens, head_dim 32 and 128):
- standard deviation per channel of keys 1.0 to 1.7 / 1.0, of queries 1.4 to 4.0 / 3.5;
- a common offset of about 0.5 of a key's norm / 0.5;
- 0.1 to 0.7, mostly 0.5, of the variance of keys is between pages of 16 tokens / 0.53;
- logits with a standard deviation of 1 to 5 / 2.1 (diffuse) to 3.6;
- softmax mass on a head's best 8 pages of 16 tokens: retrieval 0.96 / 0.95, topic 0.5 to 0.7 /
  0.74, local 0.9 to 0.99 / 0.97, diffuse 0.1 to 0.5 / 0.48, and less of it in longer contexts;
- a page's mean hides the needle (2 tokens of 16): the 8 pages with the best mean hold 0.0 to 0.3 /
  0.1 of a retrieval head's mass, those with the best element-wise bounds 0.6 to 0.7 / 0.5 to 0.9.
"""

from collections.abc import Iterator
from math import sqrt
from typing import NamedTuple

import numpy as np

from numbadsd.config import ModelConfig, check
from numbadsd.kernels import shared
from numbadsd.kernels.cpu.prefill import fill_uniform

# Per channel: independent of head_dim.
COMMON = 0.5  # half of a key's norm
SEGMENT = 0.5  # with the topics, half of the variance lies between pages
NOISE = 0.6  # the other half, within pages
# Lengths at REFERENCE_DIM; they grow with sqrt(head_dim) and the weights of queries shrink with it,
# so that neither the logits nor the share of a channel that is structure depends on head_dim.
# Below REFERENCE_DIM they stay: shorter ones would need queries longer than any real one.
REFERENCE_DIM = 32
SINK = 5.0  # about a key's whole norm: a sink looks like nothing else
RECENT = 5.0
TOPIC = 2.5  # a topic is a leaning, not an identity
NEEDLE = 5.0

SINK_TOKENS = 4  # trained decoders park attention on one to four first tokens
RECENT_TOKENS = 16.0  # local heads put 0.8 to 0.95 of their mass on the last two pages of 16
RECENT_SPAN = 192  # older tokens would get less than RECENT * exp(-12): nothing
SEGMENT_TOKENS = (32, 96)  # a few sentences; several pages, and no multiple of a page
SEGMENTS_PER_TOPIC = 4  # a topic returns this often, so that longer contexts hold more topics
NEEDLE_TOKENS = 2
NEEDLE_ALIGNMENT = 4  # tokens; keeps a needle within one page of any page_size divisible by 4

HEAD_KINDS = ("retrieval", "topic", "local", "diffuse")
# amplitude * weight = logit: needle 17.5 against log(8192) + noise = 13, sink 8 everywhere, ...
KIND_WEIGHTS = np.array(  # sink, recent, topic, needle
    [[1.6, 0.0, 0.0, 3.5], [1.6, 0.0, 2.6, 0.0], [1.6, 3.4, 0.0, 0.0], [1.5, 0.6, 0.6, 0.0]]
)
KIND_NORMS = np.array([3.8, 3.6, 3.6, 2.3])  # all weights together: sets the noise of the logits
MIN_BACKGROUND = 1.0  # no query is made of structure alone
# A table, not exp() of a chunk: a vectorised exp may round a token differently in another chunk.
_DECAY = np.exp(-np.arange(RECENT_SPAN) / RECENT_TOKENS).astype(np.float32)  # by age in tokens
_GLOBAL, _LAYOUT, _OFFSETS = 1, 2, 3  # what a generator is for: first word of its seed


def draw_context_tokens(
    batch_size: int, min_tokens: int, max_tokens: int, seed: int
) -> np.ndarray:  # [B] int64
    """Context lengths, uniform in [min_tokens, max_tokens], both included."""
    check(batch_size >= 1, "batch_size", batch_size, "at least 1")
    check(min_tokens >= 0, "min_tokens", min_tokens, "at least 0")
    check(min_tokens <= max_tokens, "min_tokens", min_tokens, f"at most max_tokens = {max_tokens}")
    rng = np.random.default_rng(seed)
    return rng.integers(min_tokens, max_tokens, size=batch_size, dtype=np.int64, endpoint=True)


class UniformWorkload:
    """A batch of independent uniform(-1, 1) queries, keys and values; the reference's data."""

    needle_pages: list[np.ndarray] | None = None

    def __init__(self, config: ModelConfig, context_tokens: np.ndarray, seed: int):
        tokens = np.asarray(context_tokens)
        valid = tokens.ndim == 1 and tokens.size and np.issubdtype(tokens.dtype, np.integer)
        valid = bool(valid and tokens.min() >= 0)
        check(valid, "context_tokens", tokens, "integers [B], none below 0")
        self.config = config
        self.context_tokens = tokens.astype(np.int64)
        self.seed = seed
        self.queries = np.stack([self._query(request) for request in range(len(tokens))])

    def chunks(
        self, request_index: int, max_tokens: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # keys, values [n, G, D] f32
        """Keys and values of a request in order, at most `max_tokens` at a time."""
        batch_size = len(self.context_tokens)
        in_batch = 0 <= request_index < batch_size
        check(in_batch, "request_index", request_index, f"in [0, {batch_size})")
        check(max_tokens >= 1, "max_tokens", max_tokens, "at least 1")
        return self._chunks(request_index, max_tokens)

    def _chunks(self, request: int, max_tokens: int):
        tokens = int(self.context_tokens[request])
        for first in range(0, tokens, max_tokens):
            rows = min(max_tokens, tokens - first)
            yield (
                self._uniform(request, first, rows, shared.KEY),
                self._uniform(request, first, rows, shared.VALUE),
            )

    def _uniform(
        self, request: int, first: int, rows: int, kind: int, num_heads: int | None = None
    ) -> np.ndarray:
        """Rows first .. first + rows of a stream, [rows, G, D]; the same whatever the chunk."""
        num_heads = num_heads or self.config.num_kv_heads
        out = np.empty((rows, num_heads, self.config.head_dim), np.float32)
        request_ids, tokens = np.full(rows, request, np.int64), np.arange(first, first + rows)
        fill_uniform(out, self.seed, request_ids, tokens, kind)
        return out

    def _query(self, request: int) -> np.ndarray:  # [H, D]
        return self._uniform(request, 0, 1, shared.QUERY, self.config.num_heads)[0]


class _Layout(NamedTuple):
    """Where the structure of one request lies."""

    segment_starts: np.ndarray  # [segments + 1] int64; the last is the context length
    topic_of_segment: np.ndarray  # [segments]
    topics: np.ndarray  # [topics, G, D] f32, unit
    query_segments: np.ndarray  # [H]: the segment whose topic a head asks for
    needle: np.ndarray  # [G, D] f32, unit
    needle_tokens: range


class StructuredWorkload(UniformWorkload):
    """A batch whose attention is concentrated like a trained model's (module docstring).

    `needle_pages[b]` are the logical pages of request b's needle (one page whenever page_size
    is a multiple of 4), `needle_heads` the query heads that look for it. The data depends on the
    seed, the request, its length and the layer's shape, not on page_size.
    """

    def __init__(self, config: ModelConfig, context_tokens: np.ndarray, seed: int):
        rng = np.random.default_rng([_GLOBAL, seed])
        square = rng.standard_normal((config.num_kv_heads, config.head_dim, 3))
        basis = np.linalg.qr(square)[0].astype(np.float32)  # orthonormal columns
        self._common, self._sink, self._recent = np.moveaxis(basis, -1, 0)  # [G, D] each
        self._growth = max(1.0, sqrt(config.head_dim / REFERENCE_DIM))
        super().__init__(config, context_tokens, seed)
        self.needle_heads = np.flatnonzero(np.arange(config.num_heads) % len(HEAD_KINDS) == 0)
        self.needle_pages = [
            np.unique(np.array(self._layout(b).needle_tokens, np.int64) // config.page_size)
            for b in range(len(self.context_tokens))
        ]

    def _layout(self, request: int) -> _Layout:
        tokens, config = int(self.context_tokens[request]), self.config
        rng = np.random.default_rng([_LAYOUT, self.seed, request])
        low, high = SEGMENT_TOKENS
        ends = np.cumsum(rng.integers(low, high, size=tokens // low + 1, endpoint=True))
        starts = np.concatenate([[0], ends[ends < tokens], [tokens]])
        segments = len(starts) - 1
        num_topics = max(1, segments // SEGMENTS_PER_TOPIC)
        slots = max(1, tokens // NEEDLE_ALIGNMENT)
        margin = slots // 8  # away from the sink and the recent tokens, which are found anyway
        needle = NEEDLE_ALIGNMENT * int(rng.integers(margin, slots - margin))
        shape = (config.num_kv_heads, config.head_dim)
        return _Layout(
            segment_starts=starts,
            topic_of_segment=rng.integers(0, num_topics, size=segments),
            query_segments=rng.integers(0, segments, size=config.num_heads),
            needle=_unit(rng.standard_normal(shape, np.float32)),
            topics=_unit(rng.standard_normal((num_topics, *shape), np.float32)),
            needle_tokens=range(min(needle, tokens), min(needle + NEEDLE_TOKENS, tokens)),
        )

    def _query(self, request: int) -> np.ndarray:  # [H, D]
        layout, config = self._layout(request), self.config
        kv_heads = np.arange(config.num_heads) // config.group_size
        kinds = np.arange(config.num_heads) % len(HEAD_KINDS)
        weights = KIND_WEIGHTS[kinds] / self._growth
        left = KIND_NORMS[kinds] ** 2 - (weights**2).sum(axis=1)
        background = np.sqrt(np.maximum(left, MIN_BACKGROUND**2))
        parts = (
            self._sink[kv_heads],
            self._recent[kv_heads],
            layout.topics[layout.topic_of_segment[layout.query_segments], kv_heads],
            layout.needle[kv_heads],
            _unit(super()._query(request)),
        )
        columns = (*weights.T, background)
        query = sum(c[:, None] * part for c, part in zip(columns, parts, strict=True))
        return (query * sqrt(config.head_dim)).astype(np.float32)

    def _chunks(self, request: int, max_tokens: int):
        layout = self._layout(request)
        segment_keys = self._segment_keys(request, layout)
        first = 0
        for keys, values in super()._chunks(request, max_tokens):
            keys *= NOISE * sqrt(3)  # uniform(-1, 1) has a standard deviation of 1 / sqrt(3)
            self._add_segments(keys, first, layout.segment_starts, segment_keys)
            self._add_marks(keys, first, int(self.context_tokens[request]), layout)
            yield keys, values
            first += len(keys)

    def _segment_keys(self, request: int, layout: _Layout) -> np.ndarray:
        """What the keys of each segment have in common, [segments, G, D]; 1/64 of the keys."""
        rng = np.random.default_rng([_OFFSETS, self.seed, request])
        shape = (len(layout.topic_of_segment), *self._common.shape)
        keys = rng.standard_normal(shape, np.float32)
        keys *= SEGMENT
        keys += (TOPIC * self._growth) * layout.topics[layout.topic_of_segment]
        keys += (COMMON * sqrt(self.config.head_dim)) * self._common
        return keys

    @staticmethod
    def _add_segments(keys: np.ndarray, first: int, starts: np.ndarray, segment_keys: np.ndarray):
        """Add each segment's part to the rows of `keys` that lie in it; in place, no copy."""
        begin = int(np.searchsorted(starts, first, side="right")) - 1
        end = int(np.searchsorted(starts, first + len(keys), side="left"))
        for segment in range(begin, end):
            low, high = starts[segment] - first, starts[segment + 1] - first
            keys[max(low, 0) : high] += segment_keys[segment]

    def _add_marks(self, keys: np.ndarray, first: int, tokens: int, layout: _Layout) -> None:
        """Add sink, recency and needle to the rows of `keys` that carry them."""
        after = first + len(keys)
        keys[: max(SINK_TOKENS - first, 0)] += (SINK * self._growth) * self._sink
        begin = max(tokens - RECENT_SPAN, first)
        if begin < after:
            ages = (tokens - 1) - np.arange(begin, after)
            decay = (RECENT * self._growth * _DECAY[ages])[:, None, None]
            keys[begin - first :] += decay * self._recent
        low, high = max(layout.needle_tokens.start, first), min(layout.needle_tokens.stop, after)
        if low < high:
            keys[low - first : high - first] += (NEEDLE * self._growth) * layout.needle


def _unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors along the last axis, scaled to length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
