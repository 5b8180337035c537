"""Why a kernel log's memory failure happened: the request, the kernel's own arithmetic with the log's numbers, the rule that refused, and what would have helped."""

from mmtwin.diagnose.explain.explain import Explanation, explain_log, explain_text

__all__ = ["Explanation", "explain_log", "explain_text"]
