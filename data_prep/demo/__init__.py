"""Synthetic knees and heads, and the demonstrations on them; no module outside of it needs these."""
