"""deploy/kubernetes against the strict schema of Kubernetes, and what our exit codes and containers need of it.

JobSet is no part of that schema. Its pods and Jobs are: they are taken out and checked as plain Jobs; the few fields of
JobSet's own around them are compared with those of its API (v1alpha2), copied here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from medcls.errors import BusyError, ConfigError, DataError, MissingInputError, UsageError, WriteError

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
VERSION = "1.31"  # the oldest in which podFailurePolicy is stable
FINAL = [UsageError.exit_code, DataError.exit_code, MissingInputError.exit_code, 70, ConfigError.exit_code]
JOBSET = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        *("replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator"),
        *("managedBy", "ttlSecondsAfterFinished"),
    },
    "spec.network": {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"},
    "spec.failurePolicy": {"maxRestarts", "rules", "restartStrategy"},
    "spec.failurePolicy.rules": {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"},
    "spec.replicatedJobs": {"name", "replicas", "template", "groupName", "dependsOn"},
}


def read_documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def jobs_of(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The Jobs of a document, those within a JobSet as Jobs of their own."""
    if document["kind"] == "Job":
        yield document
    for replicated in document["spec"].get("replicatedJobs", []):
        yield {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **replicated["template"]}


JOBS = [(path.name, job) for path in FILES for document in read_documents(path) for job in jobs_of(document)]


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_every_file_is_strictly_valid(path: Path) -> None:
    for document in read_documents(path):
        checked = [document] if document["kind"] != "JobSet" else list(jobs_of(document))
        assert checked
        for each in checked:
            for version in (VERSION, kubernetes_validate.latest_version()):
                kubernetes_validate.validate(each, version, strict=True)


def test_the_schema_refuses_a_misspelt_field() -> None:
    job = next(job for _, job in JOBS)
    wrong = job | {"spec": job["spec"] | {"backofLimit": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_the_jobset_has_fields_of_its_api_only() -> None:
    (document,) = [d for path in FILES for d in read_documents(path) if d["kind"] == "JobSet"]
    assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    for place, known in JOBSET.items():
        nodes: list[Any] = [document]
        for key in place.split(".") if place else []:
            nodes = [node[key] for node in nodes]
            nodes = [item for node in nodes for item in (node if isinstance(node, list) else [node])]
        assert nodes, place
        assert not {key for node in nodes for key in node} - known, place
    (rule,) = document["spec"]["failurePolicy"]["rules"]
    assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
    names = [job["name"] for job in document["spec"]["replicatedJobs"]]
    host = f"{document['metadata']['name']}-{names[0]}-0-0.{document['metadata']['name']}"
    endpoints = [
        variable["value"].rpartition(":")[0]
        for job in jobs_of(document)
        for variable in job["spec"]["template"]["spec"]["containers"][0]["env"]
        if variable["name"] == "PET_RDZV_ENDPOINT"
    ]
    assert endpoints == [host], "a pod's name is <set>-<job>-<replica>-<index>, its domain the set's name"


@pytest.mark.parametrize(("name", "job"), JOBS, ids=[name for name, _ in JOBS])
def test_exit_codes_decide_as_they_mean(name: str, job: dict[str, Any]) -> None:
    rules = job["spec"]["podFailurePolicy"]["rules"]
    by_code = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])}
    assert sorted(code for code, action in by_code.items() if action == "FailJob") == sorted(FINAL)
    # The pods of a JobSet start again together: there 75 fails the Job, and the set restarts.
    assert by_code.get(BusyError.exit_code) == (None if name == "train-nodes.yaml" else "Ignore")
    assert WriteError.exit_code not in by_code, "a full disk may be emptied: counted as a failure, and tried again"
    assert job["spec"]["podReplacementPolicy"] == "Failed", "a run belongs to one process"
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never", "podFailurePolicy asks for it"


@pytest.mark.parametrize(("name", "job"), JOBS, ids=[name for name, _ in JOBS])
def test_pods_have_no_rights_and_time_to_end(name: str, job: dict[str, Any]) -> None:
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert pod["terminationGracePeriodSeconds"] >= 60
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["work"]["mountPath"] == "/work"
    if "train" in name:
        assert mounts["shm"]["mountPath"] == "/dev/shm"
    if "source" in mounts:
        assert mounts["source"]["readOnly"] is True
