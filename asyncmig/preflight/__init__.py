"""Checks a customer's files before they are sent.

```python
from asyncmig import preflight

async with asyncmig.Session() as session:
    checked = await preflight.check([Path("contacts.csv")], await session.companies.templates())
for file in checked.files:
    print([warning.text for warning in file.warnings])
```

The check determines the encoding and the delimiter of each file, lists faults of its form, and finds the template
whose columns its headers resemble. It lists the rows that break the template's `required`, `unique`, `strict` and
`link` rules, with line numbers. RE2 (extra `check`) evaluates `strict` rules in linear time, so that no pattern of
the server can block the client.

Every finding is a warning, because the server maps headers and validates cells itself, and may accept the file.
"""

from asyncmig.preflight.findings import Checked, CheckedFile, Finding, HeaderMatch, Kind, Sample
from asyncmig.preflight.scan import check, check_spec

__all__ = ["Checked", "CheckedFile", "Finding", "HeaderMatch", "Kind", "Sample", "check", "check_spec"]
