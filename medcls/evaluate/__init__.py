"""The command evaluate: a run or a file of scores to metrics with intervals and a report."""
