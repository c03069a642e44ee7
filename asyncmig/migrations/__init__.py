"""The API generation "migrations": `session.migrations` and its handles."""
