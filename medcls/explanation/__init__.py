"""Maps of where in an image a network's answer comes from, and measurements of whether they are true.

Everything here takes plain arrays and a score: a function from images (N, C, *spatial) to one number each.
A map has the image's spatial shape; positive values speak for the score, negative ones against it.
"""
