"""The checks that the simulator and a real device have in common; shapes are the tests' choice.

A case is the one of the CPU tests with its kernel exchanged, so that pools, oracle and tolerance
are the same. Every launch gets outputs and workspaces of known bytes: each number of an output has
to be written and nothing around them may be.
"""

import numpy as np

from numbadsd.kernels import shared
from numbadsd.kernels.cpu import append as cpu_append
from numbadsd.kernels.cpu import prefill as cpu_prefill
from numbadsd.kernels.cuda.append import append_runs, summarise_pages
from numbadsd.kernels.cuda.attend import attend_pages, workspace_sizes
from numbadsd.kernels.cuda.prefill import fill_uniform
from numbadsd.kernels.cuda.score import factors_size, score_pages
from numbadsd.kernels.cuda.tables import pack_tables
from numbadsd.kernels.cuda.topk import topk_rows, topk_workspace_size
from numbadsd.kernels.score_shape import score_shape
from tests import oracle
from tests.device import assert_same_bits, bits, down, intact, output, stream, up, written
from tests.kernels.cpu import test_append, test_attend, test_score

NAN_BYTE = 0xFF  # of workspaces: what is read before it is written makes results NaN


def csr(lists):
    """Return indptr and ids of lists of page ids, int32."""
    indptr = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    return indptr, np.concatenate([*lists, []]).astype(np.int32)


class AttendCase(test_attend.Case):
    """Attention over a pool whose unused slots and unused pages are NaN."""

    launch = None  # the way to multiply

    def run(self, requests=None, selected=None, **options):
        """Attend to all pages, or to selected[request][unit] lists of min(pages, k) positions."""
        return next(self.runs(requests, selected, **options))

    def runs(self, requests=None, selected=None, *, k=None, spare_pages=0):
        """Yield outputs and lse, again and again, of the same arrays on the device.

        `spare_pages` are how many the launch allows for beyond the longest request's.
        """
        requests = list(range(len(self.tokens)) if requests is None else requests)
        lists = [self.pages[b] for b in requests]
        tail = [(self.tokens[b] - 1) % self.page_size + 1 if len(self.pages[b]) else 0
                for b in requests]  # fmt: skip
        if selected is not None:
            selected = up(padded([selected[b] for b in requests], k))
        queries = up(self.queries[requests])
        batch, heads, head_dim = queries.shape
        arrays = (up(self.pool_keys), up(self.pool_values), *map(up, csr(lists)),
                  up(np.array(tail, np.int32)))  # fmt: skip
        max_pages = max(map(len, lists), default=0) + spare_pages
        list_pages = max_pages if selected is None else min(max_pages, selected.shape[2])
        sizes = workspace_sizes(
            batch, heads, head_dim, shared.most_splits(list_pages, self.page_size)
        )
        while True:
            outputs, lse = output(queries.shape, np.float32), output((batch, heads), np.float32)
            workspace = tuple(output(size, np.float32, NAN_BYTE) for size in sizes)
            attend_pages(
                queries, *arrays, self.kv_heads, self.sm_scale, outputs, lse, stream=stream(),
                workspace=workspace, max_pages=max_pages, selected=selected, launch=self.launch,
            )  # fmt: skip
            assert all(map(intact, workspace)), "written beyond a workspace"
            yield written(outputs), written(lse)

    def first_pages(self, units, k):
        """Return lists of every unit's first min(pages, k) pages."""
        return [[list(range(min(k, len(pages))))] * units for pages in self.pages]

    def random_pages(self, units, k, seed=0):
        """Return lists of min(pages, k) ascending pages for every unit."""
        rng = np.random.default_rng(seed)

        def one(pages):
            return np.sort(rng.permutation(pages)[:k]).tolist()

        return [[one(len(pages)) for _ in range(units)] for pages in self.pages]


def attend_case(tokens, launch, **shape):
    """Return a case that is multiplied in a given way."""
    case = AttendCase(tokens, **shape)
    case.launch = launch
    return case


