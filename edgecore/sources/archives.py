"""Wheels and source distributions as what they are here: archives with a model in them."""

from __future__ import annotations

import email.parser
import hashlib
import os
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from edgecore import disk
from edgecore.contract.errors import CorruptModel, EdgecoreError, ModelNotFound
from edgecore.contract.progress import Progress


class Archive(ABC):
    """Named files with sizes, read one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes by name, plain files only, in the archive's order."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]: ...

    def extract(self, name: str, to: Path, progress: Progress) -> str:
        """Writes one file whole or not at all, and answers its SHA-256. The name in the archive is not trusted."""
        total = self.sizes().get(name)
        if total is None:
            raise ModelNotFound(f"{self.path.name} does not hold {name}")
        if not disk.is_inside(name):
            raise CorruptModel(f"{self.path.name} holds a file named {name!r}, which leaves its folder")
        to.parent.mkdir(parents=True, exist_ok=True)
        beside = to.with_name(f".{to.name}.{os.getpid()}")
        digest, done = hashlib.sha256(), 0
        try:
            with self.open(name) as reader, beside.open("wb") as writer:
                while chunk := reader.read(disk.CHUNK):
                    digest.update(chunk)
                    writer.write(chunk)
                    done += len(chunk)
                    progress(done, total, f"unpacking {Path(name).name}")
                writer.flush()
                os.fsync(writer.fileno())
            os.replace(beside, to)
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
            raise CorruptModel(f"{self.path.name}: {name}: {error}") from error
        finally:
            beside.unlink(missing_ok=True)
        disk.sync_folder(to.parent)
        return digest.hexdigest()

    def licence(self) -> str:
        """As the package's metadata says, one line; empty where it does not."""
        names = [n for n in self.sizes() if n.endswith((".dist-info/METADATA", "/PKG-INFO"))]
        if not names:
            return ""
        with self.open(min(names, key=len)) as file:
            about = email.parser.BytesParser().parsebytes(file.read(1 << 20), headersonly=True)
        lines = str(about.get("License-Expression") or about.get("License") or "").strip().splitlines()
        return lines[0][:80] if lines else ""


class _Zip(Archive):
    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        super().__init__(path)
        self._file = file

    def sizes(self) -> dict[str, int]:
        return {i.filename: i.file_size for i in self._file.infolist() if not i.is_dir()}

    def open(self, name: str) -> IO[bytes]:
        return self._file.open(name)


class _Tar(Archive):
    def __init__(self, path: Path, file: tarfile.TarFile) -> None:
        super().__init__(path)
        self._file = file

    def sizes(self) -> dict[str, int]:
        return {m.name: m.size for m in self._file.getmembers() if m.isfile()}

    def open(self, name: str) -> IO[bytes]:
        opened = self._file.extractfile(name)
        assert opened is not None, "sizes() names plain files only"
        return opened


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """A zip (a wheel is one) or a tar. Raises `CorruptModel`."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                yield _Zip(path, zipped)
        else:
            with tarfile.open(path) as tarred:
                yield _Tar(path, tarred)
    except EdgecoreError:
        raise
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise CorruptModel(f"{path.name} is no readable package: {error}") from error
