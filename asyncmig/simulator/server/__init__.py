"""What serves any generation of the API: HTTP, faults, rate limits, the ledger and the clock."""
