"""
What pfl creates in Prefect: the storage block, work pool and deployments, and the automation.

Each function compares, and yields a :class:`Change` for each object. Nothing is written if nothing
differs, or on a dry run.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from ..handler.core.declare import project
from ..handler.core.errors import InvalidRequestError, PflError, UnavailableError
from ..handler.core.settings import Settings
from ..handler.core.store import objects
from ..handler.core.store.values import JsonObject
from ..handler.engine.prefect import client, scheduled_runs
from ..handler.engine.prefect.environment import Api

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.filesystems import LocalFileSystem
    from prefect_aws import S3Bucket

# On the deployments that pfl made, and may remove.
TAG = "pfl"
DEPLOYMENT = "lambda"
AUTOMATION = "pfl: crash flow runs whose heartbeats stop"
_SILENCE_S = 3 * scheduled_runs.HEARTBEAT_S
_OLD = "Prefect's server is too old for this: pfl doctor compares the versions"
_HINTS = {
    401: "check PREFECT_API_KEY",
    403: "the key of PREFECT_API_KEY may not do this: ask for a role that can",
    404: _OLD,
    405: _OLD,
    422: _OLD,
}


class Change(NamedTuple):
    """
    One object in Prefect, and what is done to it.

    Attributes:
        kind: What it is: ``block``, ``work pool``, ``deployment`` or ``automation``.
        name: Its name.
        action: ``create``, ``update``, ``keep`` or ``remove``.
        fields: The fields that differ, each before and after.
        note: More for people.
    """

    kind: str
    name: str
    action: str
    fields: dict[str, tuple[object, object]] = {}
    note: str = ""


def _compared(
    kind: str, name: str, before: Mapping[str, object] | None, after: Mapping[str, object]
) -> Change:
    old = before or {}
    fields = {
        field: (old.get(field), value)
        for field, value in after.items()
        if before is None or old.get(field) != value
    }
    if before is None:
        return Change(kind, name, "create", fields)
    return Change(kind, name, "update" if fields else "keep", fields)


def _ask(
    api: Api,
    what: str,
    path: str,
    body: object = None,
    *,
    method: str = "",
    none: tuple[int, ...] = (404,),
) -> Any:
    """:func:`client.ask`, with an error that names *what* was refused."""
    try:
        # The SQLite of a server is locked now and then, for longer than other callers wait.
        return client.ask(api, path, body, method=method, none=none, tries=7)
    except UnavailableError as exc:
        raise _refused(what, exc) from exc


# A server that does not know the path is too old.
_write = partial(_ask, none=())


def _refused(what: str, exc: Exception) -> UnavailableError:
    cause = exc.__cause__ if isinstance(exc, UnavailableError) else exc
    response = getattr(cause, "response", None)
    status = getattr(response, "status_code", 0) or getattr(cause, "code", 0)
    if isinstance(exc, UnavailableError) and not status:
        hint = "is the server up, and PREFECT_API_URL right? see pfl doctor"
        return UnavailableError(exc.what, why=exc.why, hint=hint)
    return UnavailableError(
        f"Prefect did not take {what}",
        why=" ".join(str(exc).split())[:300],
        hint=_HINTS.get(status, "pfl doctor"),
    )


# The block.


def blocks(
    api: Api, settings: Settings, *, name: str, with_keys: bool, dry_run: bool, prove: bool = False
) -> Iterator[Change]:
    """
    Save the block of the store: ``s3-bucket/<name>``, or ``local-file-system/<name>`` for a
    directory.

    Credentials that somebody put into it stay; those of the environment are stored only
    *with_keys*. A block is tried out before it is saved; with *prove* also if nothing differs.
    """
    if settings.store.startswith("memory://"):
        raise InvalidRequestError(
            "a store in memory has no block",
            why=f"PFL_STORE={settings.store}",
            hint="PFL_STORE=s3://bucket/prefix",
        )
    results = objects.of(settings)
    slug = _slug(settings)
    existing = _blocks(api)
    data = existing.get((slug, name))
    block = _directory(settings) if slug == "local-file-system" else _s3(settings, data, with_keys)
    before = None if data is None else _fields(data)
    after = _fields(block.model_dump())
    change = _compared("block", f"{slug}/{name}", before, after)
    notes = []
    for (kind, other), fields in existing.items():
        if other == name and kind != slug:
            notes.append(
                f"{kind}/{name}, of another type, exists too: tasks that name it use other results"
            )
        elif data is None and kind == slug and _location(_fields(fields)) == _location(after):
            notes.append(
                f"{kind}/{other} has the same location: --name {other} keeps only that one"
            )
    if not dry_run or (prove and change.action == "keep"):
        notes.insert(0, _prove(block, results))
        if change.action != "keep":
            try:
                block.save(name, overwrite=True)
            except Exception as exc:
                raise _refused("the block", exc) from exc
    yield change._replace(note="; ".join(notes))


def _slug(settings: Settings) -> str:
    return "s3-bucket" if settings.store.startswith("s3://") else "local-file-system"


def _blocks(api: Api) -> dict[tuple[str, str], JsonObject]:
    """The data of all blocks that can hold results, by type and name; ``s3`` is Prefect 2's."""
    chosen = {
        "block_types": {"slug": {"any_": ["s3", "s3-bucket", "local-file-system"]}},
        "include_secrets": True,
    }
    found = _ask(api, "the block", "/block_documents/filter", chosen) or []
    return {
        (each["block_type"]["slug"], each["name"]): {**each["data"], "document": each["id"]}
        for each in found
    }


