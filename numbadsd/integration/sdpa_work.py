"""What torch's scaled_dot_product_attention does with a batch.

It attends to the same stored numbers as our dense paths, in contiguous tensors [n, G, L, D]. torch
has a choice of forms for the same result, and is measured in the one that is fastest here:

lengths  one batch where all are equal; else a call for each group of equal length, or one call with
         every context padded to the longest and a mask over the rest
heads    enable_gqa; or folded: query heads that share a kv head are given as positions of one
         query head, so that K and V are read once (2.0 times faster in fp32 on a CPU, 3.5 in fp16)
"""

from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from numbadsd.integration.sdpa import CHUNK_BYTES, padded_length, padded_tokens
from numbadsd.pages.cache import PagedKvCache
from numbadsd.types import DecodeResult, StageTimes

GQA_FORMS = ("folded", "enable_gqa")
FORM_RUNS = 3  # of each form, before the fastest is measured
FLUSH_BYTES = 256 << 20  # several times the largest L2 cache
FREE_FRACTION = 0.8  # of a device, for torch's copy of K and V


class Call(NamedTuple):
    """One call of torch: some requests, in order of their lengths."""

    rows: slice
    keys: torch.Tensor  # [n, G, L, D]
    values: torch.Tensor  # [n, G, L, D]
    mask: torch.Tensor | None  # [n, 1, 1, L], added to the scores; None where every token counts


