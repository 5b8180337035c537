"""Who fragments, who grows, who leaks, who wastes: `blame` puts the four together, each has a module of its own."""

from mmtwin.diagnose.blame.blame import SECTIONS, Blame, Watch, blame

__all__ = ("SECTIONS", "Blame", "Watch", "blame")
