"""etcd, as several control planes share it: keys, transactions and leases, by blocking calls."""
