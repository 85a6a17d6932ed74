"""WaitingQueue alone: it asks again only when something has changed."""

import pytest

from numbadsd.serving.admission import WaitingQueue
from numbadsd.serving.request import Progress, Request


def make_queue(*totals, policy="fifo", look_ahead=64, fifo_every=8):
    """Return a queue of requests 0, 1, ... with so many tokens each."""
    queue = WaitingQueue(policy, look_ahead, fifo_every)
    for request_id, total in enumerate(totals):
        queue.push(Progress(Request(request_id, 0.0, 1, total - 1)))
    return queue


class Gate:
    """Lets requests of at most `limit` tokens pass, and counts how often it was asked."""

    def __init__(self, limit):
        self.limit, self.asked = limit, 0

    def __call__(self, progress):
        self.asked += 1
        return progress.request.total_tokens <= self.limit


def ids(taken):
    return [progress.request_id for progress in taken]


@pytest.mark.parametrize("policy", ["fifo", "pack"])
def test_a_blocked_queue_asks_nobody_until_something_changes(policy):
    queue, gate = make_queue(9, 8, policy=policy), Gate(5)
    assert queue.take(4, gate) == []
    asked = gate.asked
    assert queue.take(4, gate) == [] and gate.asked == asked
    gate.limit = 8
    queue.pages_came_free()
    assert ids(queue.take(4, gate)) == ([] if policy == "fifo" else [1])
    queue.remove(0)
    assert ids(queue.take(4, gate)) == ([1] if policy == "fifo" else [])
    assert len(queue) == 0


def test_a_short_request_that_comes_to_a_blocked_queue_is_tried():
    queue, gate = make_queue(9, 8, policy="pack"), Gate(5)
    assert queue.take(4, gate) == []
    queue.push(Progress(Request(2, 0.0, 1, 1)))
    assert ids(queue.take(4, gate)) == [2]


def test_a_full_batch_does_not_block_the_queue():
    queue, gate = make_queue(3, 3), Gate(5)
    assert queue.take(0, gate) == [] and gate.asked == 0
    assert ids(queue.take(1, gate)) == [0] and len(queue) == 1
    assert ids(queue.take(1, gate)) == [1]


def test_preempted_requests_go_to_the_head():
    queue = make_queue(3, 3)
    for request_id in (8, 7):
        queue.push_front(Progress(Request(request_id, 0.0, 1, 1)))
    assert ids(queue.take(9, Gate(5))) == [7, 8, 0, 1]


def test_the_window_moves_on_when_somebody_was_taken():
    queue = make_queue(9, 3, 9, 3, policy="pack", look_ahead=2, fifo_every=100)
    assert ids(queue.take(9, Gate(5))) == [1]
    assert ids(queue.take(9, Gate(5))) == []  # 0 and 2 are the window now
    queue.remove(0)
    assert ids(queue.take(9, Gate(5))) == [3]


def test_a_round_in_order_stays_due_until_the_head_fits():
    queue, gate = make_queue(3, 9, 4, 4, 4, policy="pack", fifo_every=2), Gate(5)
    assert ids(queue.take(1, gate)) == [0]
    for _ in range(3):
        queue.pages_came_free()
        assert queue.take(9, gate) == []
    gate.limit = 9
    queue.pages_came_free()
    assert ids(queue.take(2, gate)) == [1, 2]
