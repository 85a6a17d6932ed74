"""Sums over the threads of a block."""

from functools import cache

from numbadsd.kernels.cuda.ops import cuda, device, int32, shfl_up, uint32


@device
def warp_sum_before(number):
    """Return the sum over the lanes before this one, and up to it; called by whole warps."""
    lane = cuda.threadIdx.x % 32
    total = uint32(number)
    for step in range(5):
        other = shfl_up(total, uint32(1 << step))
        if lane >= 1 << step:
            total = uint32(total + other)
    return int32(total) - number, int32(total)


@cache
def make_block_sum_before(num_warps: int):
    """Return ``block_sum_before`` for blocks of so many warps."""

    @device
    def block_sum_before(number, warp_totals):
        """Return the sum over the threads before this one, and over all; called by whole blocks."""
        thread = cuda.threadIdx.x
        lane, warp = thread % 32, thread // 32
        before, up_to_here = warp_sum_before(number)
        if lane == 31:
            warp_totals[warp] = up_to_here
        cuda.syncthreads()
        everything = int32(0)
        for other_warp in range(num_warps):
            if other_warp < warp:
                before += warp_totals[other_warp]
            everything += warp_totals[other_warp]
        cuda.syncthreads()
        return before, everything

    return block_sum_before
