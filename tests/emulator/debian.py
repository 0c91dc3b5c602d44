"""A small Debian mirror on loopback: signed lists, one binary and one source package, and ways to be broken."""

import base64
import hashlib
import http.server
import io
import subprocess
import tarfile
import threading
import time

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA512

NAME, VERSION = "thing", "1:2.0-1"
LISTS = "dists/trixie/main"
#: Longer than what apt holds back before it writes to a file.
PAYLOAD = bytes(range(256)) * 10_000


class Key:
    """An OpenPGP key of RSA, version 4, that signs with SHA-512 (RFC 9580)."""

    def __init__(self):
        self._private = rsa.generate_private_key(65537, 2048)
        numbers = self._private.public_key().public_numbers()
        self._created = int(time.time()) - 1000
        self._body = b"\x04" + self._created.to_bytes(4, "big") + b"\x01" + number(numbers.n) + number(numbers.e)
        self._hashed_key = b"\x99" + len(self._body).to_bytes(2, "big") + self._body
        self._fingerprint = hashlib.sha1(self._hashed_key, usedforsecurity=False).digest()

    def keyring(self):
        """The public key, with a name that it signs itself."""
        name = b"Test <test@example.org>"
        certified = self._hashed_key + b"\xb4" + len(name).to_bytes(4, "big") + name
        return packet(6, self._body) + packet(13, name) + self._signature(0x13, certified)

    def sign(self, data):
        """A signature of its own, in ASCII."""
        text = base64.encodebytes(self._signature(0x00, data))
        return b"-----BEGIN PGP SIGNATURE-----\n\n" + text + b"-----END PGP SIGNATURE-----\n"

    def _signature(self, kind, data):
        created = b"\x05\x02" + (self._created + 10).to_bytes(4, "big")
        issuer = b"\x16\x21\x04" + self._fingerprint
        hashed = bytes([4, kind, 1, 10]) + len(created + issuer).to_bytes(2, "big") + created + issuer
        digest = hashlib.sha512(data + hashed + b"\x04\xff" + len(hashed).to_bytes(4, "big")).digest()
        value = self._private.sign(digest, padding.PKCS1v15(), Prehashed(SHA512()))
        unhashed = b"\x09\x10" + self._fingerprint[-8:]
        return packet(
            2,
            hashed + len(unhashed).to_bytes(2, "big") + unhashed + digest[:2] + number(int.from_bytes(value, "big")),
        )


def number(value):
    return value.bit_length().to_bytes(2, "big") + value.to_bytes((value.bit_length() + 7) // 8, "big")


def packet(tag, body):
    return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4, "big") + body


def binary_package(folder, payload):
    """A package for arm64 that holds one file."""
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/share/thing").mkdir(parents=True)
    (root / "usr/share/thing/payload").write_bytes(payload)
    control = f"Package: {NAME}\nVersion: {VERSION}\nArchitecture: arm64\nMaintainer: Test <t@example.org>\n"
    (root / "DEBIAN/control").write_text(control + "Description: a thing\n")
    subprocess.run(["dpkg-deb", "-Znone", "--build", root, folder / "thing.deb"], check=True, capture_output=True)
    return control, (folder / "thing.deb").read_bytes()


def source_package(text):
    """A source package in its simplest form: its files by their names."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        info = tarfile.TarInfo("thing-2.0/README")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    tar = stream.getvalue()
    head = (
        f"Format: 1.0\nSource: {NAME}\nBinary: {NAME}\nArchitecture: any\nVersion: {VERSION}\nMaintainer: T <t@e.org>\n"
    )
    sums = f"Checksums-Sha256:\n {hashlib.sha256(tar).hexdigest()} {len(tar)} thing_2.0-1.tar.gz\n"
    md5 = hashlib.md5(tar, usedforsecurity=False).hexdigest()
    files = f"Files:\n {md5} {len(tar)} thing_2.0-1.tar.gz\n"
    return {"thing_2.0-1.dsc": (head + sums + files).encode(), "thing_2.0-1.tar.gz": tar}


class Mirror:
    """Serves `files` at `address`. `breaks` maps a path to after how many bytes the connection is cut.

    Attributes:
        asked: (path, whether the rest of a file was asked for) of each request.
    """

    def __init__(self, folder, key, payload=PAYLOAD):
        control, deb = binary_package(folder, payload)
        sources = source_package(b"read me")
        self.pool = {f"pool/{name}": data for name, data in {"thing_2.0-1_arm64.deb": deb, **sources}.items()}
        digest = hashlib.sha256(deb).hexdigest()
        packages = f"{control}Filename: pool/thing_2.0-1_arm64.deb\nSize: {len(deb)}\nSHA256: {digest}\n\n"
        packages += control.replace(NAME, "thing-meta") + f"Depends: {NAME}\nFilename: pool/none.deb\nSize: 1\n"
        listed = "".join(f" {hashlib.sha256(d).hexdigest()} {len(d)} {name}\n" for name, d in sources.items())
        source = f"Package: {NAME}\nBinary: {NAME}\nVersion: {VERSION}\nDirectory: pool\nFormat: 1.0\n"
        self.lists = {
            f"{LISTS}/binary-arm64/Packages": (packages + f"SHA256: {'0' * 64}\n").encode(),
            f"{LISTS}/source/Sources": f"{source}Checksums-Sha256:\n{listed}".encode(),
        }
        self.breaks, self.asked, self.files = {}, [], {}
        self.sign(key)

    def sign(self, key):
        listed = "".join(
            f" {hashlib.sha256(data).hexdigest()} {len(data)} {path.removeprefix('dists/trixie/')}\n"
            for path, data in self.lists.items()
        )
        date = time.strftime("%a, %d %b %Y %H:%M:%S UTC", time.gmtime())
        head = f"Suite: stable\nCodename: trixie\nDate: {date}\nArchitectures: arm64\nComponents: main\n"
        release = f"{head}SHA256:\n{listed}".encode()
        signed = {"dists/trixie/Release": release}
        if key:
            signed["dists/trixie/Release.gpg"] = key.sign(release)
        self.files = {**self.pool, **self.lists, **signed}

    def __enter__(self):
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                mirror.answer(self)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/debian"
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request):
        path = request.path.removeprefix("/debian/")
        start = int(request.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        self.asked.append((path, start > 0))
        data = self.files.get(path)
        if data is None:
            request.send_error(404)
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(data) - start))
        request.send_header("Last-Modified", "Mon, 01 Jun 2026 00:00:00 GMT")
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.end_headers()
        end = min(len(data), start + self.breaks.get(path, len(data)))
        request.wfile.write(data[start:end])
        request.wfile.flush()
        if end < len(data):
            request.close_connection = True
            request.connection.shutdown(2)
