"""
What pfl puts into Prefect, made, compared and removed: the storage block, work pool and deployments, automations.

Each function yields a :class:`Change` per object. Nothing is written where nothing differs, or on a dry run.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from handler.core import project, store
from handler.core.errors import InvalidRequestError, PflError, UnavailableError
from handler.core.settings import Settings
from handler.engine import claim, prefect_run

TAG = "pfl"  # What a deployment has that pfl made, and may remove.
DEPLOYMENT = "lambda"
ZOMBIES = "pfl: crash flow runs whose heartbeats stop"
_AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_DENIED = {401: "check PREFECT_API_KEY", 403: "the key of PREFECT_API_KEY may not do this: ask for a role that can"}
_OLD = "Prefect's server is too old for this: pfl doctor compares the versions"


class Change(NamedTuple):
    """One object: what was done or would be (``create``, ``update``, ``keep``, ``remove``), and each differing field before and after."""

    kind: str
    name: str
    action: str
    fields: dict[str, tuple[object, object]]
    note: str = ""


def _change(kind: str, name: str, before: Mapping | None, after: Mapping, note: str = "") -> Change:
    fields = {field: ((before or {}).get(field), value) for field, value in after.items() if before is None or before.get(field) != value}
    return Change(kind, name, "create" if before is None else "update" if fields else "keep", fields, note)


@contextmanager
def permitted(what: str) -> Iterator[object]:
    """
    Prefect's client, for making *what*.

    Raises:
        UnavailableError: Prefect refused or did not answer; the hint says what to do about it.
    """
    try:
        with prefect_run.asking() as client:
            yield client
    except UnavailableError as exc:
        status = getattr(getattr(exc.__cause__, "response", None), "status_code", None)
        if status is None:
            raise
        hint = _DENIED.get(status, _OLD if status in (404, 405, 422) else "pfl doctor")
        raise UnavailableError(f"Prefect did not take {what}", why=f"HTTP {status}: {exc.why[:300]}", hint=hint) from exc


def blocks(settings: Settings, *, name: str, with_keys: bool, dry_run: bool) -> Iterator[Change]:
    """
    The block of the store that results go to: ``s3-bucket/<name>``, or ``local-file-system/<name>`` for a directory.

    Credentials that someone put into it stay; those of the environment are stored only *with_keys*.
    """
    scheme, _, rest = settings.store.partition("://")
    if scheme == "memory" and rest:
        raise InvalidRequestError("a store in memory has no block", why=f"PFL_STORE={settings.store}", hint="PFL_STORE=s3://bucket/prefix")
    results = store.of(settings)
    slug = "s3-bucket" if scheme == "s3" else "local-file-system"
    with permitted("the block") as client:
        found = _block(client, slug, name)
        twins = [f"{s}/{name}" for s in ("s3", "s3-bucket", "local-file-system") if s != slug and _block(client, s, name) is not None]
        block, before = (_s3 if slug == "s3-bucket" else _directory)(results, settings, found, with_keys)
        note = f"beside it there is {', '.join(twins)}, of another type: tasks that name it use other results" if twins else ""
        change = _change("block", f"{slug}/{name}", before, _fields(block.model_dump()), note)
        if not dry_run:
            proof = _prove(block, results)
            if change.action != "keep":
                block.save(name, overwrite=True)
            change = change._replace(note="; ".join(filter(None, [proof, note])))
        yield change


def _block(client, slug: str, name: str):
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_block_document_by_name(name, slug, include_secrets=True)
    except ObjectNotFound:
        return None


def _fields(data: Mapping) -> dict[str, object]:
    """What a person compares of a block; keys are told to be there, never shown."""
    if "basepath" in data:
        return {"basepath": data["basepath"]}
    credentials = data.get("credentials") or {}
    endpoint = (credentials.get("aws_client_parameters") or {}).get("endpoint_url")
    has_keys = bool(credentials.get("aws_access_key_id") or credentials.get("minio_root_user"))
    return {
        "bucket": data.get("bucket_name"), "folder": data.get("bucket_folder") or "", "region": credentials.get("region_name"),
        "endpoint": endpoint, "keys": "stored" if has_keys else "not stored",
    }  # fmt: skip


def _s3(results: store.Store, settings: Settings, found: object, with_keys: bool) -> tuple[object, dict | None]:
    from prefect_aws import AwsCredentials, S3Bucket
    from prefect_aws.client_parameters import AwsClientParameters

    bucket, _, folder = settings.store.removeprefix("s3://").partition("/")
    before = None if found is None else _fields(found.data)
    given = dict(found.data.get("credentials") or {}) if found is not None else {}
    if before is None or before["keys"] == "not stored" or with_keys:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
        given = {"region_name": region, "aws_client_parameters": AwsClientParameters(endpoint_url=endpoint)}
        if with_keys:
            if not os.environ.get(_AWS[0]):
                raise InvalidRequestError("there are no AWS keys to store", why=f"{_AWS[0]} is not set", hint="leave --with-keys out")
            given |= {variable.lower(): os.environ.get(variable) for variable in _AWS}
        given = AwsCredentials(**given)
    return S3Bucket(bucket_name=bucket, bucket_folder=folder.strip("/"), credentials=given), before


def _directory(results: store.Store, settings: Settings, found: object, with_keys: bool) -> tuple[object, dict | None]:
    from prefect.filesystems import LocalFileSystem

    directory = settings.store.removeprefix("file://") or str(settings.home / "store")
    return LocalFileSystem(basepath=os.path.abspath(directory)), None if found is None else _fields(found.data)


def _prove(block: object, results: store.Store) -> str:
    """Write, read and delete an object through the block and through the store; the words for it."""
    key, data = f"setup/proof-{secrets.token_hex(8)}", secrets.token_bytes(16)
    try:
        block.write_path(key, data)
        if results.get(key) != data or block.read_path(key) != data:
            raise UnavailableError("the block and the store are not the same place", why=f"{key} written by one is not read by the other")
    except PflError:
        raise
    except Exception as exc:
        why = " ".join(str(exc).split())[:300] or type(exc).__name__
        hint = "check bucket, AWS_ENDPOINT_URL and the AWS credentials of this process; nothing was saved"
        raise UnavailableError("the block does not work", why=f"{type(exc).__name__}: {why}", hint=hint) from exc
    finally:
        results.delete([key])
    try:
        block.read_path(key)
    except Exception:  # Each file system has its own word for an object that is gone.
        return "an object was written, read and deleted through the block and the store"
    raise UnavailableError("the block still reads what the store has deleted", why=key)


def deployments(settings: Settings, *, pool: str, function: str, dry_run: bool) -> Iterator[Change]:
    """A work pool of type ``aws-lambda``, and a deployment per flow of the image, ordinary Prefect flows of ``flows/`` included."""
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    from serverless.worker import LambdaWorker, template

    loaded = project.load(settings)
    with permitted("the work pool") as client:
        try:
            found = client.read_work_pool(pool)
        except ObjectNotFound:
            found = None
        if found is not None and found.type != LambdaWorker.type:
            raise InvalidRequestError(
                f"the work pool {pool} is of type {found.type}", why=f"pfl needs one of type {LambdaWorker.type}", hint="--pool OTHER-NAME"
            )
        wanted = template(function)
        before = None if found is None else {"type": found.type, "function": _default(found.base_job_template)}
        yield (change := _change("work pool", pool, before, {"type": LambdaWorker.type, "function": function}))
        if not dry_run and change.action == "create":
            client.create_work_pool(WorkPoolCreate(name=pool, type=LambdaWorker.type, base_job_template=wanted, description="Runs flows in AWS Lambda."))
        elif not dry_run and change.action == "update":
            client.update_work_pool(pool, WorkPoolUpdate(base_job_template=wanted))
    flows = {name: (flow.to_prefect(), f"flows/pipeline.py:{name}", loaded.manifest.digest) for name, flow in loaded.flows.items()}
    for name, (flow, entrypoint) in claim.ordinary(settings).items():
        flows.setdefault(name, (flow, entrypoint, flow.version))
    for name, (flow, entrypoint, version) in flows.items():
        with permitted("the deployment") as client:
            yield _deployment(client, flow, entrypoint, version, pool, dry_run)
    with permitted("the deployments") as client:
        for old in _ours(client, pool):
            if (name := client.read_flow(old.flow_id).name) not in flows:
                if not dry_run:
                    client.delete_deployment(old.id)
                yield Change("deployment", f"{name}/{DEPLOYMENT}", "remove", {}, "its flow is not in flows/ any more")


def _default(base_job_template: Mapping) -> object:
    return base_job_template.get("variables", {}).get("properties", {}).get("function", {}).get("default")


def form(flow) -> dict:
    """The parameter form of a flow: what may be left empty is not required, and has no null to choose."""
    schema = flow.parameters.model_dump()
    for name, field in schema["properties"].items():
        kinds = field.get("anyOf", ())
        if {"type": "null"} in kinds and field.get("default") is None:
            # Of several kinds the first is the choice; a list beside it would be a form within the form.
            schema["properties"][name] = {**{k: v for k, v in field.items() if k not in ("anyOf", "default")}, **kinds[0]}
    return schema


def _deployment(client, flow, entrypoint: str, version: str | None, pool: str, dry_run: bool) -> Change:
    from prefect.exceptions import ObjectNotFound

    after = {"pool": pool, "entrypoint": entrypoint, "version": version, "description": _described(flow), "form": form(flow)}
    try:
        found = client.read_deployment_by_name(f"{flow.name}/{DEPLOYMENT}")
        before = {"pool": found.work_pool_name, "entrypoint": found.entrypoint, "version": found.version, "description": found.description}
        before |= {"form": found.parameter_openapi_schema}
    except ObjectNotFound:
        before = None
    change = _change("deployment", f"{flow.name}/{DEPLOYMENT}", before, after)
    if not dry_run and change.action != "keep":
        client.create_deployment(
            client.create_flow_from_name(flow.name), DEPLOYMENT, version=version, work_pool_name=pool, tags=[TAG], entrypoint=entrypoint,
            path=".", description=after["description"], parameter_openapi_schema=after["form"], enforce_parameter_schema=True,
        )  # fmt: skip
    shown = {field: (b and f"{len(b['properties'])} fields", f"{len(a['properties'])} fields") if field == "form" else (b, a) for field, (b, a) in change.fields.items()}
    return change._replace(fields=shown)


def _described(flow) -> str:
    return (flow.description or "").split("\nArgs:")[0].strip()  # The fields of the form have the rest.


def _ours(client, pool: str) -> list:
    from prefect.client.schemas import filters

    wanted = filters.DeploymentFilter(tags=filters.DeploymentFilterTags(all_=[TAG]))
    return [each for each in client.read_deployments(deployment_filter=wanted, limit=200) if each.name == DEPLOYMENT and each.work_pool_name == pool]


def automations(settings: Settings, *, dry_run: bool) -> Iterator[Change]:
    """Prefect's own answer to dead runs, as a second line of defence for flows that send heartbeats."""
    with permitted("the automation") as client:
        found = client.read_automations_by_name(ZOMBIES)
        wanted = _zombies()
        about = {"description": wanted.description, "enabled": True}
        before = {"description": found[0].description, "enabled": found[0].enabled} if found else None
        change = _change("automation", ZOMBIES, before, about, "covers runs that send heartbeats, and their flow run alone; pfl runs reap does the rest")
        if not dry_run and change.action == "create":
            client.create_automation(wanted)
        elif not dry_run and change.action == "update":
            client.update_automation(found[0].id, wanted)
        yield change


