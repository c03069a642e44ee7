"""Look at a customer's files before anything is sent: how they read, and what may be wrong with them.

    checked = await asyncmig.preflight.check([Path("contacts.csv")], await session.companies.templates())

Everything found is a warning: the server maps headers and judges cells by itself, and may take it all the same.
"""

from asyncmig.preflight.findings import Checked, CheckedFile, Finding, HeaderMatch, Kind, Sample
from asyncmig.preflight.scan import check, check_spec

__all__ = ["Checked", "CheckedFile", "Finding", "HeaderMatch", "Kind", "Sample", "check", "check_spec"]