class CpuWork:
    """A batch on the CPU, by the host's clock."""

    device = "cpu"

    def __init__(self, cache: PagedKvCache, queries: np.ndarray, request_ids: list[int]):
        self._config = cache.config
        self._dtype = getattr(torch, cache.config.kv_dtype)
        lengths = cache.context_tokens(request_ids)
        self._order = np.argsort(lengths, kind="stable")
        self._ids, self._lengths = [request_ids[i] for i in self._order], lengths[self._order]
        with torch.inference_mode():
            layouts = self._layouts(cache)
            chosen = self._fastest(layouts, queries)
        self.forms_ms, self.form, self._calls, self._heads = chosen

    def _layouts(self, cache: PagedKvCache) -> dict[str, list[Call]]:
        """Return the calls of each way to deal with contexts of different lengths."""
        sizes = np.unique(self._lengths)
        ends = np.searchsorted(self._lengths, sizes, side="right")
        slices = [slice(int(a), int(b)) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        padded = self._check_memory(cache.config.token_bytes)
        sources = self._stored(cache)
        groups = [
            Call(rows, *(self._gather(cache, source, rows, int(size)) for source in sources), None)
            for rows, size in zip(slices, sizes, strict=True)
        ]
        if len(groups) == 1:
            return {"one batch": groups}
        layouts = {f"{len(groups)} groups of equal length": groups}
        if padded:
            size, every = padded_length(self._lengths), slice(0, len(self._ids))
            tensors = (self._gather(cache, source, every, size) for source in sources)
            layouts["padded, with a mask"] = [Call(every, *tensors, self._mask(size))]
        return layouts

    def _check_memory(self, token_bytes: int) -> bool:
        """Return whether to try the padded form; what the host needs was checked before."""
        return padded_tokens(self._lengths) > 0

    def _stored(self, cache: PagedKvCache) -> list[torch.Tensor]:
        """Return K and V of all pages, [N, G, T, D]; torch does not know ml_dtypes: as words."""
        words = (a.view(f"i{a.itemsize}") for a in (cache.pool.keys, cache.pool.values))
        return [torch.from_numpy(array).view(self._dtype) for array in words]

    def _empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return memory for K or V: NumPy's lies in large pages; in torch's own it is slower."""
        words = np.empty(shape, f"i{self._dtype.itemsize}")
        return torch.from_numpy(words).view(self._dtype)

    def _gather(
        self, cache: PagedKvCache, source: torch.Tensor, rows: slice, size: int
    ) -> torch.Tensor:
        """Return K or V of some requests, [n, G, size, D]; zeros beyond a request's own tokens."""
        config = self._config
        shape = (rows.stop - rows.start, config.num_kv_heads, size, config.head_dim)
        out = self._empty(shape)
        step = max(1, CHUNK_BYTES // config.page_bytes)
        for target, request_id in zip(out, self._ids[rows], strict=True):
            pages = torch.from_numpy(cache.request_pages(request_id)).to(self.device, torch.long)
            end = cache.num_tokens(request_id)
            target[:, end:] = 0
            for first in range(0, len(pages), step):
                part = source[pages[first : first + step]].transpose(0, 1)  # [G, P, T, D]
                part = part.reshape(config.num_kv_heads, -1, config.head_dim)
                start = first * config.page_size
                part = part[:, : end - start]
                target[:, start : start + part.shape[1]] = part
        return out

    def _mask(self, size: int) -> torch.Tensor:
        positions = torch.arange(size)
        is_beyond = positions >= torch.from_numpy(self._lengths)[:, None]
        mask = torch.zeros(is_beyond.shape, dtype=self._dtype)
        return mask.masked_fill_(is_beyond, -torch.inf)[:, None, None].to(self.device)

    def _fastest(self, layouts: dict[str, list[Call]], queries: np.ndarray):
        """Run every form a few times; return the times, the fastest form, its calls and heads."""
        heads = GQA_FORMS if self._config.group_size > 1 else ("",)
        forms = {
            ", ".join(filter(None, (layout, form))): (calls, form)
            for layout, calls in layouts.items()
            for form in heads
        }
        times, errors = {}, []
        for name, form in forms.items():
            try:
                steps = [self._time(*form, queries).stages for _ in range(FORM_RUNS)]
                times[name] = min(step.total_ms for step in steps)
            except RuntimeError as error:  # of memory, or a form that torch does not take
                errors.append(error)
        if not times:
            raise errors[0]
        form = min(times, key=times.get)
        return times, form, *forms[form]

    def decode(self, queries: np.ndarray, request_ids: Sequence[int]) -> DecodeResult:
        """Attend once, as a path does; the requests are those that it was prepared for."""
        with torch.inference_mode():
            return self._time(self._calls, self._heads, queries)

    def _time(self, calls: list[Call], heads: str, queries: np.ndarray) -> DecodeResult:
        """Attend in one form, and take the time."""
        queries = self._as_stored(queries)
        start = perf_counter()
        parts = self._attend(calls, heads, queries)
        total_ms = (perf_counter() - start) * 1e3
        times = StageTimes(attend_ms=total_ms, total_ms=total_ms)
        return self._result(torch.cat(parts), times)

    def _as_stored(self, queries: np.ndarray) -> torch.Tensor:
        """Return queries [B, H, D] as torch gets them, in order of the contexts' lengths."""
        return torch.from_numpy(queries[self._order]).to(self._dtype)

    def _attend(self, calls: list[Call], heads: str, queries: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs of every call, [n, H, D]."""
        config, outputs = self._config, []
        attention = torch.nn.functional.scaled_dot_product_attention
        is_folded = heads != "enable_gqa"
        split = (config.num_kv_heads, config.group_size) if is_folded else (config.num_heads, 1)
        for rows, keys, values, mask in calls:
            part = queries[rows].view(-1, *split, config.head_dim)
            out = attention(
                part, keys, values, attn_mask=mask, scale=config.sm_scale, enable_gqa=not is_folded
            )
            outputs.append(out.reshape(-1, config.num_heads, config.head_dim))
        return outputs

    def _result(self, sorted_outputs: torch.Tensor, times: StageTimes) -> DecodeResult:
        outputs = np.empty(sorted_outputs.shape, np.float32)
        outputs[self._order] = sorted_outputs.float().numpy()
        return DecodeResult(outputs, None, None, times)


class GpuWork(CpuWork):
    """A batch on a GPU: from queries on the host to outputs there, and kernels by their events."""

    device = "cuda"

    def __init__(self, cache: PagedKvCache, queries: np.ndarray, request_ids: list[int]):
        flush = {"dtype": torch.uint8, "device": self.device}
        self._flush = [torch.empty(FLUSH_BYTES, **flush) for _ in range(2)]
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        dtype = getattr(torch, cache.config.kv_dtype)
        pinned = {"dtype": dtype, "pin_memory": True}
        self._pinned_queries, self._pinned_outputs = (
            torch.empty(queries.shape, **pinned) for _ in range(2)
        )
        super().__init__(cache, queries, request_ids)
        torch.cuda.empty_cache()  # of the forms that are not kept

    def _check_memory(self, token_bytes: int) -> bool:
        free_bytes = FREE_FRACTION * torch.cuda.mem_get_info()[0]
        needed = int(self._lengths.sum()) * token_bytes
        if needed > free_bytes:
            raise MemoryError(f"a second copy of K and V, {needed:,} bytes, does not fit there")
        padded = padded_tokens(self._lengths)
        return padded > 0 and needed + padded * token_bytes <= free_bytes

    def _stored(self, cache: PagedKvCache) -> list[torch.Tensor]:
        from numbadsd.pages.device import device_pool_of

        pool = device_pool_of(cache)
        pool.stream.synchronize()
        words = (Words(array) for array in (pool.keys, pool.values))
        tensors = (torch.as_tensor(array, device=self.device) for array in words)
        return [tensor.view(self._dtype) for tensor in tensors]

    def _empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self.device)

    def _time(self, calls: list[Call], heads: str, queries: np.ndarray) -> DecodeResult:
        self._pinned_queries.copy_(self._as_stored(queries))
        start = perf_counter()
        on_device = self._pinned_queries.to(self.device, non_blocking=True)
        parts = self._attend(calls, heads, on_device)
        outputs = torch.cat(parts) if len(parts) > 1 else parts[0]
        self._pinned_outputs.copy_(outputs, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        total_ms = (perf_counter() - start) * 1e3
        kernel_ms = self._kernel_ms(calls, heads, on_device)
        times = StageTimes(attend_ms=total_ms, total_ms=total_ms, kernel_ms=kernel_ms)
        return self._result(self._pinned_outputs, times)

    def _kernel_ms(self, calls: list[Call], heads: str, on_device: torch.Tensor) -> float:
        """Attend once more, behind a copy that empties the L2 cache and hides the launches."""
        start, end = self._events
        self._flush[1].copy_(self._flush[0])
        start.record()
        self._attend(calls, heads, on_device)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


class Words:
    """An array on a device as torch reads it: half precision as words of 16 bits."""

    def __init__(self, array):
        self._array = array  # kept alive
        described = array.__cuda_array_interface__
        self.__cuda_array_interface__ = described | {"typestr": f"<i{array.dtype.itemsize}"}
