"""`python -m qlora_lab.cli`, which is `qlora-lab`."""

from qlora_lab.cli.commands import main

main()
