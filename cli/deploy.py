"""``pfl deploy``, ``pfl remove``, ``pfl status`` and ``pfl logs``: the function in AWS."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from pfl.cli import output, settings
from pfl.cli.options import Engine, Json, OnlyId, Yes, age_s
from pfl.handler.core.errors import NotFoundError, PflError

Name = Annotated[str, typer.Option("--name", help="Of the service.")]
Arch = StrEnum("Arch", ["x86_64", "arm64"])
Stage = Annotated[str, typer.Option("--stage", help="Which of its copies.")]


def deploy(
    stage: Stage = "dev",
    name: Name = "pfl",
    arch: Annotated[Arch, typer.Option("--arch", help="Of its processor.")] = Arch.x86_64,
    image: Annotated[
        str,
        typer.Option("--image", help="An image that is pushed already, by digest; none is built."),
    ] = "",
    engine: Engine = None,
    plain_key: Annotated[
        bool, typer.Option("--plain-key", help="Put PREFECT_API_KEY into the function's variables.")
    ] = False,
    dirty: Annotated[
        bool, typer.Option("--dirty", help="Deploy changes that git does not have.")
    ] = False,
    install: Annotated[
        bool, typer.Option("--install", help="Install osls if it is not there.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be made, and what would miss after it."),
    ] = False,
    json: Json = False,
) -> None:
    """Build the image, push it, deploy it, and ask the function whether it works."""
    from pfl.serverless import deploy as deploying

    chosen = settings.load(engine=engine)
    at = deploying.Deployment(chosen, name, stage, arch, image, plain_key, output.say)
    _offer_osls(at, install)
    at.check(building=not image and not dry_run, dirty=dirty or dry_run)
    for warning in at.warnings:
        output.say(f"warning: {warning}")
    if dry_run:
        rows, changes = list(at.planned()), list(at.changes())
        if json:
            return output.emit(
                {
                    "version": 1,
                    "status": "planned",
                    "function": at.function,
                    "resources": rows,
                    "changes": changes,
                }
            )
        output.table(["resource", "type", "would"], [tuple(row.values()) for row in rows])
        for row in changes:
            then = f"; then {', '.join(row['then'])} where its value changes" if row["then"] else ""
            output.emit(f"{row['flow']}.{row['step']} will miss: {row['why']}{then}")
        return output.say(
            f"{len(changes)} steps will miss"
            if changes
            else "no step's code changes: what hits now hits then"
        )
    uri = at.find_image(build=True)
    at.deploy(uri)
    made = [
        {"type": kind, "name": name, "link": at.page(kind, name)}
        for kind, name in at.resources().values()
    ]
    if json:
        return output.emit(
            {
                "version": 1,
                "status": "deployed",
                "function": at.function,
                "image": uri,
                "store": at.store,
                "resources": made,
            }
        )
    output.table(["type", "name", "link"], [tuple(row.values()) for row in made])
    output.say(
        f"{at.function} works; store {at.store}\nto call it: pfl invoke --id abc; for values too large to be sent: PFL_STORE={at.store}"
    )


def remove(
    stage: Stage = "dev",
    name: Name = "pfl",
    purge: Annotated[
        bool, typer.Option("--purge", help="Delete the bucket too: the cache and all history.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Remove the function and all around it; the bucket with cache and history stays."""
    at = _existing(name, stage)
    status, left = at.stack_status(), at.store if purge and at.bucket_exists() else ""
    if not status and not left:
        raise NotFoundError(
            f"there is no stack {at.function} in {at.region}", hint="--stage, --name, AWS_REGION"
        )
    with_it = f" and {at.store} with all history" if purge else ""
    output.confirm(f"Remove {at.function} in {at.region}{with_it}?", yes=yes)
    _offer_osls(at, False)
    at.check_node()
    at.remove(purge=purge)
    output.say(
        f"{at.function} is removed" + ("" if purge else f"; {at.store} stays, --purge removes it")
    )


def status(stage: Stage = "dev", name: Name = "pfl", json: Json = False) -> None:
    """Say what is deployed, and whether it is the code that is here."""
    from pfl.handler.core.declare import catalog
    from pfl.serverless import aws

    at = _existing(name, stage)
    with aws.converted_errors(f"function {at.function}"):
        config = at.client("lambda").get_function(FunctionName=at.function)
    about, variables = (
        config["Configuration"],
        config["Configuration"].get("Environment", {}).get("Variables", {}),
    )
    try:
        with output.stdout_kept_for_data():
            here = catalog.load(at.settings).digest
    except PflError as exc:
        here = f"unknown: {exc}"
    row = {
        "function": at.function, "region": at.region, "stack": at.stack_status(), "state": about.get("State"), "image": config.get("Code", {}).get("ImageUri"),
        "modified": about.get("LastModified"), "memory_mb": about.get("MemorySize"), "timeout_s": about.get("Timeout"),
        "concurrency": config.get("Concurrency", {}).get("ReservedConcurrentExecutions"), "store": variables.get("PFL_STORE"),
        "prefect": variables.get("PREFECT_API_URL") or None, "code": variables.get("PFL_CODE"), "is_current": variables.get("PFL_CODE") == here,
    }  # fmt: skip
    output.emit(row) if json else output.pairs(row)
    if not row["is_current"]:
        output.say(
            "warning: the deployed code is not the code here; pfl deploy --dry-run says what differs"
        )


def logs(
    stage: Stage = "dev",
    name: Name = "pfl",
    id: OnlyId = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as more arrives; Ctrl-C ends it.")
    ] = False,
    since: Annotated[str, typer.Option("--since", help="How far back: 10m, 2h, 7d.")] = "1h",
    json: Json = False,
) -> None:
    """Show the function's log: a line per call, and what its steps printed."""
    from pfl.serverless import logs as reading

    at = _existing(name, stage)
    for line in reading.read(
        at.client("logs"),
        f"/aws/lambda/{at.function}",
        id=id,
        since_s=age_s(since, "--since"),
        follow=follow,
    ):
        if json:
            output.emit(line)
        elif line["call"] is None:
            output.emit(f"{line['at']}  {output.printable(line['text'])}")
        else:
            call = line["call"]
            steps = " ".join(f"{step}={status}" for step, status in call["steps"].items())
            took = ("" if call["ms"] is None else f"  {call['ms']} ms") + (
                " cold" if call["cold_start"] else ""
            )
            said = f": {call['error']['what']}" if call.get("error") else ""
            output.emit(
                output.printable(
                    f"{line['at']}  {call['status']:9} {call['id'] or call['action']}  {steps}{took}  {call['request_id']}{said}"
                )
            )


def _existing(name: str, stage: str):
    from pfl.serverless import deploy as deploying

    at = deploying.Deployment(settings.load(), name, stage, report=output.say)
    at.find_region()
    at.find_account()
    return at


def _offer_osls(at, install: bool) -> None:
    import shutil
    import sys

    from pfl.serverless import deploy as deploying

    if not deploying.OSLS.exists() and shutil.which("npm"):
        if install or (
            sys.stdin.isatty()
            and sys.stderr.isatty()
            and typer.confirm("osls is not installed. Install it with npm?", err=True)
        ):
            at.install()
