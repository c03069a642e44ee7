"""The parts of `asyncmig.webhooks`: signature, payload, reassembly."""
