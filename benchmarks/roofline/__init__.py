"""Machine code of the kernels, counted: tools, not run time."""
