"""The bytes of a picture, wherever it lies: in a file, in a `data:` URL, behind http(s), in an open file.

All reading is bounded: only regular files are opened (a pipe or `/dev/zero` never ends), at most `MAX_BYTES` are read,
and the network is asked only where the caller allows it.
"""

import base64
import binascii
import io
import os
import stat
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from typing import Any, BinaryIO, Final

from .shown import cut, shown

#: A file, download or stream larger than this is refused: 256 MiB.
MAX_BYTES: Final = 1 << 28
#: Seconds without an answer after which a download is given up.
TIMEOUT: Final = 20.0


class ImageError(ValueError):
    """A source that is no readable picture. The message names the source and says what is wrong with it."""


def from_address(address: str, *, allow_http: bool = False) -> tuple[BinaryIO, str]:
    """A path or URL as an open binary file, and its name for messages.

    Args:
        allow_http: fetch what begins with http:// or https://.

    Raises:
        ImageError: no regular file, too large, a URL that is malformed, not allowed, or cannot be fetched.
        FileNotFoundError, IsADirectoryError, PermissionError: the path cannot be opened.
    """
    scheme = address[:8].partition(":")[0].lower()
    if scheme == "data":
        return io.BytesIO(_data(address)), "the given data URL"
    if scheme == "file":
        return _open(_path_of(address)), cut(address)
    if scheme in ("http", "https"):
        if not allow_http:
            raise ImageError(f"{cut(address)}: fetched only where http is allowed (allow_http); else download it first")
        return io.BytesIO(_fetch(address)), cut(address)
    if "://" in address[:32]:
        raise ImageError(f"{cut(address)}: images are read from disk, from data:, file:, http: and https: URLs")
    return _open(address), cut(address)


def from_stream(stream: Any) -> tuple[BinaryIO, str]:
    """A file that somebody opened, read from where it stands.

    Raises:
        ImageError: it is closed, holds text, fails, or holds more than `MAX_BYTES`.
    """
    try:
        data = stream.read(MAX_BYTES + 1)
    except Exception as error:  # a foreign object: closed, not for reading, gone
        raise ImageError(f"the given file cannot be read: {cut(str(error))}") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError(f"the given file must be open for bytes (mode 'rb'), it gives {type(data).__name__}")
    return io.BytesIO(_bounded(data, "the given file")), "the given file"


def _open(path: str) -> BinaryIO:
    """Opens a regular file. Non-blocking: to open a pipe that nobody writes to would wait for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise FileNotFoundError(f"no such image file: {cut(path)}") from None
    except PermissionError as error:
        if os.path.isdir(path):  # Windows opens no folders
            raise IsADirectoryError(f"expected an image file, got a folder: {cut(path)}") from None
        raise PermissionError(f"not allowed to read the image file: {cut(path)}") from error
    except (OSError, ValueError) as error:  # a socket, a name that is too long or holds a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{cut(path)}: cannot be opened as an image file ({cut(reason)})") from error
    status = os.fstat(descriptor)
    try:
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(f"expected an image file, got a folder: {cut(path)}")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{cut(path)}: expected a regular file, got a pipe, device or socket")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{cut(path)}: the file has {status.st_size} bytes, at most {MAX_BYTES} are read")
        return os.fdopen(descriptor, "rb")
    except Exception:
        os.close(descriptor)
        raise


def _data(address: str) -> bytes:
    """RFC 2397: `data:image/png;base64,...`."""
    header, comma, body = address.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ImageError(f"expected a URL of the form data:image/png;base64,..., got {shown(address)}")
    if len(body) > MAX_BYTES // 3 * 4 + 4:
        raise ImageError(f"the given data URL has {len(body)} characters, more than {MAX_BYTES} bytes are not read")
    try:
        return base64.b64decode(urllib.parse.unquote_to_bytes(body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the given data URL is no valid base64 ({cut(str(error))})") from None


def _path_of(address: str) -> str:
    url = urllib.parse.urlsplit(address)
    if url.netloc not in ("", "localhost"):
        raise ImageError(f"{cut(address)}: a file: URL must name a file of this machine, got host {cut(url.netloc)}")
    return urllib.request.url2pathname(url.path)


class _SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only; urllib would follow ftp, too."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            raise ImageError(f"{cut(req.full_url)}: redirects to {cut(newurl)}, which is not fetched")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(address: str) -> bytes:
    opener = urllib.request.build_opener(_SameScheme)
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "sparsevlm-jax", "Accept": "image/*"})
        with opener.open(request, timeout=TIMEOUT) as response:
            length = response.headers.get("Content-Length") or "0"
            if length.isdecimal() and int(length[:20]) > MAX_BYTES:
                raise ImageError(f"{cut(address)}: {cut(length)} bytes, at most {MAX_BYTES} are read")
            return _bounded(response.read(MAX_BYTES + 1), cut(address))
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "reason", None) or error
        raise ImageError(f"{cut(address)}: cannot be fetched ({cut(str(reason))})") from error


def _bounded(data: bytes | bytearray | memoryview, name: str) -> bytes:
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: more than the {MAX_BYTES} bytes that are read")
    return bytes(data)
