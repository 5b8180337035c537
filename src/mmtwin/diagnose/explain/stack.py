"""A report's stack: who asked, and from where (process, interrupt, softirq)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

FRAME = re.compile(
    r"(?P<guess>\?\s+)?(?<![\w.$])\.?(?P<name>[A-Za-z_$][\w.$]*)\+(?:0x(?P<at>[0-9a-f]+)/0x(?P<size>[0-9a-f]+)|\d+(?=[\s}]|$))(?:\s*[)]?\s*\[(?P<module>(?![0-9a-f]{8}(?:[0-9a-f]{8})?\])[A-Za-z_][\w-]*)(?:\s+[0-9a-f]+)?\])?"
)
DECODED = re.compile(r"(?m)^[ \t]*(?P<guess>\?\s+)?(?P<name>[A-Za-z_][\w.]*)\s+\((?:[^\s():]*/)?[\w.-]+\.[chS]:\d+[^\n]*\)")
"""What scripts/decode_stacktrace.sh makes of a frame: its file and line in place of the offset."""
LOCKS = re.compile(r"[ \t]*(?:#\d+:|(?:hard|soft)irqs\s+last\b|-> #\d+)")
"""Lines of lockdep, which name functions that are not on the stack."""
CALLEE = re.compile(r"\((?P<name>[A-Za-z_]\w*)(?:\.[\w.]+)?\)\s+from\s+[\[(]")
"""The first half of a line of ARM's unwinder; the second, which has the offset, may be cut."""
LIBRARY = re.compile(
    r"^_*(?:pi_)*(?:arch_)?(?:mem(?:cpy|move|set|cmp|chr|scan|zero)|str\w*cpy|str(?:n?len|n?cmp|n?cat|chr|rchr|str|sep)|copy_(?:page|from_user|to_user)|clear_page)(?:_\w+)?$"
)
"""What copies and compares for others: the mistake is their caller's."""
NOT_FRAMES = re.compile(r"\b(?:RIP|EIP|PC|LR|NIP|pc|lr|epc|ra)\b(?:\s+is\s+at|\s*:)?\s*(?:[0-9a-f]{4}:)?(?:\[<[0-9a-f]+>\]\s*)?$")
CORE = re.compile(r"^(?:out_of_memory|_*alloc_pages\w*)$")
SLAB = re.compile(r"^(?:cache_grow|cache_alloc_refill|_*kmalloc|kmem_cache_alloc|_*alloc_skb|new_slab|_*slab_alloc|allocate_slab)\w*$")
"""One step further out than what it calls: what stands between the two is a left-over, or a hook."""
INTERNAL = re.compile(
    r"^(?:_*dump_stack(?:_lvl)?|dump_trace|_*show_stack(?:_log_lvl)?|_*show_trace\w*|unwind_backtrace|dump_backtrace|_*warn\w*|panic|__report_bug|report_bug|_*might_\w+|___might_sleep|__schedule_bug"
    r"|__?_?alloc_pages\w*|_*alloc_frozen_pages\w*|vma_alloc_\w+|_*page_cache_alloc\w*|_*folio_alloc\w*|alloc_page\w*|__?get_free_pages\w*|get_zeroed_page\w*|_*kv?m?alloc\w*|_*kv?zalloc\w*|_*kv?calloc\w*|_*krealloc\w*"
    r"|_*kmem_cache_\w+|kmem_getpages|kmem_freepages|fallback_alloc|cache_grow\w*|_*cache_alloc\w*|cache_alloc_refill|_*do_cache_alloc|_*do_kmalloc\w*|new_slab\w*|_*slab_alloc\w*|allocate_slab|alloc_slab_page"
    r"|slab_out_of_memory|slab_pre_alloc\w*|_*alloc_large_kmalloc\w*|_*kmalloc_large\w*|kmalloc_order\w*|_*vmalloc\w*|_*vzalloc\w*|vmalloc_user|alloc_vmap_area|__get_vm_area\w*|get_vm_area\w*|module_alloc|module_memory_alloc|execmem_alloc\w*|vm_area_alloc_pages"
    r"|_*dma_alloc\w*|dma_generic_alloc\w*|dma_direct_alloc\w*|dmam_alloc\w*|pci_alloc_consistent|_*dma_\w*map\w*|debug_dma\w*|check_for_\w+|check_unmap|check_sync|dma_map\w*|_*pci_map\w*|swiotlb\w*|x86_swiotlb\w*|intel_alloc\w*|arm_dma_\w+|__dma_\w+|add_dma_entry|err_printk"
    r"|_*out_of_memory\w*|oom_badness|find_lock_task_mm|slob_\w+|alloc_kmem_pages\w*|__dma_alloc_buffer\w*|\w+_allocator_alloc|_*(?:raw_|rt_)?_*(?:spin|read|write)_(?:un|try)?lock\w*|oom_kill\w*|dump_header\w*|dump_unreclaimable_slab|show_free_areas|show_mem|_*show_mem|try_to_free\w*|mem_cgroup\w*|try_charge\w*|_*mem_cgroup\w*|_*memcg_(?!register)\w*|charge_memcg|__mem_cgroup_charge|__mem_cgroup_try_charge|obj_cgroup\w*|pagefault_out_of_memory|mm_fault_error|do_try_to_free\w*|shrink_\w+|page_frag_\w+|_*netdev_alloc\w*|_*napi_alloc\w*|alloc_skb\w*|_*alloc_skb\w*|kmalloc_reserve"
    r"|kasan\w*|_*asan\w*|print_report|print_address_description\w*|_*kfence\w*|save_stack|set_track\w*|stack_trace_save|_*vunmap\w*|remove_vm_area|free_vm_area|_*check_heap_object|_*check_object_size|usercopy_abort|pcpu_alloc\w*|_*alloc_percpu\w*|check_bytes\w*|check_object|check_slab|slab_err|slab_bug|object_err|print_trailer|alloc_debug_processing|free_debug_processing|alloc_single_from\w*|free_to_partial_list|alloc_consistency\w*|on_freelist|report_bug|fixup_bug|do_error_trap|do_invalid_op|exc_invalid_op|asm_exc_invalid_op|invalid_op|handle_bug|should_fail\w*|fail_dump|should_failslab|_*should_fail_\w+|mempool_alloc\w*|mempool_kmalloc|kmemdup\w*|_*memdup\w*|_*slab_free|kfree|kvfree|vfree|_*do_slab_free|panic|_*kmalloc_track\w*|alloc_pages_exact\w*|make_alloc_exact|_*pskb_\w*|skb_\w*expand_head|pagecache_get_page|_*filemap_get_folio|grow_dev_page|get_page_from_freelist|rmqueue\w*|_*rmqueue\w*|cma_alloc\w*|dma_alloc_from_cont\w*|_*schedule\w*|io_schedule\w*|msleep\w*|usleep_range\w*|_*(?:rt_)?mutex_lock\w*|_*down_(?:read|write)\w*|wait_for_(?:common|completion)\w*|preempt_schedule\w*|_*cond_resched\w*|print_unlock_imbalance_bug|lock_acquire|__ubsan\w*|_*ioremap\w*|kmemleak\w*|create_object|_*build_skb\w*|_*dev_alloc_skb|shutdown_cache|stop_one_cpu|acpi_os_allocate\w*|acpi_ut_\w*allocate\w*|lock_sock_nested|prepare_alloc_pages|stack_depot_\w+|poison_slab_object|_*free_slab|discard_slab|put_cpu_partial|unfreeze_partials|dma_sync_\w+|_*alloc_page_frag|__capable|sync_page|__slab_error|\w*_alloc_noncoherent|\w+_dma_alloc\w*|dma_pool_\w+|dma_free_\w+|usb_alloc_coherent|usb_buffer_alloc|hcd_buffer_alloc|usb_alloc_urb|report_addr|(?:skb|sk)_page_frag_refill)"
    r"(?:\.(?:part|constprop|isra|cold|llvm)[\w.]*)*$"
)
"""The allocators' own functions, and those that print: whoever is behind them asked."""
ROOTS = re.compile(
    r"^(?:entry_\w+|system_call\w*|sysenter\w*|do_syscall\w*|ret_from\w*|ret_fast\w*|syscall_\w+|el0_\w+|el0t_\w+|el1\w*|invoke_syscall|[xX]?64_sys_\w*|__x64_sys_\w+|__arm64_sys\w+|__se_sys\w*|[sS]y[sS]_\w+|ksys_\w+|do_one_initcall|kthread|worker_thread|process_one_work|start_secondary|secondary_startup\w*|cpu_startup_entry|do_idle|start_kernel|x86_64_start\w*|kernel_thread\w*|child_rip|int_ret\w*|page_fault|asm_\w+|exc_page_fault|async_page_fault|do_page_fault|common_interrupt|ret_from_intr)$"
)
PLACES = (
    ("hard interrupt", r"^(?:do_IRQ|handle_irq\w*|_*handle_irq_event\w*|handle_(?:edge|level|fasteoi)_irq|gic_handle_irq|generic_handle\w*irq\w*|asm_common_interrupt|__irq_svc|el1_irq)$"),
    ("softirq", r"^(?:_*do_softirq\w*|call_softirq|handle_softirqs|tasklet_action\w*|tasklet_hi_action\w*|net_rx_action|run_timer_softirq|run_ksoftirqd|call_timer_fn|irq_exit\w*|__irq_exit\w*|rcu_core|rcu_do_batch)$"),
    ("workqueue", r"^(?:process_one_work|worker_thread)$"),
    ("kernel start", r"^(?:start_kernel|kernel_init\w*|do_initcalls)$"),
    ("system call", r"^(?:entry_SYSCALL\w*|entry_INT80\w*|system_call\w*|sysenter\w*|do_syscall\w*|ret_fast_syscall|syscall_\w+|el0_svc\w*|invoke_syscall|[xX]?64_sys\w*|__x64_sys\w*|[sS]y[sS]_\w+|sys_\w+|csky_systemcall|do_sys\w*|do_fast_syscall\w*|do_int80\w*|entry_SYSENTER\w*|do_trap_ecall\w*|handle_sys\w*|syscall)$"),
    ("page fault", r"^(?:page_fault|async_page_fault|do_page_fault|exc_page_fault|asm_exc_page_fault|do_user_addr_fault|do_mem_abort|do_translation_fault|do_DataAbort|do_PrefetchAbort|_*do_page_fault\w*|tlb_do_page_fault\w*|data_access\w*|handle_page_fault|handle_mm_fault)$"),
    ("kernel thread", r"^(?:kthread|kernel_thread\w*|child_rip|ret_from_fork\w*|ret_from_kernel_thread|start_kernel_thread)$"),
)  # fmt: skip
"""Where a request came from, by functions below it on the stack; the first kind found wins."""


