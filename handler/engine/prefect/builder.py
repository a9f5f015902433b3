"""
A declared flow as an ordinary Prefect flow: one flow run per invocation, one task run per computed step.

Whoever starts it (pfl, ``.serve()``, a Prefect worker), the body is the same: look up what is stored, compute the rest.
"""

from __future__ import annotations

import functools
import inspect
import os
import typing
from contextlib import nullcontext
from contextvars import ContextVar
from uuid import UUID, uuid4

import prefect
import prefect.task_engine
from pfl.handler.core import event, links
from pfl.handler.core.cache import accept
from pfl.handler.core.cache.entry import Entry
from pfl.handler.core.declare import manifest, project
from pfl.handler.core.declare.flows import Flow, Step
from pfl.handler.core.declare.params import KIND_OF
from pfl.handler.core.errors import OutOfTimeError, PflError, StepFailedError, UnavailableError
from pfl.handler.core.settings import Settings
from pfl.handler.core.store import objects, records
from pfl.handler.engine import reap
from pfl.handler.engine.deadline import TERMINATED, Stopped, Terminated, heed_sigterm, out_of_time
from pfl.handler.engine.invocation import Invocation, Run, Work
from pfl.handler.engine.prefect import artifacts, client, environment, limits
from pfl.handler.engine.steps import call_step, time_up
from prefect.context import FlowRunContext, TagsContext, TaskRunContext
from prefect.results import ResultRecordMetadata
from prefect.runtime import flow_run as runtime
from prefect.serializers import JSONSerializer
from prefect.states import Cancelled, Completed, Crashed, State
from prefect.task_engine import run_task

# Set while one of our own invocations runs its flow; a run that Prefect started has none, and makes one.
current: ContextVar[Invocation | None] = ContextVar("current", default=None)
# Around each task run Prefect's engine takes its slots; ours can be interrupted while it waits.
if not hasattr(
    prefect.task_engine, "_concurrency"
):  # Else ours would not be asked, and nobody would notice.
    raise UnavailableError(
        f"this Prefect, {prefect.__version__}, takes the slots of a limit in a way that pfl does not know",
        why="prefect.task_engine has no _concurrency", hint="install a version of constraints.txt; --engine direct needs none",
    )  # fmt: skip
prefect.task_engine._concurrency = lambda names, occupy=1, *, holder=None, **more: limits.slot(
    api_around(), names, occupy, holder
)
_KINDS = {name: kind for kind, name in KIND_OF.items()}


def build(flow: Flow) -> prefect.Flow:
    """
    The Prefect flow of *flow*.

    Its parameters are ``id``, ``step``, ``bust`` and ``skip`` as in an event, and the flow's own. It returns the value of each
    step by name, and raises what the first failing step raised.
    """

    signature = _signature(flow)

    def body(*args: object, **kwargs: object) -> dict[str, object]:
        return _run(flow, signature.bind(*args, **kwargs))

    body.__name__ = body.__qualname__ = flow.name
    body.__doc__ = _docstring(flow)
    body.__signature__ = signature
    body.__annotations__ = {p.name: p.annotation for p in body.__signature__.parameters.values()}
    return prefect.flow(name=flow.name, flow_run_name=_run_name, persist_result=False)(body)


def _run(flow: Flow, bound: inspect.BoundArguments) -> dict[str, object] | State:
    """The body of every flow: a function of this module, since a served flow is pickled, and what it holds with it."""
    bound.apply_defaults()
    ours = current.get()
    invocation = ours or _started_by_prefect(flow, bound.arguments)
    if (context := FlowRunContext.get()) and context.flow_run:
        invocation.flow_run_id = invocation.call.info["flow_run_id"] = str(context.flow_run.id)
        invocation.url = environment.flow_run_url(api_around().url, invocation.flow_run_id)
        if ours is None:
            invocation.flow_run = context.flow_run
            tell_apart(invocation)
    # The run's tags are for people; on a task each would cost a round of calls to the concurrency API.
    with TagsContext(current_tags=set()), heed_sigterm(instead_of=None) if ours else nullcontext():
        try:
            invocation.run(functools.partial(_compute, invocation))
        except KeyboardInterrupt as exc:
            invocation.interrupted = exc
            return _interrupted(exc)
        finally:
            if ours is None:
                invocation.call.end()
    if isinstance(invocation.error, OutOfTimeError):
        return Crashed(message=invocation.error.lines)
    if ours is None or ours.flow_run is not None:
        _show_hits(invocation)
    artifacts.publish(invocation, api_around())
    if invocation.error is not None:
        raise invocation.error
    return {name: entry.value for name, entry in invocation.finding.found.items()}


