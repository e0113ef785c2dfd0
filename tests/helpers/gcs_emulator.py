"""An emulator of Google Cloud Storage in a process of its own, for tests.

`gcp-storage-emulator` keeps objects as files of a folder. It lacks what the service has and clients rely on, which is
added here: an object's generation in the header of its download, preconditions of writes (tensorstore), the move of an
object (gcsfs), and names that are no paths of files, such as that of an object which ends in / or goes on in others.
Two buckets answer as those of others do. As a program, `python -m tests.helpers.gcs_emulator FOLDER` serves the folder
and prints its port.
"""

import contextlib
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path

BUCKET = "test-bucket"
FORBIDDEN, UNKNOWN_CALLER = "forbidden-bucket", "unknown-caller-bucket"
REFUSALS = {FORBIDDEN: HTTPStatus.FORBIDDEN, UNKNOWN_CALLER: HTTPStatus.UNAUTHORIZED}


@contextlib.contextmanager
def emulator(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of programs that shall find the emulator in the place of the service."""
    command = [sys.executable, "-m", "tests.helpers.gcs_emulator", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            host = f"http://127.0.0.1:{int(process.stdout.readline())}"
            yield {
                "STORAGE_EMULATOR_HOST": host,  # of gcsfs
                "TENSORSTORE_GCS_HTTP_URL": host,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",  # tensorstore looks for no other credentials then
            }
        finally:
            process.kill()


def _complete(function, *, changes: bool):
    """A handler of the emulator with the preconditions and headers of the service."""

    def handle(request, response, storage, *args, **kwargs):
        bucket, name = request.params["bucket_name"], request.params.get("object_id")
        if bucket in REFUSALS:
            response.status = REFUSALS[bucket]
            response.json({"error": {"code": int(response.status), "message": f"no access to {bucket}"}})
            return
        if not name and changes:  # of an upload, in the address or beside the content
            meta = request.data.get("meta", request.data) if isinstance(request.data, dict) else {}
            name = request.query.get("name", [meta.get("name")])[0]
        if (wanted := request.query.get("ifGenerationMatch")) and wanted[0] != _generation(storage, bucket, name):
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
        function(request, response, storage, *args, **kwargs)
        if not changes and name:
            response["X-Goog-Generation"] = _generation(storage, bucket, name)

    return handle


def _one_at_a_time(handle):
    """The emulator's storage is not made for threads, and a server without them waits for clients that say nothing."""
    lock = threading.Lock()

    def locked(router, method):
        with lock:
            handle(router, method)

    return locked


def _generation(storage, bucket: str, name: str) -> str:
    from gcp_storage_emulator.exceptions import NotFound

    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"


def _move(request, response, storage, *args, **kwargs):
    bucket, old, new = (request.params[key] for key in ("bucket_name", "object_id", "new_id"))
    if _generation(storage, bucket, old) == "0":
        response.status = HTTPStatus.NOT_FOUND
        return
    about = storage.get_file_obj(bucket, old) | {"name": new}
    storage.create_file(bucket, new, storage.get_file(bucket, old), about)
    storage.delete_file(bucket, old)
    response.json(about)


def _serve(folder: str) -> None:
    from gcp_storage_emulator.handlers import objects

    for name in ("get", "ls", "download"):
        setattr(objects, name, _complete(getattr(objects, name), changes=False))
    for name in ("insert", "delete", "compose"):
        setattr(objects, name, _complete(getattr(objects, name), changes=True))
    from gcp_storage_emulator import server  # its table of handlers takes the functions as they are now
    from gcp_storage_emulator.handlers.buckets import create_bucket
    from gcp_storage_emulator.storage import Storage

    move = r"^/storage/v1/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>.+)/moveTo/o/(?P<new_id>.+)$"
    server.HANDLERS = ((move, {server.POST: _move}), *server.HANDLERS)
    Storage._object_path = lambda self, bucket, name: f"{bucket}/{urllib.parse.quote(name, safe='')}"
    storage = Storage(data_dir=folder)
    create_bucket(BUCKET, storage)
    server.Router.handle = _one_at_a_time(server.Router.handle)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: server.RequestHandler(storage, *args))
    print(httpd.server_port, flush=True)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  as long as the process
    httpd.serve_forever()


if __name__ == "__main__":
    _serve(sys.argv[1])
