"""Recorded calls of malloc as `stat` wants them: objects that are handed out and come back.

A realloc counts as the free of the old block and an allocation, as to the program it is both, wherever the block lies. The bytes allocated are the chunk's
that malloc cuts for a request (header included), or whole pages where the address tells that the block is a mapping of its own; threads stand in for CPUs.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from mmtwin.recording.model import EVENTS_SCHEMA, Recording

ALLOCATIONS = ("malloc", "calloc", "realloc", "memalign", "posix_memalign", "valloc", "pvalloc")
SITE = 1
"""Stands for all call sites: who called malloc is not recorded."""
MMAP_THRESHOLD = 131072
"""The lowest size that gets a mapping of its own (it grows with what is freed); such a block begins 16 bytes into a page."""


def objects(recording: Recording) -> Recording:
    """The recording with a kmalloc for each block handed out and a kfree for each that came back; one time step is one call."""
    events = recording.events.with_columns(
        pl.col("pid").cast(pl.Int16).alias("cpu"), pl.col("kind").cast(pl.String), pl.int_range(pl.len(), dtype=pl.Int64).alias("time")
    )
    size = pl.col("bytes_req")
    mapped = (size >= MMAP_THRESHOLD - 16) & (pl.col("ptr") % 4096 == 16)
    chunk = pl.when(mapped).then((size + 16 + 4095) // 4096 * 4096).otherwise(pl.max_horizontal((size + 23) // 16 * 16, pl.lit(32)))
    resized = pl.col("kind") == "realloc"
    freed_whole = resized & (pl.col("ptr") == 0) & (size == 0) & (pl.col("arg") != 0)
    gives = events.filter(pl.col("kind").is_in(ALLOCATIONS) & ~freed_whole).with_columns(
        pl.lit("kmalloc").alias("kind"), pl.when(pl.col("ptr") == 0).then(0).otherwise(chunk).alias("bytes_alloc"), pl.lit(1).alias("step")
    )
    takes = events.filter((pl.col("kind") == "free") | (resized & (pl.col("arg") != 0) & ((pl.col("ptr") != 0) | (size == 0)))).with_columns(
        pl.when(pl.col("kind") == "free").then(pl.col("ptr")).otherwise(pl.col("arg")).alias("ptr"),
        pl.lit("kfree").alias("kind"), pl.lit(0, dtype=pl.Int64).alias("bytes_req"), pl.lit(0, dtype=pl.Int64).alias("bytes_alloc"), pl.lit(0).alias("step"),
    )  # fmt: skip
    both = pl.concat([gives.select(*EVENTS_SCHEMA, "step"), takes.select(*EVENTS_SCHEMA, "step")]).sort("time", "step")
    kept = (
        both.drop("step")
        .with_columns(pl.lit(0, dtype=pl.Int64).alias("gfp"), pl.lit(0, dtype=pl.Int64).alias("arg"), pl.lit(SITE, dtype=pl.Int64).alias("call_site"))
        .cast(dict(EVENTS_SCHEMA.items()))
    )
    notes = ["blocks of malloc: a realloc is a free and an allocation; bytes allocated are those of the chunk; CPU is the thread; times are call numbers"]
    return replace(
        recording,
        events=kept,
        provenance=replace(
            recording.provenance, notes=[*recording.provenance.notes, *notes], procfs={**recording.provenance.procfs, "call_sites": f"{SITE} (malloc)\n"}
        ),
    )
