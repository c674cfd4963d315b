"""`python -m hostile` in tests/faults: all inputs, their figures as JSON."""

import json

from hostile import main

print(json.dumps(main(), indent=1))
