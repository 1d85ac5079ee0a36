"""The command `farthing`: its verbs, and what a person reads when something is wrong."""

from __future__ import annotations

import errno
import os
import sys
import traceback

import click
import typer

from farthing import __version__
from farthing.cli import look, machine, recipes, run, text
from farthing.errors import FarthingError, nearest

app = typer.Typer(
    name="farthing",
    help="Spend a fixed budget on the best small GPT it can buy, and prove what bought it.",
    epilog="Start with: farthing train        (the default recipe, on Python's own sources, about five minutes)",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"farthing {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


run.register(app)
look.register(app)
recipes.register(app)
text.register(app)
machine.register(app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with the exit code that errors.py documents."""
    sys.exit(_guarded(arguments))


def _guarded(arguments: list[str] | None) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="farthing", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        typer.echo(error.format_message())
        return 0
    except click.UsageError as error:
        return _complain(_one_line(error), 2)
    except click.ClickException as error:
        return _complain(error.format_message(), 2)
    except FarthingError as error:
        return _complain(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _complain("stopped", 130)
    except BrokenPipeError:
        # Whoever read our output has seen enough (| head); that is no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            return _complain(f"{error.filename or 'a file'}: cannot be written: {error.strerror}", 2)
        return _bug(error)
    except Exception as error:
        return _bug(error)


def _one_line(error: click.UsageError) -> str:
    message = error.format_message().replace("\n", " ").rstrip(".")
    names: list[str] = []
    asked = ""
    if error.ctx is not None:
        command = error.ctx.command
        if isinstance(error, click.NoSuchOption):
            asked = error.option_name
            names = [name for parameter in command.params for name in parameter.opts]
        elif isinstance(command, click.Group) and "No such command" in message:
            asked = message.partition("'")[2].rpartition("'")[0]
            names = command.list_commands(error.ctx)
    path = error.ctx.command_path if error.ctx is not None else "farthing"
    return f"{message[:1].lower()}{message[1:].partition(' (')[0]}{nearest(asked, names)} ({path} --help shows what there is)"


def _complain(message: str, code: int) -> int:
    if os.environ.get("FARTHING_DEBUG"):
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return code


def _bug(error: BaseException) -> int:
    traceback.print_exc()
    return _complain(f"{type(error).__name__}: {error} (this is a fault in farthing; please report the lines above)", 1)
