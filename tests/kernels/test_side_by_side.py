"""The order of work in two streams, on a made-up machine that may delay each stream as long as it likes."""

import contextlib
import random

import pytest
import torch

from probing.kernels import token_stats as file
from probing.kernels.output_head import Unembedding, chunks_of
from probing.kernels.side_by_side import BUFFERS, run_in_turn, run_side_by_side


class Event:
    def __init__(self):
        self.happened = False


class Stream:
    """A queue of work, which is done when the machine pleases. Work on it waits for what the stream waits for."""

    def __init__(self, machine):
        self.machine, self.queue = machine, []
        machine.streams.append(self)

    def record_event(self):
        event = Event()
        self.queue.append(("happen", event))
        return event

    def wait_event(self, event):
        self.queue.append(("wait", event))

    def wait_stream(self, other):
        self.wait_event(other.record_event())


class Machine:
    """Streams that advance in random order, as far as their events allow."""

    def __init__(self, seed):
        self.streams, self.order = [], random.Random(seed)
        self.maker, self.user = Stream(self), Stream(self)
        self.current = self.maker

    @contextlib.contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def queue(self, work):
        self.current.queue.append(("work", work))

    def advance(self, steps=None):
        """So many steps, or all there are; False if a stream waits for what never happens."""
        while steps is None or steps > 0:
            able = [s for s in self.streams if s.queue and not (s.queue[0][0] == "wait" and not s.queue[0][1].happened)]
            if not able:
                return not any(s.queue for s in self.streams)
            kind, what = self.order.choice(able).queue.pop(0)
            if kind == "happen":
                what.happened = True
            elif kind == "work":
                what()
            steps = None if steps is None else steps - 1
        return True


class Log:
    """What was in each buffer when it was used."""

    def __init__(self, machine=None):
        self.machine, self.buffers, self.used, self.makes_at_a_use = machine, [None] * BUFFERS, [], []

    def do(self, work):
        if self.machine is None:
            work()
        else:
            self.machine.queue(work)
            self.machine.advance(self.machine.order.randrange(4))  # the card begins before everything is queued

    def make(self, rows, buffer):
        def write():
            self.buffers[buffer] = ("half", rows)

        def finish():
            self.buffers[buffer] = ("whole", rows)
            self.made = rows.start

        self.do(write)
        self.do(finish)

    def use(self, rows, buffer):
        def first():
            self.seen = self.buffers[buffer]

        def second():  # a kernel reads for a while: nothing may be written meanwhile
            self.used.append((rows, self.seen, self.buffers[buffer]))
            self.makes_at_a_use.append(self.made)

        self.do(first)
        self.do(second)


CHUNKS = chunks_of(70, 10)


def run(seed, schedule=run_side_by_side):
    machine = Machine(seed)
    log = Log(machine)
    schedule(CHUNKS, log.make, log.use, machine.maker, machine.user, machine.on)
    freed = []
    machine.queue(lambda: freed.append(len(log.used)))  # in the stream of the caller, as soon as the function returns
    ended = machine.advance()
    return log, ended and freed == [len(CHUNKS)]


def sound(log):
    return log.used == [(rows, ("whole", rows), ("whole", rows)) for rows in CHUNKS]


def test_in_turn_is_what_it_should_be():
    log = Log()
    run_in_turn(CHUNKS, log.make, log.use)
    assert sound(log)


def test_no_buffer_is_written_while_it_is_read_and_none_is_read_before_it_is_written():
    ahead = 0
    for seed in range(300):
        log, ended = run(seed)
        assert sound(log), seed
        assert ended, "work after the function came before the last use"
        ahead += sum(made > rows.start for made, (rows, *_) in zip(log.makes_at_a_use, log.used, strict=True))
    assert ahead > 300  # there is something to gain: the next chunk was often made by the time one was used


class Deaf(Stream):
    def wait_event(self, event):
        pass


@pytest.mark.parametrize("which", ["maker", "user"])
def test_the_machine_finds_what_is_not_waited_for(monkeypatch, which):
    """Without either wait some order of work goes wrong, so the test above would have failed."""

    def deaf(chunks, make, use, maker, user, on):
        (maker if which == "maker" else user).__class__ = Deaf
        run_side_by_side(chunks, make, use, maker, user, on)

    assert not all(sound(log) and ended for log, ended in (run(seed, deaf) for seed in range(300)))


def test_after_an_error_too_the_last_use_ends_first():
    machine = Machine(0)
    log = Log(machine)

    def make(rows, buffer):
        if rows.start == 30:
            raise ValueError("planted")
        log.make(rows, buffer)

    with pytest.raises(ValueError, match="planted"):
        run_side_by_side(CHUNKS, make, log.use, machine.maker, machine.user, machine.on)
    freed = []
    machine.queue(lambda: freed.append(len(log.used)))
    assert machine.advance()
    assert freed == [3]


@pytest.mark.parametrize("options", [{}, {"bias": torch.linspace(-1, 1, 300), "scale": 0.5, "soft_cap": 4.0}], ids=str)
def test_the_statistics_are_the_same_in_two_buffers(generator, monkeypatch, options):
    """``token_stats`` as on a card, but for the card: streams that do their work at once."""

    def of_two_streams(self, chunks):
        machine = Machine(0)
        self.set_up(chunks, BUFFERS)
        buffers.append([values.data_ptr() for values in self.buffers])
        run_side_by_side(chunks, self.make, self.use, machine.maker, machine.user, machine.on)

    hidden, weight = torch.randn(100, 8, generator=generator), torch.randn(300, 8, generator=generator)
    targets, head = torch.arange(100), Unembedding(weight, **options)
    plain = file.token_stats(hidden, head, targets, top=2)
    buffers = []
    monkeypatch.setattr(file, "count_rows_at_a_time", lambda hidden, vocabulary: 16)
    monkeypatch.setattr(file._Filler, "run", of_two_streams)
    found = file.token_stats(hidden, head, targets, top=2)
    assert len(set(buffers[0])) == BUFFERS
    assert all(torch.equal(left, right) for left, right in zip(found, plain, strict=True))
