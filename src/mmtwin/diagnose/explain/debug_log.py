"""Reports of slub_debug, SLAB's debugging, KASAN and KFENCE: memory that was misused. Nothing was refused (mm/slub.c, mm/slab.c, mm/kasan/report.c, mm/kfence/report.c)."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from mmtwin.diagnose.explain.common import request_of
from mmtwin.diagnose.explain.model import DECIDED, PROBABLE, Remedy, Report, Segment, Verdict
from mmtwin.diagnose.explain.stack import LIBRARY

SLUB_HEAD = re.compile(r"BUG\s+(\S+?(?:\s+\S+){0,3}?)(?:\s+\((?:[^)]{0,120})\))?:\s+([^\n]{1,200})")
BYTES = re.compile(
    r"(?:\[(?P<what>[\w ]+? overwritten)\]\s+)?(?:INFO:\s+)?0x(?P<first>[0-9a-f]+)-0x(?P<last>[0-9a-f]+)(?:\s+@offset=(?P<offset>\d+))?\.?\s+First\s+byte\s+(?:0x)?(?P<got>[0-9a-f]+)\s+instead\s+of\s+(?:0x)?(?P<want>[0-9a-f]+)"
)
OBJECT = re.compile(r"Object\s+0x(?P<address>[0-9a-f]+)\s+@offset=(?P<offset>\d+)")
LARGEST_OBJECT = 1 << 16
"""Bytes; addresses further apart are not of one object, but hashed."""
TRACK = re.compile(r"(Allocated|Freed)\s+in\s+(\S+?)(?:\+0x[0-9a-f]+/0x[0-9a-f]+)?(?:\s+\[([\w-]+)[^\]]*\])?\s+age=(\d+)\s+cpu=(\d+)\s+pid=(-?\d+)")
DUMP = re.compile(r"(Redzone|Object|Padding|Bytes\s+b4)\s+(?:0x)?[0-9a-f]{6,16}:\s+((?:[0-9a-f]{2}\s+){1,16})")
KASAN = re.compile(
    r"(?:BUG:\s+)?\b(KAS[Aa][Nn]|KFENCE|KMSAN):\s+([\w/ -]+?)\s+(?:on\s+address|in\s+([\w.$]+)(?:\+0x\S*)?(?:[ \t]+\[(?!inline)([\w-]+)[^\]]*\])?|(?=\n|$))"
)
ACCESS = re.compile(r"\b([Rr]ead|[Ww]rite|[Ff]ree)\s+(?:of\s+size\s+(\d+)\s+)?(?:at|of)\s+(?:addr\s+)?(?:0x)?([0-9a-f*]+)\s+by\s+task\s+(\S.*?)/(\d+)")
CACHE_OF = re.compile(r"belongs\s+to\s+the\s+cache\s+(\S+)\s+of\s+size\s+(\d+)")
WHERE = re.compile(r"located\s+(\d+)\s+bytes\s+(inside\s+of|to\s+the\s+right\s+of|to\s+the\s+left\s+of)\s+(?:allocated\s+|freed\s+)?(\d+)-byte\s+region")
POISON_FREE, POISON_INUSE, POISON_END = 0x6B, 0x5A, 0xA5
SLUB_CODES: tuple[tuple[str, str, str], ...] = (
    (r"Object padding overwritten|Alignment padding overwritten|Padding overwritten", "out_of_bounds", "the filler behind an object's own data was written"),
    (r"End Poison overwritten|Poison overwritten", "use_after_free", "an object was written after it was freed"),
    (r"Left Redzone overwritten", "out_of_bounds", "bytes just before an object were written"),
    (r"Right Redzone overwritten|kmalloc Redzone overwritten|Redzone overwritten", "out_of_bounds", "bytes just behind an object were written"),
    (r"Object already free", "double_free", "an object was freed twice"),
    (r"Invalid object pointer|Attempt to free object", "invalid_free", "something was freed that is no object of this cache"),
    (r"Objects remaining", "objects_remaining", "the cache was destroyed while objects were in use"),
    (r"Freepointer corrupt|Freechain corrupt|Freelist Pointer|Wrong object count|Wrong number of objects|objects \d+ > max|inuse \d+ > max|page slab pointer|Not a valid slab page|Slab disabled|Slab has", "corruption",
     "the cache's own list or counters were overwritten"),
)  # fmt: skip
KASAN_CODES = (
    ("use-after-free", "use_after_free"), ("use after free", "use_after_free"), ("out of bounds", "out_of_bounds"), ("double-free", "double_free"), ("invalid-free", "invalid_free"), ("invalid free", "invalid_free"), ("out-of-bounds", "out_of_bounds"), ("null-ptr", "null_pointer"),
    ("wild-memory", "null_pointer"), ("user-memory", "null_pointer"), ("uninit", "uninitialised"), ("memory corruption", "out_of_bounds"), ("invalid read", "null_pointer"), ("invalid write", "null_pointer"), ("slab-use", "use_after_free"),
)  # fmt: skip


def read(segment: Segment) -> Report:
    """The report, judged."""
    if segment.kind == "kasan":
        verdict, title = _kasan(segment)
    elif segment.kind == "slab_debug":
        verdict, title = _classic(segment), "SLAB debugging"
    elif segment.kind == "usercopy":
        verdict, title = _usercopy(segment), "usercopy check"
    else:
        verdict, title = _slub(segment), "SLUB debugging"
    return Report(segment.kind, title, segment.line, segment.seconds, segment.kernel, request_of(segment, 4, None, None), verdict, stack=segment.stack)


def _tracks(text: str) -> list[dict[str, Any]]:
    return [
        {"event": m[1].lower(), "function": m[2], "module": m[3] or "", "age_jiffies": int(m[4]), "cpu": int(m[5]), "pid": int(m[6])}
        for m in list(TRACK.finditer(text))[:4]
    ]  # fmt: skip


def _track_words(tracks: list[dict[str, Any]]) -> list[str]:
    said = []
    for track in tracks[:2]:
        module = f" [{track['module']}]" if track["module"] else ""
        said.append(f"{track['event'].capitalize()} in {track['function']}{module} by pid {track['pid']}, {track['age_jiffies']:,} jiffies before.")
    return said


def _slub(segment: Segment) -> Verdict:
    text = segment.text
    head = SLUB_HEAD.search(text)
    cache, message = (head[1], head[2].strip()) if head else ("", "")
    nearby = segment.before[-400:] + text
    found = BYTES.search(text) or BYTES.search(segment.before[-400:])
    what = next((m[0] for m in [re.search(r"\[([\w ]+ overwritten)\]", nearby)] if m and "Object corrupt" in message), message)
    code, words = next(((code, words) for pattern, code, words in SLUB_CODES if re.search(pattern, what)), ("corruption", "the debug check failed"))
    tracks = _tracks(text)
    details: dict[str, Any] = {"cache": cache, "message": message, "tracks": tracks}
    why: list[str] = []
    missing: list[str] = []
    before = False
    who = next((t for t in tracks if t["event"] == ("freed" if code == "use_after_free" else "allocated")), tracks[0] if tracks else None)
    head_text = f"{words[0].upper()}{words[1:]} (cache {cache}: {message})." if cache else f"{words[0].upper()}{words[1:]}."
    if found:
        got, want = int(found["got"], 16), int(found["want"], 16)
        obj = OBJECT.search(text)
        at = int(found["offset"]) - int(obj["offset"]) if obj and found["offset"] else None
        if obj and at is None and abs(int(found["first"], 16) - int(obj["address"], 16)) < LARGEST_OBJECT:
            at = int(found["first"], 16) - int(obj["address"], 16)
        if at is not None and at < 0 and code == "out_of_bounds" and "Padding" not in what:
            words, before = "bytes just before an object were written", True
            head_text = f"{words[0].upper()}{words[1:]} (cache {cache}: {message})."
            why.append(
                "Either this object was written before its start, or the one before it past its end: the owner named below is not certain to be at fault."
            )
        details |= {"byte": got, "expected": want, "offset_in_object": at, "hashed_addresses": _hashed(text)}
        where = f"byte {at} of the object" if at is not None and at >= 0 else f"{-at} bytes before the object" if at is not None else "a byte"
        why.append(f"The first wrong one is {where}: 0x{got:02x} instead of 0x{want:02x}.")
        changed = _wrong_bytes(text, want) if want == POISON_FREE else None
        if changed is not None:
            details["wrong_bytes"] = changed
        if want == POISON_FREE and changed == 1 and got in (POISON_FREE + 1, POISON_FREE - 1):
            why.append(
                f"Exactly one byte, changed by one: a counter or reference inside the freed object was {'incremented' if got > want else 'decremented'}, not copied over."
            )
        elif want == POISON_FREE and changed:
            why.append(f"{changed} bytes of the freed object differ from the poison.")
        if details["hashed_addresses"]:
            why.append("The addresses are hashed (%p): only the @offset values can be compared.")
    why += _track_words(tracks)
    if code == "use_after_free":
        why.append(
            "The process in the report is the one that found it, usually not the one that did it: look at who freed the object and who still held a pointer."
        )
        missing.append("who wrote: the check comes when the object is handed out again, some time after the write")
        if re.search(r"\b6b6b6b[0-9a-f]{1,2}\b|6b6b6b6b", segment.before[-3000:]):
            why.append("An oops just before it used an address made of the poison 0x6b: a pointer was read from a freed object, very likely the same mistake.")
    elif code == "out_of_bounds":
        missing.append("when it was written: the check comes at the next allocation or free")
    freed = next((t["function"] for t in tracks if t["event"] == "freed"), "")
    fixes = {
        "use_after_free": Remedy(
            "caller",
            f"in {who['function'] if who else 'the code that frees it'}: stop every user (timers, work, URBs) before the object is freed",
            "nobody writes it afterwards",
        ),
        "out_of_bounds": Remedy(
            "caller",
            f"check the lengths written to what {who['function'] if who else 'the owner'} allocated"
            + (", and to the object before it in the slab" if before else ""),
            "the neighbouring object stays whole",
        ),
        "double_free": Remedy(
            "caller", f"one owner for each free{f' (the first was in {freed})' if freed else ''}; set the pointer to NULL after it", "the second free goes away"
        ),
        "invalid_free": Remedy("caller", "free what was allocated, with the matching function", "the pointer is the object's start"),
        "objects_remaining": Remedy(
            "kernel",
            "a newer kernel, or no kernel memory accounting (cgroup.memory=nokmem)",
            "it is a control group's copy of the cache, which the kernel destroys by itself",
        )
        if re.search(r"\(\d+:", str(details.get("cache", "")))
        else Remedy("caller", "free every object before kmem_cache_destroy", "the cache can go"),
        "corruption": Remedy("look", "the first report in the log", "later ones are often consequences"),
    }
    if code == "objects_remaining":
        more = Remedy("look", "slub_debug=U on the command line (or kmemleak)", "names who allocated the objects that are left")
    else:
        more = Remedy("look", "a kernel with CONFIG_KASAN, same test", "stops at the access itself and names it")
    return Verdict(
        code,
        DECIDED,
        head_text + " Nothing was refused; this is a bug that a debug check found.",
        tuple(why),
        missing=tuple(missing),
        remedies=(fixes[code], more),
        details=details,
    )


def _hashed(text: str) -> bool:
    """Whether addresses are hashed: the rows of an object are 16 bytes apart otherwise."""
    rows = [int(m, 16) for m in re.findall(r"\bObject\s+(?:0x)?([0-9a-f]{8,16}):\s", text)[:6]]
    return len(rows) > 1 and any(b - a != 16 for a, b in pairwise(rows))


def _wrong_bytes(text: str, want: int) -> int | None:
    """Bytes of the object's dump that are neither poison nor its end mark."""
    wrong = rows = 0
    for match in DUMP.finditer(text):
        if match[1] != "Object":
            continue
        values = [int(b, 16) for b in match[2].split()]
        rows += 1
        wrong += sum(b != want for b in values)
    if not rows:
        return None
    return wrong - (1 if re.search(r"6b\s+a5\b", text) else 0)


