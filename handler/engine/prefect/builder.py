"""
A declared flow as an ordinary Prefect flow: one flow run per call, one task run per computed step.

The body is the same whether pfl, ``.serve()`` or a Prefect worker starts it: look up what is
stored, compute the rest.
"""

from __future__ import annotations

import functools
import inspect
import operator
import os
import random
import re
import typing
from collections.abc import Callable, Mapping
from types import GenericAlias
from typing import Any
from uuid import UUID

import prefect
import prefect.task_engine
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.context import FlowRunContext, TagsContext, TaskRunContext
from prefect.exceptions import TerminationSignal
from prefect.results import ResultRecordMetadata  # type: ignore[attr-defined]  # Not in its __all__.
from prefect.runtime import flow_run as runtime
from prefect.serializers import JSONSerializer
from prefect.states import Completed, Crashed
from prefect.task_engine import run_task
from prefect.utilities.annotations import quote

from ...core import event
from ...core.cache import lookup
from ...core.cache.entry import Entry
from ...core.declare import manifest, project
from ...core.declare.flow import Flow
from ...core.declare.params import KIND_OF, Param
from ...core.errors import OutOfTimeError, PflError, UnavailableError
from ...core.settings import Settings
from ...core.store import objects, records
from .. import reap
from ..call import Call
from ..causes import out_of_time
from ..deadline import Abandoned, Stopped, end_of
from ..invocation import Invocation
from ..steps import call_step, timed_out
from ..work import Work
from . import artifacts, client, environment, limits, plain
from .outbox import FLUSH_S, Outbox

# Prefect's engine takes the slots of each task run with this function; pfl's can be interrupted
# while it waits. Without the check, pfl's would silently not be called.
if not hasattr(prefect.task_engine, "_concurrency"):
    raise UnavailableError(
        f"Prefect {prefect.__version__} takes slots of a limit in a way that pfl does not support",
        why="prefect.task_engine has no _concurrency",
        hint="install the version in constraints.txt, or use --engine direct",
    )
vars(prefect.task_engine)["_concurrency"] = lambda names, occupy=1, *, holder, **_: limits.slot(
    current_api(), names, occupy, holder
)
# For annotations that are made at run time.
_Literal: Any = typing.Literal
_TYPES = {kind: type for type, kind in KIND_OF.items()}


def build(flow: Flow) -> prefect.Flow[..., dict[str, object] | State[Any]]:
    """
    The Prefect flow of *flow*.

    Its parameters are ``id``, ``step``, ``bust`` and ``skip``, as in an event, and the flow's own.
    It returns the value of each step by name, or raises what the first failing step raised.
    """
    signature = _signature(flow)

    def body(*args: object, **kwargs: object) -> dict[str, object] | State[Any]:
        return _run(flow, signature.bind(*args, **kwargs))

    body.__name__ = body.__qualname__ = flow.name
    body.__doc__ = _docstring(flow)
    body.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    vars(body)["__signature__"] = signature
    made = prefect.flow(name=flow.name, persist_result=False)(body)
    # Prefect stores no results here, but would ask its server twice per run where to store them.
    results = prefect.settings.get_current_settings().results
    made.result_storage = None if results.default_storage_block else results.local_storage_path
    return made


build_once = functools.lru_cache(maxsize=8)(build)


def _run(flow: Flow, bound: inspect.BoundArguments) -> dict[str, object] | State[Any]:
    """
    The body of a flow that Prefect runs.

    It is a function of this module, because a served flow is pickled with all it holds.
    """
    bound.apply_defaults()
    invocation = _from_parameters(flow, bound.arguments)
    api = current_api()
    run = invocation.call.flow_run
    if run is not None:
        begin(invocation, run)
        named = plain.named(invocation, run.tags)
        client.ask(api, f"/flow_runs/{run.id}", named, method="PATCH")
    box = Outbox(api)
    try:
        returned = run_steps(invocation, box)
    finally:
        invocation.end()
        box.wait(FLUSH_S)
    if returned is not None:
        return returned
    if invocation.error is not None:
        raise plain.presentable(invocation.error)
    return {name: entry.value for name, entry in invocation.found.items()}


def begin(invocation: Invocation, run: FlowRun) -> None:
    """Note in which flow run a call computes."""
    invocation.run.flow_run_id = str(run.id)
    invocation.run.url = environment.flow_run_url(current_api().url, invocation.run.flow_run_id)


