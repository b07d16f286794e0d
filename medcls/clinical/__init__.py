"""Clinical columns beside the image: chosen, encoded, and reported as odds ratios."""
