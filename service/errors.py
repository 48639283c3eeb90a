# ruff: noqa: N818  (the names are those of the API's error codes)
"""What can go wrong with a request: one exception per row of the API's error table.

Whatever the service refuses, wherever it notices, it raises one of these; HTTP and the command line
only translate. `code` is stable and meant for programs, `detail` is one sentence for a person.
"""

from typing import ClassVar


class ServiceError(Exception):
    """Base of all refusals. Subclasses give the stable `code`, the HTTP `status` and a `title`."""

    code: ClassVar[str]
    status: ClassVar[int]
    title: ClassVar[str]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequest(ServiceError):
    """Unreadable JSON, multipart, base64 or parameter; or no image at all."""

    code, status, title = "bad_request", 400, "The request cannot be understood"


class Unauthorized(ServiceError):
    """API keys are configured and none matches."""

    code, status, title = "unauthorized", 401, "A valid API key is needed"


class Forbidden(ServiceError):
    """The route is not for this key, or for nobody."""

    code, status, title = "forbidden", 403, "This is not allowed"


class RequestTimeout(ServiceError):
    """The rest of the request does not come."""

    code, status, title = "request_timeout", 408, "The request did not come to its end"


class TooLarge(ServiceError):
    """Body bytes, pixels or images per request are over the limit."""

    code, status, title = "too_large", 413, "The request is too large"


class UnsupportedMediaType(ServiceError):
    """A type or an image format that is not served."""

    code, status, title = "unsupported_media_type", 415, "This type of content is not served"


class HeadTooLarge(ServiceError):
    """The request line, the headers or the trailers are over the limit."""

    code, status, title = "head_too_large", 431, "The head of the request is too large"


class BadImage(ServiceError):
    """Bytes that do not decode to an image."""

    code, status, title = "bad_image", 422, "The image does not decode"


class BadRegion(ServiceError):
    """A region that is empty or reaches outside its image."""

    code, status, title = "bad_region", 422, "The region is not part of the image"


class Unavailable(ServiceError):
    """Not now: the caller may try again after `retry_after_s` seconds (the `Retry-After` header)."""

    def __init__(self, detail: str, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class RateLimited(Unavailable):
    """The caller sends more images than it may."""

    code, status, title = "rate_limited", 429, "Too many images"


class Overloaded(Unavailable):
    """The queue is full."""

    code, status, title = "overloaded", 503, "The service is overloaded"


class Draining(Unavailable):
    """The process is stopping and takes no new work."""

    code, status, title = "draining", 503, "The service is shutting down"


class NotReady(Unavailable):
    """The process is starting: the model is not loaded and warmed yet."""

    code, status, title = "not_ready", 503, "The service is not ready yet"


class DeadlineExceeded(ServiceError):
    """The caller's or the server's deadline passed before there was an answer."""

    code, status, title = "deadline_exceeded", 504, "The deadline passed"


class Internal(ServiceError):
    """A fault of ours."""

    code, status, title = "internal", 500, "Internal error"


class Unimplemented(ServiceError):
    """A part of HTTP that is not served."""

    code, status, title = "not_implemented", 501, "This part of HTTP is not served"
