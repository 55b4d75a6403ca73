"""Several control planes under blows: processes, their networks, and what strikes them."""
