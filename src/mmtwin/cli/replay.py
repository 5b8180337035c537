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
    recording, result = run(file, check, terminal)
    if json:
        terminal.json(result.to_dict())
    else:
        from mmtwin.cli import result_text

        terminal.show(*result_text.result_text(recording.provenance, result))
    return CHECK_FAILED if check and not result.equal else 0


def run(file: Path, check: bool, terminal: Terminal) -> tuple[Recording, Result]:
    """Reads and replays a recording, with progress on stderr.

    :raises RecordingError: it cannot be read, or has no snapshots.
    """
    from mmtwin.recording import store

    with terminal.progress("reading"):
        recording = store.load(file)
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
    return recording, result
