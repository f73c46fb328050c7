"""Stores at URLs give what the store on disk gives, or an error that names the place."""

import multiprocessing
import pickle
import shutil
import threading
import traceback
from concurrent.futures import ProcessPoolExecutor

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pytest
import xarray as xr
from fsspec.registry import known_implementations  # type: ignore[import-untyped]

import xloader as xl
from tests.rewritten import REWRITES, arrays_of, assert_equal_stores, rewrite, write_stores
from tests.served import Server
from xloader.errors import ReadError, SchemaError
from xloader.store.foreign import ForeignArray
from xloader.store.opened import seal
from xloader.store.places import Url, place_of, read_files
from xloader.store.shards import ShardedArray

aiohttp = pytest.importorskip("aiohttp")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Only read."""
    return write_stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def server(stores):
    server = Server(stores["cells"].parent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def memory():
    """Copy a directory to memory and return its URL."""
    system = fsspec.filesystem("memory")

    def put(folder, name="store"):
        for file in folder.rglob("*"):
            if file.is_file():
                system.pipe(f"/{name}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return f"memory://{name}"

    yield put
    system.store.clear()


@pytest.mark.parametrize("kind", ["cells", "contacts"])
def test_http__equals_the_disk(kind, stores, server):
    url = f"{server.url}/{kind}"
    assert_equal_stores(kind, url, stores[kind])
    ds = xr.open_dataset(f"{url}/?token=abc", engine="xloader")
    assert ds.compute().identical(xr.open_dataset(stores[kind], engine="xloader").compute())
    assert {type(a) for a in arrays_of(ds)} == {ForeignArray}
    assert any("zarr.json?token=abc" in path for _, path, _ in server.log)
    if kind == "contacts":
        assert xl.resolutions(url) == [10_000]


@pytest.mark.parametrize("kind", ["cells", "contacts"])
@pytest.mark.parametrize("how", [None, "gzip", "index_first"], ids=str)
def test_memory__equals_the_disk(kind, how, stores, memory, tmp_path):
    store = stores[kind]
    if how:
        store = rewrite(store, tmp_path / "other", REWRITES[how])
        seal(store)
    assert_equal_stores(kind, memory(store, f"{kind}/{how}"), stores[kind])


def test_file_url__is_the_disk(stores):
    ds = xl.open_cells(f"file://{stores['cells']}", chunks=None)
    assert {type(a) for a in arrays_of(ds)} == {ShardedArray}
    assert (
        xl.open_contacts(f"file://{stores['contacts'].parent / 'a.mcool'}")["count"].shape
        == (1424,) * 2
    )


def test_zip__equals_the_disk(stores, tmp_path):
    shutil.make_archive(str(tmp_path / "a"), "zip", stores["contacts"])
    assert_equal_stores("contacts", f"zip://::file://{tmp_path / 'a.zip'}", stores["contacts"])


def test_http__each_byte_once_and_neighbours_together(stores, server):
    array = arrays_of(xl.open_cells(f"{server.url}/cells", chunks=None))[0]
    shard = stores["cells"] / "X" / "values" / "c" / "0" / "0"
    index = 16 * array._sharding.n_chunks + 8  # with the checksum of the last chunk
    ids = np.stack(np.divmod(np.arange(array.shape[0]), 10**6)[::-1], axis=1)[::-1]
    server.log.clear()
    pickled = pickle.dumps(array)
    array.read_chunks(ids)
    assert pickle.dumps(array) == pickled  # a recipe, without what was read
    gets = [n for command, path, n in server.log if command == "GET" and "/X/values/c/0/0" in path]
    assert gets == [index, shard.stat().st_size - index + 4]  # the index, then all chunks together
    server.log.clear()
    array.read_chunks(ids[:3])
    assert [n < shard.stat().st_size - index for _, _, n in server.log] == [True]  # index is known


def test_fork_and_pickle__read_on(server):
    ds = xl.open_cells(f"{server.url}/cells", chunks=None)
    expected = ds.X.values  # the parent has connections and threads
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(1, context) as pool:
            values = pool.submit(_values, pickle.dumps(ds)).result(120)
        np.testing.assert_array_equal(values, expected)


def _values(pickled):
    return pickle.loads(pickled).X.values


def one_chunk(url):
    """Read all of X, in a process that knows no shard index."""
    return xl.open_cells(url, chunks=None).X.load()


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (
            {"/values/c/": 404},
            r"\(rows 0-32\) of array '{url}/X/values', in file '{url}/X/values/c/0/0', is missing, and",
        ),
        (
            {"/values/c/": 403},
            "cannot read '{url}/X/values/c/0/0': the server answered 403 Forbidden",
        ),
        ({"/indptr/c/": 500}, "cannot read '{url}/X/indptr/c/0': the server answered 500 Internal"),
        (
            {"/obs/": 404, "coords": 404},
            "cannot read the metadata of array '{url}/coords/.*': no file",
        ),
        (
            {"/codes/c/0": 404},
            r"chunk \(0,\) of array '{url}/coords/.*', in file '{url}/.*/c/0', is mi",
        ),
        (
            {"/cells/zarr.json": 404},
            "no store is at '{url}': there is no file zarr.json; check the add",
        ),
        (
            {"/cells/zarr.json": 503},
            "'{url}/zarr.json': the server answered 503 .*; check the address",
        ),
        ({"/values/c/": "no ranges"}, "'{url}/X/values/c/0/0': .* does not send parts of files"),
    ],
    ids=str,
)
def test_http__faults_are_errors_that_name_the_place(faults, message, server):
    server.faults = faults
    url = f"{server.url}/cells"
    user = url.replace("//", "//me:hidden@") + "?sig=hidden"
    with pytest.raises(ReadError, match=message.format(url=url)) as error:
        one_chunk(user)
    assert "hidden" not in "".join(traceback.format_exception(error.value, limit=0))


def test_http__no_server_and_no_answer(server, monkeypatch, tmp_path):
    limits = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=0.3)}}
    monkeypatch.setitem(fsspec.config.conf, "http", limits)
    server.faults = {"/values/c/": "slow"}
    with pytest.raises(
        ReadError, match=f"'{server.url}/cells/X/values/c/0/0': no answer came in time"
    ):
        one_chunk(f"{server.url}/cells")
    with Server(tmp_path) as closed:
        port = closed.server_port
    with pytest.raises(
        ReadError, match=rf"'http://127.0.0.1:{port}/s/zarr.json': .*[Cc]onnect.*{port}"
    ):
        xl.open_cells(f"http://me:hidden@127.0.0.1:{port}/s")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://me:hidden@host/store", r"'nosuch://host/store.*nosuch"),
        ("memory://not/there", "no store is at 'memory://not/there'"),
    ],
)
def test_url__that_leads_nowhere(url, message):
    for opener in (xl.open_cells, xl.open_contacts, xl.resolutions):
        with pytest.raises(ReadError, match=message) as error:
            opener(url)
        assert "hidden" not in str(error.value)


def test_url__without_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(known_implementations, "lacking", {"class": "no_such.Thing", "err": "Please install no_such"})  # fmt: skip
    with pytest.raises(ReadError, match="Please install no_such; install what is missing"):
        xl.open_cells("lacking://host/store")


def test_url__of_another_kind_or_no_store(stores, memory):
    url = memory(stores["contacts"])
    with pytest.raises(
        SchemaError, match=f"'{url}' holds contacts, not cells; open it with xl.open_"
    ):
        xl.open_cells(url)
    memory(stores["contacts"] / "resolutions" / "10000" / "count", "array")
    with pytest.raises(
        SchemaError, match="'memory://array' is no xloader store: it is a zarr v3 array"
    ):
        xl.open_contacts("memory://array")
    with pytest.raises(ValueError, match="backends"):
        xr.open_dataset(url)


def test_memory__lost_and_damaged_files_are_errors(stores, memory):
    url = memory(stores["cells"])
    system = fsspec.filesystem("memory")
    whole = one_chunk(url)
    for path in [p for p in list(system.store) if "/c/" in p]:
        content = system.cat(path)
        opened_before = xl.open_cells(url, chunks=None)
        system.rm(path)
        with pytest.raises(ReadError, match="1 of the 1 files of array .* are missing"):
            xl.open_cells(url)
        if "/X/values" in path:
            with pytest.raises(ReadError, match="values/c/0/0', is missing"):
                opened_before.X.load()
        for k in (0, len(content) // 3, len(content) - 1):
            system.pipe(path, content[:k] + bytes([content[k] ^ 4]) + content[k + 1 :])
            with pytest.raises(ReadError, match=r"damaged"):
                xl.open_cells(url).compute()
            system.pipe(path, content[:k])
            with pytest.raises(ReadError, match=r"damaged"):
                xl.open_cells(url).compute()
        system.pipe(path, content)
    xr.testing.assert_identical(one_chunk(url), whole)


def test_damage__names_rows_and_file(stores, memory):
    url = memory(stores["cells"])
    system = fsspec.filesystem("memory")
    ds = xl.open_cells(url, chunks=None)
    path = "/store/X/values/c/0/0"
    content = system.cat(path)
    system.pipe(path, bytes([content[0] ^ 1]) + content[1:])
    message = (
        rf"chunk \(0, 0\) \(rows 0-32\) of array '{url}/X/values', in file '{url}/X/values/c/0/0', "
        "cannot be decoded: its bytes do not match their crc32c checksum; .* copy or convert it again"
    )
    with pytest.raises(ReadError, match=message):
        ds.X.load()


def test_read_files__parts_of_files_everywhere(memory, tmp_path, server):
    content = np.random.default_rng(0).bytes(200_000)
    (tmp_path / "f").write_bytes(content)
    server.folder = tmp_path
    spans = [
        (0, None),
        (5, 9),
        (-7, None),
        (9, 12),
        (150_000, 150_001),
        (5, 9),
        (0, 0),
        (60_000, 60_900),
    ]
    expected = [content[slice(*span)] for span in spans]
    for place in (tmp_path, place_of(memory(tmp_path)), Url(server.url)):
        files = [place / "f"] * len(spans)
        assert read_files(files, spans) == expected
        assert read_files([place / "none", place / "f"]) == [None, content]
        # less where the file ends
        assert read_files([place / "f"], [(199_998, 200_005)]) == [content[-2:]]
