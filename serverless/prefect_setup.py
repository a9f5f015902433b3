"""
What pfl puts into Prefect, made, compared and removed: the storage block, work pool and deployments, automations.

Each function yields a :class:`Change` per object. Nothing is written where nothing differs, or on a dry run.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple
from urllib.parse import quote

from pfl.handler.core.declare import project
from pfl.handler.core.errors import InvalidRequestError, PflError, UnavailableError
from pfl.handler.core.settings import Settings
from pfl.handler.core.store import objects
from pfl.handler.engine.prefect import client, scheduled_runs
from pfl.handler.engine.prefect.environment import Api

TAG = "pfl"  # What a deployment has that pfl made, and may remove.
DEPLOYMENT = "lambda"
ZOMBIES = "pfl: crash flow runs whose heartbeats stop"
_AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_DENIED = {
    401: "check PREFECT_API_KEY",
    403: "the key of PREFECT_API_KEY may not do this: ask for a role that can",
}
_OLD = "Prefect's server is too old for this: pfl doctor compares the versions"


class Change(NamedTuple):
    """One object: what was done or would be (``create``, ``update``, ``keep``, ``remove``), and each differing field before and after."""

    kind: str
    name: str
    action: str
    fields: dict[str, tuple[object, object]]
    note: str = ""


def _change(kind: str, name: str, before: Mapping | None, after: Mapping, note: str = "") -> Change:
    fields = {
        field: ((before or {}).get(field), value)
        for field, value in after.items()
        if before is None or before.get(field) != value
    }
    return Change(
        kind, name, "create" if before is None else "update" if fields else "keep", fields, note
    )


def _ask(
    api: Api,
    what: str,
    path: str,
    body: object = None,
    *,
    method: str = "",
    none: tuple[int, ...] = (404,),
) -> object:
    """What Prefect answers; where it refuses, the error names *what* was to be made, and says what to do."""
    for pause_s in (1, 2, 4, 0):
        try:
            return client.ask(api, path, body, method=method, none=none)
        except UnavailableError as exc:
            if not pause_s or not exc.why.startswith(
                "HTTP 503"
            ):  # A server's SQLite is locked now and then, longer than others wait.
                raise _refused(what, exc) from exc
        time.sleep(pause_s)
    raise AssertionError("unreachable")


_write = partial(_ask, none=())  # A server that knows no such path is too old.


def _refused(what: str, exc: Exception) -> UnavailableError:
    status = re.search(r"HTTP (\d{3})|\b'?(401|403|404|405|422)\b", str(exc))
    if status is None and isinstance(exc, UnavailableError):
        return UnavailableError(
            exc.what,
            why=exc.why,
            hint="is the server up, and PREFECT_API_URL right? pfl doctor looks",
        )
    code = int(status[1] or status[2]) if status else 0
    hint = _DENIED.get(code, _OLD if code in (404, 405, 422) else "pfl doctor")
    return UnavailableError(
        f"Prefect did not take {what}", why=" ".join(str(exc).split())[:300], hint=hint
    )


def blocks(
    api: Api, settings: Settings, *, name: str, with_keys: bool, dry_run: bool, prove: bool = False
) -> Iterator[Change]:
    """
    The block of the store that results go to: ``s3-bucket/<name>``, or ``local-file-system/<name>`` for a directory.

    Credentials that someone put into it stay; those of the environment are stored only *with_keys*.
    """
    if settings.store.startswith("memory://"):
        raise InvalidRequestError(
            "a store in memory has no block",
            why=f"PFL_STORE={settings.store}",
            hint="PFL_STORE=s3://bucket/prefix",
        )
    results, slug, known = objects.of(settings), _slug(settings), _blocks(api)
    found = known.get((slug, name))
    before = None if found is None else _fields(found)
    block = _s3(settings, found, with_keys) if slug == "s3-bucket" else _directory(settings)
    after = _fields(block.model_dump())
    notes = [
        f"beside it there is {kind}/{name}, of another type: tasks that name it use other results"
        for kind, n in known
        if n == name and kind != slug
    ]
    if found is None:
        same = [
            f"{kind}/{n}"
            for (kind, n), data in known.items()
            if kind == slug and _place(_fields(data)) == _place(after)
        ]
        notes += [
            f"{each} is of the same place: --name {each.split('/')[1]} keeps that one alone"
            for each in same
        ]
    change = _change("block", f"{slug}/{name}", before, after)
    if not dry_run or (prove and change.action == "keep"):
        proof = _prove(block, results)
        if change.action != "keep":
            try:
                block.save(name, overwrite=True)
            except Exception as exc:
                raise _refused("the block", exc) from exc
        notes = [proof, *notes]
    yield change._replace(note="; ".join(notes))


def _slug(settings: Settings) -> str:
    return "s3-bucket" if settings.store.startswith("s3://") else "local-file-system"


def _blocks(api: Api) -> dict[tuple[str, str], dict]:
    """The data of the blocks that results may be in, by type and name; ``s3`` is Prefect 2's."""
    chosen = {
        "block_types": {"slug": {"any_": ["s3", "s3-bucket", "local-file-system"]}},
        "include_secrets": True,
    }
    found = _ask(api, "the block", "/block_documents/filter", chosen) or []
    return {
        (each["block_type"]["slug"], each["name"]): each["data"] | {"document": each["id"]}
        for each in found
    }


