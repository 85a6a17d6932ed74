"""Where compiled code is kept between runs.

Numba's own cache notices a change of the file that holds a kernel, but not of the device functions
that the kernel calls. The folder is therefore named by a digest of all kernel sources.
"""

import hashlib
import os
from functools import cache
from pathlib import Path

import numba
import platformdirs


@cache
def kernel_cache_folder(sources: Path, versions: str) -> str | None:
    """Return the folder for the compiled code of exactly these sources, None without one.

    Parameters
    ----------
    sources : Path
        The folder of a backend; what lies in its parent counts as well.
    versions : str
        Of the compilers.

    Notes
    -----
    It lies in NUMBA_CACHE_DIR where that is set, else in the user's cache folder.
    """
    digest = hashlib.sha256(versions.encode())
    for source in sorted([*sources.glob("*.py"), *sources.parent.glob("*.py")]):
        digest.update(source.read_bytes())
    base = numba.config.CACHE_DIR or platformdirs.user_cache_dir("numbadsd", appauthor=False)
    folder = Path(base) / f"kernels-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return str(folder) if os.access(folder, os.W_OK) else None
