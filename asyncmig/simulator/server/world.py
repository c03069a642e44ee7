"""What the accounts of all API generations share: addresses, ids, the ledger, and the path of a request."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from random import Random
from typing import Generic, TypeVar, cast

from asyncmig.simulator.server.ledger import Entry, Ledger
from asyncmig.simulator.server.messages import (
    Json,
    Refusal,
    Reply,
    Request,
    Routes,
    drifted,
    json_reply,
    new_uuid,
)
from asyncmig.simulator.server.settings import BaseVariants, RunDurations

__all__ = ["BaseWorld", "Ids"]

Ids = Mapping[str, str]
"""The ids in the path of a request, by their names in the route template."""
V = TypeVar("V", bound=BaseVariants)


class BaseWorld(ABC, Generic[V]):
    """One account of an API: it takes a request and `now`, and returns a reply. It knows the contract and no client.

    The code that serves the world sets `base_url` (the prefix of all URLs of the API) and `storage_url` (the origin
    of signed URLs).
    """

    routes: Routes

    def __init__(self, *, key: str, seed: int, pace: RunDurations | None, variants: V) -> None:
        self.key: str = key
        self.seed: int = seed
        self.rng: Random = Random(seed)
        self.pace: RunDurations = pace or RunDurations()
        self.variants: V = variants
        self.ledger: Ledger = Ledger()
        self.base_url: str = "https://api.invalid/api/v1"
        self.storage_url: str = "https://storage.invalid"

    def endpoint_of(self, request: Request) -> str:
        """Return method and route template of a request; `PUT storage` for an upload."""
        found = self.routes.find(request)
        return found[0] if found else f"{request.method} storage"

    def handle(self, request: Request, now: float) -> Reply:
        """Respond to a request to the API's host."""
        found = self.routes.find(request)
        if found is None:
            return json_reply(404, {"error": "No such route"})
        endpoint, ids = found
        try:
            if request.headers.get("x-api-key") != self.key:
                raise Refusal(401, "Invalid API key")
            reply = self._respond(endpoint, request, ids, now)
        except Refusal as refusal:
            self.ledger.refusals[refusal.status] += refusal.is_avoidable
            reply = self._refuse(refusal, now)
        method, _, template = endpoint.partition(" ")
        self.ledger.entries.append(
            Entry(at=now, method=method, template=template, ids=ids, status=reply.status)
        )
        return reply

    @abstractmethod
    def storage(self, request: Request, now: float) -> Reply:
        """Respond to a request to the storage's host."""

    @abstractmethod
    def _respond(self, endpoint: str, request: Request, ids: Ids, now: float) -> Reply:
        """Respond to a request with the right key. Raises `Refusal`."""

    @abstractmethod
    def _refuse(self, refusal: Refusal, now: float) -> Reply:
        """Return an error response, as the variants shape it."""

    # What routes share

    def new_id(self) -> str:
        """Return a new id in the form of a UUID."""
        return new_uuid(self.rng)

    def shown(self, status: int, value: object) -> Reply:
        """Return a JSON reply, as this version of the API sends it."""
        if self.variants.drift and isinstance(value, dict):
            fields = cast("Json", value)
            lists = {name: each for name, each in fields.items() if each == []}  # they are the whole answer
            value = {**cast("Json", drifted(fields)), **lists}
        return json_reply(status, value)
