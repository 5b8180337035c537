"""The three decorators of compiled code; the only module that imports numba.

Every function below them is plain Python over numpy tables. With ``NUMBA_DISABLE_JIT=1`` the same functions run in the interpreter,
under a debugger or coverage; with ``NUMBA_BOUNDSCHECK=1`` an index out of range is an IndexError instead of garbage.

Compiled code is cached under a digest of all sources, numba's version and its modes, because numba's own cache neither notices a change in
another module nor tells checked from unchecked code.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, ParamSpec, TypeVar, cast

import numba
from numba.core import cgutils, types
from numba.core import config as numba_config
from numba.core.typing.templates import infer, infer_global, make_overload_template
from numba.extending import intrinsic, overload, register_jitable

from mmtwin import _link

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

config: Any = numba_config
"""Numba sets its options at run time."""

P = ParamSpec("P")
R = TypeVar("R")


def cache_base() -> Path:
    """Where compiled code is kept: ``$MMTWIN_CACHE``, else ``mmtwin`` in the user's cache directory."""
    base = os.environ.get("MMTWIN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmtwin"
    return Path(base)


def _digest() -> str:
    root = Path(__file__).parent
    parts = hashlib.sha256(f"{root} {numba.__version__} {config.BOUNDSCHECK} {config.OPT} {config.DEBUGINFO_DEFAULT}".encode())
    for path in sorted(
        [
            *(root / name for name in ("gfp.py", "units.py", "_jit.py", "_link.py")),
            *(root / "mm").glob("*.py"),
            *(root / "user").glob("*.py"),
            *(root / "replay").glob("*.py"),
        ]
    ):
        parts.update(path.read_bytes())
    return parts.hexdigest()[:16]


def _cache() -> Path:
    """The directory for this version's code; one for temporary files where the user's cannot be written (numba itself would fall back to the source tree)."""
    digest = _digest()
    for base in (cache_base(), Path(tempfile.gettempdir()) / f"mmtwin-{os.getuid()}"):
        try:
            (base / digest).mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.access(base / digest, os.W_OK):
                return base / digest
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="mmtwin-"))


CACHE = _cache()
LINKED = _link.install()
"""Whether numba is one whose inner workings are known (`_link.py`)."""


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """An entry point: compiled on first call and cached; releases the interpreter lock."""
    saved, config.CACHE_DIR = config.CACHE_DIR, str(CACHE)
    try:
        compiled: Any = numba.njit(cache=True, nogil=True)(function)
    finally:
        config.CACHE_DIR = saved
    if fcntl is not None and not config.DISABLE_JIT:
        compile_ = _link.linking_once(compiled.compile) if LINKED else compiled.compile
        compiled.compile = _once(compile_, CACHE / f"{function.__module__}.{function.__name__}.lock")
    return cast("Callable[P, R]", compiled)


def _once(compile_: Callable[[Any], Any], path: Path) -> Callable[[Any], Any]:
    """What one process compiles, others that need it at the same time wait for and read from the cache, instead of compiling it as well."""

    def run(signature: Any) -> Any:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return compile_(signature)

    return run


def callback(signature: str, function: Callable[P, R], cache: bool = True) -> Callable[P, R]:
    """A function of integers that compiled code gets as an argument and calls through its address: compiled by itself, so another can take its place.

    :param cache: keep the compiled code; not for closures, whose cells the cache does not see.
    """
    if config.DISABLE_JIT:
        return function
    saved, config.CACHE_DIR = config.CACHE_DIR, str(CACHE)
    try:
        return cast("Callable[P, R]", numba.cfunc(signature, cache=cache)(function))
    finally:
        config.CACHE_DIR = saved


def call(function: Any, *arguments: int) -> int:
    """Calls what `callback` has made from Python."""
    return int(function.ctypes(*arguments) if hasattr(function, "ctypes") else function(*arguments))


def _called(function: Callable[P, R], inline: bool, counted: bool) -> Callable[P, R]:
    """Registers a function that compiled code may call.

    Numba's ``register_jitable`` compiles a function anew for callers with other options, and lets it inherit from them what is not given: whatever an inlined function calls
    would be inlined too. Here all options are given, and there is one copy. A function that is registered already, in another way, becomes two.
    """
    if function in _registered:
        function = _copy(function)
    _registered.add(function)
    if not LINKED:
        given = ({"forceinline": True} if inline else {}) | ({} if counted else {"_nrt": False})
        wrapped: Callable[P, R] = (register_jitable(**given) if given else register_jitable)(function)
        return wrapped
    options = {"nopython": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "forceinline": inline, "_nrt": counted}
    template: Any = make_overload_template(function, lambda *_, **__: function, options, strict=False, inline="never")
    template._get_impl = _one_implementation
    infer(template)
    infer_global(function, types.Function(template))
    return function


_registered: set[Callable[..., Any]] = set()


def _copy(function: Callable[P, R]) -> Callable[P, R]:
    """The same function as another object."""
    f: Any = function
    other = FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    other.__doc__, other.__module__, other.__annotations__ = f.__doc__, f.__module__, f.__annotations__
    return cast("Callable[P, R]", other)


def _one_implementation(template: Any, args: Any, kws: Any) -> Any:
    """The implementation for these types of arguments, whoever calls; integers are passed in 64 bits, or there would be one for each width that a field has."""
    integers: Any = types.Integer
    args = tuple(types.int64 if isinstance(t, integers) and t.bitwidth < 64 else t for t in args)
    key = template.context, args, tuple(kws.items())
    found = template._impl_cache.get(key)
    return template._build_impl(key, args, kws) if found is None else found


def inner(function: Callable[P, R]) -> Callable[P, R]:
    """Everything an entry point calls: plain Python outside, inlined without reference counting inside (the caller keeps the tables alive)."""
    return _called(function, True, False)


def maker(function: Callable[P, R]) -> Callable[P, R]:
    """For a function that makes arrays (of memory that others own)."""
    return _called(function, False, True)


def inline_routine(function: Callable[P, R]) -> Callable[P, R]:
    """As `inner`, for a function that gets a handle and looks up its tables itself; those it does not use cost nothing."""
    return _called(function, True, True)


def routine(function: Callable[P, R]) -> Callable[P, R]:
    """As `slow`, for a function that gets a handle and looks up its tables itself."""
    return _called(function, False, True)


def slow(function: Callable[P, R]) -> Callable[P, R]:
    """Cold paths: as `inner`, but not inlined. Of a function that is registered already it makes a second one."""
    return _called(function, False, False)


def is_compiled(entry_point: str) -> bool:
    """Whether this entry point's code has been compiled before (the replay's takes about half a minute, once)."""
    return bool(config.DISABLE_JIT) or any(CACHE.rglob(f"*{entry_point}*.nbc"))


def pointer(address: int) -> Any:
    """An address as a pointer for `carray`; compiled code has its own version."""
    return ctypes.c_void_p(int(address))


def _typed_inttoptr(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


_inttoptr: Any = intrinsic(_typed_inttoptr)
overload(pointer)(lambda address: lambda address: _inttoptr(address))
_numba: Any = numba
carray: Any = _numba.carray
"""An array of memory that others own: pointer, shape, dtype."""
