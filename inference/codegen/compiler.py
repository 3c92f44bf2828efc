"""C sources compiled, loaded, and kept on disk for the next process.

A library is named by a hash of its source, the compiler, its settings and the processor, so that a
stale one is never found; it is loaded only where its own hash is the one noted beside it, from a
folder that nobody else can write to. Files appear whole, by rename, so that processes that compile
the same source at once do not meet. The oldest are removed beyond 200 MB.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger("inference")

_LARGEST = 200 << 20  # bytes of the folder
_FLAGS = ["-O3", "-ftree-vectorize", "-std=c11", "-fPIC", "-shared", "-fno-math-errno",
          "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros", "-freciprocal-math",
          "-ffp-contract=fast",
          # they turn choices into branches, which are not vectorised
          "-fno-tree-pre", "-fno-thread-jumps"]  # fmt: skip
_TIMEOUT = 120.0  # seconds


class CompilerError(Exception):
    """Why a source could not be compiled or loaded."""


def compiler() -> str | None:
    """The C compiler: ``CC`` where it is set, else the first on the path."""
    for name in [os.environ.get("CC", ""), "gcc", "cc", "clang"]:
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def load(source: str) -> ctypes.CDLL:
    """The library of a source, from disk or compiled now.

    Raises ``CompilerError`` where there is no compiler, or it fails.
    """
    program = compiler()
    if program is None:
        raise CompilerError("no C compiler was found; install gcc, or name one by CC")
    flags = [*_FLAGS, *_machine_flags(program)]
    key = _digest("\0".join([source, _version(program), *flags, _processor()]).encode())
    folder = _folder()
    if folder is not None:
        kept = _from_disk(folder, key)
        if kept is not None:
            return kept
    with tempfile.TemporaryDirectory(prefix="ppl-suite-") as scratch:
        library = _compile(program, flags, source, Path(scratch))
        if folder is not None:
            with contextlib.suppress(OSError):  # a full disk: this process goes on without
                _keep(library, folder, key)
        return ctypes.CDLL(str(library))


def _compile(program: str, flags: list[str], source: str, scratch: Path) -> Path:
    text, library = scratch / "density.c", scratch / "density.so"
    try:
        text.write_text(source)
        command = [program, *flags, str(text), "-o", str(library), *_libraries(), "-lm"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f"{program} could not be run: {error}") from error
    if done.returncode != 0:
        first = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
        raise CompilerError(f"{program} failed: {first[:200]}")
    return library


# -- what is kept on disk --------------------------------------------------------------------------


def _folder() -> Path | None:
    """Where libraries are kept; None where no folder is ours alone."""
    base = os.environ.get("PPL_SUITE_CACHE") or os.environ.get("XDG_CACHE_HOME")
    named = os.environ.get("PPL_SUITE_CACHE")
    folder = Path(named) if named else Path(base or Path.home() / ".cache") / "ppl-suite"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except (OSError, RuntimeError):
        return None
    others = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    mine = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    if others or not mine:
        logger.warning("Compiled densities are not kept: others can write to %s.", folder)
        return None
    return folder


def _from_disk(folder: Path, key: str) -> ctypes.CDLL | None:
    library, note = folder / f"{key}.so", folder / f"{key}.sha256"
    try:
        content = library.read_bytes()
        if _digest(content) != note.read_text().strip():
            logger.warning("A compiled density on disk is damaged; it is compiled again.")
            return None
        loaded = ctypes.CDLL(str(library))
        os.utime(library)
    except OSError:
        return None
    return loaded


def _keep(library: Path, folder: Path, key: str) -> None:
    content = library.read_bytes()
    for name, data in ((f"{key}.so", content), (f"{key}.sha256", _digest(content).encode())):
        handle, path = tempfile.mkstemp(dir=folder, prefix=".")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(path, folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
    _prune(folder)


def _prune(folder: Path) -> None:
    """Remove what was used longest ago, beyond the size that the folder may have."""
    libraries = sorted(folder.glob("*.so"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for path in libraries:
        total += path.stat().st_size
        if total > _LARGEST:
            path.unlink(missing_ok=True)
            path.with_suffix(".sha256").unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- the machine -----------------------------------------------------------------------------------


@functools.cache
def _version(program: str) -> str:
    """What tells one installation of a compiler from another."""
    path = os.path.realpath(program)
    about = os.stat(path)
    return f"{path} {about.st_size} {about.st_mtime_ns}"


@functools.cache
def _processor() -> str:
    """The processor's instructions, for which ``-march=native`` compiles."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kinds = ("flags", "Features", "model name", "cpu family", "model")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip() in kinds}))


@functools.cache
def _machine_flags(program: str) -> tuple[str, ...]:
    """Instructions of this processor, and threads, where the compiler knows them."""
    if platform.system() != "Linux":
        return ()
    flags = ["-march=native", "-fopenmp"]
    gnu = "clang" not in os.path.basename(os.path.realpath(program))
    if gnu and "avx512f" in _processor():
        flags.append("-mprefer-vector-width=512")
    return tuple(flags)


def _libraries() -> list[str]:
    """The library libmvec holds the vectorised functions of the GNU C library."""
    return (
        ["-lmvec"] if platform.libc_ver()[0] == "glibc" and platform.machine() == "x86_64" else []
    )