def _interrupted(exc: KeyboardInterrupt) -> State:
    return (
        Crashed(message=TERMINATED.lines)
        if isinstance(exc, Terminated)
        else Cancelled(message="interrupted")
    )


def tags(id: str, step: str | None) -> set[str]:
    """The tags of a flow run: ``id=abc`` and ``step=b``; Prefect's UI splits a filter at commas, so an ID loses them."""
    return {f"id={id.replace(',', '%2C')}", f"step={step or 'all'}"}


def tell_apart(invocation: Invocation) -> None:
    """Give a run that Prefect started the tags that one of ours has."""
    run, request = invocation.flow_run, invocation.request
    mine = {*run.tags, *tags(request.id, request.step), f"call={invocation.call.token}"}
    client.ask(api_around(), f"/flow_runs/{run.id}", {"tags": sorted(mine)}, method="PATCH")


def _run_name() -> str:
    parameters = runtime.parameters
    return f"{runtime.flow_name}/{parameters.get('id')}/{parameters.get('step') or 'all'}"


def _compute(invocation: Invocation, work: Work) -> None:
    step, api = invocation.flow.steps[work.name], api_around()
    reap.followed(invocation, api=api)
    tags, task_run_id = limits.tags_of(invocation, work.name, api), str(uuid4())
    raised: list[BaseException] = []
    attempts: list[None] = []

    @functools.wraps(step.function)
    def body(*args: object, **arguments: object) -> object:
        raised.clear()
        attempts.append(None)
        try:
            if len(attempts) > 1:
                invocation.call.note(step.name, attempt=len(attempts))
            bound = step.signature.bind(*args, **arguments).arguments
            artifacts.show_inputs(TaskRunContext.get().task_run, work.arguments, None)
            entry = work.finish(call_step(step, bound, in_prefect=True), run)
            artifacts.show_inputs(TaskRunContext.get().task_run, work.arguments, entry.key)
            artifacts.note(invocation, work, entry)
        except KeyboardInterrupt as exc:
            raised.append(exc)
            return _interrupted(exc)
        except Stopped as exc:
            raised.append(exc)
            return Crashed(
                message=out_of_time(step.name, "was stopped", invocation.settings.margin_s).lines
            )
        except Exception as exc:
            raised.append(exc)
            raise
        return Completed(data=_where(invocation, entry))

    body.__wrapped__ = None  # Prefect calls what a function wraps; the wrapper is the task here.
    body.__signature__ = step.signature
    task = prefect.Task(
        fn=body,
        name=step.name,
        task_run_name=lambda: f"{step.name}[{invocation.request.id}]",
        tags=tags,
        retries=step.retries,
        retry_delay_seconds=step.retry_delay_s,
        # What was computed and could not be saved would not be saved any better for being computed again.
        retry_condition_fn=lambda task, run, state: (
            not (raised and isinstance(raised[0], PflError))
        ),
        timeout_seconds=step.timeout_s,
        persist_result=False,
    )
    url = invocation.url and links.task_run(invocation.url.split("/runs/")[0], task_run_id)
    run = Run("prefect", invocation.flow_run_id, task_run_id, url)
    # Before it takes a slot: whoever buries us would not know whose that is.
    noted = invocation.call.note(
        step.name, flow_run_id=run.flow_run_id, task_run_id=task_run_id, tags=tags
    )
    invocation.tasks[task_run_id] = noted
    state = run_task(
        task, task_run_id=UUID(task_run_id), parameters=work.arguments, return_type="state"
    )
    if state.is_completed() or state.is_failed():
        del invocation.tasks[task_run_id]
        invocation.finished[task_run_id] = {
            name: noted[name] for name in ("flow_run_id", "step", "id", "tags")
        } | {"type": state.type.value}
    if state.is_completed():
        return
    if raised:
        raise raised[0]
    if state.name == "TimedOut":
        raise time_up(step.timeout_s)
    failure = state.result(raise_on_failure=False)
    if isinstance(failure, BaseException):
        raise failure
    raise StepFailedError(f"step {step.name} ended as {state.name}", why=state.message or "")


