"""The kind of all commands: each has ``--json`` and ``--utc``, and takes no option twice."""

import re
from typing import Any

from typer._click import Context, Parameter
from typer.core import TyperCommand, TyperOption

from ..handler.core import event
from . import output

# The help of options that several commands have.
_HELP = {
    "dry_run": "Only show what would be done.",
    "key": "Column that identifies the rows of a table.",
    "pool": "Work pool (default: PFL_WORK_POOL).",
    "stage": "Stage; each is a separate deployment.",
    "with_keys": "Store the AWS keys of this environment in the block.",
}


class Command(TyperCommand):
    """A command that is explained by its docstring, and its options by the section *Args*."""

    def __init__(self, name: str | None, *, params: list[Any], help: str, **rest: Any) -> None:
        text, _, listed = help.partition("\n\nArgs:\n")
        texts = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE))
        for param in params:
            found = texts.get(param.name) or _HELP.get(param.name) or param.help or ""
            param.help = " ".join(found.split())
            param.secondary_opts = []  # A flag is left out, not negated: there is no --no-flag.
        utc = _switch("utc", "Show times in UTC instead of local time.")
        json = _switch("json", "Print the data as JSON.")
        super().__init__(name, params=[*params, utc, json], help=text, **rest)

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse, check IDs, and refuse an option that is given twice: it would lose all but one."""
        _, _, params = self.make_parser(ctx).parse_args(args.copy())
        for param in params:
            if isinstance(param, TyperOption) and not (param.multiple or param.is_flag):
                if params.count(param) > 1:
                    ctx.fail(f"{param.opts[0]} is given twice")
        rest = super().parse_args(ctx, args)
        for name in ("id", "prefix"):
            given = ctx.params.get(name)
            if isinstance(given, str):
                event.check_id(given)
        return rest


def _switch(name: str, help: str) -> TyperOption:
    """A flag that sets ``output.in_<name>``."""

    def remember(context: Context, param: Parameter, is_given: bool) -> None:
        setattr(output, f"in_{name}", is_given)

    return TyperOption(
        param_decls=[f"--{name}"],
        is_flag=True,
        default=False,
        expose_value=False,
        callback=remember,
        help=help,
    )
