"""The operations, one folder each: see ``fastenh_kernels.operation`` for what a folder holds."""