@dataclass(frozen=True)
class Stack:
    """Functions from the innermost outwards, those that are only left-overs on the stack ("?") left out where others exist.

    :ivar caller: who asked the allocator; "" if not known.
    :ivar module: of the caller; "".
    :ivar place: where it ran: one of `PLACES`, or "".
    :ivar path: the caller and those behind it; `inner` the allocators' own functions before it.
    :ivar allocates: an allocator's own function is among the frames; if not, the innermost part is missing, and `caller` need not be the caller.
    """

    frames: tuple[str, ...]
    caller: str
    module: str
    place: str
    path: tuple[str, ...] = ()
    allocates: bool = False
    inner: tuple[str, ...] = ()

    def has(self, *names: str) -> bool:
        """Whether one of the functions is on the stack, with or without what the compiler adds to names."""
        return any(frame.split(".")[0] in names for frame in self.frames)

    def matches(self, pattern: str) -> bool:
        """Whether a function's name matches."""
        return any(re.search(pattern, frame) for frame in self.frames)


PROCESS = ("workqueue", "kernel start", "system call", "page fault", "kernel thread")
FAULT = re.compile(r"^(?!handle_mm_fault).*(?:page_fault|_fault$|Abort$|data_access)")
"""Of the page fault's functions, those that are not called for other ends."""
FAULT_IN = (
    "handle_mm_fault",
    "__handle_mm_fault",
    "handle_pte_fault",
    "filemap_fault",
    "filemap_nopage",
    "do_swap_page",
    "do_anonymous_page",
    "do_no_page",
    "shmem_fault",
)
"""What a page fault calls to get its page; without one of them its own function is a left-over."""
LEFT_OVERS = 4
"""Functions before the allocator's own are what an old unwinder found on the stack; if there are more, the stack has another beginning."""
CORE_NEAR = 12
SOFT = ("net_rx_action", "__do_softirq", "handle_softirqs", "call_softirq", "run_timer_softirq")
WORK = re.compile(r"(?m)^\s*Workqueue:\s+\S")
LEFT_OVER_GAP = 2
"""Of a stack of guesses alone, so many functions further there may be another of the allocator's."""
NONE = Stack((), "", "", "")


