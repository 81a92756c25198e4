"""S3, by moto's server on this machine: several processes, one of them killed before the final key is there."""

import os
import signal
import subprocess
import sys
import time

import pytest
import soundfile
from conftest import noise, voice

from fastenh import remote

s3fs = pytest.importorskip("s3fs", reason="needs the extra cloud and moto: pip install -e '.[cloud]' 'moto[server]'")
moto = pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server]'")

pytestmark = pytest.mark.slow
NAMES = [f"{index}.wav" for index in range(4)]


@pytest.fixture(scope="module")
def endpoint():
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, tmp_path, monkeypatch):
    """A bucket of the name of the test, with four recordings, which are in a folder, too."""
    keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    for key, value in (keys | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(key, value)
    store = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    name = f"b{time.time_ns()}"
    store.mkdir(name)
    (tmp_path / "in").mkdir()
    for seed, file in enumerate(NAMES):
        soundfile.write(tmp_path / "in" / file, voice(9000, seed) + noise(9000, seed), 16_000)
        store.put_file(str(tmp_path / "in" / file), f"{name}/in/{file}")
    return store, name


def start(*arguments, plant=""):
    """fastenh in a process of its own, in which ``plant`` ran before."""
    code = f"{plant}\nfrom fastenh.cli import main\nmain()"
    command = [sys.executable, "-c", code, "enhance", *map(str, arguments), "--threads", "1", "--dtype", "float32"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(job, code=0):
    said, _ = job.communicate(timeout=120)
    assert job.returncode == code, said
    return said


@pytest.fixture
def whole(bucket, tmp_path, tiny_checkpoint):
    end(start(tmp_path / "in", "-o", tmp_path / "out", "--model", tiny_checkpoint))
    return {name: (tmp_path / "out" / name).read_bytes() for name in NAMES}


def finished(store, name):
    """Content of the keys with a final name."""
    keys = [key for key in store.find(f"{name}/out") if "/." not in key]
    return {key.rpartition("/")[2]: store.cat_file(key) for key in keys}


DIES = """
import os, s3fs
copy, done = s3fs.S3FileSystem._cp_file, []
async def dies(self, source, target, **options):
    done.append(target)
    if len(done) == 2:
        os.kill(os.getpid(), 9)
    return await copy(self, source, target, **options)
s3fs.S3FileSystem._cp_file = dies
"""
HURRIES = "from fastenh.enhance import remote_manifest as m; m._LOST, m._LOOK = 2.0, 0.5"


def test_killed_between_the_temporary_key_and_the_final_one(bucket, whole, tiny_checkpoint):
    store, name = bucket
    job = [f"s3://{name}/in", "-o", f"s3://{name}/out", "--model", tiny_checkpoint, "--jobs", "1"]
    end(start(*job, plant=DIES), -signal.SIGKILL)
    left = finished(store, name)
    assert len(left) == 1
    assert all(whole[file] == content for file, content in left.items())
    assert [key for key in store.find(f"{name}/out") if remote.PART in key]
    assert "3 files enhanced, 1 skipped" in end(start(*job, plant=HURRIES))
    assert finished(store, name) == whole


def test_two_processes_share_a_folder(bucket, whole, tiny_checkpoint):
    store, name = bucket
    job = [f"s3://{name}/in", "-o", f"s3://{name}/out", "--model", tiny_checkpoint, "--jobs", "1", "-v"]
    said = [end(job) for job in [start(*job, plant=HURRIES), start(*job, plant=HURRIES)]]
    assert finished(store, name) == whole
    assert sum(line.count(": enhanced") for text in said for line in text.splitlines()) == len(NAMES), said
    assert not [key for key in store.find(f"{name}/out") if remote.PART in key or key.endswith(".claim")]


@pytest.mark.skipif(os.name == "nt", reason="signals to a child")
def test_ctrl_c_leaves_neither_temporary_keys_nor_claims(bucket, whole, tiny_checkpoint):
    store, name = bucket
    job = [f"s3://{name}/in", "-o", f"s3://{name}/out", "--model", tiny_checkpoint, "--jobs", "1"]
    stops = "import os, s3fs, signal\n" + DIES.split("\n", 2)[2].replace("os.getpid(), 9", "os.getpid(), signal.SIGINT")
    said = end(start(*job, plant=stops), 1)
    assert "stopped with" in said
    assert "Traceback" not in said
    assert all(whole[file] == content for file, content in finished(store, name).items())
    assert not [key for key in store.find(f"{name}/out") if remote.PART in key or key.endswith(".claim")]
    end(start(*job))
    assert finished(store, name) == whole


def test_what_the_store_refuses_is_one_line(bucket, tiny_checkpoint, monkeypatch):
    _, name = bucket
    said = end(start(f"s3://{name}/in", "-o", "s3://no-such-bucket/out", "--model", tiny_checkpoint), 1)
    assert "Traceback" not in said
    assert "s3://no-such-bucket/out" in said
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    said = end(start(f"s3://{name}/in", "-o", f"s3://{name}/out", "--model", tiny_checkpoint), 1)
    assert "Traceback" not in said
    assert f"Error: s3://{name}/in: " in said