def _kasan(segment: Segment) -> tuple[Verdict, str]:
    text = segment.text
    heads = list(KASAN.finditer(text[:1500]))
    head = heads[-1] if heads else None  # of functions that the compiler put into one another, the outermost is real
    access, cache, where = ACCESS.search(text), CACHE_OF.search(text), WHERE.search(text)
    tool, message, function, module = (head[1], head[2].strip(), head[3] or "", head[4] or "") if head else ("KASAN", "", "", "")
    code = next((code for words, code in KASAN_CODES if words in message), "corruption")
    if function == "range":  # an oops at an address near 0 or a wild one; the instruction says where
        function = match[1] if (match := re.search(r"\bRIP:\s+(?:[0-9a-f]+:)?([A-Za-z_][\w.]*)\+0x", text)) else ""
    inside = function if LIBRARY.match(function) and segment.stack.caller else ""
    if inside:
        function, module = segment.stack.caller, segment.stack.module
    if code == "invalid_free" and tool == "KFENCE" and re.search(r"\bfreed\s+by\s+task\b", text):
        code, message = "double_free", f"{message} of an object that was freed before"
    invalid = re.match(r"invalid\s+(?:read|write)", message) is not None
    details: dict[str, Any] = {"message": message, "function": function, "module": module}
    said = (
        f"{tool}: {message}" + (f" in {function}" + (f" [{module}]" if module else "") if function else "") + (f", by way of {inside}" if inside else "") + "."
    )
    why = []
    if access:
        details |= {"access": access[1].lower(), "bytes": int(access[2]) if access[2] else None, "task": access[4], "pid": int(access[5])}
        why.append(f"{access[1].capitalize()}{f' of {access[2]} bytes' if access[2] else ''} by {access[4]} (pid {access[5]}).")
    if cache:
        details |= {"cache": cache[1], "object_size": int(cache[2])}
        why.append(f"The object is of the cache {cache[1]} ({cache[2]} bytes).")
    if where:
        details |= {"distance": int(where[1]), "region_bytes": int(where[3]), "side": " ".join(where[2].split())}
        side = {"inside": "inside", "to the right": "behind the end of", "to the left": "before"}[" ".join(where[2].split()).removesuffix(" of")]
        why.append(f"The access is {where[1]} bytes {side} {'an' if side != 'inside' else 'the'} object of {where[3]} bytes.")
    for event in ("Allocated", "Freed"):
        if match := re.search(rf"(?:{event}|\b{event.lower()})\s+by\s+task\s+(\d+)[^\n]*:?((?:\n[^\n]*){{1,14}})", text):
            names = [m[1] for m in re.finditer(r"([A-Za-z_][\w.]*)\+0x", match[2])]
            owner = next(
                (
                    name
                    for name in names
                    if not re.match(
                        r"kasan|__kasan|save_stack|stack_trace|set_track|kmem_cache|kmalloc|__kmalloc|kzalloc|kfree|slab|__do_kmalloc|__kfree|___cache|__cache",
                        name,
                    )
                ),
                "",
            )
            if owner:
                details[event.lower()] = {"pid": int(match[1]), "function": owner}
                why.append(f"{event} in {owner} by pid {match[1]}.")
    fix = {
        "use_after_free": ("keep a reference while it is used, or stop the users before the free", "the access no longer meets freed memory"),
        "out_of_bounds": ("check the length or index against the object's size", "the access stays inside"),
    }
    if tool == "KFENCE" and message == "memory corruption":  # `function` is where it was noticed, when the object was freed
        function = ""
        fix["out_of_bounds"] = ("find who wrote beside the object, from its allocation to this free", "the free only found the damage")
    remedy = fix.get(code, ("see the access and the stacks in the report", "they name the places that do not agree"))
    verdict = Verdict(
        code,
        DECIDED if head and not invalid else PROBABLE,
        said + " Nothing was refused; this is a bug in the code that made the access.",
        tuple(why),
        missing=("which mistake: KFENCE knows no object at that address; the pointer is wild, or far from its object",) if invalid else (),
        remedies=(Remedy("caller", f"{remedy[0]}{f' in {function}' if function else ''}", remedy[1]),),
        details=details,
    )
    return verdict, f"{tool} report"


