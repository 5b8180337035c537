"""Who leaks: what is live at the end and older than anything its site has freed.

Age alone does not tell a leak from a cache: what is judged is the age against the lifetimes of the same site's freed objects. Objects of a site that never freed any are all suspects;
whether the site frees at all only a longer recording tells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from mmtwin.diagnose.blame.lives import Lives
from mmtwin.diagnose.blame.steps import Steps
from mmtwin.diagnose.stat import FREED, LIVE

OVERDUE, NEVER_FREED, YOUNG = "overdue", "never freed", "young"


@dataclass(frozen=True)
class Leaks:
    """Groups with something live at the end, those with most suspect bytes first.

    :ivar what: "objects" or "pages" (blocks whose pages ended together).
    :ivar rows: label, live, live_bytes, overdue (live ones that are older than the longest life of the group's freed ones; of groups that freed none: all), overdue_bytes, verdict
        (`OVERDUE`: some are; `NEVER_FREED`; `YOUNG`), freed, lifetime_median, lifetime_p99, lifetime_longest (null where none was freed), age_median, age_oldest, born (bytes live at
        the end by the step in which they were allocated: the distribution of ages, oldest first).
    """

    what: str
    rows: pl.DataFrame


def leaks(what: str, lives: Lives, steps: Steps) -> Leaks:
    """Ages of what is live, against lifetimes."""
    end = steps.end
    table = lives.table.with_columns((pl.col("end") - pl.col("time")).alias("lifetime"), (end - pl.col("time")).alias("age"))
    freed = (
        table.lazy()
        .filter(pl.col("fate") == FREED)
        .group_by("group")
        .agg(
            pl.len().cast(pl.Int64).alias("freed"),
            pl.col("lifetime").median().alias("lifetime_median"),
            pl.col("lifetime").quantile(0.99, "higher").alias("lifetime_p99"),
            pl.col("lifetime").max().alias("lifetime_longest"),
        )
        .collect()
    )
    live = table.filter((pl.col("fate") == LIVE) & (pl.col("time") >= steps.start)).join(freed, on="group", how="left")
    live = live.with_columns((pl.col("lifetime_longest").is_null() | (pl.col("age") > pl.col("lifetime_longest"))).alias("late"))
    rows = (
        live.lazy()
        .group_by("group")
        .agg(
            pl.len().cast(pl.Int64).alias("live"),
            pl.col("bytes").sum().alias("live_bytes"),
            pl.col("late").sum().cast(pl.Int64).alias("overdue"),
            pl.col("bytes").filter("late").sum().alias("overdue_bytes"),
            pl.col("age").median().alias("age_median"),
            pl.col("age").max().alias("age_oldest"),
        )
        .collect()
        .join(freed, on="group", how="left")
        .with_columns(pl.col("freed").fill_null(0))
    )
    n = len(steps.times) - 1
    step = np.clip(np.searchsorted(steps.times, live["time"].to_numpy(), side="left") - 1, 0, n - 1)
    born = (
        np.rint(np.bincount(live["group"].to_numpy() * n + step, weights=live["bytes"].to_numpy(), minlength=len(lives.names) * n))
        .astype(np.int64)
        .reshape(-1, n)
    )
    verdict = pl.when(pl.col("freed") == 0).then(pl.lit(NEVER_FREED)).when(pl.col("overdue") > 0).then(pl.lit(OVERDUE)).otherwise(pl.lit(YOUNG))
    groups = rows["group"].to_list()
    rows = rows.with_columns(
        pl.Series("label", [lives.names[group] for group in groups], dtype=pl.String),
        verdict.alias("verdict"),
        pl.Series("born", [born[group].tolist() for group in groups], dtype=pl.List(pl.Int64)),
    )
    columns = (
        "label", "live", "live_bytes", "overdue", "overdue_bytes", "verdict", "freed", "lifetime_median", "lifetime_p99", "lifetime_longest", "age_median", "age_oldest", "born",
    )  # fmt: skip
    return Leaks(what, rows.select(columns).sort("overdue_bytes", "live_bytes", "label", descending=[True, True, False]))
