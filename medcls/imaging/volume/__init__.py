"""Series of slices to volumes: found, stacked, placed, resampled."""
