"""Series of slices to volumes: selected, stacked, checked, resampled."""
