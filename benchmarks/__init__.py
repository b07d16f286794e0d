"""Measurements of the real code beside its limits and its peers; ratios within one run, never asserted."""
