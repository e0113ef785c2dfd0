"""Files in gs:// appear whole, are summed by the store, and what keeps a program from a bucket is one line."""

import sys

import aiohttp
import fsspec
import gcsfs
import pytest

from ling_jax import files, paths, preflight, sums
from ling_jax.paths import as_path
from ling_jax.sums import DamagedFile
from tests.helpers.gcs_emulator import BUCKET, FORBIDDEN, UNKNOWN_CALLER


@pytest.mark.parametrize(
    "url", ["s3://a/b", "hf://a/b", "az://a", "http://a/b", "https://a/b", "file:///a", "GS://a/b"]
)
def test_another_scheme_is_refused_by_name(url):
    scheme = url.partition(":")[0]
    with pytest.raises(ValueError, match=rf"^{url}: {scheme}:// is not supported; name a local path, .* or gs://"):
        as_path(url)


@pytest.mark.parametrize("url", ["gs://", "gs:///a", "gs://A/b", "gs://a b/c", "gs://x"])
def test_what_is_no_bucket_is_refused_by_name(url):
    with pytest.raises(ValueError, match=r"is no name of a bucket; expected gs://bucket/folder"):
        as_path(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs:/a/b", "gs:/a/b: a path in a store begins with gs://; expected gs://bucket/folder"),
        ("gs:a/b", "gs:a/b: a path in a store begins with gs://"),
        ("gs://abc/a/../b", "no store has a name with '..' or a line break; name the folder itself"),
        ("gs://abc/a\nb", "no store has a name with '..' or a line break"),
    ],
)
def test_what_is_no_path_of_a_store_is_refused(url, message):
    with pytest.raises(ValueError, match=message) as error:
        as_path(url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("check", [preflight.check_folder, preflight.check_new])
@pytest.mark.parametrize(
    ("below", "message"),
    [("", "is a whole bucket"), ("/a*b", "clients take [*] for a pattern"), ("/[/b", "take"), ("/a#1", "take # for")],
)
def test_no_output_is_a_whole_bucket_or_has_a_name_that_clients_take_for_others(object_store, check, below, message):
    with pytest.raises(ValueError, match=message):
        check(f"gs://{BUCKET}{below}")


def put(url, content=b""):
    """An object of any name; paths have none that ends in /."""
    client, (bucket, _, name) = paths.store(), url.removeprefix("gs://").partition("/")
    fsspec.asyn.sync(client.loop, gcsfs.core.simple_upload, client, bucket, name, content)


def test_an_empty_folder_that_the_console_made_is_empty(gs):
    put(f"{gs}/made/")
    assert paths.is_new(gs / "made") and paths.is_new(gs / "not_there") and paths.files_below(gs / "made") == []
    with files.new_folder(gs / "made") as folder:
        (folder / "a").write_bytes(b"1")
    assert not paths.is_new(gs / "made") and not paths.is_new(gs / "made" / "a")
    assert paths.files_below(gs) == ["made/a"] and paths.names_in(gs / "made") == ["a"]
    put(f"{gs}/made/a/b")  # an object and a folder of one name
    assert paths.names_in(gs / "made" / "a") == ["b"] and paths.names_in(gs / "made" / "a" / "b") == []


@pytest.mark.parametrize("name", ["../../x", "a//b", "/etc/x", "a/./b"])
def test_an_object_that_would_be_a_file_elsewhere_is_named_and_not_copied(gs, tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    put(f"{gs}/{name}", b"1")
    with pytest.raises(ValueError, match="which can be no file below a folder; remove or rename it"):
        sums.local_copy(gs)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("bucket", "message"),
    [
        ("no-such-bucket", r"the bucket gs://no-such-bucket does not exist; name one that does, or make it: gcloud"),
        (FORBIDDEN, f"gs://{FORBIDDEN}: permission denied; the account needs storage.objects.list, get, create"),
        (UNKNOWN_CALLER, "no credentials are valid for it; run `gcloud auth application-default login`"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_named_with_what_to_do(object_store, bucket, message):
    with pytest.raises(OSError, match=message) as error:
        as_path(f"gs://{bucket}/run")
    assert "\n" not in str(error.value)


def test_without_gcsfs_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    paths.store.cache_clear()
    with pytest.raises(
        ValueError, match=r"gs:// paths are read with gcsfs, which is not installed; run: pip install gcsfs"
    ):
        as_path("gs://a-bucket-that-was-not-asked-for/run")


def test_a_file_appears_when_it_is_whole(gs):
    with pytest.raises(RuntimeError), files.replacing(gs / "a") as file:
        file.write(b"half")
        raise RuntimeError
    assert not (gs / "a").exists()
    files.write_json({"a": 1}, gs / "a b.json")
    assert files.read_object(gs / "a b.json") == {"a": 1}
    assert paths.files_below(gs) == ["a b.json"]


def test_a_folder_appears_at_the_end_with_the_file_that_was_written_last_behind_the_others(gs, monkeypatch):
    with pytest.raises(RuntimeError), files.new_folder(gs / "x") as folder:
        (folder / "a").touch()
        raise RuntimeError
    assert not paths.objects_in(gs / "x")
    sent = []
    monkeypatch.setattr(files, "upload", lambda file, target: sent.append(target.name))
    with files.new_folder(gs / "x") as folder:
        for name in ("b", "c", "a"):
            (folder / name).write_bytes(b"")
            with (folder / name).open("ab") as file:
                file.write(b"x" * 100)
    assert sorted(sent) == ["a", "b", "c"]
    monkeypatch.undo()
    files.write_json({}, gs / "x" / "there")
    with pytest.raises(FileExistsError, match="x exists; name a new folder"), files.new_folder(gs / "x"):
        pass


def test_logs_grow_by_what_is_appended(gs):
    for line in (b"1\n", b"2\n", b"3\n"):
        paths.append(gs / "log.jsonl", line)
    assert (gs / "log.jsonl").read_bytes() == b"1\n2\n3\n"
    assert paths.files_below(gs) == ["log.jsonl"]


def test_a_log_grows_once_where_the_answer_of_the_store_is_lost(gs, monkeypatch):
    paths.append(gs / "log", b"1\n")
    check, lost = gcsfs.core.validate_response, []

    def lose(status, content, path, args=None):
        if path.endswith("/compose") and not lost:
            lost.append(status)
            raise aiohttp.ClientError
        check(status, content, path, args)

    monkeypatch.setattr(gcsfs.core, "validate_response", lose)
    paths.append(gs / "log", b"2\n")
    assert lost == [200] and (gs / "log").read_bytes() == b"1\n2\n"


def test_sums_of_a_store_are_those_of_the_bytes_and_name_what_is_not_as_it_was(gs, tmp_path):
    content = {"log": b"1\n2\n", "in/a": b"a" * 1000, "in/empty": b""}
    for folder in (gs, tmp_path):
        for name, value in content.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(value)
    wanted = sums.sums_of(gs, content)
    assert wanted == sums.sums_of(tmp_path, content)
    sums.compare(gs, wanted)
    paths.append(gs / "log", b"3\n")
    sums.compare(gs, wanted, may_be_longer=True)
    with pytest.raises(DamagedFile, match="log has 6 bytes; 4 were written"):
        sums.compare(gs, wanted)
    (gs / "log").write_bytes(b"1\n9\n3\n")
    with pytest.raises(DamagedFile, match="log has changed since it was written: its crc32c is"):
        sums.compare(gs, wanted, may_be_longer=True)
    (gs / "log").write_bytes(content["log"])
    (gs / "in" / "a").write_bytes(b"a" * 999 + b"b")
    with pytest.raises(DamagedFile, match="in/a has changed since it was written: its crc32c is"):
        sums.compare(gs, wanted)
    (gs / "in" / "a").unlink()
    for compared in (lambda: sums.compare(gs, wanted), lambda: sums.sums_of(gs, content)):
        with pytest.raises(DamagedFile, match="in/a cannot be read: it is not there"):
            compared()


def test_a_folder_is_copied_to_this_machine_once_until_it_changes(gs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (gs / "in" / "a").write_bytes(b"1")
    copy = sums.local_copy(gs)
    assert (copy / "in" / "a").read_bytes() == b"1"
    (copy / "beside").touch()
    assert sums.local_copy(gs) == copy and (copy / "beside").exists()
    (copy / "in" / "a").write_bytes(b"3")
    assert sums.local_copy(gs) == copy and (copy / "in" / "a").read_bytes() == b"1"
    assert "in/a has changed since it was written: its crc32c is" in capsys.readouterr().err
    (gs / "in" / "a").write_bytes(b"2")
    assert (sums.local_copy(gs) / "in" / "a").read_bytes() == b"2"
    assert sums.local_copy(tmp_path) == tmp_path
