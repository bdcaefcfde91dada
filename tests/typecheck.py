"""What the jaxtyping import hook checks with: beartype, and an int passes for a float (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
