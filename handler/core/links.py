"""
Links into Prefect's pages, which open at the tab that matters.

Prefect Cloud and the second UI of a server (``/v2``) call the tab ``TaskInputs``, the first UI ``Task Inputs``; each shows its first
tab for the other's word.
"""

from __future__ import annotations

from collections.abc import Mapping


def base_of(api_url: str, environ: Mapping[str, str]) -> str:
    """Where the pages are that belong to an API: Cloud's, a server's second UI, or what ``PREFECT_UI_URL`` says."""
    if base := environ.get("PREFECT_UI_URL", "").rstrip("/"):
        return base
    cloud = api_url.replace(
        "https://api.prefect.cloud/api/accounts/", "https://app.prefect.cloud/account/"
    )
    if cloud != api_url:
        return cloud.replace("/workspaces/", "/workspace/")
    return api_url.removesuffix("/api") + "/v2"


def flow_run(base: str, id: str) -> str:
    """The page of a flow run."""
    return f"{base}/runs/flow-run/{id}"


def task_run(base: str, id: str, tab: str = "TaskInputs") -> str:
    """The page of a task run, open at *tab*: ``TaskInputs``, ``Artifacts``, ``Logs`` or ``Details``."""
    is_first_ui = not (base.endswith("/v2") or base.startswith("https://app.prefect.cloud/"))
    return f"{base}/runs/task-run/{id}?tab={tab.replace('TaskInputs', 'Task%20Inputs') if is_first_ui else tab}"


def of_record(body: Mapping[str, object]) -> tuple[str | None, str | None, str | None]:
    """The pages of the flow run, of the task run and of its artifact that a record of history or an entry of a plan tells of."""
    if not body.get("url") or not body.get("flow_run_id"):
        return None, None, None
    base, run = str(body["url"]).split("/runs/")[0], body.get("task_run_id")
    return flow_run(base, str(body["flow_run_id"])), *(
        task_run(base, str(run), tab) if run else None for tab in ("TaskInputs", "Artifacts")
    )
