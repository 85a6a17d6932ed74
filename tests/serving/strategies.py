"""Random configurations and requests: small, so that everything runs out often."""

from hypothesis import strategies as st

from numbadsd.serving.plan import PREFILLS, SchedulerConfig
from numbadsd.serving.request import Request

configs = st.builds(
    SchedulerConfig,
    max_active=st.integers(1, 6),
    page_size=st.integers(1, 5),
    capacity_pages=st.none() | st.integers(1, 24),
    prefill=st.sampled_from(PREFILLS),
    prefill_chunk_tokens=st.integers(1, 12),
    admission=st.sampled_from(["fifo", "pack"]),
    look_ahead=st.integers(1, 5),
    fifo_every=st.integers(1, 4),
    preempt=st.booleans(),
)
lengths = st.tuples(st.integers(1, 20), st.integers(1, 12))


@st.composite
def request_lists(draw, max_size=14, max_arrival=12):
    """Return requests whose ids are in order of arrival."""
    rows = draw(st.lists(st.tuples(st.integers(0, max_arrival), lengths), max_size=max_size))
    rows.sort()
    return [Request(i, arrival, *lengths) for i, (arrival, lengths) in enumerate(rows)]
