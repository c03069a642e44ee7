"""The resumable migration of one customer through the API generation "companies"."""
