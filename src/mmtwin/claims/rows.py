"""The table's rows, in order: importing this fills `table.CLAIMS`."""

from mmtwin.claims import memory, addresses, use, slabs, processes  # noqa: F401, I001
