"""
Links to Prefect's pages, which open at the right tab in Prefect Cloud and in the second UI of a
server (``/v2``). The first UI has other names for its tabs, and opens its first one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_CLOUD_API = "https://api.prefect.cloud/api/accounts/"
_CLOUD_UI = "https://app.prefect.cloud/account/"


class Links(NamedTuple):
    """Those pages of one computed result that exist."""

    flow_run: str | None = None
    task_run: str | None = None
    artifact: str | None = None


def is_cloud(api_url: str) -> bool:
    """Whether an API is that of Prefect Cloud."""
    return api_url.startswith(_CLOUD_API)


def base_of(api_url: str, environ: Mapping[str, str]) -> str:
    """Where an API's pages are: ``PREFECT_UI_URL``, Prefect Cloud's, or a server's second UI."""
    if base := environ.get("PREFECT_UI_URL", "").rstrip("/"):
        return base
    if is_cloud(api_url):
        return api_url.replace(_CLOUD_API, _CLOUD_UI).replace("/workspaces/", "/workspace/")
    return api_url.removesuffix("/api") + "/v2"


def flow_run(base: str, id: str) -> str:
    """The page of a flow run."""
    return f"{base}/runs/flow-run/{id}"


def task_run(base: str, id: str, tab: str = "TaskInputs") -> str:
    """The page of a task run at *tab*: ``TaskInputs``, ``Artifacts``, ``Logs`` or ``Details``."""
    return f"{base}/runs/task-run/{id}?tab={tab}"


def of_record(body: Mapping[str, object]) -> Links:
    """The pages of a record of history, or of an entry of a plan."""
    names = ("url", "flow_run_id", "task_run_id")
    url, flow_run_id, task_run_id = (str(body.get(name) or "") for name in names)
    if not url or not flow_run_id:
        return Links()
    base = url.split("/runs/")[0]
    page = flow_run(base, flow_run_id)
    if not task_run_id:
        return Links(page)
    return Links(page, task_run(base, task_run_id), task_run(base, task_run_id, "Artifacts"))
