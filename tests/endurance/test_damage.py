"""A thousand damaged checkpoints, and disks that really are full: nothing wrong is loaded, nothing good lost.

`PALM_DAMAGE_CASES=100000` goes on for longer, `PALM_DAMAGE_SEED=1` elsewhere.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

# The same damage as the short sample there.
from damage import NEW, OLD, assert_is_state, save_state, undetected

from palm import CheckpointError

CASES = int(os.environ.get("PALM_DAMAGE_CASES", "1000"))
SEED = int(os.environ.get("PALM_DAMAGE_SEED", "0"))
FULL = max(20, CASES // 5)


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_thousand_damaged_checkpoints_are_all_found(tmp_path):
    path = save_state(OLD, tmp_path / "checkpoint")
    rng = random.Random(SEED)
    missed = [found for _ in range(CASES) if (found := undetected(path, rng))]
    print(f"\n{CASES} cases, {CASES - len(missed)} detected by load_arrays and by load_progress")
    assert missed == []
    assert_is_state(path, OLD)


WRITE_WITHIN = """
import json, random, resource, signal, sys
from pathlib import Path
from damage import NEW, save_state
from palm import CheckpointError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is then an error, EFBIG
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
folder, cases, largest, seed = Path(sys.argv[1]), *map(int, sys.argv[2:])
rng = random.Random(seed)
for case in range(cases):
    limit = rng.randint(0, largest)
    old = rng.random() < 0.5
    before = sorted(folder.rglob("*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        save_state(NEW, folder / ("old" if old else "new"), overwrite=old)
        end = "saved"
    except CheckpointError as error:
        end = "refused" if "File too large" in str(error) else str(error)
    except BaseException as error:
        end = repr(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(json.dumps([limit, end, sorted(folder.rglob("*")) == before]), flush=True)
"""


def test_files_that_may_not_grow_leave_the_older_checkpoint_and_no_litter(tmp_path):
    """Writes that really fail in the middle, without privileges: a limit on the size of each file."""
    old = save_state(OLD, tmp_path / "old")
    before = contents(tmp_path)
    largest = max(file.stat().st_size for file in old.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", WRITE_WITHIN, str(tmp_path), str(FULL), str(largest - 1), str(SEED)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    refused = [case for case in cases if case[1:] == ["refused", True]]
    print(f"\n{len(cases)} saves within a limit, {len(refused)} refused with nothing left behind")
    assert [case for case in cases if case not in refused] == []
    assert len(cases) == FULL
    assert contents(tmp_path) == before
    assert_is_state(old, OLD)


@pytest.fixture
def disk(tmp_path):
    """A disk of 512 KiB, in memory."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine mounts no disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def leave_free(folder: Path, wanted: int) -> None:
    """Fill the disk but for so many bytes."""
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    filler.write_bytes(bytes(free(folder) - wanted))


def test_a_disk_that_fills_up_leaves_the_older_checkpoint_and_no_litter(disk):
    old = save_state(OLD, disk / "old")
    before = contents(old)
    used = free(disk)
    save_state(NEW, disk / "new")
    needed = used - free(disk)
    for file in (disk / "new").iterdir():
        file.unlink()
    (disk / "new").rmdir()
    rng, ends = random.Random(SEED), Counter()
    for _ in range(FULL):
        room = rng.randrange(0, needed, 4096)
        leave_free(disk, room)
        path, overwrite = rng.choice(((disk / "new", False), (old, True)))
        with pytest.raises(CheckpointError) as raised:
            save_state(NEW, path, overwrite=overwrite)
        ends["No space left on device" in str(raised.value)] += 1
        assert f"path must be writable; got path={path}" in str(raised.value)
        assert sorted(entry.name for entry in disk.iterdir()) == ["filler", "old"]
        assert free(disk) == room
        assert contents(old) == before
    print(f"\n{FULL} saves on a disk that fills up, all refused with nothing left behind")
    assert ends == {True: FULL}
    assert_is_state(old, OLD)
    leave_free(disk, needed)
    save_state(NEW, old, overwrite=True)
    assert_is_state(old, NEW)
