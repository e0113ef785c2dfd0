"""Errors of the server in OpenAI's form."""

import dataclasses
import re
from typing import Any

FIELD = re.compile(r"[A-Za-z_]\w*(?:\[\d+\]|\.\w+)*")  # such as messages[0].content
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


@dataclasses.dataclass
class ApiError(Exception):
    """A request that is not answered: an HTTP status, and what the body says about it."""

    status: int
    message: str
    param: str | None = None  # the field of the request
    code: str | None = None

    def body(self) -> dict[str, Any]:
        """{"error": {message, type, param, code}}."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_value(error: Exception, param: str) -> ApiError:
    """The 400 of an error about a field; a message that begins with a longer name of the field names that one."""
    message = str(error)
    found = FIELD.match(message)
    if found and found[0].startswith(param):
        return ApiError(400, message, found[0])
    return ApiError(400, f"{param}: {message}", param)
