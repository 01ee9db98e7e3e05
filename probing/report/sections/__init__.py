"""What the runs of each command say on a page: functions from a run to its sections, checks and rows."""

from collections.abc import Callable, Mapping

from probing.report.parts import RunData, RunReport
from probing.report.sections.capture import describe_capture
from probing.report.sections.ccs import describe_ccs
from probing.report.sections.clusters import describe_clusters
from probing.report.sections.probe import describe_probe
from probing.report.sections.refusal_directions import describe_extract, describe_select
from probing.report.sections.refusal_evaluate import describe_evaluate
from probing.report.sections.refusal_trace import describe_trace
from probing.report.sections.refusal_transfer import describe_transfer
from probing.report.sections.refusal_weights import describe_audit, describe_export
from probing.report.sections.rollouts import describe_rollouts

DESCRIBERS: Mapping[str, Callable[[RunData, Mapping[str, float | None]], RunReport]] = {
    "rollouts": describe_rollouts,
    "capture": describe_capture,
    "ccs": describe_ccs,
    "probe": describe_probe,
    "clusters": describe_clusters,
    "refusal extract": describe_extract,
    "refusal select": describe_select,
    "refusal evaluate": describe_evaluate,
    "refusal export": describe_export,
    "refusal transfer": describe_transfer,
    "refusal audit": describe_audit,
    "refusal trace": describe_trace,
}
"""What makes the report of a run, by its command."""