def _place(fields: Mapping) -> list:
    return [fields.get(name) for name in ("basepath", "bucket", "folder", "endpoint")]


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


def _s3(settings: Settings, found: dict | None, with_keys: bool) -> object:
    from prefect_aws import AwsCredentials, S3Bucket
    from prefect_aws.client_parameters import AwsClientParameters

    bucket, _, folder = settings.store.removeprefix("s3://").partition("/")
    if found is not None and _fields(found)["keys"] == "stored" and not with_keys:
        given = found["credentials"]
    else:
        endpoint = (
            os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
        )
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
        given = {
            "region_name": region,
            "aws_client_parameters": AwsClientParameters(endpoint_url=endpoint),
        }
        if with_keys:
            if not os.environ.get(_AWS[0]):
                raise InvalidRequestError(
                    "there are no AWS keys to store",
                    why=f"{_AWS[0]} is not set",
                    hint="leave --with-keys out",
                )
            given |= {variable.lower(): os.environ.get(variable) for variable in _AWS}
        given = AwsCredentials(**given)
    return S3Bucket(bucket_name=bucket, bucket_folder=folder.strip("/"), credentials=given)


def _directory(settings: Settings) -> object:
    from prefect.filesystems import LocalFileSystem

    directory = settings.store.removeprefix("file://") or str(settings.home / "store")
    return LocalFileSystem(basepath=os.path.abspath(directory))


def _prove(block: object, results: objects.Store) -> str:
    """Write, read and delete an object through the block and through the store; the words for it."""
    key, data = f"setup/proof-{secrets.token_hex(8)}", secrets.token_bytes(16)
    try:
        block.write_path(key, data)
        if results.get(key) != data or block.read_path(key) != data:
            raise UnavailableError(
                "the block and the store are not the same place",
                why=f"{key} written by one is not read by the other",
            )
    except PflError:
        raise
    except Exception as exc:
        why = " ".join(str(exc).split())[:300] or type(exc).__name__
        hint = "check bucket, AWS_ENDPOINT_URL and the AWS credentials of this process; nothing was saved"
        raise UnavailableError(
            "the block does not work", why=f"{type(exc).__name__}: {why}", hint=hint
        ) from exc
    finally:
        with suppress(PflError):  # What is wrong with the store is told above.
            results.delete([key])
    try:
        block.read_path(key)
    except Exception:  # Each file system has its own word for an object that is gone.
        return "an object was written, read and deleted through the block and the store"
    raise UnavailableError("the block still reads what the store has deleted", why=key)


def _pool_path(pool: str) -> str:
    return f"/work_pools/{quote(pool)}"


def work_pool(api: Api, pool: str) -> dict | None:
    """
    The work pool; None where there is none.

    Raises:
        InvalidRequestError: It is of another type.
    """
    found = _ask(api, "the work pool", _pool_path(pool))
    if found is not None and found["type"] != "aws-lambda":
        why, hint = "pfl needs one of type aws-lambda", "--pool OTHER-NAME, or PFL_WORK_POOL"
        raise InvalidRequestError(
            f"the work pool {pool} is of type {found['type']}", why=why, hint=hint
        )
    return found


def workers(api: Api, pool: str) -> list[str]:
    """The names of the workers of a pool that are alive."""
    found = _ask(api, "the workers", f"{_pool_path(pool)}/workers/filter", {}) or []
    return [each["name"] for each in found if each["status"] == "ONLINE"]


