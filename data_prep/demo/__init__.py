"""Synthetic knees and heads, and the demonstrations that use them; nothing outside this folder imports it."""
