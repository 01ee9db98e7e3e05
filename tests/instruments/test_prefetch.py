import threading
import time

import pytest

from probing.instruments.prefetch import prefetch


def test_everything_comes_in_order_and_from_one_other_thread():
    threads = set()

    def make(number):
        threads.add(threading.current_thread())
        return number * 10

    assert list(prefetch(make, range(5))) == [0, 10, 20, 30, 40]
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    assert list(prefetch(make, [])) == []


def test_the_next_is_made_while_one_is_used_and_no_more():
    made = []

    def make(number):
        made.append(number)
        return number

    items = prefetch(make, range(5))
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while made != [0, 1] and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1]
    assert next(items) == 1
    items.close()


def test_an_error_comes_when_its_turn_has_come_and_no_thread_is_left():
    def make(number):
        if number == 1:
            raise ValueError("no pair")
        return number

    items = prefetch(make, range(3))
    assert next(items) == 0
    with pytest.raises(ValueError, match="no pair"):
        next(items)
    assert not any(thread.name.startswith("one-ahead") for thread in threading.enumerate())