def _location(fields: Mapping[str, object]) -> list[object]:
    return [fields.get(name) for name in ("basepath", "bucket", "folder", "endpoint")]


def _fields(data: Mapping[str, Any]) -> dict[str, object]:
    """The fields of a block that people compare; of keys only whether they are stored."""
    if "basepath" in data:
        return {"basepath": data["basepath"]}
    credentials = data.get("credentials") or {}
    parameters = credentials.get("aws_client_parameters") or {}
    has_keys = credentials.get("aws_access_key_id") or credentials.get("minio_root_user")
    return {
        "bucket": data.get("bucket_name"),
        "folder": data.get("bucket_folder") or "",
        "region": credentials.get("region_name"),
        "endpoint": parameters.get("endpoint_url"),
        "keys": "stored" if has_keys else "not stored",
    }


def _s3(settings: Settings, data: JsonObject | None, with_keys: bool) -> S3Bucket:
    from prefect_aws import AwsCredentials, S3Bucket
    from prefect_aws.client_parameters import AwsClientParameters

    environ = os.environ
    bucket, _, folder = settings.store.removeprefix("s3://").partition("/")
    if data is not None and _fields(data)["keys"] == "stored" and not with_keys:
        credentials = data["credentials"]
    else:
        endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or None
        credentials = {
            "region_name": environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or None,
            "aws_client_parameters": AwsClientParameters(endpoint_url=endpoint),
        }
        if with_keys:
            if not environ.get("AWS_ACCESS_KEY_ID"):
                raise InvalidRequestError(
                    "no AWS keys to store",
                    why="AWS_ACCESS_KEY_ID is not set",
                    hint="leave out --with-keys",
                )
            for field in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token"):
                credentials[field] = environ.get(field.upper())
    return S3Bucket(
        bucket_name=bucket,
        bucket_folder=folder.strip("/"),
        credentials=AwsCredentials(**credentials),
    )


def _directory(settings: Settings) -> LocalFileSystem:
    from prefect.filesystems import LocalFileSystem

    directory = settings.store.removeprefix("file://") or str(settings.home / "store")
    return LocalFileSystem(basepath=os.path.abspath(directory))


def _prove(block: S3Bucket | LocalFileSystem, results: objects.Store) -> str:
    """
    Write, read and delete an object through the block and through the store, and return a note on
    it.
    """
    key = f"setup/proof-{secrets.token_hex(8)}"
    data = secrets.token_bytes(16)
    try:
        block.write_path(key, data)
        if results.get(key) != data or block.read_path(key) != data:
            raise UnavailableError(
                "the block and the store have different locations",
                why=f"they read different values of {key}",
            )
    except PflError:
        raise
    except Exception as exc:
        raise UnavailableError(
            "the block does not work",
            why=f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}",
            hint="nothing was saved: check bucket, AWS_ENDPOINT_URL and AWS credentials",
        ) from exc
    finally:
        # If this fails too, the error above has the reason.
        with suppress(PflError):
            results.delete([key])
    try:
        block.read_path(key)
    except Exception:
        # Each file system has its own exception for a missing object.
        return "an object was written, read and deleted through the block and the store"
    raise UnavailableError("the block still reads what the store has deleted", why=key)


# The work pool and its deployments.


def _pool_path(pool: str) -> str:
    return f"/work_pools/{quote(pool)}"


def work_pool(api: Api, pool: str) -> JsonObject | None:
    """
    Return the work pool; None if it does not exist.

    Raises:
        InvalidRequestError: It is of another type.
    """
    found: JsonObject | None = _ask(api, "the work pool", _pool_path(pool))
    if found is not None and found["type"] != "aws-lambda":
        raise InvalidRequestError(
            f"the work pool {pool} is of type {found['type']}",
            why="pfl needs one of type aws-lambda",
            hint="--pool OTHER-NAME, or PFL_WORK_POOL",
        )
    return found


