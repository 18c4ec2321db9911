"""What all tests share."""

from __future__ import annotations

import sys
from pathlib import Path

# tests import their own helpers (tests/tiny.py) by name
sys.path.insert(0, str(Path(__file__).parent))
