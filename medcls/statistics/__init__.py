"""Numbers with intervals, computed from predictions; no page, no torch."""