def padded(lists, k=None):
    """Return lists[request][unit] as [B, S, K] int32 with -1 at the tails."""
    k = max(len(one) for units in lists for one in units) if k is None else k
    array = np.full((len(lists), len(lists[0]), k), -1, np.int32)
    for b, units in enumerate(lists):
        for unit, one in enumerate(units):
            array[b, unit, : len(one)] = one
    return array


class ScoreCase(test_score.Case):
    """Scores of a ragged batch of scattered pages."""

    def run(self, share, rows=None, **options):
        """Return the scores [B, S, Pmax], or those of a few requests alone."""
        return next(self.runs(share, rows, **options))

    def runs(self, share, rows=None, *, spare_pages=0):
        """Yield scores, again and again, of the same arrays on the device."""
        rows = list(range(len(self.pages)) if rows is None else rows)
        indptr, page_ids = csr([self.page_ids[self.indptr[b] : self.indptr[b + 1]] for b in rows])
        queries, summaries = up(self.queries[rows]), up(self.summaries)
        shape = score_shape(self.kind, share, self.summaries.shape, self.queries.shape[1])
        stride = int(np.diff(indptr).max(initial=0)) + spare_pages
        table, size = (up(indptr), up(page_ids)), factors_size(len(rows), shape, queries.shape[2])
        while True:
            scores = output((len(rows), shape.num_units, stride), np.float32)
            workspace = output(size, np.float32, NAN_BYTE)
            score_pages(
                queries, summaries, *table, self.kind, share, self.sm_scale, scores,
                stream=stream(), workspace=workspace,
            )  # fmt: skip
            assert intact(workspace), "written beyond a workspace"
            yield written(scores)


def check_same_alone(case, subsets, run):
    """Fail unless `run(case, requests)` gives each request its bits of the whole batch.

    `run` returns arrays whose first axis is the request; what a longer request adds is ignored.
    """
    together = run(case, None)
    for requests in subsets:
        alone = run(case, requests)
        for row, request in enumerate(requests):
            for some, whole in zip(alone, together, strict=True):
                one = some[row]
                assert_same_bits(one, whole[request][tuple(map(slice, one.shape))])


def check_repeats(results, times):
    """Fail unless a launch gives the same bits every time."""
    first = next(results)
    for _ in range(times - 1):
        assert_same_bits(next(results), first)


def select(scores, k, page_counts=None, sink=0, recent=0, *, order="position", launch=None):
    """Return the selection [B, S, k] of scores [B, S, P]."""
    counts = [scores.shape[2]] * len(scores) if page_counts is None else page_counts
    rows, width = scores.shape[0] * scores.shape[1], scores.shape[2]
    selected = output((rows, k), np.int32)
    workspace = output(topk_workspace_size(rows, width, launch), np.int32)
    topk_rows(
        up(scores.reshape(-1)), width, width, up(np.array(counts, np.int32)), sink, recent, order,
        selected, stream=stream(), workspace=workspace, launch=launch,
    )  # fmt: skip
    assert intact(workspace), "written beyond a workspace"
    return written(selected).reshape(*scores.shape[:2], k)


def check_selection(scores, k, page_counts=None, sink=0, recent=0, launch=None):
    """Fail unless the selection is the one of a sort."""
    scores = np.asarray(scores, np.float32)
    selected = select(scores, k, page_counts, sink, recent, launch=launch)
    counts = [scores.shape[2]] * len(scores) if page_counts is None else page_counts
    for request, pages in enumerate(counts):
        for unit in range(scores.shape[1]):
            length = max(0, min(pages, scores.shape[2]))
            want = oracle.select(scores[request, unit, :length], k, sink, recent)
            np.testing.assert_array_equal(
                selected[request, unit], want, err_msg=f"request {request}, unit {unit}"
            )


