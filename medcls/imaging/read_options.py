"""ReadOptions: how one image is read, apart from what is done to its pixels afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field

from medcls.imaging.dicom.burnt_in import BurntInRule


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read an image.

    Attributes:
        max_pixels: Limit of rows x columns x frames x samples, checked before decoding.
        window_index: Which of several VOI LUTs and windows of a DICOM file, LUTs counted first.
        windows_hu: CT: (centre, width) in HU, each becoming one channel, instead of the file's VOI. HU have a meaning
            of their own, so MONOCHROME1 does not invert these.
        burnt_in: What is done about text in the pixels.
        grey_range: Grey values (samples of a picture, modality values of DICOM) that become black and white, instead
            of the file's VOI or the largest value of its type; MONOCHROME1 inverts them.
        implausible_hu: "refuse" or "allow" a CT whose values cannot be HU.
        damaged: "refuse" or "allow" a coded stream that its decoder calls corrupt and decodes all the same; allowed
            ones are noted.
    """

    max_pixels: int = 1 << 28
    window_index: int = 0
    windows_hu: tuple[tuple[float, float], ...] = ()
    burnt_in: BurntInRule = field(default_factory=BurntInRule)
    grey_range: tuple[float, float] | None = None
    implausible_hu: str = "refuse"
    damaged: str = "refuse"

    @property
    def allow_damaged(self) -> bool:
        """Whether the pixels are taken that a decoder makes of a stream that it calls corrupt."""
        return self.damaged == "allow"
