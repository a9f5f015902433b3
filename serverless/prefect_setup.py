"""
What pfl creates in Prefect: the storage block, work pool and deployments, and the automation.

Each function compares, and returns a :class:`Change` for each object.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from ..handler.core.declare import project
from ..handler.core.errors import InvalidRequestError, UnavailableError
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


def _nothing() -> None: ...


class Change(NamedTuple):
    """
    One object in Prefect, and what is done to it.

    Attributes:
        kind: What it is: ``block``, ``work pool``, ``deployment`` or ``automation``.
        name: Its name.
        action: ``create``, ``update``, ``keep`` or ``remove``.
        fields: The fields that differ, each before and after.
        note: A remark for people.
        make: Does it.
    """

    kind: str
    name: str
    action: str
    fields: dict[str, tuple[object, object]] = {}
    note: str = ""
    make: Callable[[], object] = _nothing


def _planned(
    kind: str,
    name: str,
    before: Mapping[str, object] | None,
    after: Mapping[str, object],
    note: str = "",
    **makers: Callable[[], object],
) -> Change:
    """Compare an object with what it should be; of *makers*, the action chooses one by its name."""
    old = before or {}
    fields = {
        field: (old.get(field), value) for field, value in after.items() if old.get(field) != value
    }
    action = "update" if fields else "keep"
    if before is None:
        action = "create"
    return Change(kind, name, action, fields, note, makers.get(action, _nothing))


def _removal(api: Api, kind: str, name: str, path: str) -> Change:
    return Change(kind, name, "remove", make=partial(_ask, api, path, method="DELETE"))


# The SQLite of a server is locked now and then, for longer than other callers wait.
_ask = partial(client.ask, longest_s=20)
# A server that does not know the path is too old.
_write = partial(_ask, none=())


# The block.


def block(api: Api, settings: Settings, *, name: str, with_keys: bool) -> Change:
    """
    Plan the block of the store: ``s3-bucket/<name>``, or ``local-file-system/<name>`` for a
    directory.

    Credentials that somebody put into it stay; those of the environment are stored only
    *with_keys*. A block is tried out before it is saved, and also if nothing differs.
    """
    if settings.store.startswith("memory://"):
        raise InvalidRequestError(
            "an in-memory store cannot have a block",
            why=f"PFL_STORE={settings.store}",
            hint="PFL_STORE=s3://bucket/prefix",
        )
    slug = _slug(settings)
    found = _ask(api, _block_path(slug, name))
    data = found and found["data"]
    planned = _block(settings, data, with_keys)
    before = None if data is None else _fields(data)
    note = "an object is written, read and deleted through the block and the store"
    change = _planned("block", f"{slug}/{name}", before, _fields(planned.model_dump()), note)

    def make() -> None:
        _prove(planned, objects.of(settings))
        if change.action != "keep":
            try:
                planned.save(name, overwrite=True)
            except Exception as exc:
                raise UnavailableError(
                    "Prefect did not take the block",
                    why=" ".join(str(exc).split())[:300],
                    hint="pfl doctor checks the key and compares the versions",
                ) from exc

    return change._replace(make=make)


def _slug(settings: Settings) -> str:
    return "s3-bucket" if settings.store.startswith("s3://") else "local-file-system"


def _block_path(slug: str, name: str) -> str:
    return f"/block_types/slug/{slug}/block_documents/name/{name}?include_secrets=true"


def _fields(data: Mapping[str, Any]) -> dict[str, object]:
    """The fields of a block to show; for keys, only whether they are stored."""
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


def _block(
    settings: Settings, data: JsonObject | None, with_keys: bool
) -> S3Bucket | LocalFileSystem:
    from prefect.filesystems import LocalFileSystem
    from prefect_aws import S3Bucket

    if _slug(settings) == "local-file-system":
        directory = settings.store.removeprefix("file://") or settings.home / "store"
        return LocalFileSystem(basepath=os.path.abspath(directory))
    environ = os.environ
    bucket, _, folder = settings.store.removeprefix("s3://").partition("/")
    if data is not None and _fields(data)["keys"] == "stored" and not with_keys:
        credentials = data["credentials"]
    else:
        endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or None
        credentials = {
            "region_name": environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or None,
            "aws_client_parameters": {"endpoint_url": endpoint},
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
    fields = {
        "bucket_name": bucket,
        "bucket_folder": folder.strip("/"),
        "credentials": credentials,
    }
    return S3Bucket.model_validate(fields)


def _prove(block: S3Bucket | LocalFileSystem, results: objects.Store) -> None:
    """Write, read and delete an object through the block and through the store."""
    key = f"setup/proof-{secrets.token_hex(8)}"
    data = secrets.token_bytes(16)
    try:
        block.write_path(key, data)
        read = block.read_path(key)
    except Exception as exc:
        raise UnavailableError(
            "the block does not work",
            why=f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}",
            hint="nothing was saved: check bucket, AWS_ENDPOINT_URL and AWS credentials",
        ) from exc
    if not results.get(key) == read == data:
        raise UnavailableError(
            "the block and the store have different locations",
            why=f"they read different values of {key}",
        )
    results.delete([key])


# The work pool and its deployments.


def _pool_path(pool: str) -> str:
    return f"/work_pools/{quote(pool)}"


def work_pool(api: Api, pool: str) -> JsonObject | None:
    """
    Return the work pool; None if it does not exist.

    Raises:
        InvalidRequestError: It is of another type.
    """
    found: JsonObject | None = _ask(api, _pool_path(pool))
    if found is not None and found["type"] != "aws-lambda":
        raise InvalidRequestError(
            f"the work pool {pool} is of type {found['type']}",
            why="pfl needs one of type aws-lambda",
            hint="use --pool OTHER-NAME, or set PFL_WORK_POOL",
        )
    return found


def workers(api: Api, pool: str) -> list[str]:
    """Return the names of the live workers of a pool."""
    found = _ask(api, f"{_pool_path(pool)}/workers/filter", {}) or []
    return [each["name"] for each in found if each["status"] == "ONLINE"]


def deployments(api: Api, settings: Settings, *, pool: str, function: str) -> Iterator[Change]:
    """
    Plan a work pool of type ``aws-lambda``, and a deployment for each flow of the image, ordinary
    Prefect flows included.
    """
    from ..handler.engine.prefect import builder

    loaded = project.load(settings)
    yield _plan_pool(api, pool, function)
    flows = {
        name: (
            builder.build(flow).with_options(version=loaded.manifest.digest),
            f"flows/pipeline.py:{name}",
        )
        for name, flow in loaded.flows.items()
    }
    for name, ordinary in scheduled_runs.ordinary_flows(settings).items():
        flows.setdefault(name, ordinary)
    for flow, entrypoint in flows.values():
        yield _plan_deployment(api, flow, entrypoint, pool)
    own, _ = _removals(api, pool)
    for change in own:
        if change.name.removesuffix(f"/{DEPLOYMENT}") not in flows:
            yield change._replace(note="its flow is no longer in flows/")


def _plan_pool(api: Api, pool: str, function: str) -> Change:
    from .worker import template

    found = work_pool(api, pool)
    job = template(function) if found is None else found["base_job_template"]
    variable = job.get("variables", {}).get("properties", {}).get("function", {})
    before = None if found is None else {"function": variable.get("default")}
    # Other changes that somebody made to the template stay.
    variable["default"] = function
    if variable.keys() == {"default"}:
        job = template(function)
    wanted = {
        "name": pool,
        "type": "aws-lambda",
        "description": "Runs flows in AWS Lambda.",
        "base_job_template": job,
    }
    return _planned(
        "work pool",
        pool,
        before,
        {"function": function},
        create=partial(_write, api, "/work_pools/", wanted),
        update=partial(_write, api, _pool_path(pool), {"base_job_template": job}, method="PATCH"),
    )


def form(flow: Flow[..., Any]) -> JsonObject:
    """
    Return the parameter form of a flow: a field that may be empty is optional, and offers no null.
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


