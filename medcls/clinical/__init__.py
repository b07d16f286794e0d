"""Clinical columns beside the image: learnt, encoded, and reported as odds ratios."""
