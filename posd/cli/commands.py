"""The commands of `posctl`, in the order of `posctl --help`.

The module of a command is imported when the command is called, because some modules import Twisted,
Autobahn or OpenSSL. A command such as `posctl key list` does not need them and starts faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import click
from click.exceptions import NoSuchCommand

from posd.cli.failures import report_failures
from posd.cli.terminal import unusable

SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "Try": {
        "demo": "demo",
    },
    "Set up": {
        "check-config": "configuration",
        "make-cert": "certificates",
        "bootstrap": "schema",
        "migrate": "schema",
        "tenant": "tenants",
        "adopt": "adopting",
        "key": "keys",
    },
    "Operate": {
        "status": "status",
        "audit": "audit",
        "doctor": "doctor",
        "publish": "publishing",
        "listen": "listening",
        "stream": "streams",
        "replay": "replaying",
        "card": "ledgers",
        "points": "ledgers",
        "prune": "pruning",
        "forget": "forgetting",
    },
}
"""Heading of `posctl --help` → command → the module of `posd.cli` that defines the command."""

_MODULES: Final = {name: module for part in SECTIONS.values() for name, module in part.items()}


class CommandGroup(click.Group):
    """A group that imports its commands on demand and prints expected failures in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        module = import_module(f"posd.cli.{_MODULES[cmd_name]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            name = error.command_name
            raise NoSuchCommand(name, possibilities=_MODULES, ctx=ctx) from None

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        with report_failures():
            problem = unusable(args)
            if problem is not None:
                raise click.UsageError(problem)
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with report_failures():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = formatter.width - 4 - max(map(len, _MODULES))
        for title, names in SECTIONS.items():
            commands = {name: self.get_command(ctx, name) for name in names}
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (name, command.get_short_help_str(width))
                        for name, command in commands.items()
                        if command is not None
                    ]
                )