def _plan_deployment(api: Api, flow: Flow[..., Any], entrypoint: str, pool: str) -> Change:
    after = {
        "work_pool_name": pool,
        "entrypoint": entrypoint,
        "version": flow.version,
        # The fields of the form have the rest.
        "description": (flow.description or "").split("\nArgs:")[0].strip(),
        "parameter_openapi_schema": form(flow),
    }
    before = _ask(api, f"/deployments/name/{quote(flow.name)}/{DEPLOYMENT}")
    old = before or {"id": "", "tags": []}
    body = {**after, "tags": sorted({*old["tags"], TAG})}

    def create() -> None:
        new = {
            "flow_id": _write(api, "/flows/", {"name": flow.name})["id"],
            "name": DEPLOYMENT,
            "path": ".",
            "enforce_parameter_schema": True,
        }
        _write(api, "/deployments/", body | new)

    change = _planned(
        "deployment",
        f"{flow.name}/{DEPLOYMENT}",
        before,
        after,
        create=create,
        # A new deployment would lose schedules, default parameters and tags that somebody gave it.
        update=partial(_write, api, f"/deployments/{old['id']}", body, method="PATCH"),
    )
    fields: dict[str, tuple[object, object]] = {}
    for field, (was, now) in change.fields.items():
        if field == "parameter_openapi_schema":
            fields["form"] = (_differing(was, now), _differing(now, was))
        else:
            fields["pool" if field == "work_pool_name" else field] = (was or None, now or None)
    return change._replace(fields=fields)


