# The bindings: functions made from the signatures of operators, and what converted models use.
from typing import Any

def __getattr__(name: str) -> Any: ...
