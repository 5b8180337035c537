"""Names for kernel addresses: the readers need them too, so they are in `mmtwin.recording.symbols`."""

from mmtwin.recording.symbols import Symbols, read_symbols

__all__ = ("Symbols", "read_symbols")
