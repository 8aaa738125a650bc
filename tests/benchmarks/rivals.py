"""Rivals that cannot live in this project's environment: one of their own, made when it is first needed.

imagededup needs torchvision, whose builds bring another torch: ``.venv-rivals`` takes about 4 GB and two minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / ".venv-rivals"
PACKAGES = ("imagededup==0.3.3.post2", "torch==2.14.1", "torchvision==0.29.1")


def python() -> Path | None:
    """The interpreter of the rivals' environment; None, and a line saying why, where it cannot be made."""
    made = FOLDER / ".made"
    if not made.exists() or made.read_text() != "\n".join(PACKAGES):
        print(f"  making {FOLDER.name} with {', '.join(PACKAGES)}", flush=True)
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(FOLDER)],
            [str(FOLDER / "bin" / "pip"), "install", "--quiet", *PACKAGES],
        ):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                print(f"  {' '.join(command)} failed: {done.stdout.strip().splitlines()[-1:]}", flush=True)
                return None
        made.write_text("\n".join(PACKAGES))
    return FOLDER / "bin" / "python"


_IMAGEDEDUP = """
import json, sys, time
from imagededup.methods import PHash
folder, out, workers, bits = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
method = PHash(verbose=False)
begun = time.perf_counter()
hashes = method.encode_images(image_dir=folder, num_enc_workers=workers)
hashed = time.perf_counter()
found = method.find_duplicates(encoding_map=hashes, max_distance_threshold=bits, num_dist_workers=workers)
done = time.perf_counter()
pairs = sorted({tuple(sorted((a, b))) for a, others in found.items() for b in others})
json.dump({"hashing": hashed - begun, "search": done - hashed, "pairs": pairs}, open(out, "w"))
"""


def imagededup(interpreter: Path, folder: Path, workers: int, bits: int) -> dict[str, Any]:
    """One run of imagededup's PHash on a folder of pictures.

    Returns:
        ``hashing`` and ``search`` in seconds, starting the process and loading its libraries left out, and
        ``pairs`` of file names.
    """
    with tempfile.TemporaryDirectory() as scratch:
        script, out = Path(scratch) / "run.py", Path(scratch) / "out.json"
        script.write_text(_IMAGEDEDUP)
        command = [str(interpreter), str(script), str(folder), str(out), str(workers), str(bits)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads(out.read_text())
        return result
