"""A Migration API to try things against: the whole contract, in this process, on loopback.

It knows the contract and nothing of the client.
"""

from asyncmig.simulator.app import Serving, serve
from asyncmig.simulator.clock import fast_loop
from asyncmig.simulator.data import SCHEMAS, SOURCES, Plan, generate
from asyncmig.simulator.faults import FAULTS, Fault, Faults
from asyncmig.simulator.ledger import Entry, Ledger, Verdict
from asyncmig.simulator.limits import FixedWindow, RateLimit, SlidingCounter, SlidingLog, TokenBucket
from asyncmig.simulator.messages import Reply, Request
from asyncmig.simulator.profiles import PROFILES, Profile
from asyncmig.simulator.routes import endpoint_of
from asyncmig.simulator.runs import Pace
from asyncmig.simulator.sender import send
from asyncmig.simulator.tables import Column, Schema
from asyncmig.simulator.variants import VARIANTS, Variants
from asyncmig.simulator.webhooks import DEFECTS, Webhook, Workbook, disordered, export_webhooks
from asyncmig.simulator.world import World

__all__ = [
    "DEFECTS",
    "FAULTS",
    "PROFILES",
    "SCHEMAS",
    "SOURCES",
    "VARIANTS",
    "Column",
    "Entry",
    "Fault",
    "Faults",
    "FixedWindow",
    "Ledger",
    "Pace",
    "Plan",
    "Profile",
    "RateLimit",
    "Reply",
    "Request",
    "Schema",
    "Serving",
    "SlidingCounter",
    "SlidingLog",
    "TokenBucket",
    "Variants",
    "Verdict",
    "Webhook",
    "Workbook",
    "World",
    "disordered",
    "endpoint_of",
    "export_webhooks",
    "fast_loop",
    "generate",
    "send",
    "serve",
]