def deployments(
    api: Api, settings: Settings, *, pool: str, function: str, dry_run: bool
) -> Iterator[Change]:
    """A work pool of type ``aws-lambda``, and a deployment per flow of the image, ordinary Prefect flows of ``flows/`` included."""
    from pfl.serverless.worker import LambdaWorker, template

    loaded, found = project.load(settings), work_pool(api, pool)
    job = found["base_job_template"] if found is not None else template(function)
    variable = job.get("variables", {}).get("properties", {}).get("function", {})
    before = None if found is None else {"type": found["type"], "function": variable.get("default")}
    yield (
        change := _change(
            "work pool", pool, before, {"type": LambdaWorker.type, "function": function}
        )
    )
    if not dry_run and change.action == "create":
        about = {
            "name": pool,
            "type": LambdaWorker.type,
            "description": "Runs flows in AWS Lambda.",
        }
        _write(api, "the work pool", "/work_pools/", about | {"base_job_template": job})
    elif not dry_run and change.action == "update":
        variable["default"] = function  # What else someone changed in the template stays.
        _write(
            api,
            "the work pool",
            _pool_path(pool),
            {"base_job_template": job if variable.keys() > {"default"} else template(function)},
            method="PATCH",
        )
    flows = {
        name: (flow.to_prefect(), f"flows/pipeline.py:{name}", loaded.manifest.digest)
        for name, flow in loaded.flows.items()
    }
    for name, (flow, entrypoint) in scheduled_runs.ordinary(settings).items():
        flows.setdefault(name, (flow, entrypoint, flow.version))
    for flow, entrypoint, version in flows.values():
        yield _deployment(api, flow, entrypoint, version, pool, dry_run)
    for name, old in _ours(api, pool):
        if name not in flows:
            if not dry_run:
                _ask(api, "the deployments", f"/deployments/{old}", method="DELETE")
            yield Change(
                "deployment",
                f"{name}/{DEPLOYMENT}",
                "remove",
                {},
                "its flow is not in flows/ any more",
            )


def form(flow) -> dict:
    """The parameter form of a flow: what may be left empty is not required, and has no null to choose."""
    schema = flow.parameters.model_dump()
    for name, field in schema["properties"].items():
        kinds = field.get("anyOf", ())
        if {"type": "null"} in kinds and field.get("default") is None:
            # Of several kinds the first is the choice; a list beside it would be a form within the form.
            schema["properties"][name] = {
                **{k: v for k, v in field.items() if k not in ("anyOf", "default")},
                **kinds[0],
            }
            if len(kinds) > 2:
                schema["properties"][name]["description"] = field["description"].replace(
                    ", or a list of steps", ""
                )
    return schema


def _deployment(
    api: Api, flow, entrypoint: str, version: str | None, pool: str, dry_run: bool
) -> Change:
    after = {
        "work_pool_name": pool,
        "entrypoint": entrypoint,
        "version": version,
        "description": _described(flow),
        "parameter_openapi_schema": form(flow),
    }
    before = _ask(api, "the deployment", f"/deployments/name/{quote(flow.name)}/{DEPLOYMENT}")
    change = _change("deployment", f"{flow.name}/{DEPLOYMENT}", before, after)
    if not dry_run and change.action == "create":
        flow_id = _write(api, "the flow", "/flows/", {"name": flow.name})["id"]
        more = {
            "flow_id": flow_id,
            "name": DEPLOYMENT,
            "tags": [TAG],
            "path": ".",
            "enforce_parameter_schema": True,
        }
        _write(api, "the deployment", "/deployments/", after | more)
    elif not dry_run and change.action == "update":
        # Not made anew, which would drop schedules, default parameters and tags that someone gave it.
        tags = list(dict.fromkeys([*before["tags"], TAG]))
        _write(
            api,
            "the deployment",
            f"/deployments/{before['id']}",
            after | {"tags": tags},
            method="PATCH",
        )
    fields = {
        "pool" if field == "work_pool_name" else field: (b or None, a or None)
        for field, (b, a) in change.fields.items()
    }
    if (forms := fields.pop("parameter_openapi_schema", None)) is not None:
        old, new = ((schema or {}).get("properties", {}) for schema in forms)
        fields["form"] = _others(old, new), _others(new, old)
    return change._replace(fields=fields)


def _others(fields: Mapping, than: Mapping) -> str | None:
    """The names of those fields of a form that the other form has not, or has otherwise."""
    return ", ".join(name for name, field in fields.items() if than.get(name) != field) or None


