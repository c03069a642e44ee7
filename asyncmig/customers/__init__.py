"""The types that every API generation shares: specs, questions, decisions, options, outcomes."""
