"""The progress of a command as Prometheus reads it, over HTTP, while the command runs."""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from probing.errors import UsageError
from probing.store.progress import Work, Worker, add_counts, listening

if TYPE_CHECKING:
    from prometheus_client.core import Metric

OF_WORK = ("command", "doing", "unit")
EARLIER = "earlier"
"""Label of rows that an earlier run has done, in place of the number of a worker."""


@contextlib.contextmanager
def serve_metrics(address: tuple[str, int], command: str) -> Iterator[None]:
    """Serve the progress of all work inside the block as Prometheus text.

    Args:
        address: host and port.
        command: command that runs, for the label of that name.

    Raises:
        UsageError: nothing can be served there, because the port is taken for instance.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    host, port = address
    registry, collector = CollectorRegistry(), ProgressCollector(command)
    registry.register(collector)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise UsageError(
            f"--metrics-port {host}:{port}: cannot be served there ({error.strerror or error}); choose another port"
        ) from error
    try:
        with listening(collector.hear):
            yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class ProgressCollector:
    """All work of a command so far, as metrics.

    Args:
        command: value of the label of that name.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._works: list[Work] = []

    def hear(self, work: Work, ended: bool) -> None:
        """Remember some work; what is done of it is read when it is asked for."""
        if not any(known is work for known in self._works):
            self._works.append(work)

    def collect(self) -> "Iterable[Metric]":
        """The metrics, as the client library collects them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        expected = GaugeMetricFamily("probing_rows_expected", "Rows in all.", labels=OF_WORK)
        done = GaugeMetricFamily("probing_rows_done", "Rows that are done, those in progress in part.", labels=OF_WORK)
        rows = CounterMetricFamily(
            "probing_rows", "Rows of finished parts, by status.", labels=(*OF_WORK, "worker", "status")
        )
        tokens = CounterMetricFamily("probing_tokens", "Tokens that are done.", labels=(*OF_WORK, "worker"))
        seconds = CounterMetricFamily("probing_seconds", "Seconds of work.", labels=(*OF_WORK, "worker"))
        for (doing, unit), works in self._group().items():
            of_work = (self._command, doing, unit)
            expected.add_metric(of_work, sum(work.total or 0 for work in works))
            done.add_metric(of_work, sum(work.rows for work in works))
            for worker, spent in _join_workers(works).items():
                for status, count in spent.statuses.items():
                    rows.add_metric((*of_work, worker, status), count)
                if worker != EARLIER:
                    tokens.add_metric((*of_work, worker), spent.tokens)
                    seconds.add_metric((*of_work, worker), spent.seconds)
        return [expected, done, rows, tokens, seconds]

    def _group(self) -> dict[tuple[str, str], list[Work]]:
        """Work that goes by the same words, such as the states of several models, is counted together."""
        groups: dict[tuple[str, str], list[Work]] = defaultdict(list)
        for work in list(self._works):
            groups[work.doing, work.unit].append(work)
        return groups


def _join_workers(works: list[Work]) -> dict[str, Worker]:
    """What each worker has done of several pieces of work."""
    joined = {EARLIER: Worker(statuses=add_counts(*(work.earlier_statuses for work in works)))}
    for work in works:
        for rank, worker in work.workers.items():
            known = joined.setdefault(str(rank), Worker())
            known.tokens += worker.tokens
            known.seconds += worker.seconds
            known.statuses = add_counts(known.statuses, worker.statuses)
    return joined
