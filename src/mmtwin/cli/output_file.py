"""Checks of an output file that come before the work, not after it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mmtwin.errors import RecordingError

SUFFIX = ".mmrec"


def output_path(output: Path | None, source: Path, force: bool, suffix: str = SUFFIX) -> Path:
    """Where a file will be written: `output`, or in the current directory under the name of what it is made from.

    :param suffix: of the default name: a recording's, unless it is something else.
    :raises RecordingError: it exists and `force` is false, or a file cannot be made there.
    """
    if output is None and not source.name.removesuffix(".gz").strip("."):
        raise RecordingError(f"{source}: is no file to name the output after; name the output with -o")
    path = output if output is not None else Path(source.name.removesuffix(".gz")).with_suffix(suffix)
    if os.path.lexists(path):
        if path.is_dir():
            raise RecordingError(f"{path}: is a directory; name a file in it with -o")
        if not force:
            raise RecordingError(f"{path}: exists; choose another name with -o or overwrite it with --force")
        if not path.is_file():
            raise RecordingError(f"{path}: is no regular file; choose another name with -o")
        if source.exists() and path.samefile(source):
            raise RecordingError(f"{path}: is what it is made from; choose another name with -o")
    try:
        with tempfile.TemporaryFile(dir=path.parent, prefix=".mmtwin-"):
            pass
    except (OSError, ValueError) as error:
        raise RecordingError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    return path
