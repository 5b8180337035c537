"""How compiled functions become one piece of machine code: linked first, then optimised once.

Numba treats every function that another one calls as a program of its own: it links in all that the function calls, optimises the whole, translates it to machine code,
and does all that again one level up, where the function is most often inlined and the machine code thrown away. For call chains as deep as the kernel's that is most of the
time that compiling takes. Here a function that is only called stays as it was generated, and an entry point links in all it needs, each function once.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numba
from numba.core import codegen, cpu
from numba.core.registry import cpu_target
from numba.core.typing import templates

TRIED = ("0.68.",)
"""Versions of numba whose inner workings these are; with others mmtwin compiles as numba does by itself."""
_Base: Any = getattr(codegen, "JITCodeLibrary", object)
_PARTS = {
    _Base: (
        "finalize",
        "get_pointer_to_function",
        "_raise_if_finalized",
        "_ensure_finalized",
        "_get_module_for_linking",
        "_optimize_functions",
        "_optimize_final_module",
        "_finalize_final_module",
    ),
    getattr(templates, "_OverloadFunctionTemplate", None): ("_get_impl", "_build_impl"),
}
"""What is built on."""
_thread: Any = threading.local()


def linking_once(compile_: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Compiles an entry point so. What numba compiles for others is left to numba."""

    def run(signature: Any) -> Any:
        before, collecting = getattr(_thread, "on", False), gc.isenabled()
        _thread.on = True
        gc.disable()  # millions of objects that stay until the end: looking for garbage among them finds none
        try:
            return compile_(signature)
        finally:
            _thread.on = before
            if collecting:
                gc.enable()

    return run


class _Library(_Base):  # type: ignore[misc]
    """Numba's collection of functions that are compiled together: one function and its wrappers, and what it calls."""

    _pending = False
    """Whether it has neither been linked nor optimised."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        for library in self._linking_libraries:
            self._reload_init.update(library._reload_init)
        self._finalized = self._pending = True
        if not getattr(_thread, "on", False):
            self._complete()

    def _optimize_functions(self, module: Any) -> None:
        """As numba's, without a set of passes made and run for each declaration: there are four of them to each function."""
        module.data_layout = self._codegen._data_layout
        for function in module.functions:
            if not function.is_declaration:
                passes, builder = self._codegen._function_pass_manager()
                passes.run(function, builder)

    def _complete(self) -> None:
        """What numba's ``finalize`` does, with the functions that are called further down linked in too."""
        self._pending, self._shared_module = False, None
        entered = {function.name for function in self._final_module.functions if not function.is_declaration}
        for library in _callers_first(self):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        for function in self._final_module.functions:
            if not function.is_declaration and function.name not in entered and function.name.startswith("_ZN"):
                function.linkage = "internal"  # what nobody else enters may lose arguments, change them, or be inlined where it is called only once
        self._optimize_final_module()
        self._final_module.verify()
        self._finalize_final_module()

    def get_pointer_to_function(self, name: str) -> int:
        """Machine code is asked for only where Python, or a C callback, is to enter: other functions' wrappers do not exist (0)."""
        self._ensure_finalized()
        if self._pending:
            if all(function.name != name or function.is_declaration for function in self._final_module.functions):
                return 0
            self._complete()
        return int(super().get_pointer_to_function(name))


def _callers_first(library: _Library) -> Iterator[_Library]:
    """All libraries below one, each after those that call it: the linker takes only what is missing when its turn comes."""
    seen: set[Any] = set()
    order: list[_Library] = []

    def visit(caller: _Library) -> None:
        for callee in caller._linking_libraries:
            if callee not in seen:
                seen.add(callee)
                if callee._pending:  # the others have linked in theirs
                    visit(callee)
                order.append(callee)

    visit(library)
    return reversed(order)


def install() -> bool:
    """Makes numba's code for this machine use it; whether it does. Of a numba that is not known the user hears once."""
    if not numba.__version__.startswith(TRIED) or not all(hasattr(owner, name) for owner, names in _PARTS.items() for name in names):
        warnings.warn(
            f"numba {numba.__version__} is not as mmtwin expects it ({TRIED[-1]}x): all works, but compiling, done once, takes several times as long",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    target: Any = cpu_target.target_context.codegen()
    if isinstance(cpu_target.target_context, cpu.CPUContext) and target._library_class is _Base:
        set_env = target.set_env
        target._library_class = _Library
        target.set_env = lambda name, environment: set_env(name, environment) if target._engine.is_symbol_defined(name) else None
    return target._library_class is _Library
