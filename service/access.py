"""Who may call, and how much: what stands before every route that does work."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from service.errors import Forbidden, Unauthorized
from service.keys import Keys, KeysError
from service.metrics import Metrics
from service.rate_limit import RateLimit
from service.settings import Settings

logger = logging.getLogger(__name__)

_bearer = HTTPBearer(auto_error=False, description="One of the service's API keys, where it has any.")
_key_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same, in a header of its own.")


class Access:
    """API keys and the rate limit. A route takes `Depends(access.guard)`, or calls `authorise`, and calls `charge` as
    soon as it knows how many images it was sent; one that changes the service takes `Depends(access.guard_admin)`. An
    admin key is good for all routes. Raises KeysError."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._keys = Keys(settings.api_keys, settings.api_keys_file)
        self._admin_keys = Keys(settings.admin_keys, settings.admin_keys_file, prefix="admin-")
        self._rate = RateLimit(settings.rate_limit_per_minute) if settings.rate_limit_per_minute else None
        self._metrics = metrics

    @property
    def has_admins(self) -> bool:
        """Whether there is anybody who may change the service."""
        return bool(self._admin_keys)

    def reload(self) -> None:
        """Reads the files of keys again; one that is not in order is reported in the log and changes nothing."""
        for kind, keys in (("API", self._keys), ("admin", self._admin_keys)):
            try:
                count = keys.reload()
            except KeysError as error:
                logger.error("the %s keys stay as they were: %s", kind, error)
            else:
                logger.info("%d %s keys are in use", count, kind)

    async def guard(
        self,
        request: Request,
        _bearer: Annotated[object, Depends(_bearer)],
        _header: Annotated[object, Depends(_key_header)],
    ) -> None:
        """`authorise`, for a route; the two schemes are there for `/openapi.json`."""
        self.authorise(request)

    def authorise(self, request: Request) -> None:
        """Before the body is read. Raises Unauthorized or RateLimited; leaves the key's name in `request.state.key`."""
        request.state.key = None
        if self._keys:
            offers = _offers(request)
            request.state.key = self._keys.name_of(offers) or self._admin_keys.name_of(offers)
            if request.state.key is None:
                raise Unauthorized("give a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        if self._rate:
            self._rate.take(_caller(request), 0)

    async def guard_admin(
        self,
        request: Request,
        _bearer: Annotated[object, Depends(_bearer)],
        _header: Annotated[object, Depends(_key_header)],
    ) -> None:
        """As `guard`, for admin keys alone. Raises Forbidden where there are none, and for a key that is none."""
        if not self._admin_keys:
            raise Forbidden("this is off; to turn it on, set admin_keys or admin_keys_file")
        offers = _offers(request)
        request.state.key = self._admin_keys.name_of(offers)
        if request.state.key is None:
            request.state.key = self._keys.name_of(offers)
            if request.state.key is not None:
                raise Forbidden("an admin key is needed, and this API key is none")
            raise Unauthorized("an admin key is needed: `Authorization: Bearer KEY` or `X-API-Key: KEY`")

    def charge(self, request: Request, images: int) -> None:
        """Counts the images of an authorised request before they cost anything; raises RateLimited."""
        request.state.images = images
        if self._rate:
            self._rate.take(_caller(request), images)
        if request.state.key is not None:
            self._metrics.observe_key(request.state.key, images)


def _offers(request: Request) -> list[bytes]:
    scheme, credentials = get_authorization_scheme_param(request.headers.get("Authorization"))
    bearer = credentials if scheme.lower() == "bearer" else ""
    # Headers are decoded as Latin-1; this gives back the bytes that were sent.
    return [key.encode("latin-1") for key in (bearer, request.headers.get(_key_header.model.name, "")) if key]


def _caller(request: Request) -> str:
    """Whose rate it is: the key's name, or else the address."""
    return request.state.key or (request.client.host if request.client else "")