def run_steps(
    invocation: Invocation,
    box: Outbox,
    when_computed: Callable[[], None] = lambda: None,
) -> State[Any] | None:
    """
    Find or compute the steps of a call inside its flow run.

    Args:
        invocation: The call.
        box: Where it puts what it reports to Prefect.
        when_computed: Called once all steps have results, while the last ones are published.

    Returns:
        The state in which the run was stopped; None if it was not.
    """
    # The run's tags are for people: on a task, each would cost requests about its limit.
    with TagsContext(current_tags=set()):
        try:
            compute = functools.partial(_compute, invocation, box)
            invocation.settle(compute, when_computed)
        except KeyboardInterrupt as exc:
            invocation.run.interrupted = exc
            return _interrupted(exc)
    if isinstance(invocation.error, OutOfTimeError):
        return Crashed(message=invocation.error.lines)
    if invocation.call.flow_run is not None:
        _show_hits(invocation)
    return None


def _interrupted(exc: KeyboardInterrupt) -> State[Any]:
    type, message = end_of(exc)
    return State(type=StateType(type), message=message)


def _compute(invocation: Invocation, box: Outbox, work: Work) -> None:
    """Compute a step as a task run."""
    step = work.step
    reap.reap_predecessors(invocation, api=box.api)
    tags = limits.tags_for(invocation, step, box.api)
    task_run_id = str(work.run.task_run_id)
    invocation.run.tasks[task_run_id] = {
        "flow_run_id": work.run.flow_run_id,
        "step": step.name,
        "id": invocation.call.request.id,
        "tags": tags,
    }
    raised: list[BaseException] = []
    state = run_task(
        _task(invocation, box, work, tags, raised),
        task_run_id=UUID(task_run_id),
        # Prefect would look for futures in the values, however large or deep they are.
        parameters={name: quote(value) for name, value in work.arguments.items()},
        return_type="state",
    )
    if state.is_completed() or state.is_failed():
        claim = invocation.run.tasks.pop(task_run_id)
        invocation.run.finished[task_run_id] = {**claim, "type": state.type.value}
    if state.is_completed():
        return
    if raised:
        raise raised[0]
    if state.name == "TimedOut" and step.timeout_s is not None:
        raise timed_out(step.timeout_s)
    state.result()  # It raises what the state is about.


def _task(
    invocation: Invocation,
    box: Outbox,
    work: Work,
    tags: list[str],
    raised: list[BaseException],
) -> prefect.Task[..., Any]:
    """The Prefect task of a step; *raised* receives what the step raises."""
    step = work.step

    def body(*args: object, **kwargs: object) -> object:
        raised.clear()
        try:
            arguments = step.signature.bind(*args, **kwargs).arguments
            task_run = _task_run()
            artifacts.show_inputs(task_run, work.arguments, None)
            entry = work.finish(call_step(step, arguments, in_prefect=True))
            artifacts.show_inputs(task_run, work.arguments, entry.key)
            if random.random() < invocation.call.settings.artifacts:
                box.artifact(artifacts.describe(invocation.call.request, work, entry))
        except Abandoned:
            raise
        except BaseException as exc:
            if type(exc).__module__.startswith("prefect._internal."):
                raise  # Its timeout.
            raised.append(exc)
            if isinstance(exc, KeyboardInterrupt):
                return _interrupted(exc)
            if isinstance(exc, Stopped):
                error = out_of_time(
                    f"step {step.name} was stopped", invocation.call.settings.margin_s
                )
                return Crashed(message=error.lines)
            if isinstance(exc, TerminationSignal) and invocation.call.flow_run is not None:
                raise  # Prefect, which started this run, ends it.
            raise plain.presentable(exc) from exc.__cause__
        return Completed(data=_reference(invocation, entry))

    functools.update_wrapper(body, step.function)
    # Prefect calls what a function wraps, and here the wrapper is the task.
    vars(body).update(__wrapped__=None, __signature__=step.signature)
    return prefect.Task(
        fn=body,
        name=step.name,
        task_run_name=lambda: f"{step.name}[{invocation.call.request.id}]",
        tags=tags,
        retries=step.retries,
        retry_delay_seconds=step.retry_delay_s,
        # If a computed value cannot be saved, computing it again does not help.
        retry_condition_fn=lambda task, run, state: (
            not (raised and isinstance(raised[0], PflError))
        ),
        timeout_seconds=step.timeout_s,
        persist_result=False,
    )


def _task_run() -> TaskRun:
    context = TaskRunContext.get()
    assert context is not None, "called outside of a task run"
    return context.task_run


def _show_hits(invocation: Invocation) -> None:
    """Add a task run named ``Cached`` for each step that was found, so that the run shows all."""
    for name in invocation.call.flow.steps:
        entry = invocation.found.get(name)
        outcome = invocation.outcomes.get(name)
        if entry is not None and (outcome is None or outcome.status != "computed"):
            _show_hit(invocation, entry)


