"""python -m fastenh: the command line."""

from fastenh.cli import main

main(prog_name="fastenh")
