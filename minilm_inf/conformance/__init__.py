"""Hold any kernel of attention.attend's signature to the definition: check(kernel)."""

from .asking import Finding, Report, check

__all__ = ["Finding", "Report", "check"]
