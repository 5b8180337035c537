"""Exit codes, streams and messages, whatever the command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmtwin import __version__
from mmtwin.cli import info, main
from mmtwin.errors import InvariantError

VERBS = ("demo", "record", "import", "info", "replay", "stat", "explain", "blame", "advise", "report", "layout", "claims")
START = (sys.executable, "-m", "mmtwin.cli")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(main.__file__).parents[2])}


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from mmtwin.cli.main import main; codes = [main(words.split()) for words in sys.argv[1:]]; "
        "print(codes, {'numba', 'polars', 'numpy', 'drgn', 'elftools'} & set(sys.modules), file=sys.stderr)"
    )
    words = ("--help", "--version", *(f"{verb} --help" for verb in VERBS), "nope", "record")
    run = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=ENVIRONMENT)
    assert run.stderr.splitlines()[-1] == f"{[0] * (2 + len(VERBS)) + [2, 2]} set()"


def test_info_loads_nothing_heavy(bundled: Path) -> None:
    program = (
        "import sys; from mmtwin.cli.main import main; main(['info', sys.argv[1]]); print({'numba', 'polars', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", program, bundled], capture_output=True, text=True, env=ENVIRONMENT)
    assert run.stderr == "set()\n"
    assert "snapshots" in run.stdout


def test_the_program(tmp_path: Path) -> None:
    run = subprocess.run([*START, "info", tmp_path / "none"], capture_output=True, text=True, env=ENVIRONMENT)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"mmtwin: {tmp_path}/none: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("words", [("--help",), ("info", "BUNDLED")])
def test_a_reader_that_leaves(words: tuple[str, ...], bundled: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [str(bundled) if word == "BUNDLED" else word for word in words]
    run = subprocess.run([*START, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [("--help",), ("info", "BUNDLED"), ("info", "BUNDLED", "--json")])
def test_a_full_disk(words: tuple[str, ...], bundled: Path) -> None:
    arguments = [str(bundled) if word == "BUNDLED" else word for word in words]
    with open("/dev/full", "w") as full:
        run = subprocess.run([*START, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert run.returncode == 1
    assert run.stderr.startswith("mmtwin: ")
    assert run.stderr.endswith("No space left on device\n")
    assert run.stderr.count("\n") == 1


def test_help(mmtwin: Callable[..., tuple[int, str, str]]) -> None:
    for words in ((), ("--help",), ("-h",)):
        code, out, err = mmtwin(*words)
        assert (code, err) == (0, "")
        assert out.startswith("Usage: mmtwin COMMAND")
        assert all(f"\n  {verb} " in out for verb in VERBS)
        assert out.isascii()
        assert max(map(len, out.splitlines())) <= 100
    for verb in VERBS:
        code, out, err = mmtwin(verb, "--help")
        assert (code, err) == (0, "")
        assert out.startswith(f"Usage: mmtwin {verb} ")
        assert "--quiet" in out
        assert "object at" not in out


def test_version(mmtwin: Callable[..., tuple[int, str, str]]) -> None:
    assert mmtwin("--version") == (0, f"mmtwin {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "repaly",
            'unknown command "repaly". Did you mean "replay"? Available commands: demo, record, import, info, replay, stat, explain, blame; see mmtwin --help',
        ),
        ("replay", 'command "replay" parameter FILE requires an argument; see mmtwin replay --help'),
        ("replay a b", "unexpected argument 'b'; see mmtwin replay --help"),
        ("replay a --chekc", "unknown option: --chekc. Did you mean --check?; see mmtwin replay --help"),
        ("replay a --check=perhaps", 'invalid value for --check: unable to convert "perhaps" into bool; see mmtwin replay --help'),
        ("info a --json --json", "parameter --json specified multiple times; see mmtwin info --help"),
        ("import", 'command "import" parameter FILE requires an argument; see mmtwin import --help'),
        ("demo now", "unexpected argument 'now'; see mmtwin demo --help"),
        ("record --smp two", 'invalid value for --smp: unable to convert "two" into int; see mmtwin record --help'),
    ],
)
def test_usage(words: str, message: str, fails: Callable[..., str]) -> None:
    assert fails(2, *words.split()) == message


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
        (InvariantError("zone 1 has two heads"), 3, "zone 1 has two heads"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: Permission denied"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (IndexError("7\nis out"), 1, "a bug in mmtwin: IndexError: 7\\nis out; please report it with what --debug shows"),
    ],
)
def test_every_end(
    error: BaseException, code: int, message: str, fails: Callable[..., str], mmtwin: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmtwin.recording.store.open_recording", lambda path: (_ for _ in ()).throw(error))
    assert fails(code, "info", "x") == message
    for words in (("--debug", "info", "x"), ("info", "x", "--debug")):
        got, _, err = mmtwin(*words)
        assert got == code
        assert err.startswith("Traceback (most recent call last)")
        assert err.endswith(f"mmtwin: {message}\n")


def test_debug_after_two_dashes_is_a_file(mmtwin: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = mmtwin("info", "--", "--debug")
    assert (code, err) == (1, "mmtwin: --debug: cannot be read: No such file or directory\n")


def test_names_cannot_command_the_terminal(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "a\\nb\\x1b[31m\\udcff: cannot be read" in fails(1, "info", tmp_path / "a\nb\x1b[31m\udcff")


def test_the_same_words_give_the_same_commands() -> None:
    assert tuple(main.COMMANDS) == VERBS
    assert main.COMMANDS["info"] is info.info