def _differing(schema: Any, other: Any) -> str | None:
    """The names of the fields of one form that are missing or different in the other."""
    fields = (schema or {}).get("properties", {})
    others = (other or {}).get("properties", {})
    return ", ".join(name for name in fields if others.get(name) != fields[name]) or None


def _removals(api: Api, pool: str) -> tuple[list[Change], int]:
    """The removals of the deployments that pfl made in a work pool, and the count of the others."""
    chosen = {"work_pools": {"name": {"any_": [pool]}}}
    found = list(client.pages(api, "/deployments/filter", chosen))
    own = []
    for each in found:
        if each["name"] == DEPLOYMENT and TAG in each["tags"]:
            flow = _ask(api, f"/flows/{each['flow_id']}") or {"name": "?"}
            name = f"{flow['name']}/{DEPLOYMENT}"
            own.append(_removal(api, "deployment", name, f"/deployments/{each['id']}"))
    return own, len(found) - len(own)


# The automation.


def automation(api: Api) -> Change:
    """
    Plan an automation of Prefect's own that crashes dead runs, for flows that send heartbeats.
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
    return _planned(
        "automation",
        AUTOMATION,
        found[0] if found else None,
        compared,
        "it covers flow runs that send heartbeats, but not their task runs; "
        "pfl runs reap covers the rest",
        create=partial(_write, api, "/automations/", wanted),
        update=lambda: _write(api, f"/automations/{found[0]['id']}", wanted, method="PUT"),
    )


def _automations(api: Api) -> list[JsonObject]:
    chosen = {"automations": {"name": {"any_": [AUTOMATION]}}}
    return _ask(api, "/automations/filter", chosen) or []


# Removal.


def removals(
    api: Api, settings: Settings, what: Collection[str], *, name: str, pool: str
) -> Iterator[Change]:
    """
    Plan the removal of the objects above.

    Args:
        api: The API to call.
        settings: The settings of the store that the block is for.
        what: ``blocks``, ``deployments`` and ``automations``, or some of them.
        name: The block's name.
        pool: The work pool's name.
    """
    if "automations" in what:
        for each in _automations(api):
            yield _removal(api, "automation", AUTOMATION, f"/automations/{each['id']}")
    if "deployments" in what:
        own, others = _removals(api, pool)
        yield from own
        path = _pool_path(pool)
        if others:
            note = f"{others} deployments of others use it"
            yield Change("work pool", pool, "keep", note=note)
        elif _ask(api, path) is not None:
            yield _removal(api, "work pool", pool, path)
    if "blocks" in what:
        slug = _slug(settings)
        found = _ask(api, _block_path(slug, name))
        if found is not None:
            path = f"/block_documents/{found['id']}"
            yield _removal(api, "block", f"{slug}/{name}", path)
