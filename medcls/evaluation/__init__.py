"""Predictions to numbers with intervals and a report. No torch here."""
