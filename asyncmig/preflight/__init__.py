"""Check a customer's files before they are sent.

```python
from asyncmig import preflight

async with asyncmig.Session() as session:
    checked = await preflight.check([Path("contacts.csv")], await session.companies.templates())
for file in checked.files:
    print([warning.text for warning in file.warnings])
```

The check determines the encoding and the delimiter of each file, finds faults of its form, and finds the template
that its headers resemble. It lists the rows that break the template's `required`, `unique`, `strict` and `link`
rules, with line numbers. `strict` rules are run by RE2 (extra `check`), so that no pattern of the server can block
the client.

Every finding is a warning: the server maps headers and validates cells itself, and may accept the file.
"""

from asyncmig.preflight.findings import Checked, CheckedFile, Finding, HeaderMatch, Kind, Sample
from asyncmig.preflight.scan import check, check_spec

__all__ = ["Checked", "CheckedFile", "Finding", "HeaderMatch", "Kind", "Sample", "check", "check_spec"]