def _zombies():
    from datetime import timedelta

    from prefect.automations import AutomationCore
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture

    ends = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Crashed", "Cancelled")}
    return AutomationCore(
        name=ZOMBIES,
        description=f"A flow run whose heartbeats stop for {3 * claim.HEARTBEAT_S} s becomes Crashed. Made by pfl setup automations.",
        trigger=EventTrigger(
            posture=Posture.Proactive, after={"prefect.flow-run.heartbeat"}, expect={"prefect.flow-run.heartbeat", *ends},
            match={"prefect.resource.id": "prefect.flow-run.*"}, for_each={"prefect.resource.id"}, threshold=1,
            within=timedelta(seconds=3 * claim.HEARTBEAT_S),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="Its heartbeats stopped: the process is gone, most likely.")],
    )  # fmt: skip


def remove(settings: Settings, what: set[str], *, name: str, pool: str, dry_run: bool, agree: Callable[[list[Change]], None]) -> list[Change]:
    """
    Undo the others.

    Args:
        settings: For the store whose block it is.
        what: Of ``blocks``, ``deployments`` and ``automations``.
        name: The block's.
        pool: The work pool's.
        dry_run: Say what, and do nothing.
        agree: Asked with what would be removed, and raises where the answer is no.
    """
    from prefect.exceptions import ObjectNotFound

    found: list[tuple[Change, Callable[[], object]]] = []
    slug = "s3-bucket" if settings.store.startswith("s3://") else "local-file-system"
    with permitted("the removal") as client:
        if "automations" in what:
            for each in client.read_automations_by_name(ZOMBIES):
                found.append((Change("automation", ZOMBIES, "remove", {}), lambda each=each: client.delete_automation(each.id)))
        if "deployments" in what:
            for each in _ours(client, pool):
                full = f"{client.read_flow(each.flow_id).name}/{each.name}"
                found.append((Change("deployment", full, "remove", {}), lambda each=each: client.delete_deployment(each.id)))
            try:
                client.read_work_pool(pool)
                others = [each for each in _in_pool(client, pool) if TAG not in each.tags]
                if others:
                    found.append((Change("work pool", pool, "keep", {}, f"{len(others)} deployments of others use it"), lambda: None))
                else:
                    found.append((Change("work pool", pool, "remove", {}), lambda: client.delete_work_pool(pool)))
            except ObjectNotFound:
                pass
        if "blocks" in what and (document := _block(client, slug, name)) is not None:
            found.append((Change("block", f"{slug}/{name}", "remove", {}), lambda: client.delete_block_document(document.id)))
        changes = [change for change, _ in found]
        if not dry_run and any(change.action == "remove" for change in changes):
            agree(changes)
            for _, act in found:
                act()
    return changes


def _in_pool(client, pool: str) -> list:
    from prefect.client.schemas import filters

    named = filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=[pool]))
    return client.read_deployments(work_pool_filter=named, limit=200)
