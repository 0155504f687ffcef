"""Settings of all tests."""

from hypothesis import settings

# the first example pays for imports; speed is measured in benchmarks/
settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("project")
