"""The server side of the API generation "companies"."""
