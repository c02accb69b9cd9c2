"""The suite. A package, so that it is this one and not the `tests` that draccus installs."""
