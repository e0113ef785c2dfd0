"""Paths of the local disk and of Google Cloud Storage (gs://bucket/...).

A local path is a `pathlib.Path`, one of a store an `epath.Path`; they share the methods for whole files and folders.
The functions here are for the differences. An object of a store appears when it is complete, and can be neither mapped
nor locked. A folder of a store is a common prefix of names, which cannot be renamed.
"""

import base64
import contextlib
import functools
import logging
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

SCHEME = "gs://"
RIGHTS = "storage.objects.list, get, create and delete (the role Storage Object User)"
MAX_REQUESTS = 16  # small requests to a store at once; our choice
SIGN_IN = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"


def as_path(where: epath.PathLike) -> Path | epath.Path:
    """The path of a text; ~ is expanded, and the bucket of a store is checked once per process.

    Raises ValueError on another scheme and without gcsfs, FileNotFoundError where the bucket does not exist,
    PermissionError where it cannot be read, and OSError where it cannot be reached.
    """
    text = os.fspath(where)
    if re.match(r"gs:/?(?!/)", text):
        raise ValueError(f"{text}: a path in a store begins with {SCHEME}; expected {SCHEME}bucket/folder")
    if "://" not in text:
        return Path(os.path.expanduser(text))  # ~ of an unknown user stays
    scheme, _, rest = text.partition("://")
    if f"{scheme}://" != SCHEME:
        raise ValueError(f"{text}: {scheme}:// is not supported; name a local path, without a scheme, or {SCHEME}…")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", bucket := rest.partition("/")[0]):
        raise ValueError(f"{text}: {bucket!r} is no name of a bucket; expected {SCHEME}bucket/folder")
    if ".." in rest.split("/") or re.search(r"[\r\n]", rest):
        raise ValueError(f"{text!r}: no store has a name with '..' or a line break; name the folder itself")
    _check_bucket(bucket)
    return epath.Path(text)


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in a store."""
    return os.fspath(path).startswith(SCHEME)


def resolved(path: epath.PathLike) -> Path | epath.Path:
    """The absolute path; local links are followed."""
    path = as_path(path)
    return path if is_remote(path) else path.resolve()


def file_size(path: epath.PathLike) -> int:
    """The size of a file in bytes. Raises FileNotFoundError."""
    return store().size(os.fspath(path)) if is_remote(path) else os.stat(path).st_size


def files_below(folder: epath.PathLike) -> list[str]:
    """The names of all files below a folder, relative to it and sorted; links to folders are not followed."""
    if is_remote(folder):
        return sorted(objects_below(folder))
    found = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def objects_below(folder: epath.PathLike) -> dict[str, tuple[int, str]]:
    """{relative name: (bytes, crc32c as hexadecimal digits)} of all objects below a folder of a store."""
    return _described(folder, store().find(os.fspath(folder), detail=True).values())


def matching_objects(pattern: epath.PathLike) -> list[str]:
    """The objects that match a glob in a store, each as gs://…."""
    found = store().glob(os.fspath(pattern), detail=True)
    return [SCHEME + name for name, about in found.items() if about["type"] == "file"]


def objects_in(folder: epath.PathLike) -> dict[str, tuple[int, str]]:
    """`objects_below` without subfolders; {} where the folder does not exist."""
    try:
        return _described(folder, store().ls(os.fspath(folder), detail=True))
    except FileNotFoundError:
        return {}


def _described(folder: epath.PathLike, found: Iterable[dict[str, Any]]) -> dict[str, tuple[int, str]]:
    """`objects_below` of a listing. Raises ValueError on names that no local file can have, such as a//b."""
    prefix, described = os.fspath(folder).removeprefix(SCHEME).rstrip("/") + "/", {}
    for about in found:
        name = about["name"].removeprefix(prefix)
        if about["type"] != "file" or name == about["name"] or not name or name.endswith("/"):
            continue
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ValueError(
                f"{folder} has an object {name!r}, which can be no file below a folder; remove or rename it"
            )
        described[name] = int(about["size"]), base64.b64decode(about["crc32c"]).hex()
    return described


def names_in(folder: epath.PathLike) -> list[str]:
    """The names of the files in a folder; in a local folder also of folders and links."""
    return list(objects_in(folder)) if is_remote(folder) else os.listdir(folder)


def is_new(path: epath.PathLike) -> bool:
    """Whether a path does not exist or is an empty folder, which in a store may be an object that ends in /."""
    if not is_remote(path):
        path = Path(path)
        return not any(path.iterdir()) if path.is_dir() else not path.exists()
    try:
        found = store().ls(os.fspath(path), detail=True)
    except FileNotFoundError:
        return True
    itself = os.fspath(path).removeprefix(SCHEME)
    return all(about["type"] == "directory" and about["name"] == itself for about in found)


