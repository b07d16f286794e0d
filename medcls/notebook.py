"""Use from Python: `medcls.load` and `medcls.open_store`, over the functions that the commands call.

Nothing here prints, writes a file or knows Hydra. What commands say goes to the log "medcls" (medcls.console).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.config import DeidentifyConfig, PredictJob
from medcls.console import say
from medcls.data.regions import ALL
from medcls.data.splits import ORDER, SPLIT_NAMES, TEST, read_split, rows_of
from medcls.errors import ConfigError, DataError, ImageRefusedError, UsageError
from medcls.files import MODEL
from medcls.imaging.decode import DecodeTask, decode_image
from medcls.imaging.volume.spec import VolumeSpec
from medcls.inputs import check_file
from medcls.models.backbones import CLINICAL
from medcls.predict.predict import FileRequest, answer_arrays, answer_files, find_files, find_volume_cases
from medcls.predict.prediction_table import OK, build_table, summarize
from medcls.predict.scoring import open_runs
from medcls.runs.checksums import open_store
from medcls.runs.model_file import ModelCard


class FileOptions(TypedDict, total=False):
    """Settings of `LoadedModel.predict` for raw files; arrays have none.

    Attributes:
        clinical_file: CSV with path or patient_id, for models that take clinical columns.
        boxes: CSV of regions, for models that were trained on regions.
        deidentify: "auto" (pseudonyms if a file is DICOM), "hmac" or "declared" (ids as they are).
        key_file: Key of the pseudonyms (python -m data_prep.key).
    """

    clinical_file: str | Path | None
    boxes: str | Path | None
    deidentify: str
    key_file: str | Path | None


class LoadedModel:
    """One trained run, or several whose scores are averaged, as `medcls.load` returns it.

    Attributes:
        runs: Folders of the runs.
        cards: What each model file says of itself: task, preprocessing, training, domain.
    """

    def __init__(
        self,
        run: str | Path | Sequence[str | Path],
        *,
        device: str = "auto",
        precision: str = "auto",
        out_of_domain: str = "refuse",
        choices: str | Path | None = None,
    ) -> None:
        given = [run] if isinstance(run, str | Path) else list(run)
        self.runs = [_find_run(Path(each).expanduser()) for each in given]
        # The job of the command checks the settings.
        job = PredictJob(
            run=[str(each) for each in self.runs],
            device=device,
            precision=precision,
            out_of_domain=out_of_domain,
            choices=None if choices is None else str(choices),
        )
        self._runs = open_runs(
            self.runs,
            choices=job.choices,
            out_of_domain=out_of_domain,
            device=device,
            precision=precision,
        )
        self.cards = self._runs.cards
        # Now, not at the first image: a damaged model or a device that is not there is found where it is named.
        self._runs.load()

    @property
    def card(self) -> ModelCard:
        """What the model file says of itself; of several runs the first one's."""
        return self.cards[0]

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the score columns; of a binary task the second is the positive one."""
        return list(self.card.task.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *spatial) of the stored array of one image."""
        return self.card.preprocess.shape

    def predict(
        self,
        images: str | Path | NDArray[Any],
        *,
        batch_size: int = 64,
        workers: int = 0,
        **files: Unpack[FileOptions],
    ) -> pa.Table:
        """Return the table that `python -m medcls.predict` writes: one row an image, then each series and patient.

        Args:
            images: A folder of raw files, one raw file, or an array of stored values: `shape` or (N, *shape) in the
                dtype of the store, as `read` and `OpenedStore.images` return them. A raw array is refused, since
                nothing says how its values are scaled or how far apart its pixels are: name its file.
            batch_size: Images at once. Another one may change the last bits of a score.
            workers: Processes that decode, each with limits of memory and time, -1 = one a core; 0 decodes in this
                process and without limits. A script that sets it needs a main guard.
            files: Settings of raw files: `FileOptions`.

        Returns:
            Columns as of medcls.predict, described in its .columns.json; `state` is "ok", "refused" or "skipped", and
            a row without scores says why in `reason` and `detail`. Rows of arrays are named "0", "1", … and say
            no_header, since only the features of an array can be compared with training.

        Raises:
            UsageError: Neither a path nor a numpy array, or files beside an array.
            MissingInputError: A file or folder is not there.
            DataError: An array that is not as stored, or a folder without files.
            ConfigError: What the model needs is not set, or does not fit it.
        """
        if not isinstance(images, str | Path | np.ndarray):
            raise UsageError(f"images: a {type(images).__name__}: expected a path or a numpy array of stored values")
        unknown = sorted(set(files) - set(FileOptions.__annotations__))
        if unknown:
            raise TypeError(f"predict() got an unexpected keyword argument {unknown[0]!r}")
        key_file = files.get("key_file")
        identity = DeidentifyConfig(files.get("deidentify", "auto"), None if key_file is None else str(key_file))
        tables: dict[str, str] = {}
        for name, path in (("clinical_file", files.get("clinical_file")), ("boxes", files.get("boxes"))):
            if path is not None:
                tables[name] = str(path)
        # The job of the command checks the settings.
        PredictJob(**tables, deidentify=identity, batch_size=batch_size, workers=workers)
        if isinstance(images, np.ndarray):
            if tables:
                name = next(iter(tables))
                raise UsageError(
                    f"{name}=: an array has no path and no patient that its rows could name: predict files"
                )
            found = answer_arrays(self._runs, self._check_stored(images), batch_size=batch_size)
        else:
            for name, file in tables.items():
                check_file(file, name)
            request = FileRequest(
                Path(images).expanduser(),
                tables.get("clinical_file"),
                tables.get("boxes"),
                identity,
                batch_size,
                workers,
            )
            found = answer_files(self._runs, request)
        if not any(case.state == OK for case in found.cases):
            say(f"notice: no image could be classified: {summarize(found.cases)}")
        return build_table(found.rows, task=self.card.task)

    def read(self, path: str | Path) -> NDArray[Any]:
        """Return the stored array of one raw image or volume: what the network is given before its crop.

        Args:
            path: A file; of a volume its NIfTI file or the folder of its one DICOM series.

        Returns:
            `shape`, in the dtype of the store; 0 is black.

        Raises:
            ConfigError: The run was trained on regions of files, which only `predict` takes (boxes=).
            ImageRefusedError: The file cannot be turned into right pixels.
            DataError: A folder does not hold exactly one volume.
            MissingInputError: It is not there.
        """
        path = Path(path).expanduser()
        root, files = find_files(path)
        spec = self.card.preprocess
        self._check_whole()
        if isinstance(spec, VolumeSpec):
            cases = [case for case in find_volume_cases(root, files, spec, workers=0) if case.state != "skipped"]
            if len(cases) != 1:
                raise DataError(f"{path}: {len(cases)} volumes: expected the file or the folder of one")
            (case,) = cases
            if case.state != OK:
                raise ImageRefusedError(case.reason, case.detail)
            names: Sequence[str] = case.files or (case.path,)
        elif path.is_dir():
            raise DataError(f"{path} is a folder: expected the file of one image")
        else:
            names = [files[0][0]]
        prepared = decode_image(DecodeTask(tuple(root / name for name in names), None, spec)).prepared
        pixels: NDArray[Any] = prepared.pixels
        return pixels

    def _check_whole(self) -> None:
        """Check that the runs take whole images: a whole film looks like a stored image of a joint."""
        pairs = zip(self.runs, self.cards, strict=True)
        trained = [run for run, card in pairs if card.domain and card.domain.regions == ALL]
        if not trained:
            return
        fault = (
            f"run={trained[0]} was trained on regions, read gives whole images: predict the file with boxes=FILE.csv, "
            "or take stored images from open_store"
        )
        if self._runs.out_of_domain == "refuse":
            raise ConfigError(f"{fault} (out_of_domain=allow reads it all the same)")
        say(f"notice: {fault}")

    def _check_stored(self, images: NDArray[Any]) -> NDArray[Any]:
        """(N, C, *spatial) of an array of stored values."""
        spec, card = self.card.preprocess, self.card
        if card.architecture == CLINICAL or any(each.clinical is not None for each in self.cards):
            raise ConfigError(f"run={self.runs[0]} takes clinical columns, which an array has not: predict files")
        batch = images[None] if images.shape == spec.shape else images
        if batch.shape[1:] != spec.shape or images.dtype != np.dtype(spec.dtype) or not len(batch):
            raise DataError(
                f"array {images.shape} {images.dtype}: expected stored values, {spec.shape} or "
                f"(N, {', '.join(map(str, spec.shape))}) {spec.dtype}, as model.read(FILE) returns them; of a raw "
                "image predict the file"
            )
        low, high = spec.value_range
        if not np.isfinite(batch).all() or batch.min() < low or batch.max() > high:
            raise DataError(
                f"array: values are not within {low:g} to {high:g}, as stored ones are: use model.read(FILE)"
            )
        return batch


