"""python -m benchmarks.dicom_arms ARM FOLDER SIZE: reads the folder's files once for every line of its input.

Each arm runs in a process of its own, so that none profits from the caches or suffers from the garbage of another.
It answers each line with the processor time of one pass in seconds, all threads together, so that a busy machine
disturbs little, and an empty line with its peak memory in bytes.
"""

from __future__ import annotations

import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.encaps import generate_frames

from medcls.imaging.dicom import codecs
from medcls.imaging.dicom.burnt_in import BurntInRule
from medcls.imaging.image import read_image
from medcls.imaging.preprocess import PreprocessSpec, preprocess_image
from medcls.imaging.worker import keep_freed_memory

CENTER, WIDTH = 1040.0, 400.0
"""The window of every file, in stored values plus the rescale intercept of 1000 that all of them have."""

_PEERS = ("loop", "monai", "simpleitk")


def build_arm(name: str, files: list[Path], size: int) -> Callable[[Path], object]:
    """The function that an arm applies to every file."""
    if name not in _PEERS:
        keep_freed_memory()  # as workers do; the limit and the decoder get it too
    held = hold(files) if name in ("limit", "decoder") else {}
    arms: dict[str, Callable[[Path], object]] = {
        "medcls": lambda path: run_medcls(path, size),
        "loop, memory kept": lambda path: show(pydicom_values(path), size),
        "loop": lambda path: show(pydicom_values(path), size),
        "monai": lambda path: show(monai_values(path), size),
        "simpleitk": lambda path: show(simpleitk_values(path), size),
        "decoder": lambda path: held[path](),
        "limit": lambda path: show(held[path]().astype(np.float32) + np.float32(1000), size),
    }
    return arms[name]


def run_medcls(path: Path, size: int) -> np.ndarray:
    """What a worker does with a file, all checks on."""
    spec = PreprocessSpec(height=size, width=size, fit="stretch", burnt_in=BurntInRule())
    return preprocess_image(read_image(path, options=spec.read_options), spec).pixels


def show(values: np.ndarray, size: int) -> np.ndarray:
    """Window, resize and bytes, as short as one writes them."""
    shown = np.clip((values - np.float32(CENTER - WIDTH / 2)) / np.float32(WIDTH), 0, 1)
    return (cv2.resize(shown, (size, size), interpolation=cv2.INTER_AREA) * 255).astype(np.uint8)


def pydicom_values(path: Path) -> np.ndarray:
    """Modality values as in most notebooks."""
    ds = pydicom.dcmread(path)
    return ds.pixel_array.astype(np.float32) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)


def monai_values(path: Path) -> np.ndarray:
    """MONAI rescales by itself."""
    from monai.data import PydicomReader

    reader = PydicomReader(swap_ij=False)
    return reader.get_data(reader.read(path))[0].astype(np.float32)


def simpleitk_values(path: Path) -> np.ndarray:
    """SimpleITK rescales by itself."""
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    return SimpleITK.GetArrayViewFromImage(image)[0].astype(np.float32)


def hold(files: list[Path]) -> dict[Path, Callable[[], np.ndarray]]:
    """For each file a function from its pixel bytes, which are in memory already, to its stored values."""
    held: dict[Path, Callable[[], np.ndarray]] = {}
    for path in files:
        ds = pydicom.dcmread(path)
        syntax, shape = ds.file_meta.TransferSyntaxUID, (ds.Rows, ds.Columns)
        if syntax.is_encapsulated:
            stream = next(generate_frames(ds.PixelData, number_of_frames=1))
            held[path] = lambda stream=stream, syntax=syntax: codecs.decode_codestream(stream, syntax, samples=1)
        else:
            held[path] = lambda data=ds.PixelData, shape=shape: np.frombuffer(data, np.uint16).reshape(shape)
    return held


def read_peak_bytes() -> int:
    """Peak memory of this process; ru_maxrss would carry that of the process it was forked from."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(name: str, folder: str, size: str) -> int:
    """Serves passes until the input ends; the first, untimed, warms caches and shows whether the arm can read."""
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    files = sorted(Path(folder).iterdir())
    try:
        read = build_arm(name, files, int(size))
        for path in files:
            read(path)
    except Exception as error:
        reason = "not installed" if isinstance(error, ModuleNotFoundError) else f"cannot read ({type(error).__name__})"
        print(reason, flush=True)
        return 1
    print("ready", flush=True)
    for line in sys.stdin:
        if not line.strip():
            print(read_peak_bytes(), flush=True)
            continue
        start = time.process_time()
        for path in files:
            read(path)
        print(time.process_time() - start, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
