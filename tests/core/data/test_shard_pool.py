"""The processes that encode: they do what they are asked, tell how they end, and end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cases import assert_explains
from shards import inline

from palm import DataError
from palm.data import shard_plan
from palm.data.corpus import open_corpus
from palm.data.files import open_file
from palm.data.shard_pool import Pool, hash_job
from palm.data.sharding import LOCK, write_shards
from palm.data.shards import JOURNAL, MANIFEST, shard_name

LINE = b"the palm grows by the sea, and the sea is about the palm\n"


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").write_bytes(LINE * 60_000)
    return tmp_path / "text"


def test_processes_write_what_one_would_write(text, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_plan, "SHARD_BYTES", 1 << 20)
    write_shards(text, "bytes", tmp_path / "out", workers=2)
    inline(monkeypatch)
    write_shards(text, "bytes", tmp_path / "alone")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {LOCK, MANIFEST, *map(shard_name, range(4))}
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert open_corpus(tmp_path / "out").digest == open_corpus(text).digest


def test_a_worker_that_refuses_is_quoted_and_all_are_ended(text):
    file = open_file(text)
    os.utime(text, ns=(1, 1))
    with Pool(2) as pool, pytest.raises(DataError) as raised:
        list(pool.run(hash_job(str(index), file) for index in range(5)))
    assert_explains(raised, "left alone while it is read", str(text))
    assert all(process.returncode == -signal.SIGKILL for process in pool._processes)


def test_a_worker_that_dies_is_told(text):
    with Pool(1) as pool:
        found = pool.run(hash_job(str(index), open_file(text)) for index in range(2))
        assert "read" in next(found)
        os.kill(pool._processes[0].pid, signal.SIGKILL)
        with pytest.raises(DataError) as raised:
            list(found)
    assert_explains(raised, "a worker must finish", "status -9", "fewer workers", "Run the same")


CODE = """
import sys
from palm.data import shard_plan
from palm.data.sharding import write_shards
shard_plan.SHARD_BYTES = 1 << 20
write_shards(sys.argv[1], "bytes", sys.argv[2], workers=2)
"""


IDLE = """
import sys, time
from pathlib import Path
from palm.data.files import open_file
from palm.data.shard_pool import Pool, hash_job
with Pool(1) as pool:
    job = hash_job("text", open_file(Path(sys.argv[1])))
    print(list(pool.run([job])), flush=True)
    time.sleep(60)
"""


def children(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{child}") for child in found]


def wait_for(what):
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
def test_a_worker_without_work_ends_with_its_parent_too(text):
    with subprocess.Popen([sys.executable, "-c", IDLE, str(text)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        workers = children(process.pid)
        assert all(worker.exists() for worker in workers)
        assert len(workers) == 1
        process.kill()
        process.wait()
    wait_for(lambda: not workers[0].exists())


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
def test_killed_it_leaves_no_process_and_goes_on_to_the_same_files(text, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_plan, "SHARD_BYTES", 1 << 20)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", CODE, str(text), str(out)])
    wait_for(lambda: (out / JOURNAL).exists() and (out / JOURNAL).read_bytes().count(b"\n") > 1)
    workers = children(process.pid)
    assert workers
    process.kill()
    process.wait()
    wait_for(lambda: not any(worker.exists() for worker in workers))
    inline(monkeypatch)
    write_shards(text, "bytes", out)
    write_shards(text, "bytes", tmp_path / "unbroken")
    for path in (tmp_path / "unbroken").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()
