from __future__ import annotations

import numpy as np

from medcls.imaging.picture import draw_pixels


def test_a_volume_shows_its_middle_axial_slice_within_the_stores_range() -> None:
    volume = np.full((2, 5, 4, 3), -1024, np.int16)
    volume[0, 2], volume[0, 3], volume[1, 2] = 3071, 100, 100
    picture = draw_pixels(volume, (-1024.0, 3071.0))
    assert (picture.shape, picture.dtype) == ((4, 3, 1), np.uint8)
    assert (picture == 255).all()


def test_colour_stays_and_floats_are_scaled() -> None:
    colour = np.stack([np.full((2, 3), value, np.uint8) for value in (250, 10, 0)])
    assert draw_pixels(colour, (0.0, 255.0))[1, 2].tolist() == [250, 10, 0]
    assert draw_pixels(np.full((1, 2, 2), 0.5, np.float16), (0.0, 1.0)).max() == 127