def _classic(segment: Segment) -> Verdict:
    text = segment.text[:6000]
    error = re.search(r"slab\s+error\s+in\s+(\w+)\(\):\s+cache\s+[`']([^']+)':\s+([^\n]+)", text)
    if error and error[1] != "check_poison_obj":  # that one says it of a free object whose bytes stand before
        message = error[3].strip()
        code = (
            "double_free"
            if "double free" in message and "overwritten" not in message
            else "objects_remaining"
            if "objects" in message
            else "out_of_bounds"
            if "outside" in message or "overwritten" in message or "Redzone" in message
            else "corruption"
        )
        certainty = PROBABLE if "double free, or" in message else DECIDED
        head = f"SLAB's check of cache {error[2]} failed: {message}."
        missing = ("which of the two: SLAB prints the same words for a double free and for a write outside the object",) if certainty == PROBABLE else ()
        return Verdict(
            code,
            certainty,
            head + " Nothing was refused.",
            missing=missing,
            remedies=(Remedy("look", "a kernel with CONFIG_KASAN (4.0 and newer, not on 32-bit x86) or CONFIG_DEBUG_PAGEALLOC", "names the access"),),
            details={"cache": error[2], "message": message},
        )
    found = re.search(r"Slab\s+corruption[^:]*:\s+(\S+)\s+start=", text)
    cache = found[1] if found else error[2] if error else ""
    user = re.search(r"Last\s+user:\s+\[<[^>]*>\]\s*\(?([\w.]+)", text)
    why = (f"Last user: {user[1]}, which freed it or had it before.",) if user else ()
    return Verdict("use_after_free", DECIDED, f"A free object{f' of the cache {cache}' if cache else ''} was written (its poison is damaged). Nothing was refused.", why,
                   remedies=(Remedy("look", "a kernel with CONFIG_KASAN (4.0 and newer, not on 32-bit x86) or CONFIG_DEBUG_PAGEALLOC", "names the access"),), details={"cache": cache})  # fmt: skip


