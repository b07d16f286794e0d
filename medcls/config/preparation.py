"""The schema of data_prep: raw files to a store."""

from __future__ import annotations

from dataclasses import dataclass, field

from medcls.config.arrays import ImageConfig, SeriesConfig, StackRule
from medcls.config.checks import check_range
from medcls.config.labelling import LabellingConfig
from medcls.config.machine import workers_setting
from medcls.config.schema import FILE_NAME, NAMES, PATH, TEXT, check_settings, setting
from medcls.errors import ConfigError


@dataclass(slots=True)
class SplitConfig:
    """How patients are divided, and what happens when a leak is found."""

    name: str = setting(
        "default", "Name of the split; a split never changes, so another one needs another name.", kind=FILE_NAME
    )
    test: float = setting(
        0.2,
        "Share of the patients in the test split; ignored if the labels have a split column.",
        low=0,
        high=0.9,
        common=True,
    )
    val: float = setting(
        0.1, "Share of the patients in the validation split; 0 leaves it out.", low=0, high=0.9, common=True
    )
    seed: int = setting(
        0, "Seed of the random split; patients of equal ids and seed are split alike.", low=0, common=True
    )
    on_leak: str = setting(
        "refuse",
        "What happens to the same image of two patients in two splits: refuse, drop the images, or only report them.",
        choices=("refuse", "drop", "report"),
        common=True,
    )
    on_missing: str = setting(
        "refuse",
        "What happens if a class is missing from a split; report is for stores that are only evaluated.",
        choices=("refuse", "report"),
    )
    on_contradiction: str = setting(
        "refuse",
        "What happens to one image under two labels: refuse, drop all its copies, or only report them.",
        choices=("refuse", "drop", "report"),
    )
    extends: str | None = setting(
        None,
        "Store, or STORE/splits/NAME.json, whose patients keep their split; only new patients are divided.",
        kind=PATH,
    )
    merge_linked: bool = setting(
        False, "Count patients who share an image as one in the split, its folds and all intervals."
    )
    near_duplicate_bits: int = setting(
        48,
        "Most different bits, of 256, between the hashes of two images that may be nearly the same.",
        low=0,
        high=255,
        unit="bits",
    )
    near_duplicate_correlation: float = setting(
        0.95, "Least correlation of two images that count as nearly the same.", low=0.5, high=1
    )

    def __post_init__(self) -> None:
        check_settings(self, "split")
        check_range("split.test + split.val", self.test + self.val, low=0, high=0.95)


@dataclass(slots=True)
class PatientConfig:
    """How a patient is found in a file's path if there is no labels file."""

    pattern: str | None = setting(
        None, r"Regular expression on the path whose first group is the patient, as '^[^/]+/(\w+)_'.", kind=TEXT
    )

    def __post_init__(self) -> None:
        check_settings(self, "patient_id")


@dataclass(slots=True)
class DeidentifyConfig:
    """Whether ids become keyed pseudonyms or stay as they are."""

    kind: str = setting(
        "auto",
        "What becomes of ids: keyed pseudonyms (hmac), or unchanged; auto is hmac if there are DICOM files.",
        choices=("auto", "hmac", "declared"),
    )
    key_file: str | None = setting(
        None, "File with the key of the pseudonyms, made once by python -m data_prep.key.", kind=PATH, common=True
    )

    def __post_init__(self) -> None:
        check_settings(self, "deidentify")


@dataclass(slots=True)
class LimitsConfig:
    """What decoding one image may use."""

    memory_gib: float | None = setting(
        None,
        "Memory that decoding one image may use; null is 2 GiB, for volumes 6 GiB.",
        low=0.1,
        high=1024,
        unit="GiB",
    )
    seconds: float | None = setting(
        None,
        "Processor time that decoding one image may use; null is 60 s, for volumes 600 s.",
        low=0.1,
        high=86400,
        unit="seconds",
    )

    def __post_init__(self) -> None:
        check_settings(self, "limits")


@dataclass(slots=True)
class ShardConfig:
    """How the work is divided among several jobs."""

    index: int = setting(0, "Which of the jobs this is, counted from 0.", low=0)
    count: int = setting(1, "Number of jobs that fill the store; python -m data_prep.merge then joins them.", low=1)
    rows: int = setting(4096, "Most images of a shard, a file of the store.", low=1, high=1 << 20, unit="images")

    def __post_init__(self) -> None:
        check_settings(self, "shard")
        check_range("shard.index", self.index, low=0, high=self.count - 1)


@dataclass(slots=True)
class PrepareJob:
    """python -m data_prep: raw files to a store."""

    source: str | None = setting(None, "Folder with the raw files; required.", kind=PATH, common=True)
    labels: str | None = setting(
        None,
        "Table of labels, one row per image, series, study or patient; null reads classes from folders.",
        kind=PATH,
        common=True,
    )
    store: str | None = setting(
        None, "Folder for the store; an interrupted store in it is resumed; required.", kind=PATH, common=True
    )
    reuse: str | None = setting(
        None, "Older store whose images are copied if file and preprocessing are unchanged.", kind=PATH
    )
    index: str | None = setting(
        None, "Index of the source by python -m data_prep.index, to read the headers only once.", kind=PATH
    )
    patients: str = setting(
        "declared",
        "Whether patients are known; per_image counts every image as another patient, and every page says so.",
        choices=("declared", "per_image"),
        common=True,
    )
    patient_id: PatientConfig = field(default_factory=PatientConfig)
    labelling: LabellingConfig = field(default_factory=LabellingConfig)
    columns: list[str] = setting(
        [], "Further columns of the labels that are kept, as [site,view].", kind=NAMES, common=True
    )
    compare: list[str] = setting(
        ["patient", "study", "sex", "age", "side"],
        "What labels and DICOM headers must agree on; remove what the headers do not state reliably.",
        choices=("patient", "study", "sex", "age", "side"),
    )
    workers: int = workers_setting("decode images")
    executor: str = setting(
        "local", "Where images are decoded: in processes here, or on a Ray cluster.", choices=("local", "ray")
    )
    max_quarantined: float = setting(
        0.05, "Share of unreadable images that is tolerated; one is always, unless it is 0.", low=0, high=1, common=True
    )
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    series: SeriesConfig = field(default_factory=SeriesConfig)
    stack: StackRule = field(default_factory=StackRule)
    image: ImageConfig = field(default_factory=ImageConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    deidentify: DeidentifyConfig = field(default_factory=DeidentifyConfig)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.image.kind == "image":
            for name, given, default in (("series", self.series, SeriesConfig()), ("stack", self.stack, StackRule())):
                if given != default:
                    raise ConfigError(
                        f"{name}.*: only for volumes, but image.kind=image: set image=ct_volume or mr_volume, or "
                        "remove them"
                    )


@dataclass(slots=True)
class IndexJob:
    """python -m data_prep.index: what a folder holds, from the headers alone."""

    source: str | None = setting(None, "Folder with the raw files; required.", kind=PATH)
    out: str | None = setting(
        None, "File for the index (.parquet), which data_prep takes as index=; null only prints the summary.", kind=PATH
    )
    workers: int = workers_setting("read headers")
    lines: int = setting(40, "Most series that are printed; 0 prints all.", low=0, unit="lines")

    def __post_init__(self) -> None:
        check_settings(self)
