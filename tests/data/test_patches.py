from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcls.data.crops import Patch
from medcls.errors import ConfigError
from medcls.reproducibility import make_generator

STORED = (2, 5, 6, 7)
VOLUME = np.arange(np.prod(STORED)).reshape(STORED)


@given(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7)), st.integers(0, 2**32))
def test_a_patch_is_a_part_of_the_volume_and_a_function_of_its_key(size: tuple[int, int, int], key: int) -> None:
    patch = Patch(size)
    patch.check(STORED)
    taken = patch.take_random(VOLUME, make_generator(key))
    assert taken.shape == patch.shape(STORED) == (2, *size)
    corner = np.argwhere(taken[0, 0, 0, 0] == VOLUME)[0, 1:]
    np.testing.assert_array_equal(taken, VOLUME[(slice(None), *map(slice, corner, corner + size))])
    np.testing.assert_array_equal(taken, patch.take_random(VOLUME, make_generator(key)))


def test_every_place_is_drawn_and_the_middle_is_the_middle() -> None:
    patch = Patch((4, 5, 6))
    taken = {int(patch.take_random(VOLUME, make_generator(key))[0, 0, 0, 0]) for key in range(80)}
    assert len(taken) == 8
    assert Patch((1, 2, 3)).take_center(VOLUME)[0, 0, 0].tolist() == VOLUME[0, 2, 2, 2:5].tolist()
    assert (Patch((5, 6, 7)).take_center(VOLUME) == VOLUME).all()


@pytest.mark.parametrize("stored", [(1, 3, 8, 8), (1, 8, 8)])
def test_stores_without_room_for_it_are_refused(stored: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"patch.size=\[4, 4, 4\]: the store holds"):
        Patch((4, 4, 4)).check(stored)
