"""Write a shard: one slot per planned image, filled by several processes, packed when complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medcls.disk import describe_unwritten
from medcls.errors import WriteError
from medcls.files import TEMPORARY, sync_folder

_PACK_BYTES = 1 << 24


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{shard:05d}.npy"


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one image goes: file, offset and length in bytes. Small and picklable, for worker processes."""

    file: Path
    offset: int
    nbytes: int


def write_slot(slot: Slot, image: NDArray[Any]) -> None:
    """Write the image (C, *spatial) into its slot; called in worker processes, in any order.

    Raises:
        ValueError: another size.
        WriteError: no space left, or the file is gone.
    """
    content = np.ascontiguousarray(image).data.cast("B")
    if len(content) != slot.nbytes:
        raise ValueError(f"image {image.shape} {image.dtype} has {len(content)} bytes: expected {slot.nbytes}")
    try:
        descriptor = os.open(slot.file, os.O_WRONLY)
        try:
            written = 0
            while written < slot.nbytes:
                written += os.pwrite(descriptor, content[written:], slot.offset + written)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _no_space(slot.file.parent, error) from error


class ShardFile:
    """One .npy file of a store, under a temporary name until it is whole.

    Args:
        folder: The store.
        number: Of the shard.
        shape: (C, *spatial) of every image.
        dtype: Of every image.
        slots: Images planned.
    """

    def __init__(self, folder: Path, number: int, *, shape: tuple[int, ...], dtype: DTypeLike, slots: int) -> None:
        self.path = folder / shard_name(number)
        self.slots = slots
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._nbytes = int(np.prod(shape)) * self._dtype.itemsize
        # A name of its own: a job started twice must not write into the other's file.
        self._temporary = folder / f"{TEMPORARY}{secrets.token_hex(4)}-{self.path.name}"
        self._start = 0

    def create(self) -> None:
        """Make the file at its full size, so that a full disk is met now and not after hours.

        Raises:
            WriteError: no space left, or the folder is read-only.
        """
        try:
            with self._temporary.open("wb") as file:
                self._write_header(file, self.slots)
                self._start = file.tell()
                os.posix_fallocate(file.fileno(), 0, self._start + self.slots * self._nbytes)
        except OSError as error:
            raise _no_space(self.path.parent, error) from error

    def slot(self, index: int) -> Slot:
        """Return the place of the index-th planned image."""
        return Slot(self._temporary, self._start + index * self._nbytes, self._nbytes)

    def finish(self, kept: Sequence[int]) -> None:
        """Close the gaps of images that were refused, and give the file its name; nothing kept makes no file.

        Args:
            kept: The planned images that were written, ascending; the i-th of them becomes row i.

        Raises:
            WriteError: the disk or the folder failed.
        """
        try:
            if not kept:
                self._temporary.unlink()
                return
            with self._temporary.open("r+b") as file:
                self._pack(file.fileno(), kept)
                self._write_header(file, len(kept))
                file.flush()
                os.ftruncate(file.fileno(), self._start + len(kept) * self._nbytes)
                os.fsync(file.fileno())
            self._temporary.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise _no_space(self.path.parent, error) from error

    def _pack(self, descriptor: int, kept: Sequence[int]) -> None:
        for row, index in enumerate(kept):
            if row != index:
                for done in range(0, self._nbytes, _PACK_BYTES):
                    size = min(_PACK_BYTES, self._nbytes - done)
                    part = os.pread(descriptor, size, self._start + index * self._nbytes + done)
                    os.pwrite(descriptor, part, self._start + row * self._nbytes + done)

    def _write_header(self, file: Any, rows: int) -> None:
        # numpy pads the header so that the first axis can grow in place: every count fits the same bytes.
        header = {"shape": (rows, *self._shape), "fortran_order": False, "descr": self._dtype.str}
        np.lib.format.write_array_header_1_0(file, header)


def _no_space(folder: Path, error: OSError) -> WriteError:
    return describe_unwritten(error, str(folder), remedy="free or change store=")
