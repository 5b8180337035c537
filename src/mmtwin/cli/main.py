"""The ``mmtwin`` program: finds the command, runs it, and turns every end into an exit code and at most one line on stderr.

Exit codes: 0 good; 1 an error in the data or the run; 2 usage; 3 a check that failed; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter, UnusedCliTokensError

from mmtwin import __version__
from mmtwin.cli import terminal
from mmtwin.cli.advise import advise
from mmtwin.cli.blame import blame
from mmtwin.cli.claims import claims
from mmtwin.cli.demo import demo
from mmtwin.cli.explain import explain
from mmtwin.cli.help import ColumnFormatter
from mmtwin.cli.import_ import import_
from mmtwin.cli.info import info
from mmtwin.cli.layout import layout
from mmtwin.cli.record import record
from mmtwin.cli.replay import replay
from mmtwin.cli.report import report
from mmtwin.cli.stat import stat
from mmtwin.errors import MmtwinError

INTERRUPTED = 130

app = App(
    name="mmtwin",
    help="Linux's memory allocators as a program: given a real machine's memory and its requests, it returns the same page frames as the kernel did.\n\n"
    "Start with: mmtwin demo",
    help_format="plaintext",
    help_formatter=ColumnFormatter(),
    version=f"mmtwin {__version__}",
    default_parameter=Parameter(negative="", show_default=False),
    suppress_keyboard_interrupt=False,
)
app.meta.group_parameters = Group("Everywhere", sort_key=9)
app.meta.suppress_keyboard_interrupt = False
COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "record": record,
    "import": import_,
    "info": info,
    "replay": replay,
    "stat": stat,
    "explain": explain,
    "blame": blame,
    "advise": advise,
    "report": report,
    "layout": layout,
    "claims": claims,
}
for position, (verb, command) in enumerate(COMMANDS.items()):
    app.command(command, name=verb, sort_key=position)


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    quiet: bool = False,
    debug: bool = False,
) -> Any:
    """Runs one command.

    :param quiet: No progress and no notes on stderr.
    :param debug: Show the traceback of an error.
    """
    function, bound, ignored = app.parse_args(tokens, exit_on_error=False, print_error=False)
    extra = {"terminal": terminal.Terminal(quiet)} if "terminal" in ignored else {}
    return function(*bound.args, **bound.kwargs, **extra)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program.

    :param arguments: the words after ``mmtwin``; those of this process if None.
    :returns: the exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without Unicode must not end a report
    try:
        code = app.meta(words, exit_on_error=False, print_error=False, verbose=False, result_action="return_value")
        if sys.stdout is not None:
            sys.stdout.flush()  # cyclopts prints help and version itself
    except BaseException as error:
        if "--debug" in options and not isinstance(error, SystemExit):
            import traceback

            terminal.complain(traceback.format_exc().rstrip())
        return _end(error)
    return code if isinstance(code, int) else 0


def _end(error: BaseException) -> int:
    """Says what went wrong in one line and gives the exit code."""
    match error:
        case SystemExit():  # a broken pipe while rich printed help
            return 0
        case KeyboardInterrupt():
            return _say("interrupted", INTERRUPTED)
        case BrokenPipeError():
            terminal.silence(sys.stdout)
            return 0
        case CycloptsError():
            return _say(_usage(error), 2)
        case MmtwinError():
            return _say(str(error), error.exit_code)
        case MemoryError():
            return _say("out of memory", 1)
        case OSError() if error.strerror:
            return _say(f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 1)
    return _say(f"a bug in mmtwin: {type(error).__name__}: {error}; please report it with what --debug shows", 1)


def _say(text: str, code: int) -> int:
    terminal.complain(f"mmtwin: {terminal.printable(text.strip())}")
    return code


def _usage(error: CycloptsError) -> str:
    chain = " ".join(("mmtwin", *(error.command_chain or ())))
    if isinstance(error, UnusedCliTokensError):
        text = f"unexpected argument {' '.join(error.unused_tokens or ())!r}"
    else:
        text = " ".join(str(error).split()).rstrip("., ")  # a long list of commands ends in ", ..."
    return f"{text[:1].lower()}{text[1:]}; see {chain} --help"
