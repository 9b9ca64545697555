"""Trackers of other makers that are told the numbers of a run."""
