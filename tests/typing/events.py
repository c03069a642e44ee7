"""What type checkers infer for a stream of several kinds of events."""

from typing import assert_type

import asyncmig
from asyncmig.events import AttemptFailed, EventStream, MigrationChanged, Recovered


def streams(session: asyncmig.Session) -> None:
    assert_type(session.events.open(Recovered), EventStream[Recovered])
    assert_type(session.events.open(Recovered, MigrationChanged), EventStream[Recovered | MigrationChanged])
    assert_type(
        session.events.open(Recovered, MigrationChanged, AttemptFailed, buffer=5),
        EventStream[Recovered | MigrationChanged | AttemptFailed],
    )
