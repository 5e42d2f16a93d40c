"""Compiled programs: ordinary models whose whole computation is known, since it was written down first.

```python
from assay.testing.compiled import compile_program, known_program

known = known_program("induction")
made = compile_program(known.output, known.length, family=known.family)
made.subject, made.task(), made.edges
made.program(["a", "b", "a"])  # what the model says at every word: none, none, b
```

A program is a variable made of others: `Tokens`, `Positions`, `Aggregate`, `Count`, `Zip`. `Interpreted(made)` is its
exact explanation: whatever measures faithfulness has to say so.
"""

from assay.testing.compiled._compile import compile_program
from assay.testing.compiled._compiled import Compiled, CompiledTask, effects
from assay.testing.compiled._interpreted import Interpreted
from assay.testing.compiled._known import KNOWN_PROGRAMS, Known, known_program
from assay.testing.compiled._nodes import Aggregate, Count, Family, Node, Positions, Program, Tokens, Value, Zip

__all__ = [
    "KNOWN_PROGRAMS",
    "Aggregate",
    "Compiled",
    "CompiledTask",
    "Count",
    "Family",
    "Interpreted",
    "Known",
    "Node",
    "Positions",
    "Program",
    "Tokens",
    "Value",
    "Zip",
    "compile_program",
    "effects",
    "known_program",
]
