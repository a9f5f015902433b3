"""What pfl creates in Prefect: created, compared, updated, removed, and refused with a hint."""

from __future__ import annotations

import subprocess

import pytest
import servers
from test_cli import Ran, pfl
from test_engine import ask

from pfl.handler.core.errors import InvalidRequestError, UnavailableError
from pfl.handler.engine.prefect import client, session
from pfl.handler.engine.prefect.environment import Api

ORDINARY = """
    from prefect import flow

    @flow
    def nightly(n: int, name: str = "x") -> int:
        '''
        A nightly report.

        Args:
            n: How many.
        '''
        return n
"""
FORM = """
    from typing import Literal

    @step
    def first(
        id: str, rate: float = 2.5, mode: Literal["fast", "slow"] = "fast", names: list = []
    ) -> float:
        '''
        The first.

        Args:
            rate: How much of it.
        '''
        return rate

    @step
    def second(first) -> float:
        return first

    FLOWS = [flow("formed", first, second, description="What it is for.")]
"""


@pytest.fixture
def setting_up(on_prefect, prefect_server, monkeypatch):
    """``setup(kind, …)``, which saves objects and returns the changes by name."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.url)

    def setup(kind: str, url: str = prefect_server.url, dry_run: bool = False, **options) -> dict:
        from pfl.serverless import prefect_setup

        settings = on_prefect.settings
        if kind != "automations":
            options = {
                "blocks": {"name": "cache", "with_keys": False},
                "deployments": {"pool": "setup", "function": "pfl"},
            }[kind] | options
        with session.session(settings, lambda step, doing: None):
            arguments = () if kind == "automations" else (settings,)
            name = {"blocks": "block", "automations": "automation"}.get(kind, kind)
            made = getattr(prefect_setup, name)(Api(url, "", "test"), *arguments, **options)
            planned = [made] if isinstance(made, prefect_setup.Change) else list(made)
            if not dry_run:
                for change in planned:
                    change.make()
            return {change.name: change for change in planned}

    forget_blocks(prefect_server.url)
    return setup


def forget_blocks(url: str) -> None:
    """Delete the blocks that other tests saved in the Prefect they share."""
    chosen = {
        "block_types": {"slug": {"any_": ["s3-bucket", "local-file-system"]}},
        "block_documents": {"name": {"any_": ["cache"]}},
    }
    for found in ask(url, "/block_documents/filter", chosen):
        client.ask(Api(url, "", "test"), f"/block_documents/{found['id']}", method="DELETE")


def block(url: str, name: str) -> dict:
    kind, _, name = name.partition("/")
    return ask(url, f"/block_types/slug/{kind}/block_documents/name/{name}?include_secrets=true")


@pytest.fixture
def inside(capfd):
    """``pfl`` in this process, for commands that import Prefect."""

    def run(*arguments: str) -> Ran:
        from pfl.cli.main import main

        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        return Ran(subprocess.CompletedProcess(arguments, ended.value.code, *capfd.readouterr()))

    return run


def test_setup_creates_everything_once_and_removes_it(
    on_prefect, prefect_server, inside, monkeypatch
):
    on_prefect.write(ORDINARY, "nightly")
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.url)
    monkeypatch.setenv("PFL_WORK_POOL", "whole")
    forget_blocks(prefect_server.url)
    before = inside("setup", "rm", "--dry-run", "--json").rows
    runs = [
        inside("setup", *arguments, "--json")
        for arguments in (("all", "--dry-run"), ("all",), ("all",))
    ]
    names = [
        "local-file-system/cache",
        "whole",
        "meaning/lambda",
        "audit/lambda",
        "chat/lambda",
        "nightly/lambda",
    ]
    assert [[row["name"] for row in ran.rows][:6] for ran in runs] == [names] * 3
    dry, made, again = ([row["action"] for row in ran.rows] for ran in runs)
    assert dry == made and dry[:2] == ["create", "create"]
    assert "keep" not in dry[:6] and set(again) == {
        "keep"
    }  # Other tests may have made deployments of these names for their pools.
    assert runs[0].rows[0]["fields"] == {
        "basepath": {"old": None, "new": str(on_prefect.root / ".pfl" / "store")}
    }
    assert (
        "an object is written, read and deleted through the block and the store"
        in runs[1].rows[0]["note"]
    )
    (on_prefect.root / "flows" / "nightly.py").unlink()
    gone = inside("setup", "deployments", "--json").rows
    assert [(row["name"], row["action"]) for row in gone if row["action"] != "keep"] == [
        ("nightly/lambda", "remove")
    ]
    assert inside("setup", "rm").code == 2  # It cannot ask without a terminal.
    removed = inside("setup", "rm", "--yes")
    assert (removed.code, "6 remove" in removed.err) == (0, True)
    assert inside("setup", "rm", "--dry-run", "--json").rows == before == []


def test_the_form_has_choices_types_defaults_and_docstrings(setting_up, on_prefect, prefect_server):
    on_prefect.write(FORM)
    setting_up("deployments")
    made = ask(prefect_server.url, "/deployments/name/formed/lambda")
    assert (made["description"], made["enforce_parameter_schema"], made["work_pool_name"]) == (
        "What it is for.",
        True,
        "setup",
    )
    form = made["parameter_openapi_schema"]
    fields = {
        name: {k: v for k, v in field.items() if k not in ("title", "position")}
        for name, field in form["properties"].items()
    }
    assert form["required"] == ["id"]
    assert fields["step"]["enum"] == ["first", "second"]
    assert fields["bust"]["enum"] == ["this", "all"]
    assert (fields["skip"]["type"], fields["skip"]["items"]["enum"]) == (
        "array",
        ["first", "second"],
    )
    assert fields["rate"] == {"type": "number", "default": 2.5, "description": "How much of it."}
    assert (fields["mode"]["enum"], fields["mode"]["default"]) == (["fast", "slow"], "fast")
    assert all(field["description"] for field in fields.values())


def test_the_block_of_a_bucket_reads_what_pfl_stored_and_keeps_keys_out(
    setting_up, on_prefect, bucket, s3_env, prefect_server
):
    on_prefect.knobs["store"] = f"s3://{bucket}/pre/fix"
    change = setting_up("blocks")["s3-bucket/cache"]
    assert (change.action, change.fields["folder"], change.fields["keys"]) == (
        "create",
        (None, "pre/fix"),
        (None, "not stored"),
    )
    credentials = block(prefect_server.url, "s3-bucket/cache")["data"]["credentials"]
    assert {
        name: value for name, value in credentials.items() if "key" in name or "token" in name
    } == dict.fromkeys(("aws_access_key_id", "aws_secret_access_key", "aws_session_token"))
    assert credentials["aws_client_parameters"]["endpoint_url"] == s3_env["AWS_ENDPOINT_URL"]
    reply = on_prefect.call("stored", engine="direct")
    from prefect.results import ResultStore
    from prefect_aws import S3Bucket

    with session.session(on_prefect.settings, lambda step, doing: None):
        # The block itself, as Prefect's own result store uses it.
        mine = S3Bucket.load("cache")
        read = ResultStore(result_storage=mine).read(f"results/stored/a/{reply['steps'][0]['key']}")
    assert read.result == reply["steps"][0]["value"]
    keyed = setting_up("blocks", with_keys=True)["s3-bucket/cache"]
    assert (keyed.action, keyed.fields) == ("update", {"keys": ("not stored", "stored")})
    on_prefect.knobs["store"] = f"s3://{bucket}/other"
    moved = setting_up("blocks")["s3-bucket/cache"]
    assert moved.fields == {"folder": ("pre/fix", "other")}  # The keys that somebody stored stay.
    assert (
        block(prefect_server.url, "s3-bucket/cache")["data"]["credentials"]["aws_secret_access_key"]
        == "test"
    )


def test_a_bucket_that_does_not_exist_leaves_no_block(
    setting_up, on_prefect, s3_env, prefect_server
):
    on_prefect.knobs["store"] = "s3://no-such-bucket/pfl"
    with pytest.raises(UnavailableError, match="the block does not work"):
        setting_up("blocks", name="broken")
    on_prefect.knobs["store"] = "memory://x"
    with pytest.raises(InvalidRequestError, match="in-memory"):
        setting_up("blocks", name="broken")
    assert (
        client.ask(
            Api(prefect_server.url, "", ""),
            "/block_types/slug/s3-bucket/block_documents/name/broken",
        )
        is None
    )


@pytest.mark.parametrize(
    ("kind", "path", "status", "hint"),
    [
        ("blocks", "/block_types/slug/", 403, "ask for a role that has it"),
        ("deployments", "/work_pools/", 403, "ask for a role that has it"),
        ("deployments", "/work_pools/", 404, "too old"),
        ("deployments", "/deployments/", 422, "too old"),
        ("automations", "/automations/", 401, "check PREFECT_API_KEY"),
        ("automations", "/automations/", 404, "too old"),
    ],
)
def test_the_error_for_a_refusal_names_the_object_and_has_a_hint(
    setting_up, prefect_server, kind, path, status, hint
):
    def answer(method: str, asked: str):
        return (status, b'{"detail":"no"}') if path in asked else None

    with (
        servers.Loopback(answer, prefect_server.url.removesuffix("/api")) as proxy,
        pytest.raises(UnavailableError) as caught,
    ):
        setting_up(
            kind, f"{proxy.url}/api", **({"pool": "refused"} if kind == "deployments" else {})
        )
    assert caught.value.what.startswith("Prefect at ")
    assert f" refused {path}" in caught.value.what
    assert hint in caught.value.hint


def test_the_error_for_an_unreachable_prefect_names_the_setting(setting_up):
    with pytest.raises(UnavailableError) as caught:
        setting_up("blocks", "http://127.0.0.1:9/api")
    assert ("refused" in caught.value.why, "PREFECT_API_URL" in caught.value.hint) == (True, True)


def test_what_somebody_changed_in_a_deployment_and_its_pool_survives_new_code(
    setting_up, on_prefect, prefect_server
):
    on_prefect.write(FORM)
    setting_up("deployments", pool="kept")
    url, api = prefect_server.url, Api(prefect_server.url, "", "")
    made = ask(url, "/deployments/name/formed/lambda")
    ask(
        url,
        f"/deployments/{made['id']}/schedules",
        [{"active": True, "schedule": {"interval": 3600}}],
    )
    given = {
        "job_variables": {"function": "other"},
        "parameters": {"id": "nightly"},
        "tags": ["mine"],
        "description": "x",
    }
    client.ask(api, f"/deployments/{made['id']}", given, method="PATCH")
    template = ask(url, "/work_pools/kept")["base_job_template"]
    template["variables"]["properties"]["more"] = {"type": "string"}
    client.ask(api, "/work_pools/kept", {"base_job_template": template}, method="PATCH")
    on_prefect.write(FORM.replace("2.5", "3.5"))
    changes = setting_up("deployments", pool="kept", function="another")
    assert changes["kept"].fields == {"function": ("pfl", "another")}
    assert set(changes["formed/lambda"].fields) == {"version", "description", "form"}
    assert changes["formed/lambda"].fields["form"] == ("rate", "rate")
    now = ask(url, "/deployments/name/formed/lambda")
    assert [each["schedule"]["interval"] for each in now["schedules"]] == [3600]
    assert (now["job_variables"], now["parameters"], now["tags"]) == (
        {"function": "other"},
        {"id": "nightly"},
        ["mine", "pfl"],
    )
    assert now["parameter_openapi_schema"]["properties"]["rate"]["default"] == 3.5
    properties = ask(url, "/work_pools/kept")["base_job_template"]["variables"]["properties"]
    assert (properties["function"]["default"], properties["more"]) == (
        "another",
        {"type": "string"},
    )


def test_a_work_pool_of_another_type_is_left_alone(setting_up, prefect_server):
    ask(
        prefect_server.url,
        "/work_pools/",
        {"name": "theirs", "type": "process", "base_job_template": {}},
    )
    with pytest.raises(InvalidRequestError, match="is of type process"):
        setting_up("deployments", pool="theirs")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rm", "things"], "'things' is not one of 'blocks'"),
        (["blocks", "--name", "Cache!"], "cannot be named"),
        (["all", "--pool"], "--pool"),
    ],
)
def test_invalid_input_is_an_error(project, arguments, words):
    ran = pfl("setup", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
