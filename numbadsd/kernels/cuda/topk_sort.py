"""Put selected indices into the order of their scores."""

from functools import cache

from numbadsd.kernels.cuda.launch import Kernel
from numbadsd.kernels.cuda.ops import cuda, int32, int64, uint32
from numbadsd.kernels.cuda.topk_row import NUM_THREADS, SCORE_PARAMETERS, make_key_at

MAX_SORTED = 2048
_FLIPPED = 0x7FFFFFFF  # turns a key into a signed number that falls as the key rises
_NOTHING = 0x7FFFFFFFFFFFFFFF  # behind every element


@cache
def sort_selected_kernel(dtype: str) -> Kernel:
    """Return the kernel that sorts each row of indices: higher score first, then lower index.

    Work      one block per row, a bitonic network in shared memory
    Block     512 threads
    Writes    indices, in place; -1 stays at the tail
    Bytes     reads 4 and 2 or 4 per index, writes 4
    """
    key_at = make_key_at(dtype)

    def sort_selected(scores, indices, row_stride, k, padded):
        places = cuda.shared.array(MAX_SORTED, int64)
        thread, row = cuda.threadIdx.x, cuda.blockIdx.x
        base, out = int64(row) * row_stride, int64(row) * k
        for i in range(thread, padded, NUM_THREADS):
            index = indices[out + i] if i < k else int32(-1)
            place = int64(_NOTHING)
            if index >= 0:
                key = uint32(key_at(scores, base + index) ^ uint32(_FLIPPED))
                signed = int64(key) - (int64(1 << 32) if key > uint32(_FLIPPED) else int64(0))
                place = signed * int64(1 << 32) + index
            places[i] = place
        cuda.syncthreads()
        size = 2
        while size <= padded:
            gap = size // 2
            while gap > 0:
                for pair in range(thread, padded // 2, NUM_THREADS):
                    low = pair // gap * 2 * gap + pair % gap
                    a, b = places[low], places[low + gap]
                    if (a > b) == ((low & size) == 0):
                        places[low], places[low + gap] = b, a
                cuda.syncthreads()
                gap //= 2
            size *= 2
        for i in range(thread, k, NUM_THREADS):
            place = places[i]
            indices[out + i] = int32(place & 0xFFFFFFFF) if place != _NOTHING else int32(-1)

    return Kernel(
        name=f"sort_selected_{dtype}",
        function=sort_selected,
        parameters=(SCORE_PARAMETERS[dtype], "i32[]", "i64", "i32", "i32"),
        num_threads=NUM_THREADS,
        max_registers=64,
        load_bytes=4,
    )
