"""The shell around `_core`: every await of the library's own machinery lives here."""
