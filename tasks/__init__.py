"""What to learn: every file of this folder is one task, and is on offer by being here."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    # The catalog closes over every task, so it comes after them: with whoever imports it.
    if _module.name != "catalog":
        import_module(f"{__name__}.{_module.name}")
