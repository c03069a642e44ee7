"""Several processes that use one API key: what they share. Each module needs the extra of its name."""
