"""The API generation "companies": the only unit that knows its routes, fields and statuses."""
