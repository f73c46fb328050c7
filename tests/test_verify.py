"""`xl.verify` finds every kind of damage, names the file, and nothing else."""

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import scipy.sparse
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import override

import xloader as xl
from tests.sources import sparse, write_h5ad
from xloader.cli import cli
from xloader.errors import ReadError, SchemaError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v")
    x = sparse(400, 40)
    source = write_h5ad(folder / "a.h5ad", scipy.sparse.csr_matrix(x), layers={"d": x})
    xl.convert(source, folder / "s", progress=False)
    return folder / "s"


@pytest.fixture
def store(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "s")


def damaged(store):
    return {d.file: d.reason for d in xl.verify(store, progress=False).damaged}


def files(store):
    return sorted(p for p in store.rglob("*") if p.is_file())


def test_verify__a_whole_store(whole):
    found = xl.verify(whole, progress=False)
    assert found.is_whole
    assert found.damaged == ()
    arrays = [p for p in files(whole) if p.parent != whole and '"array"' in p.read_text("latin1")]
    chunks = [p for p in files(whole) if p.name != "zarr.json"]
    assert found.n_files == 1 + len(arrays) + len(chunks)
    assert found.nbytes == sum(p.stat().st_size for p in chunks)
    assert xl.verify(f"file://{whole}", progress=False).is_whole


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_verify__finds_any_changed_bit_of_any_chunk(data, store):
    file = data.draw(st.sampled_from([p for p in files(store) if p.name != "zarr.json"]))
    raw = file.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        file.write_bytes(changed)
        assert [*damaged(store)] == [file.relative_to(store).as_posix()]
        file.write_bytes(raw[: bit // 8])
        assert [*damaged(store)] == [file.relative_to(store).as_posix()]
    finally:
        file.write_bytes(raw)


def test_verify__says_what_is_wrong(store):
    shard = store / "X/values/c/0/0"
    raw = shard.read_bytes()
    index = np.frombuffer(raw[: len(raw) - 4][-16 * 13 :], "<u8").reshape(-1, 2)
    at = int(index[5, 0]) + 3
    shard.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    (store / "X/deltas/c/0/0").unlink()
    (store / "d/c/7").mkdir(parents=True)
    shutil.copy(store / "d/c/0/0", store / "d/c/7/0")
    (store / "coords/row/zarr.json").write_text("{}")
    told = damaged(store)
    assert told["X/values/c/0/0"] == "has a damaged chunk, number 5 of 13"
    assert told["X/deltas/c/0/0"] == "is missing"
    assert "do not match their checksum" in told["coords/row/zarr.json"]
    assert [*told] == sorted(told)
    assert len(told) == 3


def test_verify__finds_files_that_stand_in_the_place_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr("xloader.store.rows_writer._SHARD_CHUNKS", 2)
    source = write_h5ad(tmp_path / "a.h5ad", scipy.sparse.csr_matrix(sparse(400, 40)))
    xl.convert(source, tmp_path / "s", progress=False)
    one, two, three = (tmp_path / "s" / f"X/values/c/{k}/0" for k in (1, 2, 3))
    shutil.copy(one, two)
    three.parent.joinpath("0").rename(three.parent.parent / "3x")
    assert {k: v[:15] for k, v in damaged(tmp_path / "s").items()} == {
        "X/values/c/2/0": "is another file",
        "X/values/c/3/0": "is missing",
    }
    last = max(int(p.name) for p in (tmp_path / "s/X/values/c").iterdir() if p.name.isdecimal())
    metadata = (tmp_path / "s/X/values/zarr.json").read_text()
    assert metadata  # an array that has fewer shards than its shape allows has no strange ones
    assert last > 3


def test_verify__finds_a_shard_that_nobody_wrote(tmp_path):
    maps = xl.simulate.contacts(
        tmp_path / "a.cool", chromosomes={"a": 1_000_000}, resolutions=(10_000,)
    )
    xl.convert(maps, tmp_path / "s", progress=False)
    assert damaged(tmp_path / "s") == {}
    root = json.loads((tmp_path / "s/zarr.json").read_text())
    from xloader.store.layout import write_root

    told = root["attributes"]["xloader"]
    told["arrays"]["resolutions/10000/count"].update(files=[], marks=[])
    told.pop("format")
    write_root(tmp_path / "s", told)
    assert damaged(tmp_path / "s") == {
        "resolutions/10000/count/c/0/0": "is not in the list of the store"
    }


def test_verify__refuses_what_is_no_store(store, tmp_path):
    with pytest.raises(ReadError, match="nothing is at"):
        xl.verify(tmp_path / "none", progress=False)
    with pytest.raises(SchemaError, match="is no xloader store"):
        xl.verify(tmp_path, progress=False)
    text = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(text.replace("cells", "celts"))
    with pytest.raises(ReadError, match="do not match their checksum"):
        xl.verify(store, progress=False)


def test_verify__over_http(store):
    class Quiet(SimpleHTTPRequestHandler):
        @override
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=store))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert xl.verify(url, progress=False).is_whole
        (store / "X/values/c/0/0").write_bytes(b"short")
        told = {d.file: d.reason for d in xl.verify(url, progress=False).damaged}
        assert [*told] == ["X/values/c/0/0"]
        assert told["X/values/c/0/0"].startswith("has 5 bytes, and its index alone takes")
    finally:
        server.shutdown()
        server.server_close()


def test_verify__on_the_command_line(store):
    run = CliRunner().invoke
    done = run(cli, ["verify", str(store), "--no-progress"])
    assert done.exit_code == 0
    assert "files, " in done.output
    assert "all as they were written" in done.output
    (store / "X/values/c/0/0").write_bytes(b"short")
    done = run(cli, ["verify", str(store), "--no-progress"])
    assert done.exit_code == 1
    assert done.output.startswith("X/values/c/0/0: has 5 bytes")
    assert "1 damaged" in done.output
    done = run(cli, ["verify", str(store), "--json", "--no-progress"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["store"] == str(store)
    assert [d["file"] for d in told["damaged"]] == ["X/values/c/0/0"]
    assert told["files"] > 10
    shown = run(cli, ["verify", str(store)])
    assert "verify" in shown.stderr
    assert "100%" in shown.stderr
