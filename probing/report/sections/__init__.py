"""What the runs of each command say on a page: functions from a run to its sections, checks and rows."""