def _find_run(path: Path) -> Path:
    """Return the run's folder, of which the model file may be named instead."""
    if path.is_file() and path.name != MODEL:
        raise ConfigError(f"run={path}: expected a run folder, or {MODEL} in one")
    return path.parent if path.is_file() else path


class OpenedStore:
    """A complete store, with the train and val rows of one of its splits, as `medcls.open_store` returns it.

    Test rows stay closed: python -m medcls.evaluate opens them, and counts that it did.

    Attributes:
        folder: Folder of the store.
        split: Name of the split.
        counts: Images in "train", "val", "test" and "dropped".
    """

    def __init__(self, folder: str | Path, *, split: str = "default") -> None:
        self._store = open_store(Path(folder).expanduser())
        self._splits, self._certificate = read_split(self._store, split)
        self.folder, self.split = self._store.folder, split
        self.counts = {name: int((self._splits == place).sum()) for place, name in enumerate(SPLIT_NAMES)}

    def __len__(self) -> int:
        """Number of images of all parts."""
        return len(self._store)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *spatial) of every stored image."""
        return self._store.shape

    def labels(self, part: str = "train") -> pa.Table:
        """Return image_id, patient_id and the label columns of the images of "train" or "val", in the store's order.

        Raises:
            UsageError: Another part.
            MissingInputError: The store has no labels.
        """
        rows = self._rows(part)
        table = self._store.read("image_id", "patient_id", rows=rows)
        labels = self._store.read_labels().take(pa.array(rows, pa.int64()))
        for name in labels.column_names:
            if name not in table.column_names:
                column = labels.column(name)
                plain = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
                table = table.append_column(name, plain)
        return table

    def images(self, part: str = "train", places: Sequence[int] | None = None) -> NDArray[Any]:
        """Return stored images of "train" or "val", (N, C, *spatial), copied into memory.

        Args:
            part: "train" or "val".
            places: Which of them, by row of `labels(part)`; None for all.

        Raises:
            UsageError: Another part, a place that the part does not have, or a mask instead of places.
        """
        rows = self._rows(part)
        if places is not None:
            chosen = np.asarray(places)
            if chosen.size and not np.issubdtype(chosen.dtype, np.integer):  # a mask would be taken for 0 and 1
                raise UsageError(
                    f"places: expected whole numbers (found {chosen.dtype}): of a mask np.flatnonzero(mask)"
                )
            wrong = [place for place in chosen.tolist() if not 0 <= place < len(rows)]
            if wrong:
                raise UsageError(f"places: {wrong[0]} is not one of the {len(rows)} images of {part}")
            rows = rows[chosen.astype(np.int64)]
        return self._store.images(rows)

    def _rows(self, part: str) -> NDArray[np.int64]:
        if part == TEST:
            raise UsageError(
                "part=test: test rows are opened by python -m medcls.evaluate run=DIR split=test, which counts it: use "
                "train or val"
            )
        if part not in ORDER:
            raise UsageError(f"part={part}: expected train or val")
        return rows_of(self._splits, part)