def workers(api: Api, pool: str) -> list[str]:
    """Return the names of the live workers of a pool."""
    found = _ask(api, "the workers", f"{_pool_path(pool)}/workers/filter", {}) or []
    return [each["name"] for each in found if each["status"] == "ONLINE"]


def deployments(
    api: Api, settings: Settings, *, pool: str, function: str, dry_run: bool
) -> Iterator[Change]:
    """
    Save a work pool of type ``aws-lambda``, and a deployment for each flow of the image, ordinary
    Prefect flows included.
    """
    from ..handler.engine.prefect import builder

    loaded = project.load(settings)
    yield _save_pool(api, pool, function, dry_run)
    names = set()
    for name, flow in loaded.flows.items():
        names.add(name)
        entrypoint = f"flows/pipeline.py:{name}"
        digest = loaded.manifest.digest
        yield _deployment(api, builder.build(flow), entrypoint, digest, pool, dry_run)
    for name, (ordinary, entrypoint) in scheduled_runs.ordinary_flows(settings).items():
        if name not in names:
            names.add(name)
            yield _deployment(api, ordinary, entrypoint, ordinary.version, pool, dry_run)
    for name, id in _own_deployments(api, pool):
        if name not in names:
            if not dry_run:
                _ask(api, "the deployments", f"/deployments/{id}", method="DELETE")
            note = "its flow is not in flows/ any more"
            yield Change("deployment", f"{name}/{DEPLOYMENT}", "remove", note=note)


def _save_pool(api: Api, pool: str, function: str, dry_run: bool) -> Change:
    from .worker import LambdaWorker, template

    found = work_pool(api, pool)
    if found is None:
        job = template(function)
        before = None
    else:
        job = found["base_job_template"]
        before = {"type": found["type"]}
    variable = job.get("variables", {}).get("properties", {}).get("function", {})
    if before is not None:
        before["function"] = variable.get("default")
    after = {"type": LambdaWorker.type, "function": function}
    change = _compared("work pool", pool, before, after)
    if dry_run:
        return change
    if change.action == "create":
        body = {
            "name": pool,
            "type": LambdaWorker.type,
            "description": "Runs flows in AWS Lambda.",
            "base_job_template": job,
        }
        _write(api, "the work pool", "/work_pools/", body)
    elif change.action == "update":
        # Other changes that somebody made to the template stay.
        variable["default"] = function
        body = {"base_job_template": job if variable.keys() > {"default"} else template(function)}
        _write(api, "the work pool", _pool_path(pool), body, method="PATCH")
    return change


def form(flow: Flow[..., Any]) -> JsonObject:
    """
    Return the parameter form of a flow: what may be empty is not required, and offers no null.
    """
    schema: JsonObject = flow.parameters.model_dump()
    for field in schema["properties"].values():
        kinds = field.get("anyOf", ())
        if {"type": "null"} in kinds and field.get("default") is None:
            # The first of several kinds is the one with choices; a list would be a form in the
            # form.
            del field["anyOf"]
            field.pop("default", None)
            field.update(kinds[0])
            if len(kinds) > 2:
                field["description"] = field["description"].replace(", or a list of steps", "")
    return schema


def _deployment(
    api: Api, flow: Flow[..., Any], entrypoint: str, version: str | None, pool: str, dry_run: bool
) -> Change:
    after = {
        "work_pool_name": pool,
        "entrypoint": entrypoint,
        "version": version,
        # The fields of the form have the rest.
        "description": (flow.description or "").split("\nArgs:")[0].strip(),
        "parameter_openapi_schema": form(flow),
    }
    before = _ask(api, "the deployment", f"/deployments/name/{quote(flow.name)}/{DEPLOYMENT}")
    change = _compared("deployment", f"{flow.name}/{DEPLOYMENT}", before, after)
    if not dry_run and change.action == "create":
        body = {
            **after,
            "flow_id": _write(api, "the flow", "/flows/", {"name": flow.name})["id"],
            "name": DEPLOYMENT,
            "tags": [TAG],
            "path": ".",
            "enforce_parameter_schema": True,
        }
        _write(api, "the deployment", "/deployments/", body)
    elif not dry_run and change.action == "update":
        # A new deployment would lose schedules, default parameters and tags that somebody gave it.
        body = {**after, "tags": list(dict.fromkeys([*before["tags"], TAG]))}
        _write(api, "the deployment", f"/deployments/{before['id']}", body, method="PATCH")
    fields: dict[str, tuple[object, object]] = {}
    for field, (old, new) in change.fields.items():
        if field == "parameter_openapi_schema":
            fields["form"] = (_differing(old, new), _differing(new, old))
        else:
            fields["pool" if field == "work_pool_name" else field] = (old or None, new or None)
    return change._replace(fields=fields)


