"""``pfl deploy``, ``pfl remove``, ``pfl status`` and ``pfl logs``: the function in AWS."""

from typing import Annotated, Any, Literal

from typer import Option

from ..handler.core.errors import NotFoundError
from ..serverless import aws
from ..serverless import logs as log
from ..serverless.deploy import OSLS, Deployment
from . import invoke, output, settings, stored
from .options import Engine, OnlyId, Yes, moment_ns


def deploy(
    stage: str = "dev",
    name: str = "pfl",
    arch: Literal["x86_64", "arm64"] = "x86_64",
    image: str = "",
    engine: Engine = None,
    plain_key: bool = False,
    dirty: bool = False,
    install: bool = False,
    dry_run: bool = False,
) -> None:
    """
    Build the image, push it, deploy it, and check that the function works.

    Args:
        name: Service name.
        arch: Processor.
        image: Image to deploy, by digest, instead of building one.
        plain_key: Give the function PREFECT_API_KEY in plain text.
        dirty: Deploy uncommitted changes too.
        install: Install osls if it is missing.
    """
    chosen = settings.load(engine=engine)
    service = Deployment(chosen, name, stage, arch, image, plain_key, output.say)
    if install and not OSLS.exists():
        service.install()
    service.check(building=not image and not dry_run, dirty=dirty or dry_run)
    if dry_run:
        _show_plan(service)
        return
    uri = service.find_image(build=True)
    service.deploy(uri)
    made = [{"type": kind, "name": name} for kind, name in service.resources().values()]
    output.emit(
        {
            "version": 1,
            "status": "deployed",
            "function": service.function,
            "image": uri,
            "store_url": service.store,
            "resources": made,
        }
    )
    output.table(("type", "name"), made)
    output.say(f"{service.function} works; store {service.store}")
    output.say("to call it: pfl invoke --id abc")
    output.say(f"to read values that are too large for a reply: PFL_STORE={service.store}")


def _show_plan(service: Deployment) -> None:
    resources = list(service.planned())
    misses = list(service.changes())
    output.emit(
        {
            "version": 1,
            "status": "planned",
            "function": service.function,
            "resource_changes": resources,
            "misses": misses,
        }
    )
    output.table(("resource", "type", "would"), resources)
    for miss in misses:
        then = ", ".join(miss["then"])
        also = f"; so will {then} if its value changes" if then else ""
        output.show(f"{miss['flow']}.{miss['step']} will miss: {miss['why']}{also}")
    count = output.counted(len(misses), "step")
    output.say(f"{count} will miss" if misses else "no step's code changed: hits stay hits")


def remove(stage: str = "dev", name: str = "pfl", purge: bool = False, yes: Yes = False) -> None:
    """
    Remove the function and its resources, but keep the bucket with cache and history.

    Args:
        name: Service name.
        purge: Delete the bucket too: the cache and all history.
    """
    service = _existing(name, stage)
    if not service.stack_status() and not (purge and service.bucket_exists()):
        raise NotFoundError(
            f"stack {service.function} does not exist in {service.region}",
            hint="check --stage, --name and AWS_REGION",
        )
    bucket = f" and {service.store} with all history" if purge else ""
    output.confirm(f"Remove {service.function} in {service.region}{bucket}?", yes=yes)
    service.check_node()
    service.remove(purge=purge)
    kept = "" if purge else f"; {service.store} is kept (--purge deletes it)"
    output.say(f"{service.function} is removed{kept}")


def status(stage: str = "dev", name: str = "pfl") -> None:
    """
    Show what is deployed, and whether it matches the code here.

    Args:
        name: Service name.
    """
    service = _existing(name, stage)
    with aws.converted_errors(f"function {service.function}"):
        found = service.client("lambda").get_function(FunctionName=service.function)
    function: dict[str, Any] = found["Configuration"]
    variables = function.get("Environment", {}).get("Variables", {})
    code = variables.get("PFL_CODE")
    row = {
        "function": service.function,
        "region": service.region,
        "stack": service.stack_status(),
        "state": function["State"],
        "image": found.get("Code", {}).get("ImageUri"),
        "modified_at": stored.utc(function["LastModified"]),
        "memory_mb": function["MemorySize"],
        "timeout_s": function["Timeout"],
        "concurrency": found.get("Concurrency", {}).get("ReservedConcurrentExecutions"),
        "store_url": variables.get("PFL_STORE"),
        "prefect_url": variables.get("PREFECT_API_URL") or None,
        "code": code,
        "is_current": invoke.is_current(service.settings, code),
    }
    stored.show(row)


def logs(
    stage: str = "dev",
    name: str = "pfl",
    id: OnlyId = None,
    follow: Annotated[bool, Option("--follow", "-f")] = False,
    since: str = "1h",
) -> None:
    """
    Show the function's log: a line per call, and what its steps printed.

    Args:
        name: Service name.
        follow: Keep printing new lines until Ctrl-C.
        since: How far back: 10m, 2h, 7d.
    """
    service = _existing(name, stage)
    since_ms = moment_ns(since, "--since") // 10**6
    group = f"/aws/lambda/{service.function}"
    client = service.client("logs")
    lines = log.read(client, group, id=id, since_ms=since_ms, follow=follow)
    for line in output.while_read(lines):
        output.emit({**line, "at": stored.utc(line["at"])})
        text = line["text"] if line["call"] is None else _call_text(line["call"])
        output.show(f"{output.local_time(line['at'])}  {text}")


def _call_text(call: dict[str, Any]) -> str:
    """The log line of a call, for people."""
    steps = " ".join(f"{step}={status}" for step, status in call["steps"].items())
    took = "" if call["ms"] is None else f"  {call['ms']} ms"
    cold = " cold" if call["cold_start"] else ""
    error = f": {call['error']['what']}" if call.get("error") else ""
    words = f"{call['status']:9} {call['id'] or call['action']}  {steps}{took}{cold}"
    return f"{words}  {call['request_id']}{error}"


def _existing(name: str, stage: str) -> Deployment:
    service = Deployment(settings.load(), name, stage, report=output.say)
    service.find_region()
    service.find_account()
    return service