def _show_hits(invocation: Invocation) -> None:
    """A task run each, named ``Cached``, for what was found: who started the run in Prefect looks for all its steps."""
    computed = {
        name for name, outcome in invocation.outcomes.items() if outcome.status == "computed"
    }
    found = invocation.finding.found
    for name in [name for name in invocation.flow.steps if name in found and name not in computed]:
        takes = invocation.flow.steps[name].takes
        given = {
            other: found[other].value for other in takes if other in found
        } | invocation.request.step_params(name)
        given |= {"id": invocation.request.id} if "id" in takes else {}

        def hit(entry=found[name], given=given) -> State:
            artifacts.show_inputs(TaskRunContext.get().task_run, given, entry.key)
            text = (
                f"computed at {entry.computed_at}, flow run {entry.flow_run_id}"
                if entry.computed_at
                else None
            )
            return Completed(name="Cached", message=text, data=_where(invocation, entry))

        task_run_name = f"{name}[{invocation.request.id}]".replace("{", "{{").replace("}", "}}")
        prefect.Task(fn=hit, name=name, task_run_name=task_run_name, persist_result=False)(
            return_state=True
        )


def _where(invocation: Invocation, entry: Entry) -> ResultRecordMetadata:
    return ResultRecordMetadata(
        storage_key=records.result_path(invocation.request.id, entry.step, entry.key),
        expiration=entry.expires_at,
        serializer=JSONSerializer(object_encoder=None, object_decoder=None),
    )


def _started_by_prefect(flow: Flow, parameters: dict[str, object]) -> Invocation:
    settings = Settings.from_env(os.environ)
    own = {name: parameters[name] for name in flow.params}
    asked = {
        name: value
        for name, value in parameters.items()
        if name not in own and value not in (None, [])
    }
    # The flow may stand in any module, not only in the image's pipeline; its manifest is then made from itself.
    body, prints = project.describe_one(flow, settings.root)
    described = manifest.from_json(body)
    request = event.parse({**asked, "flow": flow.name, "params": own}, described)
    results = objects.of(settings)
    finding = accept.find(request, results, [])
    return Invocation(
        request, finding, flow, results, settings, request_id=str(runtime.id), prints=prints
    )


def api_around() -> environment.Api:
    """Where the run around us is told."""
    key, auth = (
        prefect.settings.PREFECT_API_KEY.value(),
        prefect.settings.PREFECT_API_AUTH_STRING.value(),
    )
    plain = [
        secret.get_secret_value() if hasattr(secret, "get_secret_value") else secret or ""
        for secret in (key, auth)
    ]
    return environment.Api(
        str(prefect.settings.PREFECT_API_URL.value() or ""), plain[0], "the run around", plain[1]
    )


def _signature(flow: Flow) -> inspect.Signature:
    step_names = typing.Literal[tuple(flow.steps)]
    rows = [
        ("id", str, inspect.Parameter.empty),
        ("step", step_names | None, None),
        ("bust", typing.Literal["this", "all"] | list[step_names] | None, None),
        ("skip", list[step_names] | None, None),
    ]
    for name, param in flow.params.items():
        kinds = typing.Any
        if "any" not in param.kinds:
            free = [
                _KINDS[kind]
                for kind in param.kinds
                if not any(type(choice) is _KINDS[kind] for choice in param.choices)
            ]
            kinds = typing.Union[
                (*([typing.Literal[param.choices]] if param.choices else []), *free)
            ]
        rows.append((name, kinds, param.default))
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature(
        [inspect.Parameter(n, kind, annotation=a, default=d) for n, a, d in rows]
    )


def _docstring(flow: Flow) -> str:
    lines = [
        flow.description or f"The flow {flow.name}.",
        "",
        "Args:",
        "    id: What the results are about.",
        "    step: The step to run, with what it needs; empty for all.",
        "    bust: Compute again: this (the asked step), all (and what it needs), or a list of steps.",
        "    skip: Do not run these; take their newest stored value, even if it is stale.",
    ]
    for name in flow.params:
        takers = [step for step in flow.steps if name in flow.own_params(step)]
        lines.append(
            f"    {name}: {_said_of(name, flow.steps[takers[0]]) or 'A parameter of ' + ', '.join(takers) + '.'}"
        )
    return "\n".join(lines)


def _said_of(name: str, step: Step) -> str:
    for line in inspect.getdoc(step.function).splitlines() if step.function.__doc__ else ():
        if line.strip().startswith(f"{name}:"):
            return line.split(":", 1)[1].strip()
    return ""
