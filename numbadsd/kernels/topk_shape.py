"""What `topk_rows` takes, on every target."""

MAX_K = 2048  # of `numbadsd.topk`, and of a GPU
MAX_WIDTH = 1 << 20
ORDERS = ("position", "score")
_DTYPES = ("float32", "float16", "bfloat16")


def check_topk(
    dtype: str,
    num_scores: int,
    row_stride: int,
    width: int,
    num_lengths: int,
    num_first: int,
    num_last: int,
    order: str,
    indices_shape: tuple[int, int],
) -> None:
    """Raise ValueError for what does not fit together; arrays' own shapes are checked before."""
    rows, k = indices_shape
    least = (rows - 1) * row_stride + width if rows else 0
    fits = num_lengths == rows if rows == 0 else num_lengths and rows % num_lengths == 0
    forced = num_first + num_last
    # the good case first: it makes no messages
    if (
        dtype in _DTYPES and 0 <= width <= MAX_WIDTH and row_stride >= 0 and num_scores >= least
        and fits and num_first >= 0 and num_last >= 0 and forced <= k and order in ORDERS
        and (order == "position" or forced == 0)
    ):  # fmt: skip
        return
    _want(dtype in _DTYPES, "scores", f"dtype {dtype}", "float32, float16 or bfloat16")
    _want(0 <= width <= MAX_WIDTH, "width", width, f"0 .. {MAX_WIDTH}")
    _want(row_stride >= 0, "row_stride", row_stride, "at least 0")
    _want(num_scores >= least, "scores", f"{num_scores} elements", f"at least {least}")
    _want(fits, "lengths", f"{num_lengths} for {rows} rows", "one for each of them, or for groups")
    is_forced = num_first >= 0 and num_last >= 0 and forced <= k
    got = f"{num_first} + {num_last}"
    _want(is_forced, "num_first + num_last", got, f"at least 0, together at most k = {k}")
    _want(order in ORDERS, "order", repr(order), "'position' or 'score'")
    _want(False, "order", repr(order), "'position' with num_first or num_last")


def _want(holds, name: str, got, want: str) -> None:
    if not holds:
        raise ValueError(f"{name}: got {got}, want {want}")
