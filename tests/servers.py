"""Object stores on loopback, as packages bring them, for tests of paths in buckets."""

import contextlib
import functools
import http
import http.server
import socket
import threading
from collections.abc import Callable, Iterator


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@contextlib.contextmanager
def gcs_server(bucket: str) -> Iterator[dict[str, str]]:
    """A server of gs:// with a bucket; yields the environment that points its users there."""
    from gcp_storage_emulator import server as emulator

    emulator.HANDLERS = [
        (path, {method: _complete(handler) for method, handler in methods.items()})
        for path, methods in emulator.HANDLERS
    ]
    port = free_port()
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket=bucket)
    server.start()
    url = f"http://127.0.0.1:{port}"
    try:
        yield {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
    finally:
        server.stop()


def _complete(handler: Callable[..., object]) -> Callable[..., object]:
    """A handler of the emulator with what it leaves out of the service: generations in headers, and conditions on them.

    TensorStore needs the first, and locks need the second.
    """
    if handler.__name__ not in ("download", "get", "insert"):
        return handler

    @functools.wraps(handler)
    def complete(request, response, storage, *words, **options):  # type: ignore[no-untyped-def]
        name = request.params.get("object_id") or (request.query.get("name") or [""])[0]
        if not name and "multipart" in request.query.get("uploadType", ()):
            name = request.data["meta"]["name"]
        try:
            generation = storage.get_file_obj(request.params["bucket_name"], name)["generation"]
        except Exception:  # it has its own for a missing object
            generation = "0"
        wanted = (request.query.get("ifGenerationMatch") or [generation])[0]
        if handler.__name__ == "insert" and wanted != generation:
            response.status = http.HTTPStatus.PRECONDITION_FAILED
            response.json({"error": {"code": 412, "message": "conditionNotMet"}})
            return
        handler(request, response, storage, *words, **options)
        if handler.__name__ != "insert":
            response["x-goog-generation"] = generation

    return complete


@contextlib.contextmanager
def s3_server(bucket: str) -> Iterator[dict[str, str]]:
    """A server of s3:// with a bucket; yields the environment that points its users there."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "s3cr3t-of-somebody"}
    try:
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=bucket)
        yield keys | {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
    finally:
        server.stop()


@contextlib.contextmanager
def answering(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """An HTTP server that answers every GET by a function; yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                answer(self)

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