def _differing(schema: Any, other: Any) -> str | None:
    """The names of the fields of one form that the other form does not have, or has otherwise."""
    fields = (schema or {}).get("properties", {})
    others = (other or {}).get("properties", {})
    return ", ".join(name for name in fields if others.get(name) != fields[name]) or None


def _own_deployments(api: Api, pool: str) -> list[tuple[str, str]]:
    """The deployments that pfl made in a work pool: the flow's name, and the ID."""
    chosen = {
        "deployments": {"tags": {"all_": [TAG]}, "name": {"any_": [DEPLOYMENT]}},
        "work_pools": {"name": {"any_": [pool]}},
    }
    found = []
    for each in client.pages(api, "/deployments/filter", chosen):
        flow = _ask(api, "the deployments", f"/flows/{each['flow_id']}") or {"name": "?"}
        found.append((flow["name"], each["id"]))
    return found


# The automation.


def automations(api: Api, *, dry_run: bool) -> Iterator[Change]:
    """
    Save an automation of Prefect's own that crashes dead runs, for flows that send heartbeats.
    """
    heartbeat = "prefect.flow-run.heartbeat"
    ends = [f"prefect.flow-run.{name}" for name in ("Cancelled", "Completed", "Crashed", "Failed")]
    compared = {
        "description": f"A flow run whose heartbeats stop for {_SILENCE_S} s becomes Crashed. "
        "Made by pfl setup automations.",
        "enabled": True,
    }
    wanted = {
        **compared,
        "name": AUTOMATION,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "after": [heartbeat],
            "expect": [*ends, heartbeat],
            "threshold": 1,
            "within": _SILENCE_S,
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "for_each": ["prefect.resource.id"],
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "message": "Its heartbeats stopped: its process is probably gone.",
            }
        ],
    }
    found = _automations(api)
    change = _compared("automation", AUTOMATION, found[0] if found else None, compared)
    if not dry_run and change.action == "create":
        _write(api, "the automation", "/automations/", wanted)
    elif not dry_run and change.action == "update":
        _write(api, "the automation", f"/automations/{found[0]['id']}", wanted, method="PUT")
    yield change._replace(
        note="it covers flow runs that send heartbeats, but not their task runs; "
        "pfl runs reap covers the rest"
    )


def _automations(api: Api) -> list[JsonObject]:
    chosen = {"automations": {"name": {"any_": [AUTOMATION]}}}
    return _ask(api, "the automation", "/automations/filter", chosen) or []


# Removal.


def removals(
    api: Api, settings: Settings, what: set[str], *, name: str, pool: str
) -> list[tuple[Change, str]]:
    """
    List what removes the objects above: each change, and the path for :func:`delete`; empty if the
    object stays.

    Args:
        api: The API to call.
        settings: The settings of the store that the block is for.
        what: ``blocks``, ``deployments`` and ``automations``, or some of them.
        name: The block's name.
        pool: The work pool's name.
    """
    found: list[tuple[Change, str]] = []

    def remove(kind: str, name: str, path: str) -> None:
        found.append((Change(kind, name, "remove"), path))

    if "automations" in what:
        for each in _automations(api):
            remove("automation", AUTOMATION, f"/automations/{each['id']}")
    if "deployments" in what:
        own = set()
        for flow, id in _own_deployments(api, pool):
            own.add(id)
            remove("deployment", f"{flow}/{DEPLOYMENT}", f"/deployments/{id}")
        path = _pool_path(pool)
        if _ask(api, "the work pool", path) is not None:
            chosen = {"work_pools": {"name": {"any_": [pool]}}}
            used_by = client.pages(api, "/deployments/filter", chosen)
            if others := {each["id"] for each in used_by} - own:
                note = f"{len(others)} deployments of others use it"
                found.append((Change("work pool", pool, "keep", note=note), ""))
            else:
                remove("work pool", pool, path)
    if "blocks" in what:
        slug = _slug(settings)
        if (data := _blocks(api).get((slug, name))) is not None:
            remove("block", f"{slug}/{name}", f"/block_documents/{data['document']}")
    return found


def delete(api: Api, change: Change, path: str) -> None:
    """Delete one object."""
    _ask(api, f"the removal of the {change.kind}", path, method="DELETE")
