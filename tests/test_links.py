"""Links that open at the right tab: as text for each kind of Prefect, and in a real browser."""

from __future__ import annotations

import html
import shutil
import subprocess
from uuid import UUID

import pytest
from test_cli import pfl
from test_engine import task_runs

from pfl.handler.core import links
from pfl.handler.core.settings import Settings
from pfl.handler.engine.prefect.environment import configured

CLOUD = "https://api.prefect.cloud/api/accounts/A/workspaces/W"


@pytest.mark.parametrize(
    ("api", "environ", "page"),
    [
        (
            "https://prefect.example/behind/api",
            {},
            "https://prefect.example/behind/v2/runs/task-run/t?tab=TaskInputs",
        ),
        (
            "http://127.0.0.1:4200/api",
            {},
            "http://127.0.0.1:4200/v2/runs/task-run/t?tab=TaskInputs",
        ),
        (
            CLOUD,
            {},
            "https://app.prefect.cloud/account/A/workspace/W/runs/task-run/t?tab=TaskInputs",
        ),
        (
            "http://10.0.0.1/api",
            {"PREFECT_UI_URL": "https://ui.example/"},
            "https://ui.example/runs/task-run/t?tab=TaskInputs",
        ),
        (
            "http://10.0.0.1/api",
            {"PREFECT_UI_URL": "https://ui.example/v2"},
            "https://ui.example/v2/runs/task-run/t?tab=TaskInputs",
        ),
    ],
)
def test_a_link_leads_to_the_pages_of_its_api(api, environ, page):
    assert links.task_run(links.base_of(api, environ), "t") == page
    url = links.task_run(links.base_of(api, environ), "t")
    assert links.of_record({"url": url, "flow_run_id": "f", "task_run_id": "t"}) == (
        page.split("/task-run/")[0] + "/flow-run/f",
        page,
        page.split("=")[0] + "=Artifacts",
    )


@pytest.mark.parametrize("api", [CLOUD, f"{CLOUD}/", "http://127.0.0.1:4200/api"])
def test_pages_are_where_prefect_itself_says_they_are(api, prefect_server):
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.utilities.urls import url_for

    base = links.base_of(configured(Settings(prefect_api_url=api)).url, {})
    with temporary_settings({PREFECT_API_URL: api}):
        wanted = [url_for(kind, obj_id=UUID(int=1)) for kind in ("flow-run", "task-run")]
    # Of a server Prefect names the pages of its first UI.
    assert [
        page.replace("/v2/", "/")
        for page in (
            links.flow_run(base, str(UUID(int=1))),
            links.task_run(base, str(UUID(int=1))).split("?")[0],
        )
    ] == wanted


def test_a_record_without_a_run_has_no_page():
    assert links.of_record({"url": None, "flow_run_id": None, "task_run_id": None}) == (
        None,
        None,
        None,
    )


def test_runs_open_and_cache_inspect_lead_to_the_task_run(on_prefect, prefect_server):
    row = on_prefect.call("link-1", step="a")["steps"][0]
    task_runs(on_prefect, row["flow_run_id"], 1)
    environ = {"PREFECT_API_URL": prefect_server.url}
    assert pfl("runs", "open", row["task_run_id"], **environ).out.strip() == row["url"]
    flow_run = pfl("runs", "open", row["flow_run_id"], "--json", **environ).data["url"]
    inspected = pfl("cache", "inspect", "--id", "link-1", "--step", "a", "--json", **environ).data
    assert (inspected["url"], inspected["task_run_url"]) == (flow_run, row["url"])
    assert inspected["artifact_url"] == row["url"].replace("TaskInputs", "Artifacts")


def test_a_browser_shows_id_inputs_and_cache_key_where_the_links_lead(on_prefect, tmp_path):
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    row = on_prefect.call("browsed-id", step="b")["steps"][1]
    task_runs(on_prefect, row["flow_run_id"], 2)
    base = row["url"].split("/v2/")[0]
    pages = {
        row["url"]: ("browsed-id", row["key"]),
        links.task_run(base, row["task_run_id"]): ("browsed-id", row["key"]),
        row["url"].replace("TaskInputs", "Artifacts"): ("browsed-id-task-b",),
    }
    started = []
    for number, url in enumerate(pages):
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=20000",
            f"--user-data-dir={tmp_path / str(number)}",
        ]
        started.append(
            subprocess.Popen(
                [browser, *flags, "--dump-dom", url],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    for (url, words), process in zip(pages.items(), started, strict=True):
        shown = html.unescape(process.communicate(timeout=120)[0])
        assert [word for word in words if word not in shown] == [], url