def check_output_name(path: epath.PathLike) -> None:
    """Raises ValueError on a path of a store that is unsafe to write to.

    gcsfs takes *, ? and [ for a pattern and removes everything that matches. tensorstore takes # for the end of the URL
    that Orbax gives it, and would write arrays elsewhere.
    """
    name = os.fspath(path).removeprefix(SCHEME).partition("/")[2]
    if not name:
        raise ValueError(f"{path} is a whole bucket; name a folder in it")
    if found := re.search(r"[*?\[#]", name):
        raise ValueError(
            f"{path}: a store's clients take {found[0]} for a pattern or the end of a path; name a folder without it"
        )


def read_range(path: epath.PathLike, begin: int, end: int) -> bytes:
    """The bytes [begin, end) of an object, by one request."""
    return store().cat_file(os.fspath(path), begin, end) if begin < end else b""


def upload(file: Path, target: epath.PathLike) -> None:
    """Copies a local file into a store in pieces; the object appears when it is whole."""
    store().put_file(os.fspath(file), os.fspath(target))


def append(path: epath.PathLike, content: bytes) -> None:
    """Appends bytes to a file, which is made if it does not exist.

    In a store the bytes become an object, which the service joins to the existing one at most once: if the answer is
    lost, the service refuses the second request. Raises OSError where another program writes the object.
    """
    if not is_remote(path):
        with open(path, "ab") as file:
            file.write(content)
        return
    path = epath.Path(path)
    if not path.exists():
        path.write_bytes(content)
        return
    addition = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    addition.write_bytes(content)
    before = store().info(os.fspath(path))
    bucket, _, name = os.fspath(path).removeprefix(SCHEME).partition("/")
    parts = [{"name": name}, {"name": os.fspath(addition).removeprefix(f"{SCHEME}{bucket}/")}]
    joined = {"sourceObjects": parts, "destination": {"name": name, "bucket": bucket}}
    try:
        url = "b/{}/o/{}/compose"
        store().call("POST", url, bucket, name, json=joined, ifGenerationMatch=before["generation"])
    except FileExistsError:
        if file_size(path) != before["size"] + len(content):
            raise OSError(f"{path} is written by another program, too; end one of them") from None
    _remove(addition)


def _remove(file: epath.PathLike) -> None:
    """Removes an object by one request; gcsfs's `rm` would list names with that prefix first."""
    with contextlib.suppress(FileNotFoundError):  # the answer to a first request was lost
        store().rm_file(os.fspath(file))


def check_writable(folder: epath.PathLike) -> None:
    """Raises OSError where objects of a folder in a store cannot be written or removed."""
    if is_remote(folder):
        probe = epath.Path(folder) / f".{uuid.uuid4().hex}.partial"
        try:
            probe.write_bytes(b"")
            _remove(probe)
        except Exception as error:  # the client has error types of its own
            raise PermissionError(f"{folder} cannot be written: {_reason(error)}; needed are {RIGHTS}") from None


def download(file: epath.PathLike, target: Path) -> None:
    """Copies an object to a local file."""
    store().get_file(os.fspath(file), os.fspath(target))


def cache_folder() -> Path:
    """The cache folder of this user. Raises OSError for a user without a home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ling_jax"
    except RuntimeError:  # a user of a container without an entry in passwd
        raise FileNotFoundError("this user has no home folder; set HOME, or XDG_CACHE_HOME") from None


@functools.cache
def store() -> Any:
    """The gcsfs client of Google Cloud Storage, which epath uses too. Raises ValueError where it is not installed.

    It caches no listings: they would miss objects that other processes, or tensorstore in this one, write.
    """
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else it requests the type of every bucket
    os.environ.setdefault("EPATH_USE_TF", "false")  # else epath takes TensorFlow's client where that is installed
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError:
        raise ValueError(
            f"{SCHEME} paths are read with gcsfs, which is not installed; run: pip install gcsfs"
        ) from None
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # errors are raised; its log would repeat their tracebacks
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.backend.fsspec_backend.fs(SCHEME)


def store_errors() -> Iterator[type[Exception]]:
    """The client's error types that are neither ValueError nor OSError; none in a process that has used no store."""
    if store.cache_info().currsize:
        import aiohttp
        import gcsfs.retry
        import google.auth.exceptions
        import requests

        yield from (gcsfs.retry.HttpError, google.auth.exceptions.GoogleAuthError, aiohttp.ClientError)
        yield from (requests.RequestException, gcsfs.retry.ChecksumError)


@functools.cache
def _check_bucket(bucket: str) -> None:
    client, where = store(), SCHEME + bucket
    try:
        client.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    except FileNotFoundError:
        advice = f"name one that does, or make it: gcloud storage buckets create {where}"
        raise FileNotFoundError(f"the bucket {where} does not exist; {advice}") from None
    except Exception as error:  # the client has error types of its own
        code = getattr(error, "code", None)
        if code == 401:
            raise PermissionError(f"{where} is not public, and no credentials are valid for it; {SIGN_IN}") from None
        if code == 403 or str(error).startswith("Forbidden"):
            raise PermissionError(f"{where}: permission denied; the account needs {RIGHTS} there") from None
        raise OSError(f"{where} cannot be reached: {_reason(error)}; check the network and the credentials") from None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
