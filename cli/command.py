"""
The kinds of commands; each adds the options that all its commands have.

Command                 no option is given twice
└── JsonCommand         prints data: --json
    └── DatedCommand    prints times: --utc
"""

from __future__ import annotations

from typing import Any

from typer._click import Context, Parameter
from typer.core import TyperCommand, TyperOption

from . import output


class Command(TyperCommand):
    """A command; its own options, and those of its kind."""

    added: tuple[Parameter, ...] = ()

    def __init__(self, name: str | None, *, params: list[Parameter], **rest: Any) -> None:
        super().__init__(name, params=[*params, *self.added], **rest)

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse, but refuse an option that is given twice: all its values but one would be lost."""
        _, _, params = self.make_parser(ctx).parse_args(args.copy())
        for param in params:
            if isinstance(param, TyperOption) and not (param.multiple or param.is_flag):
                if params.count(param) > 1:
                    ctx.fail(f"{param.opts[0]} is given twice")
        return super().parse_args(ctx, args)


def _switch(name: str, help: str) -> TyperOption:
    """A flag that sets ``output.<name>``."""

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


_JSON = _switch("json", "Print the data as JSON.")


class JsonCommand(Command):
    """A command that prints data."""

    added = (_JSON,)


class DatedCommand(Command):
    """A command that prints data with times."""

    added = (_switch("utc", "Show times in UTC instead of local time."), _JSON)
