"""The command `farthing`: its verbs, and what a person reads when something is wrong."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import Any

import typer

from farthing import __version__
from farthing.cli import (
    climbing,
    evaluate,
    experiments,
    importing,
    look,
    machine,
    planner,
    publish,
    recipes,
    reporting,
    run,
    searching,
    serving,
    text,
)
from farthing.errors import FarthingError, Preempted, nearest, of_the_system, without_secrets
from farthing.sinks.legible import legible

# typer carries its own copy of click from some version on; its public exceptions lead to the right classes.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]
_ClickException: type[Any] = _UsageError.__mro__[1]

app = typer.Typer(
    name="farthing",
    help="Spend a fixed budget on the best small GPT it can buy, and prove what bought it.",
    epilog="Start with: farthing train (the default recipe, on Python's own sources, in about five minutes). "
    "farthing VERB --help says more about each.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"farthing {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


run.register(app)
searching.register(app)
climbing.register(app)
planner.register(app)
evaluate.register(app)
look.register(app)
experiments.register(app)
reporting.register(app)
serving.register(app)
importing.register(app)
publish.register(app)
recipes.register(app)
text.register(app)
machine.register(app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with the exit code that errors.py documents."""
    sys.exit(_guarded(arguments))


def _guarded(arguments: list[str] | None) -> int:
    # Threads that spin for long while they wait halve the speed of a machine that has anything else to do; threads
    # that sleep at once wake too late for the next short operation (6 % of a step on two cores). So they spin for
    # about as long as such an operation takes. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    command = typer.main.get_command(app)
    try:
        code = int(command.main(arguments, prog_name="farthing", standalone_mode=False) or 0)
        sys.stdout.flush()
        # typer makes this code of a KeyboardInterrupt.
        return code if code != 130 else _complain("Ctrl-C", code, label="stopped")
    except _UsageError as error:
        return _complain(_one_line(error, sys.argv[1:] if arguments is None else arguments), 2)
    except _ClickException as error:
        return _complain(error.format_message(), 2)
    except Preempted as stop:
        return _complain(str(stop), stop.exit_code, label="stopped")
    except FarthingError as error:
        return _complain(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("Ctrl-C", 130, label="stopped")
    except (BrokenPipeError, SystemExit):
        # Whoever read our output has seen enough (| head); that is no failure of ours. typer makes an exit of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if told := of_the_system(error):
            return _complain(str(told), told.exit_code)
        return _bug(error)
    except Exception as error:
        return _bug(error)


def _one_line(error: Any, arguments: list[str]) -> str:
    if type(error).__name__ == "NoArgsIsHelpError":
        return f"a verb is missing ({error.ctx.command_path} --help shows what there is)"
    message = " ".join(error.format_message().split()).rstrip(".")
    asked = getattr(error, "option_name", "")
    if asked and error.ctx is not None:
        message = message.partition(" (")[0].partition(". Did")[0].partition("? Did")[0]
        message += nearest(asked, [name for parameter in error.ctx.command.params for name in parameter.opts])
    elif "valid integer" in message or "valid number" in message:
        kind = "a whole number" if "integer" in message else "a number"
        return f"{_given(error.param, arguments)}: should be {kind}"
    elif "Input should be " in message and error.param is not None:
        return f"{_given(error.param, arguments)}: should be {message.partition('Input should be ')[2]}"
    path = error.ctx.command_path if error.ctx is not None else "farthing"
    return f"{message[:1].lower()}{message[1:]} ({path} --help shows what there is)"


def _given(option: Any, arguments: list[str]) -> str:
    """An option as it was typed: --tokens 'many'."""
    for name in option.opts:
        for index, word in enumerate(arguments):
            if word.startswith(f"{name}="):
                return f"{name} {word.partition('=')[2]!r}"
            if word == name and index + 1 < len(arguments):
                return f"{name} {arguments[index + 1]!r}"
    return str(option.name)


def _complain(message: str, code: int, *, label: str = "error") -> int:
    if os.environ.get("FARTHING_DEBUG"):
        print(without_secrets(traceback.format_exc()), file=sys.stderr)
    with suppress(OSError):
        print(f"{label}: {legible(without_secrets(message), encoding=sys.stderr.encoding or 'utf-8')}", file=sys.stderr)
    return code


def _bug(error: BaseException) -> int:
    print(without_secrets(traceback.format_exc()), file=sys.stderr)
    return _complain(f"{type(error).__name__}: {error} (this is a fault in farthing; please report the lines above)", 1)
