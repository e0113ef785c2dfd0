"""The page at `/`: files of this package, under a policy that lets nothing else load or run."""

from pathlib import Path

from starlette.responses import Response

FILES = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_files() -> dict[str, tuple[bytes, str]]:
    """{path at the server: (content, media type)}."""
    files = {f"/page/{file.name}": file for file in sorted(FILES.iterdir()) if file.suffix in TYPES}
    files["/"] = files.pop("/page/index.html")
    return {path: (file.read_bytes(), TYPES[file.suffix]) for path, file in files.items()}


def page_response(content: bytes, media_type: str) -> Response:
    """The response of a file of the page."""
    return Response(content, headers=HEADERS, media_type=media_type)
