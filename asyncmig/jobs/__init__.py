"""What drives customers of any API generation: fleet, plan, status, manifest."""