def read_stack(text: str, kind: str = "", limit: int = 24_000) -> Stack:
    """The stack in a report's text.

    :param kind: of the report: the OOM killer is never called in an interrupt; a page fault in a system call is where a page was asked for.
    """
    text = text[:limit]
    sure: list[tuple[str, str]] = []
    guesses: list[tuple[str, str]] = []
    for match in FRAME.finditer(text):
        line_start = text.rfind("\n", 0, match.start()) + 1
        if NOT_FRAMES.search(text[line_start : match.start()]) or LOCKS.match(text, line_start):
            continue
        if match["at"] and match["size"] == match["at"]:
            continue  # the address behind a function's end: what comes next is not known
        frame = (match["name"], match["module"] or "")
        guesses.append(frame)
        if not match["guess"]:
            sure.append(frame)
    names_only = [(match["name"], "") for match in CALLEE.finditer(text)]
    decoded = [(match["name"], "", match["guess"]) for match in DECODED.finditer(text)]
    if len(decoded) > len(guesses) + 2:
        guesses, sure = [frame[:2] for frame in decoded], [frame[:2] for frame in decoded if not frame[2]]
    elif len(names_only) > len(guesses):
        sure = guesses = names_only
    certain = len(sure) >= 3 and not all(_internal(name) for name, _ in sure)
    frames = sure if certain else guesses
    # unwinders of ARM print "(callee+..) from [<..>] (caller+..)": every function twice
    frames = [frame for n, frame in enumerate(frames) if n == 0 or frame[0] != frames[n - 1][0]]
    names = tuple(name for name, _ in frames)
    caller = module = ""
    path: list[str] = []
    inner: list[str] = []
    inside = [n for n, (name, _) in enumerate(frames) if _internal(name)]
    junk = inside[0] if inside and inside[0] < LEFT_OVERS else 0
    if not certain:  # left-overs stand between the allocator's own functions, too
        while any(junk < n <= junk + LEFT_OVER_GAP for n in inside):
            junk = max(n for n in inside if n <= junk + LEFT_OVER_GAP)
        junk = max([junk, *(n for n in inside if n < CORE_NEAR and CORE.match(frames[n][0]))])
    for at, (name, owner) in enumerate(frames[junk:], junk):
        bare = name.split(".")[0]
        if not caller and (_internal(name) or any(SLAB.match(behind) for behind, _ in frames[at + 1 : at + 1 + LEFT_OVER_GAP])):
            inner.append(bare)
            continue
        if _root(bare):
            break
        if not caller:
            caller, module = bare, owner
        if len(path) < 10:
            path.append(bare)
    bare_names = [name.split(".")[0] for name in names]
    ran = set().union(*map(_places, bare_names))
    places = [label for label, _ in PLACES if label in ran and (kind != "oom" or label in PROCESS)]
    place = places[0] if places else ""
    if not certain and place == "hard interrupt" and "softirq" in ran and any(name in SOFT for name in bare_names):
        place = "softirq"  # of guesses alone the interrupt's own frames may be what was there before
    if place in ("kernel thread", "") and WORK.search(text):
        place = "workqueue"
    if certain and kind in ("oom", "page") and place == "system call":
        fault = next((n for n, name in enumerate(bare_names) if FAULT.match(name) and "page fault" in _places(name)), len(bare_names))
        if fault < _first(bare_names, "system call") and any(name in FAULT_IN for name in bare_names[:fault]):
            place = "page fault"
    if kind != "oom" and re.search(r"<\s*(?:IRQ|SOFTIRQ)\s*>", text) and place not in ("hard interrupt", "softirq"):
        place = "interrupt"
    if place == "hard interrupt" and any("softirq" in _places(name) for name in bare_names[: _first(bare_names, "hard interrupt")]):
        place = "softirq"
    return Stack(names, caller, module, place, tuple(path), bool(inside), tuple(inner))


def _first(names: list[str], place: str) -> int:
    return next((n for n, name in enumerate(names) if place in _places(name)), len(names))


@lru_cache(maxsize=4096)  # the same functions are on most stacks of a log
def _internal(name: str) -> bool:
    bare = name.split(".")[0]
    return bool(INTERNAL.match(name) or INTERNAL.match(bare) or LIBRARY.match(bare))


@lru_cache(maxsize=4096)
def _root(name: str) -> bool:
    return ROOTS.match(name) is not None


@lru_cache(maxsize=4096)
def _places(name: str) -> frozenset[str]:
    return frozenset(label for label, pattern in PLACES if re.match(pattern, name))
