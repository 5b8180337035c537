"""``mmtwin replay``: the twin answers a recording's requests, and its answers are compared with the kernel's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmtwin.cli.terminal import ForTerminal, Terminal
from mmtwin.errors import RecordingError

if TYPE_CHECKING:
    from mmtwin.recording.model import Recording
    from mmtwin.replay.check import Result

CHECK_FAILED = 3
CODE = """\
from mmtwin.recording import store
from mmtwin.replay.check import replay

result, state = replay(store.load({path!r}), check={check})
print(result)
"""


def replay(file: Path, /, *, check: bool = False, json: bool = False, code: bool = False, terminal: ForTerminal) -> int:
    """Replay a recording: at each request the twin answers first, then the kernel's answer is looked at.

    With --check the twin's state at the end is compared with the kernel's as well, list by list, and the exit code is 3 if anything at all
    was different.

    :param file: A recording (.mmrec) with snapshots.
    :param check: Compare the final state too; exit with 3 on any difference.
    :param json: One JSON document instead of text.
    :param code: Print the Python that does the same.
    """
    if code:
        terminal.write(CODE.format(path=str(file), check=check))
        return 0
    recording = read(file, terminal)
    if recording.provenance.how == "malloc":
        return replay_malloc(recording, check, json, terminal)
    result = run(recording, file, check, terminal)
    if json:
        terminal.json(result.to_dict())
    else:
        from mmtwin.cli import result_text

        terminal.show(*result_text.result_text(recording.provenance, result))
    return CHECK_FAILED if check and not result.equal else 0


def read(file: Path, terminal: Terminal) -> Recording:
    """A recording's file. :raises RecordingError: it cannot be read."""
    from mmtwin.recording import store

    with terminal.progress("reading"):
        return store.load(file)


def replay_malloc(recording: Recording, check: bool, json: bool, terminal: Terminal) -> int:
    """A process's calls of malloc: each address beside the C library's."""
    from mmtwin.recording.readers.malloc_trace import from_recording
    from mmtwin.replay.mallocs import replay as replay_calls

    terminal.note("the rules of glibc's malloc take 20 s to compile, once")
    with terminal.progress("replaying"):
        result, _, _ = replay_calls(from_recording(recording), validate=check)
    if json:
        terminal.json(result.to_dict())
    else:
        lines = [
            f"{result.calls:,} calls of {result.threads} thread(s) in {result.arenas} arena(s)",
            f"answers       {result.equal:,} of {result.answers:,} equal",
            *(f"  call {d['call']}: {d['function']}: expected {d['expected']:#x}, predicted {d['predicted']:#x}" for d in result.differences[:10]),
            f"ended early: {result.ended}" if result.ended else "",
            "EQUAL: Every answer is the C library's." if result.all_equal else "DIFFERENT: see above.",
        ]
        terminal.write("\n".join(line for line in lines if line) + "\n")
    return CHECK_FAILED if check and not result.all_equal else 0


def run(recording: Recording, file: Path, check: bool, terminal: Terminal) -> Result:
    """Replays a recording, with progress on stderr.

    :raises RecordingError: it has no snapshots.
    """
    if recording.before is None or (check and recording.after is None):
        lacks = "snapshots" if recording.before is None else "second snapshot"
        why = "there is no state to start from" if recording.before is None else "there is nothing to compare the final state with"
        raise RecordingError(f"{file}: has no {lacks}, so {why}; mmtwin record --vm makes recordings with both")
    from mmtwin import _jit
    from mmtwin.replay import check as checker

    if not _jit.is_compiled("replay_ops"):
        terminal.note("compiling the replay, about 30 s, once")
    with terminal.progress("replaying") as progress:
        result, _ = checker.replay(recording, check=check, progress=progress)
    return result
