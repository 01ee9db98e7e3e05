import threading

import pytest
import torch

from probing.probes.threads import open_single_threads


def test_each_thread_computes_alone_and_torch_has_its_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with open_single_threads(3) as pool:
            meet = threading.Barrier(3, timeout=30)  # all three are at work at once
            counts = list(pool.map(lambda _: (meet.wait(), torch.get_num_threads())[1], range(3)))
            assert counts == [1, 1, 1]
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_is_not_begun_is_not_done_after_an_error():
    done, begun = [], threading.Event()
    goes_on = threading.Event()

    def work(number):
        begun.set()
        goes_on.wait(30)
        done.append(number)

    def fail():
        with open_single_threads(1) as pool:
            for number in range(4):
                pool.submit(work, number)
            begun.wait(30)
            threading.Timer(0.05, goes_on.set).start()
            raise ValueError("elsewhere")

    with pytest.raises(ValueError, match="elsewhere"):
        fail()
    assert done == [0]