class Pool:
    """A pool twice: on the device, and on the host in the hands of the CPU kernels."""

    def __init__(self, dtype, kind, *, summary_dtype=None, **shape):
        self.kind = kind
        self.host = list(test_append.make_pool(dtype, kind, **shape))
        if summary_dtype is not None:
            self.host[2] = self.host[2].astype(test_append.DTYPES[summary_dtype])
        self.page_tokens = np.zeros(len(self.host[0]), np.int32)
        self.on_device = [_copy(array) for array in (*self.host, self.page_tokens)]

    def append(self, tokens, runs):
        """Store tokens [2, n, G, D] in runs of (page, first slot, count), on both sides."""
        test_append.append(self.host, tokens, runs, self.kind)
        for page, slot, count in runs:
            self.page_tokens[page] = slot + count
        pages, slots, counts = zip(*runs, strict=True) if runs else ((), (), ())
        keys, values, summaries, page_tokens = self.on_device
        append_runs(
            up(tokens[0]), up(tokens[1]), up(np.array(pages, np.int32)),
            up(np.array(slots, np.int32)), up(np.cumsum([0, *counts]).astype(np.int64)),
            keys, values, self.kind, summaries, stream=stream(), page_tokens=page_tokens,
        )  # fmt: skip

    def check(self):
        """Fail unless both sides hold the same bits, everywhere."""
        assert all(map(intact, self.on_device)), "written out of range"
        host = (*self.host, self.page_tokens)
        for device, expected in zip(map(down, self.on_device), host, strict=True):
            assert_same_numbers(device, expected)

    def check_rebuild(self, page_ids):
        """Fail unless summaries made again from keys are those of the CPU, and of the pool."""
        ids = np.array(page_ids, np.int32)
        counts = self.page_tokens[ids]
        host = np.zeros((len(ids), *self.host[2].shape[1:]), self.host[2].dtype)
        cpu_append.summarise_pages(self.host[0], ids, counts, self.kind, host)
        rebuilt = output(host.shape, host.dtype)
        keys, _, summaries, _ = self.on_device
        summarise_pages(keys, up(ids), up(counts), self.kind, rebuilt, stream=stream())
        assert_same_numbers(written(rebuilt), host)
        assert_same_numbers(down(summaries)[ids], host)


def _copy(array):
    """Return a copy of an array on the device, with the margins of an `output`."""
    copy = output(array.shape, array.dtype)
    stream().upload(copy, array)
    stream().synchronize()
    return copy


def check_fill(shape, seed, kind, first_token=0):
    """Fail unless synthetic tokens are those of the CPU, bit for bit."""
    rng = np.random.default_rng(shape[0])
    request_ids = rng.integers(0, 1000, shape[0])
    tokens = first_token + rng.permutation(shape[0])
    numbers, expected = output(shape, np.float32), np.empty(shape, np.float32)
    fill_uniform(numbers, seed, up(request_ids), up(tokens), kind, stream=stream())
    cpu_prefill.fill_uniform(expected, seed, request_ids, tokens, kind)
    assert_same_bits(written(numbers), expected)


def check_packed(rows, row_pages, row_tokens, page_size):
    """Fail unless the table of rows is the one that lists make."""
    tokens = row_tokens[rows]
    counts = -(-tokens // page_size)
    lists = [row_pages[row, :count] for row, count in zip(rows, counts, strict=True)]
    indptr, page_ids = csr(lists)
    last = tokens - np.maximum(counts - 1, 0) * page_size
    expected_arrays = (indptr, page_ids, last, counts, tokens.astype(np.int64))
    outputs = [output(len(a), a.dtype) for a in expected_arrays]
    pack_tables(*map(up, (rows, row_pages, row_tokens)), page_size, *outputs, stream=stream())
    for array, expected in zip(outputs, expected_arrays, strict=True):
        np.testing.assert_array_equal(written(array), expected)


def assert_same_numbers(a, b):
    """Fail unless arrays are the same bit for bit; any NaN is as good as another."""
    assert a.dtype == b.dtype and a.shape == b.shape
    is_nan = np.isnan(a.astype(np.float32))
    np.testing.assert_array_equal(is_nan, np.isnan(b.astype(np.float32)))
    np.testing.assert_array_equal(bits(a[~is_nan]), bits(b[~is_nan]))
