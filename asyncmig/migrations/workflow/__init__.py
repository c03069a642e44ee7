"""The resumable migration of one customer with the API generation "migrations"."""
