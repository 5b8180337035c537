"""What would have happened under other settings, or with another allocator: a recording's requests, answered anew."""

from mmtwin.diagnose.whatif.policy import load as load_policy
from mmtwin.diagnose.whatif.settings import Settings, parse_settings
from mmtwin.diagnose.whatif.whatif import Case, WhatIf, whatif

__all__ = ["Case", "Settings", "WhatIf", "load_policy", "parse_settings", "whatif"]