def _show_hit(invocation: Invocation, entry: Entry) -> None:

    def hit() -> State[Any]:
        artifacts.show_inputs(
            _task_run(), invocation.call.arguments(entry.step, invocation.found), entry.key
        )
        message = None
        if entry.computed_at:
            message = f"computed at {entry.computed_at}, flow run {entry.flow_run_id}"
        return Completed(name="Cached", message=message, data=_reference(invocation, entry))

    task = prefect.Task(
        fn=hit,
        name=entry.step,
        task_run_name=lambda: f"{entry.step}[{invocation.call.request.id}]",
        persist_result=False,
    )
    task(return_state=True)


def _reference(invocation: Invocation, entry: Entry) -> ResultRecordMetadata:
    """Where Prefect finds the value."""
    return ResultRecordMetadata.model_validate(
        {
            "storage_key": records.result_path(invocation.call.request.id, entry.step, entry.file),
            "expiration": entry.expires_at,
            "serializer": JSONSerializer(object_encoder=None, object_decoder=None),
        }
    )


def _from_parameters(flow: Flow, parameters: dict[str, Any]) -> Invocation:
    """The invocation for a run that Prefect started."""
    settings = Settings.from_env(os.environ)
    # The flow may be in any module, not only in the image's pipeline: its manifest is its own.
    body, prints = project.describe_one(flow, settings.root)
    request = event.parse(event_of(flow, parameters), manifest.from_body(body))
    results = objects.of(settings)
    context = FlowRunContext.get()
    finding = lookup.find(request, results, [], only_targets=True)
    call = Call(
        request,
        flow,
        results,
        settings,
        str(runtime.id),
        prints,
        {"cold_start": False, "code": ""},
        finding.warnings,
        flow_run=context.flow_run if context is not None else None,
    )
    return Invocation(call, finding)


def event_of(flow: Flow, parameters: Mapping[str, object]) -> dict[str, object]:
    """The event that a flow run's parameters stand for; an empty field of the form is left out."""
    params = {name: value for name, value in parameters.items() if name in flow.params}
    fields = {
        name: value
        for name, value in parameters.items()
        if name not in params and value not in (None, [], "")
    }
    return fields | {"flow": flow.name, "params": params, "engine": "prefect"}


def current_api() -> environment.Api:
    """The API that the current run reports to."""
    api = prefect.settings.get_current_settings().api
    key = api.key.get_secret_value() if api.key else ""
    auth = api.auth_string.get_secret_value() if api.auth_string else ""
    return environment.api_at(api.url or "", key, "the current run", auth)


# Annotations that are made at run time, for Prefect's form.


def _signature(flow: Flow) -> inspect.Signature:
    step = _Literal[tuple(flow.steps)]
    steps: Any = GenericAlias(list, (step,))
    parameter = functools.partial(
        inspect.Parameter, kind=inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None
    )
    parameters = [
        parameter("id", annotation=str, default=inspect.Parameter.empty),
        parameter("step", annotation=step | None),
        parameter("bust", annotation=_Literal["this", "all"] | steps | None),
        parameter("skip", annotation=steps | None),
    ]
    for name, param in flow.params.items():
        parameters.append(parameter(name, annotation=_annotation(param), default=param.default))
    return inspect.Signature(parameters)


def _annotation(param: Param) -> object:
    if "any" in param.kinds:
        return Any
    kinds = [_Literal[param.choices]] if param.choices else []
    kinds_of_choices = {type(choice) for choice in param.choices}
    kinds += [_TYPES[kind] for kind in param.kinds if _TYPES[kind] not in kinds_of_choices]
    return functools.reduce(operator.or_, kinds)


def _docstring(flow: Flow) -> str:
    lines = [
        flow.description or f"The flow {flow.name}.",
        "",
        "Args:",
        "    id: The ID of the results.",
        "    step: The step to run, with the steps it needs; empty for all.",
        "    bust: Compute again: this (the chosen step), all (also what it needs), or a list.",
        "    skip: Do not run these steps; take their newest stored value, even if it is stale.",
    ]
    for name in flow.params:
        takers = [step for step in flow.steps if name in flow.own_params(step)]
        docstring = inspect.getdoc(flow.steps[takers[0]].function) or ""
        described = re.search(rf"^\s*{name}:[ \t]*(\S.*)", docstring, re.MULTILINE)
        text = described[1] if described else f"A parameter of {', '.join(takers)}."
        lines.append(f"    {name}: {text}")
    return "\n".join(lines)
