"""The sentences that texts about kmalloc, vmalloc and malloc tell, each run as an experiment: `run` measures, ``mmtwin claims`` shows."""

from collections.abc import Iterator, Sequence

from mmtwin.claims.table import CLAIMS, VERDICTS, Claim, Measured, UnknownClaim, measure, select

__all__ = ["CLAIMS", "VERDICTS", "Claim", "Measured", "UnknownClaim", "measure", "run", "select"]


def run(only: Sequence[str] = ()) -> Iterator[Measured]:
    """Measures the rows of these names, or all, one after the other.

    :raises UnknownClaim: there is none of a name.
    """
    for row in select(only):
        yield measure(row)
