"""The server of any API generation: HTTP, faults, rate limits, the ledger and the clock."""
