"""The schema of every command: one slotted dataclass per conf/ group, checked when it is built.

`load(cfg)` is the border: below it there are only these plain objects, never a DictConfig.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from medcls.config.arrays import ImageConfig, SeriesConfig, StackRule
from medcls.config.checks import SPLITS, check_choice, check_file_name, check_range, nearest
from medcls.config.comparison import VOXELS, CompareJob, FoldsConfig
from medcls.config.evaluation import EvaluateJob, PredictJob
from medcls.config.explanation import ExplainJob, ShowJob
from medcls.config.labelling import LabellingConfig
from medcls.config.model import ModelConfig, TransferConfig
from medcls.config.preparation import (
    DeidentifyConfig,
    IndexJob,
    LimitsConfig,
    PatientConfig,
    PrepareJob,
    ShardConfig,
    SplitConfig,
)
from medcls.config.pretraining import CorruptionConfig, PatchConfig, PretrainJob
from medcls.config.sample_size import SampleSizeJob
from medcls.config.schema import check_settings, read_settings
from medcls.config.task import TASKS, AugmentConfig, ClinicalConfig, CropConfig, SplitChoice, TaskConfig
from medcls.config.trainer import OptimizerConfig, ScheduleConfig, TrainerConfig
from medcls.config.training import TrainJob
from medcls.errors import ConfigError

__all__ = [
    "NAMED",
    "SCHEMAS",
    "SPLITS",
    "TASKS",
    "VOXELS",
    "AugmentConfig",
    "ClinicalConfig",
    "CompareJob",
    "CorruptionConfig",
    "CropConfig",
    "DeidentifyConfig",
    "EvaluateJob",
    "ExplainJob",
    "FoldsConfig",
    "ImageConfig",
    "IndexJob",
    "LabellingConfig",
    "LimitsConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PatchConfig",
    "PatientConfig",
    "PredictJob",
    "PrepareJob",
    "PretrainJob",
    "SampleSizeJob",
    "ScheduleConfig",
    "SeriesConfig",
    "ShardConfig",
    "ShowJob",
    "SplitChoice",
    "SplitConfig",
    "StackRule",
    "TaskConfig",
    "TrainJob",
    "TrainerConfig",
    "TransferConfig",
    "check_choice",
    "check_file_name",
    "check_range",
    "check_record",
    "check_value",
    "conf_folder",
    "load",
    "nearest",
    "read_option",
    "register_schemas",
]

SCHEMAS: dict[str, type] = {
    "index": IndexJob,
    "train": TrainJob,
    "pretrain": PretrainJob,
    "prepare": PrepareJob,
    "merge": PrepareJob,
    "evaluate": EvaluateJob,
    "show": ShowJob,
    "predict": PredictJob,
    "explain": ExplainJob,
    "compare": CompareJob,
    "samplesize": SampleSizeJob,
}

# Command -> the group whose options are whole studies of it: settings of all groups under one name.
NAMED = {"train": "experiment", "pretrain": "pretraining", "compare": "comparison"}


def register_schemas() -> None:
    """Make each schema known to Hydra as `<name>_schema`, the first entry of conf/<name>.yaml's defaults."""
    # Inside: who only reads a job's classes, as a notebook does, needs no Hydra.
    from hydra.core.config_store import ConfigStore

    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)


def conf_folder() -> Path:
    """Return conf/: beside the package in a checkout, inside it in a wheel.

    Raises:
        ConfigError: neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError("conf/ is missing beside and inside the medcls package: install medcls again")


def read_option(group: str, name: str) -> dict[str, Any]:
    """Return the content of conf/GROUP/NAME.yaml, of an option that the code chooses for the user."""
    content: Any = OmegaConf.to_container(OmegaConf.load(conf_folder() / group / f"{name}.yaml"))
    return dict(content)


def check_record(group: str, record: Any) -> None:
    """Check the fields of a record from a file by the settings of the same names of a group, such as "stack".

    Raises:
        ConfigError: a value that no command line could have given.
    """
    check_settings(record, group, schema=_find_group(group))


def check_value(key: str, value: Any) -> None:
    """Check a value from a file by the setting that it comes from, such as "model.dropout".

    Raises:
        ConfigError: a value that no command line could have given.
    """
    group, _, name = key.partition(".")
    read_settings(_find_group(group))[name].check(key, value)


@cache
def _find_group(group: str) -> type:
    hints: list[dict[str, type]] = [get_type_hints(schema) for schema in SCHEMAS.values()]
    return next(found[group] for found in hints if group in found)


def load(cfg: DictConfig) -> Any:
    """Return the plain, checked dataclass (TrainJob, PrepareJob, …) of a composed configuration.

    Raises:
        ConfigError: a value is out of range or contradicts another.
    """
    return OmegaConf.to_object(cfg)