def _usercopy(segment: Segment) -> Verdict:
    match = re.search(r"[Kk]ernel\s+memory\s+(\w+)\s+attempt\s+detected\s+(?:to|from)\s+([^\n!]+)", segment.text)
    if "whitelist" in segment.head:
        return Verdict(
            "out_of_bounds", DECIDED, f"A copy {'to' if match and match[1] == 'exposure' else 'from'} user space touched a part of {match[2].strip() if match else 'an object'} that its cache does not allow to be copied. Nothing was refused: hardened usercopy warns.",
            ("The copy is inside the object; only the part that kmem_cache_create_usercopy names may go to or come from user space.",), details={"message": match[0] if match else ""},
            remedies=(Remedy("caller", "kmem_cache_create_usercopy with the field's offset and size, or a copy by way of a buffer of its own", "the copy is allowed then"),),
        )  # fmt: skip
    head = f"A copy {'to' if match and match[1] == 'exposure' else 'from'} user space would have crossed the bounds of {match[2].strip() if match else 'an object'}; hardened usercopy stopped it."
    return Verdict(
        "out_of_bounds",
        DECIDED,
        head,
        remedies=(
            Remedy(
                "caller",
                f"check the length before copy_to_user or copy_from_user{f' in {segment.stack.caller}' if segment.stack.caller else ''}",
                "the copy stays inside the object",
            ),
        ),
        details={"message": match[0] if match else ""},
    )
