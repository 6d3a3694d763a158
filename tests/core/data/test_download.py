"""Fetching a public corpus: what is kept is right to the last bit, whatever the network or the disk does."""

import hashlib
import http.server
import io
import logging
import socket
import threading
import zipfile
from functools import partial

import pooch
import pytest
from cases import assert_explains
from disks import killed

from palm import DataError
from palm.data import download as corpora
from palm.data.download import CORPORA, Content, PublicCorpus, fetch

TEXT = b"All the text there is.\n" * 100


def content(data):
    return Content(len(data), hashlib.sha256(data).hexdigest())


def packed(text=TEXT, member="little"):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(zipfile.ZipInfo(member), text, zipfile.ZIP_DEFLATED)
    return archive.getvalue()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path, monkeypatch):
    """Put `archive` on the web where the corpus "little" should be; `expected` is what should be there."""
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "*")
    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"

        def publish(archive=None, *, expected=None):
            archive = packed() if archive is None else archive
            (folder / "little.zip").write_bytes(archive)
            known = PublicCorpus(f"{url}/little.zip", content(expected or archive), content(TEXT))
            monkeypatch.setitem(CORPORA, "little", known)
            return known

        publish()
        yield publish
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "corpora"


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_corpus_is_downloaded_unpacked_and_alone_in_its_folder(web, folder):
    assert fetch("little", folder) == folder / "little"
    assert (folder / "little").read_bytes() == TEXT
    assert [file.name for file in folder.iterdir()] == ["little"]


def test_progress_is_told_piece_by_piece_up_to_the_whole(web, folder, monkeypatch):
    monkeypatch.setattr(corpora, "_CHUNK", 50)
    told = []
    fetch("little", folder, on_progress=lambda *step: told.append(step))
    size = CORPORA["little"].archive.size
    assert (folder / "little").read_bytes() == TEXT
    assert told == [(done, size) for done in (*range(50, size, 50), size)]


def test_nothing_is_printed(web, folder, capfd):
    said = []
    handler = logging.StreamHandler()
    handler.emit = said.append
    pooch.get_logger().addHandler(handler)
    fetch("little", folder)
    pooch.get_logger().removeHandler(handler)
    assert capfd.readouterr() == ("", "")
    assert said == []


def test_what_the_web_does_not_have_is_told_with_the_servers_answer(web, folder, monkeypatch):
    url = CORPORA["little"].url.replace("little", "gone")
    monkeypatch.setitem(CORPORA, "gone", PublicCorpus(url, content(b""), content(b"")))
    with pytest.raises(DataError) as raised:
        fetch("gone", folder)
    assert_explains(raised, "gone.zip must be reachable", "404", "Try again", str(folder / "gone.zip"))
    assert list(folder.iterdir()) == []


def test_a_good_copy_is_not_downloaded_again(web, folder):
    folder.mkdir()
    (folder / "little").write_bytes(TEXT)
    web(b"something else")
    assert fetch("little", folder).read_bytes() == TEXT


def test_an_archive_that_is_there_is_unpacked_and_kept(web, folder):
    folder.mkdir()
    (folder / "little.zip").write_bytes(packed())
    web(b"something else", expected=packed())
    assert fetch("little", folder).read_bytes() == TEXT
    assert (folder / "little.zip").read_bytes() == packed()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEXT[:-1], ["little must be 2300 bytes long", "got 2299"]),
        (TEXT + b"!", ["little must be 2300 bytes long", "got 2301"]),
        (flipped(TEXT, 1000), ["little must have SHA-256", content(TEXT).sha256, "got"]),
    ],
)
def test_a_bad_copy_is_refused_and_left_to_its_owner(web, folder, text, says):
    folder.mkdir()
    (folder / "little").write_bytes(text)
    with pytest.raises(DataError) as raised:
        fetch("little", folder)
    assert_explains(raised, *says, str(folder / "little"), "Delete it")
    assert (folder / "little").read_bytes() == text


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: flipped(data, 40), ["little.zip must have SHA-256", "got"]),
        (lambda data: data[:-9], ["little.zip must be", "bytes long", "got"]),
        (lambda data: b"", ["little.zip must be", "bytes long", "got 0"]),
        (lambda data: data * 2, ["little.zip must be", "bytes long", "got"]),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_an_archive_that_is_damaged_is_refused(web, folder, damage, says, there):
    bad = damage(packed())
    known = web(bad, expected=packed())
    if there:
        folder.mkdir()
        (folder / "little.zip").write_bytes(bad)
    with pytest.raises(DataError) as raised:
        fetch("little", folder)
    if there:
        assert_explains(raised, *says, str(folder / "little.zip"), "Delete it")
    else:
        digest = content(packed()).sha256
        assert_explains(raised, f"little.zip must have SHA-256 {digest}", "got", known.url, "Try again")
    assert [file.name for file in folder.iterdir()] == ["little.zip"] * there


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (packed(member="other"), ["must be a zip of little", "got"]),
        (b"no zip at all", ["must be a zip of little", "got"]),
        (flipped(packed(), 40), ["must be a zip of little", "got"]),
        (packed(flipped(TEXT, 1000)), ["little must have SHA-256", "got"]),
        (packed(TEXT[:-1]), ["little must be 2300 bytes long", "got 2299 "]),
        (packed(TEXT * 10**4), ["little must be 2300 bytes long", "got 23000000 "]),
    ],
)
def test_an_archive_of_something_else_leaves_nothing_behind(web, folder, archive, says):
    web(archive)
    with pytest.raises(DataError) as raised:
        fetch("little", folder)
    assert_explains(raised, *says, "Try again")
    assert list(folder.iterdir()) == []


def test_a_download_that_is_broken_off_leaves_nothing_behind(web, folder):
    def break_off(done, size):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("little", folder, on_progress=break_off)
    assert list(folder.iterdir()) == []


def test_what_a_killed_download_left_is_removed_by_the_next_one(web, folder):
    (folder / "little.zip").parent.mkdir()
    (folder / "little.zip").write_bytes(packed())
    assert killed(lambda: fetch("little", folder), 3)
    assert len(list(folder.glob(".little.tmp-*"))) == 1
    fetch("little", folder)
    assert {file.name for file in folder.iterdir()} == {"little", "little.zip"}


def test_without_a_network_it_says_where_to_put_the_file(web, folder, monkeypatch):
    with socket.socket() as closed:  # a port where nobody listens
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/little.zip"
        known = CORPORA["little"]
        monkeypatch.setitem(CORPORA, "little", PublicCorpus(url, known.archive, known.text))
        with pytest.raises(DataError) as raised:
            fetch("little", folder)
    assert_explains(raised, "must be reachable", "refused", "by hand", str(folder / "little.zip"))
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(web, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError) as raised:
        fetch("little", tmp_path / "file" / "below")
    assert_explains(raised, str(tmp_path / "file"), "must be readable or writable", "Choose another path")


def test_an_unknown_corpus_is_refused(folder):
    with pytest.raises(DataError) as raised:
        fetch("enwik7", folder)
    assert_explains(raised, "corpus must be one of enwik8", "corpus='enwik7'", "Use one")


def test_enwik8_is_the_one_that_papers_report_on():
    known = CORPORA["enwik8"]
    assert known.text.size == 10**8
    assert known.text.sha256.startswith("2b49720ec4d78c3c")
    assert known.archive.size == 36_445_475
