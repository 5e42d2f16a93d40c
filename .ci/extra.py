"""Print what an extra of pyproject.toml needs beside this project: `python .ci/extra.py docs`."""

import sys

from lowest import PROJECT

print("\n".join(line for line in PROJECT["optional-dependencies"][sys.argv[1]] if not line.startswith(PROJECT["name"])))
