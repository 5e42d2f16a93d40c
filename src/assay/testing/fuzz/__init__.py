"""Long fuzzes as a command: `python -m assay.testing.fuzz NAME --minutes 60 --seed 1`.

Each part of Assay that is fuzzed has a module here with `run(seed, minutes, say)`, which tries cases for so long
or until a KeyboardInterrupt, reports how far it is to `say`, and returns what it tried as a list of `Tried`.
"""

from assay.testing.fuzz._tried import Tally, Tried

__all__ = ["Tally", "Tried"]
