"""Refused requests in the format of OpenAI's errors."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that is answered with a status and an error.

    status    the HTTP status
    code      a word for programs
    param     the field of the request that is wrong
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def wrong(param: str, message: str) -> ApiError:
    """The error of a field with a value that is refused."""
    return ApiError(400, f"{param}: {message}", "invalid_value", param)
