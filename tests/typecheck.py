"""What the jaxtyping import hook checks with: beartype, with PEP 484's rule that int passes as float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
