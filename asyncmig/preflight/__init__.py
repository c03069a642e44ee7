"""Check a customer's files before anything is sent.

```python
from asyncmig import preflight

async with asyncmig.Session() as session:
    checked = await preflight.check([Path("contacts.csv")], await session.companies.templates())
for file in checked.files:
    print([warning.text for warning in file.warnings])
```

The check finds the encoding, the delimiter and the form of each file, the template that its headers resemble, and
the rows that break the template's `required`, `unique`, `strict` and `link` rules, with line numbers. `strict`
rules are run by RE2 (extra `check`), so that no pattern of the server can hang the client.

Every finding is a warning: the server maps headers and judges cells itself, and may accept the file nevertheless.
"""

from asyncmig.preflight.findings import Checked, CheckedFile, Finding, HeaderMatch, Kind, Sample
from asyncmig.preflight.scan import check, check_spec

__all__ = ["Checked", "CheckedFile", "Finding", "HeaderMatch", "Kind", "Sample", "check", "check_spec"]
