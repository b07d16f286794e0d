"""Numbers with intervals from predictions; no page, no torch."""
