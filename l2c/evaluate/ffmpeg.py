"""The ffmpeg that the package `imageio-ffmpeg` brings (libvmaf, libx265, libaom, libvvenc)."""

from __future__ import annotations

import functools
import subprocess

from l2c.errors import BackendError

_SECONDS = 600.0


@functools.lru_cache(maxsize=1)
def executable() -> str:
    """Path of the program. Raises BackendError: there is none."""
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        raise BackendError("this needs the ffmpeg of imageio-ffmpeg: pip install 'l2c[eval]'") from None


@functools.lru_cache(maxsize=1)
def version() -> str:
    """As the program says it, such as "7.0.2-static"."""
    first = subprocess.run([executable(), "-version"], capture_output=True, check=True).stdout.decode().splitlines()[0]
    return first.split(" version ")[-1].split(" ")[0]


@functools.lru_cache(maxsize=1)
def _parts() -> str:
    lists = (
        subprocess.run([executable(), "-hide_banner", what], capture_output=True, check=True).stdout.decode()
        for what in ("-encoders", "-filters")
    )
    return "\n".join(lists)


def require(part: str) -> None:
    """Raises BackendError: the program lacks an encoder or filter."""
    if f" {part} " not in _parts():
        raise BackendError(f"the ffmpeg at hand has no {part}")


def run_ffmpeg(arguments: list[str], data: bytes = b"") -> bytes:
    """Run the program with `data` on its standard input; returns its standard output.

    Raises:
        BackendError: there is no ffmpeg, it failed (with its last words), or took longer than ten minutes.
    """
    command = [executable(), "-hide_banner", "-nostdin", "-loglevel", "error", "-y", *arguments]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise BackendError(f"ffmpeg did not finish in {_SECONDS:.0f} s") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise BackendError(f"ffmpeg failed: {words[-1]}")
    return done.stdout
