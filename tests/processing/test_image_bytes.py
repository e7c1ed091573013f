"""Pictures come from files, URLs and streams, all bounded; whatever else is given ends in one short error, at once."""

import base64
import io
import os
import socket
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sparsevlm_jax.processing import ImageError, image_bytes, open_image

PHOTO = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def encoded(kind: str = "PNG", pixels: np.ndarray = PHOTO) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


PNG = encoded()
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


@pytest.fixture
def path(tmp_path) -> Path:
    file = tmp_path / "a photo.png"
    file.write_bytes(PNG)
    return file


def test_every_way_to_hand_over_a_picture_gives_the_same(path):
    with path.open("rb") as file:
        sources = [path, str(path), os.fsencode(path).decode(), path.as_uri(), "FILE://localhost" + path.as_uri()[7:]]
        sources += [PNG, bytearray(PNG), memoryview(PNG), io.BytesIO(PNG), file, DATA_URL]
        sources += [urllib.parse.unquote(DATA_URL), DATA_URL.replace("+", "%2B"), jnp.asarray(PHOTO), PHOTO]
        for source in sources:
            np.testing.assert_array_equal(np.asarray(open_image(source)), PHOTO)


def test_a_stream_is_read_from_where_it_stands():
    stream = io.BytesIO(b"header" + PNG)
    stream.seek(6)
    np.testing.assert_array_equal(np.asarray(open_image(stream)), PHOTO)


def closed(file):
    file.close()
    return file


def lazily_closed() -> Image.Image:
    image = Image.open(io.BytesIO(PNG))
    image.close()
    return image


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: closed(path.open("rb")), "the given file cannot be read"),
        (lambda path: closed(io.BytesIO(PNG)), "the given file cannot be read"),
        (lambda path: path.open("wb"), "the given file cannot be read"),
        (lambda path: io.StringIO("words"), "must be open for bytes .* it gives str"),
        (lambda path: io.BytesIO(b""), "the file is empty"),
        (lambda path: lazily_closed(), "the given PIL image cannot be read"),
        (lambda path: jnp.zeros((3, 5, 6), jnp.uint8), r"got shape \[3, 5, 6\]"),
        (lambda path: jnp.zeros((4, 4, 3)), "array of uint8 .*, got float32"),
        (lambda path: "a\0b.png", "cannot be opened"),
        (lambda path: "x" * 5000, "cannot be opened"),
        (lambda path: "data:image/png,raw", "expected a URL of the form data:"),
        (lambda path: "data:image/png;base64,####", "no valid base64"),
        (lambda path: "data:image/png;base64,", "the given data URL: the file is empty"),
        (lambda path: "data:text/plain;base64,d29yZHM=", "the given data URL: not an image"),
        (lambda path: "file://elsewhere/photo.png", "must name a file of this machine, got host elsewhere"),
        (lambda path: "ftp://example.org/cat.png", "images are read from disk"),
        (lambda path: "https://example.org/cat.png", "only where http is allowed .*download it first"),
    ],
)
def test_what_cannot_be_read_is_one_error(path, make, message):
    source = make(path)
    with pytest.raises(ImageError, match=message):
        open_image(source)
    if hasattr(source, "close"):
        source.close()


@pytest.mark.parametrize("start", ["data:image/png;base64,!", "data:,", "https://", "file://host/", "nowhere"])
def test_an_error_does_not_repeat_all_that_was_given(start):
    with pytest.raises(ImageError) as caught:
        open_image(start + "x" * 100_000)
    assert len(str(caught.value)) < 400


def test_a_pipe_a_device_and_a_socket_are_refused_without_waiting(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        for name in (tmp_path / "pipe.png", "/dev/zero", tmp_path / "socket.png"):
            with pytest.raises(ImageError, match=r"regular file|cannot be opened"):
                open_image(name)


def test_size_is_bounded_before_a_file_is_read(path, monkeypatch):
    monkeypatch.setattr(image_bytes, "MAX_BYTES", len(PNG) - 1)
    monkeypatch.setattr("sparsevlm_jax.processing.images.MAX_BYTES", len(PNG) - 1)
    with pytest.raises(
        ImageError, match=f"a photo.png: the file has {len(PNG)} bytes, at most {len(PNG) - 1} are read"
    ):
        open_image(path)
    for source in (io.BytesIO(PNG), PNG, DATA_URL):
        with pytest.raises(ImageError, match=r"bytes"):
            open_image(source)


class Server(BaseHTTPRequestHandler):
    """Pictures, and what else a network may answer with."""

    def do_GET(self):
        if self.path == "/moved":
            return self.answer(302, b"", Location="/photo.png")
        if self.path == "/elsewhere":
            return self.answer(302, b"", Location="ftp://127.0.0.1/photo.png")
        if self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            return self.wfile.write(b"x" * 5000)
        if self.path == "/large":
            return self.answer(200, PNG, **{"Content-Length": str(10**12)})
        return self.answer(200, PNG) if self.path == "/photo.png" else self.answer(404, b"no")

    def answer(self, code: int, body: bytes, **headers: str):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def test_addresses_are_fetched_where_the_caller_allows_it(address):
    for name in ("/photo.png", "/moved"):
        np.testing.assert_array_equal(np.asarray(open_image(address + name, allow_http=True)), PHOTO)
    with pytest.raises(ImageError, match="only where http is allowed"):
        open_image(address + "/photo.png")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/absent", "/absent: cannot be fetched .*Not Found"),
        ("/elsewhere", "redirects to ftp://127.0.0.1/photo.png, which is not fetched"),
        ("/large", "1000000000000 bytes, at most"),
        ("/endless", "more than the 1000 bytes that are read"),
        ("/a b", "cannot be fetched"),
    ],
)
def test_a_download_that_fails_is_one_error(address, monkeypatch, name, message):
    if name == "/endless":
        monkeypatch.setattr(image_bytes, "MAX_BYTES", 1000)
    with pytest.raises(ImageError, match=message):
        open_image(address + name, allow_http=True)


def test_a_host_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(image_bytes, "TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ImageError, match="cannot be fetched .*timed out"):
            open_image(f"http://127.0.0.1:{silent.getsockname()[1]}/photo.png", allow_http=True)
    with pytest.raises(ImageError, match="cannot be fetched"):
        open_image("http://127.0.0.1:1/photo.png", allow_http=True)
