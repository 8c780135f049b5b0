"""The audit of a judge: how far can it be trusted, on data whose better answers or labels are known.

`tamis.preferences` reads the file, `asking` asks the judge (both orders, repeats; replies kept by content), `trials` turns
verdicts into arrays, `statistics` and `figures` compute, `words` says it, `page` writes it. `audit` does all of it.
"""

from tamis.audit.run import AuditResult, audit

__all__ = ["AuditResult", "audit"]
