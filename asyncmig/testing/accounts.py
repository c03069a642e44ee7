"""Checks the options of a simulated account, and makes the account, for each API generation."""

from collections.abc import Callable, Iterable, Mapping
from typing import cast

from asyncmig._core.limits import Limits, Rate
from asyncmig.errors import InvalidInput
from asyncmig.session import Scope
from asyncmig.simulator import (
    Fails,
    Parks,
    RateLimit,
    RunDurations,
    Schema,
    Script,
    Variants,
    World,
    migrations,
)

__all__ = ["client_limits", "companies_account", "migrations_account"]


def companies_account(
    *,
    key: str,
    seed: int,
    variants: object,
    customers: Mapping[str, object],
    pace: RunDurations,
    limit: Callable[[], RateLimit],
    scope: Scope,
    sources: object,
    schemas: Iterable[object],
) -> World:
    """Return an account of the generation "companies". Raises `InvalidInput`."""
    scripts: dict[str, Script] = {}
    for name, script in customers.items():
        if not isinstance(script, Script):
            raise InvalidInput("customers", name, "must have a script: `Parks(...)` or `Fails(...)`")
        scripts[name] = script
    kinds = tuple(schemas)
    if not isinstance(sources, Mapping):
        raise InvalidInput("sources", sources, "must map ids to names")
    if not all(isinstance(each, Schema) for each in kinds):
        raise InvalidInput("schemas", kinds, "must be of `asyncmig.simulator.Schema`")
    if not isinstance(variants, Variants | None):
        raise InvalidInput("variants", variants, "must be `asyncmig.simulator.Variants`")
    return World(
        key=key,
        sources=cast("Mapping[str, str]", sources),
        schemas=cast("tuple[Schema, ...]", kinds),
        seed=seed,
        limit=limit,
        scope=scope,
        pace=pace,
        variants=variants,
        customers=scripts,
    )


def migrations_account(
    *,
    key: str,
    seed: int,
    variants: object,
    customers: Mapping[str, object],
    pace: RunDurations,
    limits: migrations.Limits | str | None,
    plan: bool,
    sources: Iterable[object],
    schemas: Iterable[object],
) -> migrations.World:
    """Return an account of the generation "migrations". Raises `InvalidInput`."""
    names, kinds = tuple(sources), tuple(schemas)
    if not all(isinstance(each, str) for each in names):
        raise InvalidInput("sources", names, "must be names")
    if not all(isinstance(each, migrations.Schema) for each in kinds):
        raise InvalidInput("schemas", kinds, "must be of `asyncmig.simulator.migrations.Schema`")
    if not isinstance(variants, migrations.Variants | None):
        raise InvalidInput("variants", variants, "must be `asyncmig.simulator.migrations.Variants`")
    try:
        chosen = migrations.Limits.parse(limits) if isinstance(limits, str) else limits
    except ValueError as error:
        raise InvalidInput("limits", limits, str(error)) from error
    return migrations.World(
        key=key,
        sources=cast("tuple[str, ...]", names),
        schemas=cast("tuple[migrations.Schema, ...]", kinds),
        seed=seed,
        limits=chosen,
        pace=pace,
        variants=variants,
        scripts={name: _scripted(name, script) for name, script in customers.items()},
        plan=plan,
    )


def _scripted(name: str, script: object) -> migrations.Script:
    """Return the agent's script for one customer. `Parks` and `Fails` apply to `generate`."""
    if isinstance(script, migrations.Script):
        return script
    if isinstance(script, Fails):
        return migrations.Script(fails={"generate": script.error}, times=script.times)
    if not isinstance(script, Parks):
        raise InvalidInput(
            "customers", name, "must have a script: `Parks(...)`, `Fails(...)` or `Script(...)`"
        )
    questions = tuple(
        migrations.Question(text=ask.prompt, options=ask.options, allow_custom=ask.allow_custom)
        for ask in script.asks
    )
    return migrations.Script(blocks={"generate": [migrations.Block(questions=questions)]})


def client_limits(limits: migrations.Limits) -> Limits:
    """Return an account's limits, as a client needs them."""
    return Limits(
        budgets={name: Rate(*rate) for name, rate in limits.rates.items()},
        endpoint=Rate(*limits.endpoint),
        key=None if limits.key is None else Rate(*limits.key),
        runs=limits.runs,
    )
