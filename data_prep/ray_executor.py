"""Shards of the plan on a Ray cluster: each a task of its own, which runs the very code of a single machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from data_prep.decode import Refusals, Setting, decode_shards, part_names
from data_prep.plan import ShardPlan
from medcls.config import PrepareJob
from medcls.errors import ConfigError
from medcls.files import read_json
from medcls.identity import Identity, read_identity


def decode_on_ray(plans: Sequence[ShardPlan], setting: Setting, *, job: PrepareJob, refusals: Refusals) -> None:
    """Decodes the shards on the cluster that RAY_ADDRESS names, or on a local one of `workers` processes.

    The store and the source must lie where every node sees them. The key of the pseudonyms does not travel: each
    task reads it from deidentify.key_file, or from its node's environment.

    Raises:
        ConfigError: ray is not installed.
        DataError: too many refused images.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("executor=ray needs ray: pip install 'medcls[ray]', or executor=local") from error
    started = not ray.is_initialized()
    if started:
        ray.init(
            num_cpus=None if _has_address() else max(1, setting.workers), log_to_driver=False, configure_logging=False
        )
    try:
        bare = replace(setting, identity=Identity())
        remote = ray.remote(num_cpus=1, max_retries=3)(_decode_one)
        waiting = {remote.remote(plan, bare, setting.identity.kind, job.deidentify.key_file): plan for plan in plans}
        with tqdm(total=len(plans), desc="decode", unit="shard") as bar:
            while waiting:
                (done, *_), _ = ray.wait(list(waiting), num_returns=1)
                ray.get(done)
                plan = waiting.pop(done)
                refusals.add(read_json(setting.folder / part_names(plan.number)["json"])["refused"])
                bar.update()
    finally:
        if started:
            ray.shutdown()


def _has_address() -> bool:
    import os

    return bool(os.environ.get("RAY_ADDRESS"))


def _decode_one(plan: ShardPlan, setting: Setting, kind: str, key_file: str | None) -> None:
    """One shard, in one limited worker process of the node."""
    identity = read_identity(kind, key_file=key_file)
    setting = replace(setting, identity=identity, workers=1)
    # Refusals are counted by the driver, over all shards.
    unlimited = Refusals(allowed=len(plan.units), total=len(plan.units))
    decode_shards(iter([plan]), setting, refusals=unlimited, total=len(plan.units))


__all__: list[Any] = ["decode_on_ray"]
