"""Free runs of real recordings: the kernel's own page allocator beside one that a user wrote, in turns, in the same run.

An *event* is a row of the recording, as in the figures of the replay, so that these can be compared; a free run answers the requests that the events tell of.
The policy is examples/policies/no_stealing.py. Compiling it is not in the time.
"""

from __future__ import annotations

from bench.measure import ROOT, Figures, one_core, rates, say
from mmtwin.diagnose.whatif import load_policy
from mmtwin.recording import store
from mmtwin.replay.free_run import run, start_of
from mmtwin.replay.requests import requests

RECORDINGS = ("files-256m-1cpu-slab", "slabs-512m-4cpu-slab", "pressure-128m-2cpu-slab")
ROUNDS = 7
ABOUT = {
    "whatif_events": "rows of the recordings run freely",
    "whatif_requests": "requests they tell of, answered anew",
    "whatif_events_per_second": "events, one core, the kernel's own page allocator, median round",
    "whatif_events_per_second_slowest": "slowest round",
    "whatif_events_per_second_fastest": "fastest round",
    "whatif_policy_events_per_second": "events, one core, a page allocator written by the user, median round",
    "whatif_policy_events_per_second_slowest": "slowest round",
    "whatif_policy_events_per_second_fastest": "fastest round",
    "whatif_policy_speed": "the second rate as a share of the first",
}


def measure(rounds: int = ROUNDS) -> Figures:
    """Both rates."""
    policy = load_policy(ROOT / "examples/policies/no_stealing.py").pages
    ready = []
    for name in RECORDINGS:
        recording = store.load(ROOT / f"tests/recordings/{name}.mmrec")
        ready.append((requests(recording), len(recording.events)))
    events = sum(n for _, n in ready)
    seconds: dict[str, list[float]] = {"own": [], "policy": []}
    with one_core():
        for turn in range(rounds + 1):
            for which, rules in (("own", None), ("policy", policy)):
                spent = sum(run(start_of(asked), asked, rules).seconds for asked, _ in ready)
                if turn:  # the first is for the caches
                    seconds[which].append(spent)
    say(f"  {events:,} events in {min(seconds['own']):.3f} s, with the policy in {min(seconds['policy']):.3f} s")
    own, mine = (
        rates(key, [events] * rounds, seconds[which]) for key, which in (("whatif_events_per_second", "own"), ("whatif_policy_events_per_second", "policy"))
    )
    a, b = own["whatif_events_per_second"], mine["whatif_policy_events_per_second"]
    assert a is not None and b is not None
    return {"whatif_events": events, "whatif_requests": sum(len(asked) for asked, _ in ready)} | own | mine | {"whatif_policy_speed": round(b / a, 3)}
