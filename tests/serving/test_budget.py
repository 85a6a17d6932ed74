"""KvBudget and ``--kv-budget``: who holds how many pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadsd.errors import PageStateError
from numbadsd.serving.budget import KvBudget, parse_kv_budget


def parse(text, free=10**6, token_bytes=100, page_size=16):
    return parse_kv_budget(text, token_bytes, page_size, lambda: free)


def test_pages_are_reserved_grown_and_released():
    budget = KvBudget(5, page_size=4)
    assert [budget.pages_for(n) for n in (1, 4, 5)] == [1, 1, 2]
    assert budget.reserve(7, 2) and budget.grow(7, 1) and budget.reserve(8, 1)
    assert (budget.used_pages, budget.free_pages, budget.held_pages(7)) == (4, 1, 3)
    assert not budget.reserve(9, 2) and not budget.grow(8, 2)
    assert (budget.used_pages, budget.held_pages(8), budget.held_pages(9)) == (4, 1, 0)
    assert budget.release(7) == 3
    assert (budget.used_pages, budget.free_pages, budget.peak_pages) == (1, 4, 4)
    assert budget.could_ever_hold(5) and not budget.could_ever_hold(6)


def test_an_unlimited_budget_counts_too():
    budget = KvBudget(None, page_size=4)
    assert budget.reserve(1, 10**12) and budget.could_ever_hold(10**15)
    assert budget.free_pages is None and budget.peak_pages == 10**12


def test_misuse_is_refused_and_changes_nothing():
    budget = KvBudget(5, page_size=4)
    budget.reserve(1, 2)
    with pytest.raises(PageStateError, match="request 1 reserves again, it holds 2 pages"):
        budget.reserve(1, 1)
    for act in (lambda: budget.release(2), lambda: budget.grow(2, 1)):
        with pytest.raises(PageStateError, match="request 2 holds no pages"):
            act()
    with pytest.raises(ValueError, match="pages: got -1"):
        budget.grow(1, -1)
    budget.release(1)
    with pytest.raises(PageStateError):
        budget.release(1)
    assert budget.used_pages == 0


@pytest.mark.parametrize("arguments", [(0, 4), (5, 0), (2.5, 4)])
def test_a_wrong_size_is_refused(arguments):
    with pytest.raises(ValueError, match="want an integer"):
        KvBudget(*arguments)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=40))
def test_used_is_the_sum_of_what_is_held(operations):
    budget, held, peak = KvBudget(7, 1), {}, 0
    for request_id, pages, is_release in operations:
        if is_release and request_id in held:
            assert budget.release(request_id) == held.pop(request_id)
        elif not is_release:
            act = budget.grow if request_id in held else budget.reserve
            fits = sum(held.values()) + pages <= 7
            assert act(request_id, pages) == fits
            if fits:
                held[request_id] = held.get(request_id, 0) + pages
        peak = max(peak, sum(held.values()))
        assert (budget.used_pages, budget.peak_pages) == (sum(held.values()), peak)
        assert budget.free_pages == 7 - budget.used_pages


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        ("auto", 500),
        ("unlimited", None),
        ("1600", 1),
        ("3199", 1),
        ("16K", 10),
        ("1M", 625),
        ("1.5M", 937),
        ("1G", 625000),
        ("2Ki", 1),
        ("1Mi", 655),
        ("1Gi", 671088),
        ("20000tok", 1250),
        ("31tok", 1),
    ],
)
def test_a_budget_is_read_as_whole_pages(text, pages):
    assert parse(text) == pages


def test_free_memory_is_asked_for_auto_only():
    def free_bytes():
        raise AssertionError("asked")

    assert parse_kv_budget("32tok", 100, 16, free_bytes) == 2
    with pytest.raises(AssertionError, match="asked"):
        parse_kv_budget("auto", 100, 16, free_bytes)


@pytest.mark.parametrize(
    "text",
    ["", "Auto", "-5", "1e9", "1.5", "5T", "5KB", "5 K", "tok", "1.5tok", "nan", "9" * 40, "٣K",
     "12\n", "None"],
)  # fmt: skip
def test_a_text_that_means_nothing_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="^kv_budget: got .*, want auto, unlimited, bytes") as e:
        parse(text)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["0", "1599", "1K", "15tok", "0tok", "auto"])
def test_less_than_one_page_is_refused(text):
    with pytest.raises(ValueError, match="want at least one page: 16 tokens of 100 bytes"):
        parse(text, free=1999)