def _described(flow) -> str:
    return (
        (flow.description or "").split("\nArgs:")[0].strip()
    )  # The fields of the form have the rest.


def _ours(api: Api, pool: str) -> list[tuple[str, str]]:
    """The deployments that pfl made in a work pool: the flow's name, and the ID."""
    chosen = {
        "deployments": {"tags": {"all_": [TAG]}, "name": {"any_": [DEPLOYMENT]}},
        "work_pools": {"name": {"any_": [pool]}},
    }
    names = {}
    for each in client.pages(api, "/deployments/filter", chosen):
        names[each["id"]] = (_ask(api, "the deployments", f"/flows/{each['flow_id']}") or {}).get(
            "name", "?"
        )
    return [(name, id) for id, name in names.items()]


def automations(api: Api, *, dry_run: bool) -> Iterator[Change]:
    """Prefect's own answer to dead runs, as a second line of defence for flows that send heartbeats."""
    found = _zombies(api)
    ends = [
        f"prefect.flow-run.{name}"
        for name in ("heartbeat", "Completed", "Failed", "Crashed", "Cancelled")
    ]
    wanted = {
        "name": ZOMBIES, "enabled": True,
        "description": f"A flow run whose heartbeats stop for {3 * scheduled_runs.HEARTBEAT_S} s becomes Crashed. Made by pfl setup automations.",
        "trigger": {
            "type": "event", "posture": "Proactive", "after": ends[:1], "expect": sorted(ends), "threshold": 1, "within": 3 * scheduled_runs.HEARTBEAT_S,
            "match": {"prefect.resource.id": "prefect.flow-run.*"}, "for_each": ["prefect.resource.id"],
        },
        "actions": [{"type": "change-flow-run-state", "state": "CRASHED", "message": "Its heartbeats stopped: the process is gone, most likely."}],
    }  # fmt: skip
    note = "it covers runs that send heartbeats, and of those the flow run alone; pfl runs reap does the rest"
    about = {name: wanted[name] for name in ("description", "enabled")}
    change = _change("automation", ZOMBIES, found[0] if found else None, about, note)
    if not dry_run and change.action == "create":
        _write(api, "the automation", "/automations/", wanted)
    elif not dry_run and change.action == "update":
        _write(api, "the automation", f"/automations/{found[0]['id']}", wanted, method="PUT")
    yield change


def _zombies(api: Api) -> list[dict]:
    return (
        _ask(
            api,
            "the automation",
            "/automations/filter",
            {"automations": {"name": {"any_": [ZOMBIES]}}},
        )
        or []
    )


def removals(
    api: Api, settings: Settings, what: set[str], *, name: str, pool: str
) -> list[tuple[Change, str]]:
    """
    What undoes the others: each change, and the path that :func:`delete` takes; empty where something stays.

    Args:
        api: Prefect's.
        settings: For the store whose block it is.
        what: Of ``blocks``, ``deployments`` and ``automations``.
        name: The block's.
        pool: The work pool's.
    """
    found: list[tuple[Change, str]] = []
    if "automations" in what:
        found += [
            (Change("automation", ZOMBIES, "remove", {}), f"/automations/{each['id']}")
            for each in _zombies(api)
        ]
    if "deployments" in what:
        mine = _ours(api, pool)
        found += [
            (Change("deployment", f"{flow}/{DEPLOYMENT}", "remove", {}), f"/deployments/{id}")
            for flow, id in mine
        ]
        if _ask(api, "the work pool", path := _pool_path(pool)) is not None:
            in_pool = client.pages(
                api, "/deployments/filter", {"work_pools": {"name": {"any_": [pool]}}}
            )
            others = {each["id"] for each in in_pool} - {id for _, id in mine}
            kept = Change(
                "work pool", pool, "keep", {}, f"{len(others)} deployments of others use it"
            )
            found.append((kept, "") if others else (Change("work pool", pool, "remove", {}), path))
    if "blocks" in what and (data := _blocks(api).get((_slug(settings), name))) is not None:
        found.append(
            (
                Change("block", f"{_slug(settings)}/{name}", "remove", {}),
                f"/block_documents/{data['document']}",
            )
        )
    return found


def delete(api: Api, change: Change, path: str) -> None:
    """Remove one object."""
    _ask(api, f"the end of the {change.kind}", path, method="DELETE")
