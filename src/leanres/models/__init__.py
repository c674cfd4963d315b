"""Networks as small frozen configs: `config.build()` gives the network, `cost` counts it."""
