"""No timing decides a test: how long an example takes says how busy the machine is."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("without-a-clock", deadline=None)
settings.load_profile("without-a-clock")
