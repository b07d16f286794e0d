"""The schema of the commands that show images: explain, and show of data_prep."""

from __future__ import annotations

from dataclasses import dataclass, field

from medcls.config.checks import SPLITS
from medcls.config.machine import batch_setting, device_setting, precision_setting, seed_setting
from medcls.config.schema import NAME, NAMES, PATH, check_settings, setting
from medcls.config.task import AugmentConfig
from medcls.errors import ConfigError


@dataclass(slots=True)
class ExplainJob:
    """python -m medcls.explain: run and store to maps of where the answers come from, and whether they are true."""

    run: str | None = setting(None, "Run folder whose answers are explained; required.", kind=PATH)
    store: str | None = setting(None, "Store with the images; null takes the one of the training.", kind=PATH)
    split: str = setting(
        "val", "Split that the images are taken from; an opening of test is counted.", choices=(*SPLITS, "all")
    )
    out: str | None = setting(
        None, "Folder for the maps; null takes one beside the evaluation of the split, in the run.", kind=PATH
    )
    method: str = setting(
        "gradcam",
        "How maps are made; gradcam is the fastest, lime and occlusion take many passes of the network.",
        choices=("lime", "gradcam", "gradcam++", "integrated_gradients", "occlusion"),
    )
    images: list[str] = setting([], "Ids of the images; [] takes the worst ones.", kind=NAMES)
    worst: int = setting(
        20,
        "Images that are explained, those with the lowest score for the truth first.",
        low=1,
        high=1000,
        unit="images",
    )
    target: str = setting(
        "auto",
        "Class or label whose score is explained; auto takes the predicted class, or the positive one of two.",
        kind=NAME,
    )
    stage: str | None = setting(
        None, "Stage of the network that gradcam looks at, as layer3; null takes the last one.", kind=NAME
    )
    background: str = setting(
        "auto",
        "What hidden parts are replaced by; segment is the mean of each superpixel of lime; auto takes it for lime, "
        "else blur.",
        choices=("auto", "blur", "mean", "black", "segment"),
    )
    superpixels: str = setting("slic", "How lime divides an image.", choices=("slic", "quickshift", "grid"))
    num_superpixels: int = setting(50, "Superpixels that lime divides an image into, about.", low=2, high=5000)
    num_samples: int = setting(1000, "Altered images that lime scores; raise it if maps vary with the seed.", low=10)
    num_features: int | None = setting(10, "Most superpixels of a lime map; null keeps all.", low=1)
    steps: int = setting(64, "Steps of integrated_gradients.", low=1, unit="steps")
    window: float = setting(
        0.15, "Side of the window that occlusion hides, as a share of the image.", low=0, high=0.9, open_low=True
    )
    boxes: str | None = setting(
        None,
        "Table of where the sign is (image_id, box_y, box_x, box_h, box_w), to measure whether maps find it.",
        kind=PATH,
    )
    show_ids: bool = setting(False, "Show ids of images on the page; they may be paths if deidentify=declared.")
    curves: bool = setting(
        True, "Also measure whether hiding what is marked changes the score more than hiding other parts; takes long."
    )
    sanity_images: int = setting(
        5,
        "Images on which it is checked that maps change with scrambled weights; 0 leaves it out.",
        low=0,
        unit="images",
    )
    batch_size: int = batch_setting()
    device: str = device_setting()
    precision: str = precision_setting("fp32")
    seed: int = seed_setting("the random parts of lime and of the checks")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.background == "segment" and self.method != "lime":
            raise ConfigError(f"background=segment: only method=lime has superpixels, this is {self.method}")
        if self.stage is not None and not self.method.startswith("gradcam"):
            raise ConfigError(f"stage={self.stage}: only method=gradcam and gradcam++ look into a stage")


@dataclass(slots=True)
class ShowJob:
    """python -m data_prep.show: store to a contact sheet."""

    store: str | None = setting(None, "Store to look at; required.", kind=PATH)
    out: str | None = setting(None, "File for the contact sheet (.png); null writes it beside the store.", kind=PATH)
    per_class: int = setting(8, "Images shown of each class.", low=1, high=64, unit="images")
    label: str = setting("label", "Column of the store's labels that makes the classes.", kind=NAME)
    seed: int = seed_setting("the choice of images and their augmentation")
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        check_settings(self)
