"""Decode shards on a Ray cluster (executor=ray): one task per shard, with the code of a single machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from data_prep.plan import ShardPlan
from data_prep.shard_work import Part, Refusals, ShardSetting, decode_shards, part_names
from medcls.console import show_progress
from medcls.errors import ConfigError, MedclsError
from medcls.files import read_json
from medcls.identity import Identity, read_identity
from medcls.records import from_json

# Tasks handed over before they are done: enough for any cluster, and not all plans at once.
_AHEAD = 256


def decode_on_ray(shards: Iterator[ShardPlan], setting: ShardSetting, *, refusals: Refusals, total: int) -> None:
    """Decode the shards on the cluster that RAY_ADDRESS names, or on a local one of `workers` processes.

    Every node has to see the store and the source. The key of the pseudonyms does not travel: each
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
        processes = None
        if not os.environ.get("RAY_ADDRESS"):
            processes = max(1, setting.workers)
        ray.init(num_cpus=processes, log_to_driver=False, configure_logging=False)
    try:
        # Without the identity: its key is not for the object store. One copy serves all tasks.
        shared = ray.put(replace(setting, identity=Identity()))
        remote = ray.remote(num_cpus=1, max_retries=3)(_decode_one)
        key = (setting.identity.kind, setting.key_file, setting.identity.fingerprint)
        waiting: dict[Any, ShardPlan] = {}

        def submit(count: int) -> None:
            for plan in islice(shards, count):
                waiting[remote.remote(plan, shared, *key)] = plan

        with show_progress(total=total, desc="decode", unit="shard") as bar:
            submit(_AHEAD)
            while waiting:
                (done, *_), _ = ray.wait(list(waiting), num_returns=1)
                ray.get(done)
                part = part_names(waiting.pop(done).number)["json"]
                refusals.add(from_json(Part, read_json(setting.folder / part)).refused)
                bar.update()
                submit(1)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, MedclsError):
            raise error.cause from error
        raise
    finally:
        if started:
            ray.shutdown()


def _decode_one(
    plan: ShardPlan, setting: ShardSetting, kind: str, key_file: str | None, fingerprint: str | None
) -> None:
    """Decode one shard, in one limited worker process of the node."""
    identity = read_identity(kind, key_file=key_file)
    if identity.fingerprint != fingerprint:
        raise ConfigError(
            "a Ray node has another de-identification key than this machine: set deidentify.key_file=FILE, a file that "
            "every node sees"
        )
    setting = replace(setting, identity=identity, workers=1)
    # Refusals are counted by the driver, over all shards.
    unlimited = Refusals(allowed=len(plan.units), total=len(plan.units))
    decode_shards(iter([plan]), setting, refusals=unlimited, total=len(plan.units))
